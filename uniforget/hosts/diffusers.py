"""diffusers: find a model's sites under their canonical names, and fold masks into it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..archs import Family
from ..fold import edits, factors
from ..maskset import MaskSet
from ..sites import Site, find_sites, match_sites


def find_modules(model: nn.Module) -> tuple[Family, list[Site], dict[str, nn.Module]]:
    """Family, sites and modules (by path) of a diffusers transformer or UNet.

    Raises:
        FamilyError: it is of no family that UniForget knows.
    """
    family, sites = find_sites({name: tuple(p.shape) for name, p in model.named_parameters()})
    return family, sites, dict(model.named_modules())


@torch.no_grad()
def fold_(model: nn.Module, mask: MaskSet, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> None:
    """Fold `mask` into the model's weights in place.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model; nothing was changed.
    """
    family, sites, modules = find_modules(model)
    for edit in edits(match_sites(mask, family, sites), factors(mask, strength, per_kind)):
        parameters = dict(modules[edit.path].named_parameters(recurse=False))
        edit.fold_(parameters["weight"], parameters.get("bias"))
