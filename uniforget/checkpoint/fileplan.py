"""What masks and subspaces do to the weights of a checkpoint's file, tensor by tensor."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..errors import FamilyError, ModelFileError
from ..mask import file as maskfile
from ..mask.fold import Edit, edits, factors
from ..mask.info import MaskSet
from ..mask.subspace import Subspace, effective, match_layers, project
from ..model.fingerprint import fingerprint
from ..model.layers import find_layers
from ..model.sites import find_sites, match_sites, telling
from . import safefile
from .safefile import Header

# Where checkpoints keep the denoiser.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "net.", "")
EMA = "model_ema."


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
