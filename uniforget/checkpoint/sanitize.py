"""Sanitized checkpoints: masks and subspaces folded into a model's file, and the proof of it.

A file keeps its tensors, dtypes, order and metadata; what nothing acts on stays byte for byte. The result is what Apply Memorization
Mask and ComfyUI's own saving give: weights are changed in float32 and rounded once to the stored dtype.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__, atomic, outputs, untrusted
from ..errors import ModelFileError
from ..mask.edit import Chain
from ..model.families.schema import KINDS
from ..model.fingerprint import same_base
from . import safefile
from .denoiser import find_denoisers
from .fileplan import Use, changes
from .folder import called, denoiser_files, fingerprint_of, others, parts
from .safefile import Header

NOTE = "uniforget_applied"


def _metadata(header: Header, noted: list[dict[str, Any]], names: Collection[str], before: str, after: str) -> dict[str, str]:
    earlier = notes(header)
    note = {
        "version": __version__,
        "applied": noted,
        "source": header.path.name,
        "tensors": _marks(header, names),
        "before": before,
        "after": after,
    }
    return {**header.metadata, NOTE: json.dumps([*earlier, note], separators=(",", ":"))}


def _marks(header: Header, names: Collection[str]) -> str:
    """Which tensors changed: one bit for each in the order of the file, in hexadecimal."""
    return format(sum(1 << i for i, entry in enumerate(header.ordered()) if entry.name in names), "x")


def marked(header: Header, note: Mapping[str, Any]) -> set[str]:
    """Names of the tensors that a note says were changed."""
    bits = int(note["tensors"], 16)
    return {entry.name for i, entry in enumerate(header.ordered()) if bits >> i & 1}


def notes(header: Header) -> list[dict[str, Any]]:
    """What earlier sanitizing wrote into a file, the first one first: checked, so that strangers' notes break nothing.

    Raises:
        ModelFileError: the note is there and damaged.
    """
    text = header.metadata.get(NOTE)
    if text is None:
        return []
    try:
        found = untrusted.parse_json(text, untrusted.HEADER)
        if not isinstance(found, list):
            raise ValueError("no list of notes")
        return [_checked(note, len(header.entries)) for note in found]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelFileError(
            f"{header.path}: what UniForget noted in this file is damaged ({untrusted.safe(error, line=True, most=200)}). Sanitize it anew."
        ) from error


def _checked(note: Mapping[str, Any], tensors: int) -> dict[str, Any]:
    """A note that holds what it must, and nothing else."""
    marks = _text(note["tensors"], r"[0-9a-f]+", 1 + tensors // 4)
    if int(marks, 16) >> tensors:
        raise ValueError(f"it marks more than the file's {tensors} tensors")
    return {
        "version": _text(note.get("version", ""), r".*"),
        "applied": [_checked_use(entry) for entry in note["applied"]],
        "source": _text(note.get("source", ""), r".*", 1000),
        "tensors": marks,
        **{name: _text(note[name], r"[0-9a-f]{64}") for name in ("before", "after")},
    }


def _checked_use(entry: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {str(kind): _strength(value) for kind, value in entry.get("per_kind", {}).items()}
    if not kinds.keys() <= set(KINDS):
        raise ValueError("a strength of an unknown kind")
    return {
        "mask": _text(entry["mask"], r"[0-9a-f]+"),
        "method": _text(entry.get("method", ""), r".*"),
        "strength": _strength(entry["strength"]),
        "per_kind": kinds,
        "gates": _text(entry.get("gates", ""), r"[0-9A-Za-z+/=]*", untrusted.HEADER),
    }


def _text(value: Any, pattern: str, most: int = 200) -> str:
    if not isinstance(value, str) or len(value) > most or not re.fullmatch(pattern, value, re.DOTALL):
        raise ValueError(
            f"expected text like {pattern}; found {str(value)[:40] if isinstance(value, str) else type(value).__name__!r}"
        )
    return value


def _strength(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("a strength is no number from 0 to 1")
    return float(value)


@dataclass(frozen=True)
class Sanitized:
    """What was done.

    Attributes:
        target: the file or folder that was written.
        changed: tensors changed; ``kept``: tensors that stayed byte for byte.
        before, after: digests of the changed tensors, by file name (see :func:`uniforget.checkpoint.safefile.digest`).
        left: parts of a folder that were copied and may still remember: other denoisers, and weights in formats that are not read.
        cautions: sentences for whoever asked for it.
    """

    target: Path
    changed: int
    kept: int
    before: dict[str, str]
    after: dict[str, str]
    left: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()


def sanitize(
    source: Path,
    target: Path,
    uses: Sequence[Use],
    overwrite: bool = False,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Sanitized:
    """Write a copy of a checkpoint, or of a diffusers folder, in which masks and subspaces are folded.

    Args:
        uses: applied in this order.
        report: is told the bytes done and their total.

    Raises:
        ModelFileError: the source cannot be read, or the target cannot be written.
        FamilyError, MismatchError: a mask does not belong to this model.
        SettingError: the target may not be written (:func:`uniforget.outputs.check`).
    """
    uses = [use.stored() for use in uses]
    write = _folder if os.path.isdir(source) else _file
    return write(source, target, uses, overwrite, report)


def _file(source: Path, target: Path, uses: Sequence[Use], overwrite: bool, report: Callable[[int, int], None]) -> Sanitized:
    header = safefile.read_header(source)
    outputs.check(target, overwrite, [source])
    what = changes([header], uses)
    before, after = _rewrite(header, target, what, uses, _Count(header.size, report), overwrite)
    kept = len(header.entries) - len(what)
    return Sanitized(
        target, len(what), kept, {source.name: before}, {target.name: after}, (), _cautions([header], uses, len(what))
    )


def _cautions(headers: Sequence[Header], uses: Sequence[Use], changed: int) -> tuple[str, ...]:
    denoiser = find_denoisers(headers)[0]
    base = denoiser.fingerprint()
    out = [f"{use.learned.digest()}: {caution}" for use in uses for caution in use.learned.cautions(base)]
    nothing = [] if changed else ["Careful: nothing was changed. The strength is 0, or the mask switches nothing off."]
    return (*nothing, *out, *denoiser.cautions(), *(one for header in headers for one in header.cautions()))


class _Count:
    """Adds up what was done."""

    def __init__(self, of: int, report: Callable[[int, int], None]):
        self.done, self.of, self.report = 0, of, report

    def __call__(self, count: int) -> None:
        self.done += count
        self.report(self.done, self.of)


def _rewrite(
    header: Header,
    target: Path,
    what: Mapping[str, Chain],
    uses: Sequence[Use],
    count: Callable[[int], None],
    overwrite: bool = False,
) -> tuple[str, str]:
    mine = {name: steps for name, steps in what.items() if name in header.entries}
    noted = [use.note() for use in uses]
    metadata = lambda before, after: _metadata(header, noted, mine, before, after)  # noqa: E731
    return safefile.rewrite(header, target, mine, metadata, count, overwrite=overwrite)


def _folder(source: Path, target: Path, uses: Sequence[Use], overwrite: bool, report: Callable[[int, int], None]) -> Sanitized:
    outputs.check(target, overwrite, [source], ending=None)
    there = parts(source)
    inner, variants = denoiser_files(source)
    headers = [[safefile.read_header(path) for path in group] for group in variants]
    planned = [changes(group, uses) for group in headers]
    base = fingerprint_of(headers[0])
    left: list[str] = []
    for copy, path in others(source, there, {path for group in variants for path in group}):
        found = fingerprint_of(copy) if copy else ""
        if found and base and same_base(found, base):
            headers.append(copy)
            planned.append(changes(copy, uses))
        elif found is not None:
            left.append(called(source, inner, path))
    weights = {header.path for group in headers for header in group}
    rest = [path for path in there if path not in weights]
    count = _Count(sum(h.size for group in headers for h in group) + sum(p.stat().st_size for p in rest), report)
    before, after, kept = {}, {}, 0

    def fill(temporary: Path) -> None:
        nonlocal kept
        for path in there:
            (temporary / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        for path in rest:
            shutil.copyfile(path, temporary / path.relative_to(source))
            count(path.stat().st_size)
        for group, what in zip(headers, planned, strict=True):
            for header in group:
                new = temporary / header.path.relative_to(source)
                path = header.path
                name = path.name if path.parent == inner else path.relative_to(source).as_posix()
                before[name], after[name] = _rewrite(header, new, what, uses, count)
                kept += len(header.entries) - sum(name in header.entries for name in what)
        outputs.note_folder(temporary)
        # It took a while: what is there now?
        outputs.check(target, overwrite, [source], ending=None)

    try:
        atomic.replace_folder(target, fill, overwrite)
    except OSError as error:
        raise ModelFileError(
            f"{target}: the model could not be written ({error.strerror or error}); nothing is left of it. Free some space, or choose another "
            "place."
        ) from error
    changed = sum(map(len, planned))
    return Sanitized(target, changed, kept, before, after, tuple(left), _cautions(headers[0], uses, changed))
