"""What masks and subspaces do to the weights of a checkpoint's file, tensor by tensor."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ..errors import MismatchError
from ..mask import file as maskfile
from ..mask.fold import Edit, edits, factors
from ..mask.info import MaskSet
from ..mask.subspace import Subspace, effective, match_layers, project
from ..model.layers import find_layers
from ..model.sites import find_sites, match_sites
from .denoiser import Denoiser, find_denoisers
from .safefile import Header


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


def changes(headers: Sequence[Header], uses: Sequence[Use]) -> dict[str, Steps]:
    """What is done to which tensors, by full name, over all files of one denoiser: to all copies of it, moving averages included.

    Raises:
        FamilyError, MismatchError: a mask does not belong to this model.
        ModelFileError: weights are packed in a way that they cannot be changed in.
    """
    return of_all(find_denoisers(headers), headers, uses)[0]


def of_all(found: Sequence[Denoiser], headers: Sequence[Header], uses: Sequence[Use]) -> tuple[dict[str, Steps], list[str]]:
    """:func:`changes` to `found`, and the prefixes of those further ones among them that are of another family or size than the masks.

    Raises:
        MismatchError: a mask does not belong to the first one.
    """
    there = {name for header in headers for name in header.entries}
    out: dict[str, Steps] = {}
    others = []
    for number, one in enumerate(found):
        try:
            planned = plan(one.shapes(), uses)
        except MismatchError:
            if not number:
                raise
            others.append(one.prefix)
            continue
        for name, steps in planned.items():
            out |= {full: steps for full in (one.names[name], one.averages(name)) if full in there}
    return out, others


def base_fingerprint(headers: Sequence[Header]) -> str:
    """Fingerprint of the denoiser in these files, the same as the loaded model's.

    Raises:
        FamilyError: it is no model that UniForget knows.
        ModelFileError: its weights are packed.
    """
    return find_denoisers(headers)[0].fingerprint()
