"""Folding: the exact static weight edit that a mask amounts to (METHOD: ffn and attn scale columns, norm scales rows)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..model.sites import Site, find_sites, match_sites
from .gates import assemble, by_weight, strength_factor
from .info import MaskSet


@dataclass(frozen=True)
class Edit:
    """What a mask multiplies one module's weight by.

    Attributes:
        path: the module, in the host's naming.
        axis: "in": one factor per column; "out": one per row, and per entry of the bias.
        scale: float32 (columns or rows,), CPU.
    """

    path: str
    axis: str
    scale: torch.Tensor

    @property
    def weight(self) -> str:
        return f"{self.path}.weight"

    @property
    def bias(self) -> str:
        return f"{self.path}.bias"

    def shaped(self, ndim: int) -> torch.Tensor:
        """The scale so that it broadcasts against a weight of `ndim` dimensions (a norm's has 1, a Linear's 2)."""
        return self.scale[:, None] if self.axis == "out" and ndim == 2 else self.scale

    def fold_(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Scale a weight (out, in) or (out,), and where rows are meant its bias (out,), in place and in their own dtype."""
        weight.mul_(self.shaped(weight.ndim).to(weight.device, weight.dtype))
        if bias is not None and self.axis == "out":
            bias.mul_(self.scale.to(bias.device, bias.dtype))


def factors(mask: MaskSet, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
    """Site name -> float32 (units,) factors ``1 - s * (1 - gate)``, with ``s = strength * per_kind[kind]``.

    Sites whose factor is 1 everywhere (strength 0 among them) are left out, so that they stay bit-identical.
    """
    out = {}
    for name, gates in mask.gates.items():
        s = strength * (per_kind or {}).get(mask.kinds[name], 1.0)
        factor = strength_factor(gates, s)
        if s != 0 and not bool((factor == 1).all()):
            out[name] = factor
    return out


def edits(sites: Iterable[Site], scale: Mapping[str, torch.Tensor]) -> list[Edit]:
    """The weight edits for `scale` (site name -> factors); several sites on one axis of a weight become one edit."""
    return [
        Edit(path, axis, assemble([(place, scale[name]) for name, place in on]))
        for (path, axis), on in by_weight(s for s in sites if s.name in scale).items()
    ]


def fold(
    state: Mapping[str, torch.Tensor], mask: MaskSet, strength: float = 1.0, per_kind=None, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """A state dict with the mask folded in; untouched tensors are the very same objects.

    Args:
        state: weights in ComfyUI's or diffusers' naming, each name starting with `prefix`.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model.
    """
    shapes = {k.removeprefix(prefix): tuple(v.shape) for k, v in state.items() if k.startswith(prefix)}
    family, sites = find_sites(shapes)
    matched = match_sites(mask, family, sites)
    out = dict(state)
    for edit in edits(matched, factors(mask, strength, per_kind)):
        for name in (edit.weight, edit.bias):
            if (
                prefix + name in state
                and (name == edit.weight or edit.axis == "out")
                and out[prefix + name] is state[prefix + name]
            ):
                out[prefix + name] = state[prefix + name].clone()
        edit.fold_(out[prefix + edit.weight], out.get(prefix + edit.bias))
    return out
