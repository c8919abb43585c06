"""A model's own modules, whatever other packs have put in their place.

A loaded clone puts its object patches (compiled blocks, cut Linears) into the model that all clones share, and torch.compile wraps what
it compiles: names get ``_orig_mod.`` in them. Masks are keyed by the names that the model was built with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from torch import nn

from ...model.names import modules_of, plain, weights_of

PREFIX = "diffusion_model."
_KEY = "uniforget"


@contextmanager
def original(patcher: Any) -> Iterator[nn.Module]:
    """Within it, the model has its own parts; yields its diffusion model, which itself may be compiled for good."""
    model, own = patcher.model, patcher.object_patches_backup
    ours = [key for key in own if f"{key}.".startswith(PREFIX)]
    patched = {key: comfy.utils.set_attr(model, key, own[key]) for key in ours}
    try:
        yield model.diffusion_model
    finally:
        for key in reversed(ours):
            comfy.utils.set_attr(model, key, patched[key])


def own_modules(patcher: Any) -> dict[str, nn.Module]:
    """The model's own modules, by plain path relative to the diffusion model."""
    with original(patcher) as network:
        return modules_of(network)


def own_weights(patcher: Any) -> dict[str, nn.Parameter]:
    """The model's own parameters, by plain name relative to the diffusion model; a loaded clone may have patched their values."""
    with original(patcher) as network:
        return weights_of(network)


def unpatched(patcher: Any, path: str, module: nn.Module, leaf: str = "weight") -> torch.Tensor:
    """A parameter of one of :func:`own_modules` without the patches of the clone that is loaded now."""
    backup = patcher.backup.get(f"{PREFIX}{path}.{leaf}")
    # What a loaded clone has put in its place was patched, and the module itself was not.
    if backup is None or comfy.utils.get_attr(patcher.model, PREFIX + path) is not module:
        return module.get_parameter(leaf)
    return backup.weight


def add_patches(clone: Any, patches: Mapping[str, Any]) -> list[str]:
    """Add patches whose keys have plain names to a clone; returns those that ComfyUI did not take.

    ComfyUI patches what the names of the loaded model's modules say, so it passes over those inside of a compiled block:
    these are patched when it is done.
    """
    with original(clone):
        actual = {plain(key): key for key in clone.model.state_dict()}
        landed = set(clone.add_patches({actual.get(key, key): patch for key, patch in patches.items()}))
    clone.remove_callbacks_with_key(CallbacksMP.ON_LOAD, _KEY)
    clone.add_callback_with_key(CallbacksMP.ON_LOAD, _KEY, _patch_compiled)
    return [key for key in patches if actual.get(key, key) not in landed]


def _patch_compiled(patcher: Any, device: torch.device | None, *others: Any) -> None:
    """Patch weights in blocks that an object patch has compiled, which ComfyUI just passed over."""
    compiled = tuple(f"{key}." for key, part in patcher.object_patches.items() if hasattr(part, "_orig_mod"))
    for key in patcher.patches if compiled else ():
        if key.startswith(compiled) and key not in patcher.backup:
            patcher.patch_weight_to_device(key, device_to=device)
