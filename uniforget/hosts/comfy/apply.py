"""ComfyUI: apply masks through its own weight patching. Works on 0.3.75 and later; no model is touched in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import comfy.weight_adapter
import torch
from torch import nn

from ...errors import MismatchError
from ...mask.edit import Mask, pack, unpack
from ...model.families.schema import KINDS, Family
from ...model.fingerprint import fingerprint
from ...model.layers import Layer, find_layers
from ...model.sites import Site, find_sites, fingerprint_targets
from ..stored import Stored
from .network import PREFIX, add_patches, own_modules, own_weights, unpatched

ATTACHMENT = "uniforget"
BLOCK = 1 << 20  # values of a weight that are edited at a time


# Fingerprints of loaded models' unpatched weights: reading those of quantized models takes seconds.
_fingerprints: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


class EditAdapter(comfy.weight_adapter.WeightAdapterBase):
    """One weight's edit as a ComfyUI patch, after whatever was patched before it.

    ``weights`` is what :func:`uniforget.mask.edit.pack` makes of the edit. ComfyUI rebuilds adapters from ``(loaded_keys, weights)``
    and moves the tensors in it, so nothing is kept elsewhere.
    """

    name = "uniforget"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32, original_weight=None
    ):
        edit = unpack(self.weights)
        edit = edit if strength == 1 else edit.at(strength)
        # In place: with an offset only that counts. Some rows at a time: a second copy of a large weight may not fit.
        count = max(1, BLOCK // weight[0].numel())
        for first in range(0, len(weight), count):
            rows = weight[first : first + count]
            rows.copy_(edit.weight(rows, first))
        return weight


def shapes_of(patcher) -> dict[str, tuple[int, ...]]:
    """Weight name, relative to the diffusion model -> shape."""
    return {name: tuple(p.shape) for name, p in own_weights(patcher).items()}


def sites_of(patcher, kinds: Iterable[str] = KINDS) -> tuple[Family, list[Site]]:
    """Family and sites of a ModelPatcher's model.

    Raises:
        FamilyError: the family is unknown.
    """
    return find_sites(shapes_of(patcher), kinds)


def layers_of(patcher) -> tuple[str, list[Layer]]:
    """Family name and layers of a ModelPatcher's model.

    Raises:
        FamilyError: the family is unknown.
    """
    family, layers = find_layers(shapes_of(patcher))
    return family.name, layers


def base_fingerprint(patcher) -> str:
    """Fingerprint of the model without its patches (LoRAs, masks), wherever its weights are now.

    "": they are in a format that cannot be read.
    """
    model = patcher.model
    if model not in _fingerprints:
        modules = own_modules(patcher)
        weights = {}
        for site in fingerprint_targets(sites_of(patcher)[1]):
            path = site.places[0].path
            weights[path] = Stored(modules[path], unpatched(patcher, path, modules[path]))
        if not all(weight.readable for weight in weights.values()):
            return ""
        _fingerprints[model] = fingerprint(weights, coarse=any(weight.coarse for weight in weights.values()))
    return _fingerprints[model]


def apply_mask(patcher, mask: Mask, strength: float = 1.0, per_kind: Mapping[str, float] | None = None):
    """A clone of the ModelPatcher that computes with the mask at `strength`; the original is untouched.

    Patches apply in order: LoRAs loaded before this are masked, LoRAs after it are not.

    Raises:
        FamilyError: the model's family is unknown.
        MismatchError: the mask is not for this model, or ComfyUI did not take every patch.
    """
    edits = mask.edits(shapes_of(patcher), strength, per_kind)
    return attach(
        patcher, {PREFIX + name: EditAdapter(set(), pack(edit)) for name, edit in edits.items()}, mask.digest(), strength
    )


def attach(patcher, patches: Mapping[str, comfy.weight_adapter.WeightAdapterBase], digest: str, strength: float):
    """A clone of the ModelPatcher with `patches` behind those that it has, and a note of what they are.

    Raises:
        MismatchError: ComfyUI did not take every patch.
    """
    clone = patcher.clone()
    if patches:
        lost = add_patches(clone, patches)
        if lost:
            raise MismatchError(
                f"ComfyUI took {len(patches) - len(lost)} of the mask's {len(patches)} weight patches; refused: {', '.join(lost[:5])}. "
                "Another node may have replaced parts of this model: apply the mask before that node."
            )
    clone.set_attachments(ATTACHMENT, [*applied(patcher), {"mask": digest, "strength": strength}])
    return clone


def applied(patcher) -> list[dict]:
    """Masks applied to this model so far, in order: ``{"mask": digest, "strength": float}``."""
    return list(patcher.get_attachment(ATTACHMENT) or [])
