"""Folding: the exact static weight edit that a mask amounts to (METHOD: ffn and attn scale columns, norm scales rows)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .errors import MismatchError
from .gates import strength_factor
from .maskset import MaskSet
from .sites import Site, find_sites, match_sites


def factors(mask: MaskSet, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
    """Site path -> float32 (units,) factors ``1 - s * (1 - gate)``, with ``s = strength * per_kind[kind]``.

    Sites whose factor is 1 everywhere (strength 0 among them) are left out, so that they stay bit-identical.
    """
    out = {}
    for path, gates in mask.gates.items():
        s = strength * (per_kind or {}).get(mask.kinds[path], 1.0)
        factor = strength_factor(gates, s)
        if s != 0 and not bool((factor == 1).all()):
            out[path] = factor
    return out


def fold_weight_(weight: torch.Tensor, site: Site, factor: torch.Tensor) -> torch.Tensor:
    """Scale `weight` (out, in) in place by `factor` (units,), in the weight's dtype and on its device; returns it."""
    spread = site.spread(factor).to(weight.device, weight.dtype)
    return weight.mul_(spread if site.axis == "in" else spread[:, None])


def fold_bias_(bias: torch.Tensor, site: Site, factor: torch.Tensor) -> torch.Tensor:
    """Scale `bias` (out,) in place; only sites of axis "out" touch the bias."""
    if site.axis == "out":
        bias.mul_(site.spread(factor).to(bias.device, bias.dtype))
    return bias


def fold(
    state: Mapping[str, torch.Tensor], mask: MaskSet, strength: float = 1.0, per_kind=None, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """A state dict with the mask folded in; untouched tensors are the very same objects.

    Args:
        state: weights in ComfyUI naming, each name starting with `prefix`.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model.
    """
    shapes = {k.removeprefix(prefix): tuple(v.shape) for k, v in state.items() if k.startswith(prefix)}
    family, sites = find_sites(shapes)
    out = dict(state)
    scale = factors(mask, strength, per_kind)
    landed = 0
    for site in match_sites(mask, family, sites):
        if site.path not in scale:
            continue
        factor = scale[site.path]
        out[prefix + site.weight] = fold_weight_(state[prefix + site.weight].clone(), site, factor)
        if site.axis == "out" and prefix + site.bias in state:
            out[prefix + site.bias] = fold_bias_(state[prefix + site.bias].clone(), site, factor)
        landed += 1
    if landed != len(scale):
        raise MismatchError(f"{landed} of {len(scale)} sites of the mask could be folded; nothing was changed.")
    return out
