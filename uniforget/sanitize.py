"""Sanitized checkpoints: masks and subspaces folded into a model's file, and the proof of it.

A file keeps its tensors, dtypes, order and metadata; what nothing acts on stays byte for byte. The result is what Apply Memorization
Mask and ComfyUI's own saving give: weights are changed in float32 and rounded once to the stored dtype.
"""

from __future__ import annotations

import base64
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from . import __version__, maskfile, safefile
from .errors import FamilyError, ModelFileError, SettingError
from .fingerprint import fingerprint, same_base
from .fold import Edit, edits, factors
from .maskset import MaskSet
from .safefile import Header
from .sites import find_sites, match_sites, telling
from .subspace import Subspace, effective, find_layers, match_layers, project

NOTE = "uniforget_applied"
# Where checkpoints keep the denoiser.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "net.", "")
EMA = "model_ema."
# Where diffusers' pipelines keep it.
FOLDERS = ("transformer", "unet")


@dataclass(frozen=True)
class Use:
    """A mask or subspace, and how much of it.

    Attributes:
        strength: as in Apply Memorization Mask; ``per_kind`` multiplies it for single kinds.
        file: a mask's file, where it was read from one: it need not be packed again.
    """

    learned: MaskSet | Subspace
    strength: float = 1.0
    per_kind: Mapping[str, float] = field(default_factory=dict)
    file: bytes = field(default=b"", repr=False)

    @cached_property
    def packed(self) -> bytes:
        """A mask as its file; empty for subspaces, which are too large to travel along."""
        return self.file or (maskfile.dumps(self.learned) if isinstance(self.learned, MaskSet) else b"")

    def stored(self) -> Use:
        """The same with gates as mask files hold them, in 255ths, so that the note in a sanitized file says exactly what was done."""
        if not isinstance(self.learned, MaskSet) or self.learned.hard:
            return self
        return replace(self, learned=maskfile.loads(self.packed))

    def note(self) -> dict[str, Any]:
        """What is written into a sanitized file about it."""
        return {
            "mask": self.learned.digest(),
            "method": self.learned.info.method,
            "strength": self.strength,
            "per_kind": {kind: value for kind, value in self.per_kind.items() if value != 1},
            # Gates are small: with them in the file, what was done can be checked from the file alone.
            "gates": base64.b64encode(self.packed).decode(),
        }


@dataclass(frozen=True)
class Step:
    """What one mask does to one weight: ``scale`` (rows or columns) or ``projection`` (basis, complement, strength)."""

    axis: str
    scale: torch.Tensor | None = None
    projection: tuple[torch.Tensor, bool, float] | None = None

    def __call__(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        """`rows` (n, ...) float32, from row `first` of the weight on, changed."""
        if self.projection is not None:
            return project(rows, *self.projection)
        assert self.scale is not None
        if self.axis == "in" and rows.ndim == 2:
            return rows * self.scale
        part = self.scale[first : first + len(rows)]
        return rows * (part[:, None] if rows.ndim == 2 else part)


class Steps:
    """What several masks do to one weight, one after the other: float32 in between, and rounded once."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, rows: torch.Tensor, first: int) -> torch.Tensor:
        out = rows.float() if rows.dtype != torch.float64 else rows
        for step in self.steps:
            out = step(out, first)
        return out.to(rows.dtype)


def plan(shapes: Mapping[str, tuple[int, ...]], uses: Sequence[Use]) -> dict[str, Steps]:
    """What is done to which weights of a denoiser.

    Args:
        shapes: weight name, relative to the denoiser -> shape, in ComfyUI's or diffusers' naming.

    Raises:
        FamilyError, MismatchError: a mask does not belong to this model.
    """
    out: dict[str, Steps] = {}

    def add(name: str, step: Step) -> None:
        out.setdefault(name, Steps()).steps.append(step)

    for use in uses:
        if isinstance(use.learned, Subspace):
            family, layers = find_layers(shapes)
            found = effective(use.learned, use.strength, use.per_kind)
            for layer in match_layers(use.learned, family.name, layers):
                for path in layer.paths if layer.name in found else ():
                    add(f"{path}.weight", Step("in", projection=found[layer.name]))
            continue
        entry, sites = find_sites(shapes)
        edit: Edit
        for edit in edits(match_sites(use.learned, entry, sites), factors(use.learned, use.strength, use.per_kind)):
            add(edit.weight, Step(edit.axis, edit.scale))
            if edit.axis == "out" and edit.bias in shapes:
                add(edit.bias, Step(edit.axis, edit.scale))
    return out


def denoiser_prefix(shapes: Mapping[str, tuple[int, ...]], path: Path) -> str:
    """What the names of the denoiser's weights begin with in a checkpoint.

    Raises:
        FamilyError: no part of it is a model that UniForget knows.
    """
    problem: FamilyError | None = None
    for prefix in PREFIXES:
        inner = _inner(shapes, prefix)
        if inner:
            try:
                find_sites(inner)
                return prefix
            except FamilyError as error:
                problem = problem or error
    raise FamilyError(f"{path}: {problem or 'this file has no weights.'}") from problem


def _inner(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _ema(name: str) -> str:
    """Where original Stable Diffusion checkpoints keep a weight's moving average."""
    return EMA + f"diffusion_model.{name}".replace(".", "")


def changes(headers: Sequence[Header], uses: Sequence[Use]) -> dict[str, Steps]:
    """What is done to which tensors, by full name, over all files of one denoiser; moving averages included.

    Raises:
        FamilyError, MismatchError: a mask does not belong to this model.
        ModelFileError: weights are packed in a way that they cannot be changed in.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for header in headers:
        shapes |= header.shapes()
        dtypes |= {name: entry.dtype for name, entry in header.entries.items()}
    prefix = denoiser_prefix(shapes, headers[0].path)
    planned = plan(_inner(shapes, prefix), uses)
    out = {}
    for name, steps in planned.items():
        for full in (prefix + name, _ema(name)):
            if full in shapes:
                out[full] = steps
    packed = [name for name in out if dtypes[name] not in safefile.DTYPES]
    if packed:
        raise ModelFileError(
            f"{headers[0].path}: {len(packed)} of the weights to be changed are packed ({dtypes[packed[0]]}), such as {packed[0]}. Sanitize the "
            "fp16, bf16 or fp8 version of this model and convert the result, or apply the mask in ComfyUI."
        )
    return out


def base_fingerprint(headers: Sequence[Header]) -> str:
    """Fingerprint of the denoiser in these files, the same as the loaded model's; "": its weights are packed.

    Raises:
        FamilyError: it is no model that UniForget knows.
    """
    entries = {name: (header, entry) for header in headers for name, entry in header.entries.items()}
    prefix = denoiser_prefix({name: entry.shape for name, (_, entry) in entries.items()}, headers[0].path)
    inner = {name.removeprefix(prefix): found for name, found in entries.items() if name.startswith(prefix)}
    weights = {}
    for site in telling(find_sites({name: entry.shape for name, (_, entry) in inner.items()})[1]):
        path = site.places[0].path
        header, entry = inner[f"{path}.weight"]
        if entry.dtype not in safefile.DTYPES:
            return ""
        # fp8 files keep one scale per matrix.
        weights[path] = safefile.Values(header, entry, _scale(path, inner))
    return fingerprint(weights)


def _scale(path: str, inner: Mapping[str, tuple[Header, safefile.Entry]]) -> float:
    for name in (f"{path}.scale_weight", f"{path}.weight_scale"):
        if name in inner and inner[name][1].dtype in safefile.DTYPES and math.prod(inner[name][1].shape) == 1:
            header, entry = inner[name]
            with safefile.mapped(header) as view, view(entry.start, entry.end) as piece:
                return float(safefile.tensor(piece, entry).reshape(-1)[0])
    return 1.0


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
        before, after: digests of the changed tensors, by file name (see :func:`uniforget.safefile.digest`).
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
    if target.exists() and (not overwrite or target.resolve() == source.resolve()):
        what = "is the model itself" if target.resolve() == source.resolve() else "exists already"
        raise SettingError(
            f"{target}: this {what}. Choose another name{'' if what.startswith('is') else ', or allow overwriting'}."
        )
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
    base = base_fingerprint(headers)
    for use in uses:
        info = use.learned.info
        if base and info.base and not any(same_base(one, base) for one in info.base.split()):
            name = f" ({info.base_name})" if info.base_name else ""
            out.append(
                f"Careful: mask {use.learned.digest()} was learned on another model{name}. It may forget less, or harm quality."
            )
    return tuple(out)


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
