"""diffusers: find a model's sites under their canonical names, and merge masks into it."""

from __future__ import annotations

import torch
from torch import nn

from ...errors import MismatchError
from ...learn.recover import Lora
from ...mask.edit import merge_
from ...model.families.schema import Family
from ...model.fingerprint import fingerprint
from ...model.layers import Layer, find_layers
from ...model.names import modules_of, weights_of
from ...model.sites import Site, find_sites, fingerprint_targets


def find_modules(model: nn.Module) -> tuple[Family, list[Site], dict[str, nn.Module]]:
    """Family, sites and modules (by path) of a diffusers transformer or UNet.

    Raises:
        FamilyError: it is of no family that UniForget knows.
    """
    family, sites = find_sites({name: tuple(p.shape) for name, p in weights_of(model).items()})
    return family, sites, modules_of(model)


def base_fingerprint(model: nn.Module) -> str:
    """Fingerprint of the model's weights; the same as ComfyUI's for the same model."""
    _, sites, modules = find_modules(model)
    return fingerprint({s.name: modules[s.places[0].path].get_parameter("weight") for s in fingerprint_targets(sites)})


fold_ = project_ = merge_


def layers_of(model: nn.Module) -> tuple[str, list[Layer]]:
    """Family name and layers (:mod:`uniforget.model.layers`) of a diffusers transformer or UNet.

    Raises:
        FamilyError: it is of no family that UniForget knows.
    """
    family, layers = find_layers({name: tuple(p.shape) for name, p in weights_of(model).items()})
    return family.name, layers


@torch.no_grad()
def lora_(model: nn.Module, lora: Lora, strength: float = 1.0) -> None:
    """Add a LoRA to the model's weights in place.

    Raises:
        FamilyError: the model is of no family that UniForget knows.
        MismatchError: it lacks layers of the LoRA, or they have other sizes; nothing was changed.
    """
    layers = {layer.name: layer for layer in layers_of(model)[1]}
    modules = modules_of(model)
    planned = []
    for name, down in lora.down.items():
        paths = layers[name].paths if name in layers else ()
        weights = [modules[path].get_parameter("weight") for path in paths]
        change = lora.up[name] @ down
        if not weights or (sum(w.shape[0] for w in weights), weights[0].shape[1]) != change.shape:
            raise MismatchError(
                f"{name}: the LoRA's {tuple(change.shape)} weight does not fit this model. Use one that was trained for it."
            )
        planned.append((weights, change))
    for weights, change in planned:
        for weight, part in zip(weights, change.split([w.shape[0] for w in weights]), strict=True):
            weight.add_(strength * part.to(weight))
