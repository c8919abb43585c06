"""ComfyUI: project weights onto subspaces through its own weight patching, as masks are applied."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.weight_adapter

from ...mask.subspace import Subspace, effective, match_layers, project
from ...model.layers import Layer, find_layers
from .apply import attach
from .network import PREFIX, own_weights


class SubspaceAdapter(comfy.weight_adapter.WeightAdapterBase):
    """One weight's projection as a ComfyUI patch, after whatever was patched before it.

    ``weights`` holds ``(basis (in, r), complement, strength)``. ComfyUI rebuilds adapters from ``(loaded_keys, weights)``, so
    nothing is kept elsewhere.
    """

    name = "uniforget_subspace"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=None, original_weight=None
    ):
        basis, complement, own = self.weights
        return weight.copy_(project(weight, basis, complement, own * strength))


def layers_of(patcher) -> tuple[str, list[Layer]]:
    """Family name and layers of a ModelPatcher's model.

    Raises:
        FamilyError: the family is unknown.
    """
    shapes = {name: tuple(p.shape) for name, p in own_weights(patcher).items()}
    family, layers = find_layers(shapes)
    return family.name, layers


def apply_subspace(patcher, subspace: Subspace, strength: float = 1.0, per_kind: Mapping[str, float] | None = None):
    """A clone of the ModelPatcher that computes with projected weights; the original is untouched.

    Patches apply in order: LoRAs loaded before this are projected, LoRAs after it are not.

    Raises:
        FamilyError: the model's family is unknown.
        MismatchError: the subspace is not for this model, or ComfyUI did not take every patch.
    """
    matched = match_layers(subspace, *layers_of(patcher))
    edits = effective(subspace, strength, per_kind)
    patches = {
        f"{PREFIX}{path}.weight": SubspaceAdapter(set(), edits[layer.name])
        for layer in matched
        if layer.name in edits
        for path in layer.paths
    }
    return attach(patcher, patches, subspace.digest(), strength)
