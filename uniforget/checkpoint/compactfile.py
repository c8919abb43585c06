"""Compact checkpoints: files whose cut Linears are smaller, with what was cut written beside them."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__, outputs, untrusted
from ..errors import MismatchError, ModelFileError
from ..mask.edit import Chain
from ..mask.info import GateMask
from ..model.detect import detect
from . import safefile
from .compact import Cut, Plan, plan
from .denoiser import find_denoisers
from .fileplan import Use, changes
from .safefile import Change, Header

NOTE = "uniforget_compact"
# What a file of strangers may grow to when it is loaded, in numbers of its own, and how many rows and columns may be told one by one.
LARGEST_SIDE, LARGEST_GROWTH, MOST_UNITS = 1 << 18, 8, 8 << 20


def save(
    source: Path,
    target: Path,
    mask: GateMask,
    multiple: int = 64,
    overwrite: bool = False,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Plan:
    """Write a copy of a checkpoint in which `mask` is folded at full strength and what it switches off is cut out.

    Raises:
        ModelFileError: the source cannot be read, or the target cannot be written.
        FamilyError, MismatchError: the mask does not belong to this model.
        SettingError: the target may not be written (:func:`uniforget.outputs.check`), or `multiple` is out of range.
    """
    header = safefile.read_header(source)
    outputs.check(target, overwrite, [source])
    if NOTE in header.metadata:
        raise MismatchError(f"{source}: this file is compact already. Make the original compact, with both masks combined.")
    denoiser = find_denoisers([header])[0]
    prefix, inner = denoiser.prefix, denoiser.shapes()
    if denoiser.wrappers:
        raise MismatchError(
            f"{source}: names of its weights begin with {prefix!r}, or have {denoiser.wrappers[-1]!r} in them, and ComfyUI does not know the model by "
            "these names. Save it without them, and make that compact."
        )
    if detect(inner)[1] is not None:
        raise MismatchError(
            f"{source}: this file names its parts as diffusers does, and compact files are for ComfyUI. Load it in ComfyUI, save it from there, and make that compact."
        )
    use = Use(mask)
    folded, found = changes([header], [use]), plan(inner, mask, multiple)
    wanted: dict[str, Change] = dict(folded)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, cut in found.cuts.items():
        for leaf in ("weight", "bias"):
            for name in (f"{prefix}{path}.{leaf}", denoiser.averages(f"{path}.{leaf}")):
                if name not in header.entries or (leaf == "bias" and cut.rows is None):
                    continue
                wanted[name] = _Cutting(cut, folded.get(name))
                shapes[name] = cut.kept[:1] if leaf == "bias" else cut.kept
    note = {
        "version": __version__,
        "mask": mask.digest(),
        "prefix": prefix,
        "cuts": {path: _packed(cut) for path, cut in found.cuts.items()},
        "heads": found.heads,
        "hidden": found.hidden,
    }
    metadata = {**header.metadata, NOTE: json.dumps(note, separators=(",", ":"))}
    done = 0

    def along(count: int) -> None:
        nonlocal done
        done += count
        report(done, header.size)

    safefile.rewrite(header, target, wanted, lambda before, after: metadata, along, shapes, overwrite)
    return found


class _Cutting:
    """Folding, then cutting, of pieces of whole rows."""

    def __init__(self, cut: Cut, fold: Chain | None):
        self.cut, self.fold = cut, fold

    def __call__(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        rows = rows if self.fold is None else self.fold.weight(rows, first)
        keep = self.cut.rows
        if keep is not None:
            rows = rows[keep[(keep >= first) & (keep < first + len(rows))] - first]
        return rows if self.cut.columns is None or rows.ndim < 2 else rows[:, self.cut.columns]


def _packed(cut: Cut) -> dict[str, Any]:
    out: dict[str, Any] = {"size": list(cut.size)}
    for name, kept, size in (("rows", cut.rows, cut.size[0]), ("columns", cut.columns, cut.size[1])):
        if kept is not None:
            bits = np.zeros(size, bool)
            bits[kept.numpy()] = True
            out[name] = base64.b64encode(np.packbits(bits).tobytes()).decode()
    return out


def read(header: Header) -> tuple[str, Plan]:
    """The prefix of a compact file's denoiser, and what was cut out of it.

    Raises:
        ModelFileError: it is no compact file, or its note is damaged or does not fit its tensors.
    """
    if NOTE not in header.metadata:
        raise ModelFileError(f"{header.path}: this is no compact model. Load it with ComfyUI's own loaders.")
    if header.odd:
        raise ModelFileError(
            f"{header.path}: metadata values are no text ({', '.join(header.odd[:3]):.200}), which ComfyUI does not load. Make the file anew."
        )
    try:
        note = untrusted.parse_json(header.metadata[NOTE], untrusted.HEADER)
        prefix, entries = str(note["prefix"]), note["cuts"]
        untrusted.at_most(_told(entries), MOST_UNITS, "rows and columns in its note")
        cuts = {}
        for path, entry in entries.items():
            cuts[path] = cut = _unpacked(path, entry)
            weight, bias = (f"{prefix}{path}.{leaf}" for leaf in ("weight", "bias"))
            for shape, wanted in ((header.entries[weight].shape, cut.kept), (_shape(header, bias) or cut.kept[:1], cut.kept[:1])):
                if shape != wanted:
                    raise ValueError(f"{path:.200} is {list(shape)} in the file and {list(wanted)} in its note")
        heads, hidden = ({str(p): int(n) for p, n in note[name].items()} for name in ("heads", "hidden"))
        if not all(0 < n <= LARGEST_SIDE for n in (*heads.values(), *hidden.values())):
            raise ValueError("a number of heads or neurons is out of range")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ModelFileError(
            f"{header.path}: what was cut out of this model cannot be read ({error!s:.300}). Make the file anew."
        ) from error
    grown = sum(math.prod(cut.size) for cut in cuts.values())
    if grown > LARGEST_GROWTH * max(1, sum(math.prod(e.shape) for e in header.entries.values())):
        raise ModelFileError(
            f"{header.path}: its note asks for {grown:,} numbers, more than such a file can stand for. Do not use it."
        )
    return prefix, Plan(cuts, heads, hidden)


def _shape(header: Header, name: str) -> tuple[int, ...] | None:
    return header.entries[name].shape if name in header.entries else None


def _told(entries: Mapping[str, Any]) -> int:
    """How many rows and columns a note tells one by one, by the lengths of its texts."""
    return sum(6 * len(entry[name]) for entry in entries.values() for name in ("rows", "columns") if name in entry)


def _unpacked(path: str, entry: Mapping[str, Any]) -> Cut:
    out, into = (int(n) for n in entry["size"])
    if not (0 < out <= LARGEST_SIDE and 0 < into <= LARGEST_SIDE):
        raise ValueError(f"{path:.200} has a size of {out} x {into}")
    kept: dict[str, torch.Tensor | None] = {}
    for name, size in (("rows", out), ("columns", into)):
        kept[name] = None
        if name in entry:
            data = np.frombuffer(base64.b64decode(entry[name], validate=True), np.uint8)
            if len(data) != (size + 7) // 8:
                raise ValueError(f"{path:.200} has {len(data)} bytes for {size} {name}")
            kept[name] = torch.from_numpy(np.unpackbits(data)[:size].nonzero()[0])
    return Cut(path, (out, into), kept["rows"], kept["columns"])


def whole(state: Mapping[str, torch.Tensor], prefix: str, found: Plan) -> dict[str, torch.Tensor]:
    """A state dict with cut Linears at their old sizes, zero where they were cut."""
    out = dict(state)
    for path, cut in found.cuts.items():
        out[f"{prefix}{path}.weight"] = cut.scatter(state[f"{prefix}{path}.weight"])
        if f"{prefix}{path}.bias" in state:
            out[f"{prefix}{path}.bias"] = cut.scatter_bias(state[f"{prefix}{path}.bias"])
    return out
