"""Sanitized checkpoints: masks and subspaces folded into a model's file, and the proof of it.

A file keeps its tensors, dtypes, order and metadata; what nothing acts on stays byte for byte. The result is what Apply Memorization
Mask and ComfyUI's own saving give: weights are changed in float32 and rounded once to the stored dtype.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ModelFileError, SettingError
from ..model.fingerprint import same_base
from . import safefile
from .denoiser import find_denoisers
from .fileplan import Steps, Use, changes
from .safefile import Header

NOTE = "uniforget_applied"
# Where diffusers' pipelines keep the denoiser.
FOLDERS = ("transformer", "unet")


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
    """Names of the tensors that a note says were changed.

    Raises:
        ModelFileError: the note is damaged.
    """
    try:
        bits = int(str(note["tensors"]), 16)
    except ValueError as error:
        raise ModelFileError(
            f"{header.path}: what UniForget noted in this file is damaged ({error}). Sanitize it anew."
        ) from error
    return {entry.name for i, entry in enumerate(header.ordered()) if bits >> i & 1}


def notes(header: Header) -> list[dict[str, Any]]:
    """What earlier sanitizing wrote into a file, the first one first.

    Raises:
        ModelFileError: the note is there and damaged.
    """
    text = header.metadata.get(NOTE)
    if text is None:
        return []
    try:
        found = json.loads(text)
        if not isinstance(found, list) or not all(
            isinstance(n, dict) and {"applied", "tensors", "after"} <= n.keys() for n in found
        ):
            raise ValueError("not a list of notes")
        return found
    except ValueError as error:
        raise ModelFileError(
            f"{header.path}: what UniForget noted in this file is damaged ({error}). Sanitize it anew."
        ) from error


@dataclass(frozen=True)
class Sanitized:
    """What was done.

    Attributes:
        target: the file or folder that was written.
        changed: tensors changed; ``kept``: tensors that stayed byte for byte.
        before, after: digests of the changed tensors, by file name (see :func:`uniforget.checkpoint.safefile.digest`).
        left: parts that were copied and may still remember.
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
        SettingError: the target exists already, or is the source.
    """
    safefile.check_target(source, target, overwrite)
    uses = [use.stored() for use in uses]
    return _folder(source, target, uses, report) if source.is_dir() else _file(source, target, uses, report)


def _file(source: Path, target: Path, uses: Sequence[Use], report: Callable[[int, int], None]) -> Sanitized:
    if target.suffix != ".safetensors":
        raise SettingError(f"{target}: expected a name that ends in .safetensors. Change it.")
    header = safefile.read_header(source)
    what = changes([header], uses)
    before, after = _rewrite(header, target, what, uses, _Count(header.size, report))
    kept = len(header.entries) - len(what)
    return Sanitized(
        target, len(what), kept, {source.name: before}, {target.name: after}, (), _cautions([header], uses, len(what))
    )


def _cautions(headers: Sequence[Header], uses: Sequence[Use], changed: int) -> tuple[str, ...]:
    out = []
    if not changed:
        out.append("Careful: nothing was changed. The strength is 0, or the mask switches nothing off.")
    denoiser = find_denoisers(headers)[0]
    base = denoiser.fingerprint()
    for use in uses:
        info = use.learned.info
        if base and info.base and not any(same_base(one, base) for one in info.base.split()):
            name = f" ({info.base_name})" if info.base_name else ""
            out.append(
                f"Careful: mask {use.learned.digest()} was learned on another model{name}. It may forget less, or harm quality."
            )
    return (*out, *denoiser.cautions())


class _Count:
    """Adds up what was done."""

    def __init__(self, of: int, report: Callable[[int, int], None]):
        self.done, self.of, self.report = 0, of, report

    def __call__(self, count: int) -> None:
        self.done += count
        self.report(self.done, self.of)


def _rewrite(
    header: Header, target: Path, what: Mapping[str, Steps], uses: Sequence[Use], count: Callable[[int], None]
) -> tuple[str, str]:
    mine = {name: steps for name, steps in what.items() if name in header.entries}
    noted = [use.note() for use in uses]
    return safefile.rewrite(header, target, mine, lambda before, after: _metadata(header, noted, mine, before, after), count)


def denoiser_files(folder: Path) -> tuple[Path, list[list[Path]]]:
    """The folder of the denoiser inside a diffusers folder, and its weight files: a list for each variant (fp16, ...) that is there.

    Raises:
        ModelFileError: there is none, or it is pickled.
    """
    inner = next((folder / name for name in FOLDERS if (folder / name).is_dir()), folder)
    found: dict[str, list[Path]] = {}
    for path in sorted(inner.glob("*.safetensors")):
        # diffusion_pytorch_model[.variant][-00001-of-00003].safetensors
        found.setdefault(path.name.split("-0")[0].removesuffix(".safetensors"), []).append(path)
    pickled = [path.name for path in inner.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".pth")]
    if pickled or not found:
        has = f"found {pickled[0]}, a pickle, which is never read" if pickled else "found none"
        raise ModelFileError(
            f"{inner}: expected the denoiser's weights as .safetensors files; {has}. Give a diffusers folder with safetensors files only, or "
            "a single .safetensors file."
        )
    return inner, list(found.values())


def _folder(source: Path, target: Path, uses: Sequence[Use], report: Callable[[int, int], None]) -> Sanitized:
    inner, variants = denoiser_files(source)
    headers = [[safefile.read_header(path) for path in group] for group in variants]
    planned = [changes(group, uses) for group in headers]
    rest = [p for p in source.rglob("*") if p.is_file() and p not in {path for group in variants for path in group}]
    count = _Count(sum(h.size for group in headers for h in group) + sum(p.stat().st_size for p in rest), report)
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp")
    before, after, kept = {}, {}, 0
    try:
        for path in rest:
            copy = temporary / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            count(path.stat().st_size)
        for group, what in zip(headers, planned, strict=True):
            for header in group:
                new = temporary / header.path.relative_to(source)
                new.parent.mkdir(parents=True, exist_ok=True)
                before[header.path.name], after[header.path.name] = _rewrite(header, new, what, uses, count)
                kept += len(header.entries) - sum(name in header.entries for name in what)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
    except OSError as error:
        raise ModelFileError(
            f"{target}: the model could not be written ({error.strerror or error}); nothing is left of it. Free some space, or choose another "
            "place."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    left = tuple(f"{inner.name}_{n}" for n in range(2, 5) if (source / f"{inner.name}_{n}").is_dir())
    changed = sum(map(len, planned))
    return Sanitized(target, changed, kept, before, after, left, _cautions(headers[0], uses, changed))
