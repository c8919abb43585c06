"""diffusers: find a transformer's sites under their canonical names, and fold masks into it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import nn

from ..archs import FAMILIES, Family
from ..errors import FamilyError
from ..fold import factors, fold_bias_, fold_weight_
from ..maskset import MaskSet
from ..sites import Site, match_sites


def find_modules(transformer: nn.Module) -> tuple[Family, list[Site], dict[str, nn.Linear]]:
    """Family, sites and Linears (by canonical site path) of a diffusers transformer.

    Raises:
        FamilyError: the class is none that UniForget knows.
    """
    name = type(transformer).__name__
    family = next((f for f in FAMILIES if f.diffusers_class == name), None)
    if family is None:
        known = ", ".join(f.diffusers_class for f in FAMILIES if f.diffusers_class)
        raise FamilyError(f"diffusers model {name} is of a family that UniForget cannot mask yet (it can mask: {known}).")
    patterns = [(re.compile(re.escape(a.other).replace(r"\{\}", r"(\d+)")), a) for a in family.diffusers]
    sites, modules = [], {}
    for path, module in transformer.named_modules():
        for pattern, alias in patterns:
            match = pattern.fullmatch(path)
            if not match or not isinstance(module, nn.Linear):
                continue
            canonical = alias.canonical.format(*match.groups())
            rule = family.rule(canonical)
            if rule is None:
                continue
            size = module.in_features if rule.axis == "in" else module.out_features
            swapped = alias.swapped_chunks * module.in_features == module.out_features
            sites.append(Site(canonical, rule.kind, rule.axis, size // rule.width, rule.width, swapped))
            modules[canonical] = module
    return family, sites, modules


@torch.no_grad()
def fold_(transformer: nn.Module, mask: MaskSet, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> None:
    """Fold `mask` into the transformer's weights in place.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model; nothing was changed.
    """
    family, sites, modules = find_modules(transformer)
    scale = factors(mask, strength, per_kind)
    for site in match_sites(mask, family, sites):
        if site.path in scale:
            linear = modules[site.path]
            fold_weight_(linear.weight, site, scale[site.path])
            if linear.bias is not None:
                fold_bias_(linear.bias, site, scale[site.path])
