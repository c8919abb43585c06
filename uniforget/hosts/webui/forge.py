"""Forge: apply masks and subspaces through its own patcher, on a clone.

Forge keeps patched weights as long as the names of the patches stay the same, so ours name their contents. Patches apply in
order: LoRAs, which Forge loads before scripts run, are masked too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from backend.patcher import lora
from torch import nn

from ...errors import MismatchError
from ...mask.edit import pack, unpack
from ...model.fingerprint import fingerprint
from ...model.names import modules_of, plain, weights_of
from ...model.sites import find_sites, fingerprint_targets
from ..stored import Stored
from . import Landed, Run

PREFIX = "diffusion_model."
CALCULATION = "uniforget"
# Weights of these types can be patched in place of the original without being rounded to something coarser.
_EXACT = (torch.float32, torch.float16, torch.bfloat16)


def edit_weight(weight: torch.Tensor, strength: float, fields: list[Any]) -> torch.Tensor:
    """Forge's calculation: `weight` edited by what :func:`uniforget.mask.edit.pack` made of an edit."""
    return unpack(fields).weight(weight)


def apply(unet: Any, run: Run) -> tuple[Any, Landed]:
    """A clone of Forge's UnetPatcher that computes with what `run` asks for, and how much of it landed; `unet` is untouched.

    Raises:
        FamilyError: the model's family is unknown.
        MismatchError: the mask is not for this model, or Forge did not take every patch.
    """
    lora.extra_weight_calculators[CALCULATION] = edit_weight
    edits = run.learned.edits(shapes_of(unet), run.strength, run.per_kind)
    names = {plain(name): name for name, _ in unet.model.named_parameters()}
    # Lists of our own, because Forge moves the tensors in them in place.
    patches = {names[PREFIX + name]: (CALCULATION, list(pack(edit))) for name, edit in edits.items()}
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
    return clone, Landed(len(run.learned.names), _fingerprint(unet))


def applied(unet: Any) -> list[str]:
    """Names of the masks and subspaces among the patches of a UnetPatcher, see :meth:`uniforget.hosts.webui.Run.key`."""
    return list(dict.fromkeys(name for name, *_ in unet.lora_patches if str(name).startswith("uniforget ")))


def shapes_of(unet: Any) -> dict[str, tuple[int, ...]]:
    """Weight name, relative to the diffusion model -> the shape that it computes with, whatever it is packed in."""
    return {name: _shape(weight) for name, weight in weights_of(unet.model.diffusion_model).items()}


def _shape(weight: Any) -> tuple[int, ...]:
    state = getattr(weight, "quant_state", None)  # bitsandbytes': the weight itself is a column of bytes
    return tuple(weight.shape if state is None else state.shape)


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
    modules = modules_of(unet.model)
    backup = {plain(key): weight for key, weight in unet.lora_loader.backup.items()}
    weights = {}
    for site in fingerprint_targets(find_sites(shapes_of(unet))[1]):
        path = PREFIX + site.places[0].path
        weights[path] = Stored(modules[path], backup.get(f"{path}.weight", modules[path].weight))
    if not weights or not all(weight.readable for weight in weights.values()):
        return ""
    return fingerprint(weights)
