"""Forge: apply masks and subspaces through its own patcher, on a clone.

Forge keeps patched weights as long as the names of the patches stay the same, so ours name their contents. Patches apply in
order: LoRAs, which Forge loads before scripts run, are masked too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from backend.patcher import lora
from torch import nn

from ...errors import MismatchError
from ...mask.fold import edits, factors
from ...mask.subspace import Subspace, effective, match_layers, project
from ...model.families.schema import Family
from ...model.fingerprint import fingerprint
from ...model.layers import find_layers
from ...model.sites import Site, find_sites, match_sites, telling
from ..stored import Stored
from . import Landed, Run

PREFIX = "diffusion_model."
SCALE, PROJECT = "uniforget", "uniforget_subspace"
# Weights of these types can be patched in place of the original without being rounded to something coarser.
_EXACT = (torch.float32, torch.float16, torch.bfloat16)

_known: WeakKeyDictionary[nn.Module, tuple[Family, list[Site]]] = WeakKeyDictionary()


def scale_weight(weight: torch.Tensor, strength: float, scales: list[torch.Tensor]) -> torch.Tensor:
    """Forge's calculation for a mask: `weight` times every one of `scales`, in place, and returned."""
    for scale in scales:
        weight *= scale.to(weight.device, weight.dtype)
    return weight


def project_weight(weight: torch.Tensor, strength: float, edit: list[Any]) -> torch.Tensor:
    """Forge's calculation for a subspace; `edit` is ``[basis (in, r), complement, strength]``."""
    basis, complement, own = edit
    return project(weight, basis, complement, own)


def apply(unet: Any, run: Run) -> tuple[Any, Landed]:
    """A clone of Forge's UnetPatcher that computes with what `run` asks for, and how much of it landed; `unet` is untouched.

    Raises:
        FamilyError: the model's family is unknown.
        MismatchError: mask or subspace are not for this model, or Forge did not take every patch.
    """
    lora.extra_weight_calculators.update({SCALE: scale_weight, PROJECT: project_weight})
    plan = _projections if isinstance(run.learned, Subspace) else _scales
    patches, count = plan(unet, run)
    clone = unet.clone()
    online = _online(unet, patches)
    for mode in (False, True):
        some = {key: patch for key, patch in patches.items() if (key in online) is mode}
        if not some:
            continue
        taken = set(clone.add_patches(filename=run.key(), patches=some, online_mode=mode))
        lost = [key for key in some if key not in taken]
        if lost:
            raise MismatchError(
                f"Forge took {len(taken)} of the mask's {len(some)} weight patches; refused: {', '.join(lost[:5])}. Another extension "
                "may have replaced parts of this model: switch it off."
            )
    of = len(run.learned.shared if isinstance(run.learned, Subspace) else run.learned.gates)
    return clone, Landed(count, of, _fingerprint(unet))


def applied(unet: Any) -> list[str]:
    """Names of the masks and subspaces among the patches of a UnetPatcher, see :meth:`uniforget.hosts.webui.Run.key`."""
    return list(dict.fromkeys(name for name, *_ in unet.lora_patches if str(name).startswith("uniforget ")))


def shapes_of(unet: Any) -> dict[str, tuple[int, ...]]:
    """Weight name, relative to the diffusion model -> the shape that it computes with, whatever it is packed in."""
    return {name: _shape(weight) for name, weight in unet.model.diffusion_model.named_parameters()}


def _shape(weight: Any) -> tuple[int, ...]:
    state = getattr(weight, "quant_state", None)  # bitsandbytes': the weight itself is a column of bytes
    return tuple(weight.shape if state is None else state.shape)


def _sites(unet: Any) -> tuple[Family, list[Site]]:
    model = unet.model.diffusion_model
    if model not in _known:
        _known[model] = find_sites(shapes_of(unet))
    return _known[model]


def _scales(unet: Any, run: Run) -> tuple[dict[str, Any], int]:
    """Patch by weight for a mask, and the number of sites. Lists are made anew, because Forge moves their tensors in place."""
    matched = match_sites(run.learned, *_sites(unet))  # type: ignore[arg-type]
    shapes = shapes_of(unet)
    scales: dict[str, list[torch.Tensor]] = {}
    for edit in edits(matched, factors(run.learned, run.strength, run.per_kind)):  # type: ignore[arg-type]
        scales.setdefault(PREFIX + edit.weight, []).append(edit.shaped(len(shapes[edit.weight])))
        if edit.axis == "out" and edit.bias in shapes:
            scales.setdefault(PREFIX + edit.bias, []).append(edit.scale)
    return {key: (SCALE, scale) for key, scale in scales.items()}, len(matched)


def _projections(unet: Any, run: Run) -> tuple[dict[str, Any], int]:
    """Patch by weight for a subspace, and the number of layers."""
    family, layers = find_layers(shapes_of(unet))
    matched = match_layers(run.learned, family.name, layers)  # type: ignore[arg-type]
    found = effective(run.learned, run.strength, run.per_kind)  # type: ignore[arg-type]
    paths = ((path, found[layer.name]) for layer in matched if layer.name in found for path in layer.paths)
    return {f"{PREFIX}{path}.weight": (PROJECT, list(edit)) for path, edit in paths}, len(matched)


def _online(unet: Any, keys: Iterable[str]) -> set[str]:
    """Those weights that must be patched at every use rather than once.

    Quantized ones, because they would be rounded again (and many formats of GGUF cannot be made at all), and those that a LoRA
    patches at every use, because ours has to come after it. Norms that do not look for such patches are neither.
    """
    parameters = dict(unet.model.named_parameters())
    modules = dict(unet.model.named_modules())
    lora_online = {key for (*_, online), patches in unet.lora_patches.items() if online for key in patches}
    out = set()
    for key in keys:
        weight = parameters[key]
        module = modules[key.rpartition(".")[0]]
        if isinstance(module, nn.LayerNorm) and not getattr(module, "parameters_manual_cast", False):
            continue
        if key in lora_online or type(weight) is not nn.Parameter or weight.dtype not in _EXACT:
            out.add(key)
    return out


def _fingerprint(unet: Any) -> str:
    """Fingerprint of the model without its patches; "": its weights cannot be read."""
    modules = dict(unet.model.named_modules())
    backup: Mapping[str, Any] = unet.lora_loader.backup
    weights = {}
    for site in telling(_sites(unet)[1]):
        path = PREFIX + site.places[0].path
        weights[path] = Stored(modules[path], backup.get(f"{path}.weight", modules[path].weight))
    if not weights or not all(weight.readable for weight in weights.values()):
        return ""
    return fingerprint(weights)
