"""ComfyUI: what the original model drew, kept so that another strength does not need it drawn again.

Entries are found by content: the model with its patches and options, both conditionings, the latent and all settings. Whatever
is more than numbers, texts and tensors (functions, ControlNets, hooks, objects of other packs) is drawn every time.
"""

from __future__ import annotations

import hashlib
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# What ModelPatcher.clone() takes along and sampling depends on, beside the model itself.
PARTS = (
    *(
        "patches_uuid",
        "object_patches",
        "weight_wrapper_patches",
        "model_options",
        "attachments",
        "additional_models",
        "callbacks",
    ),
    *("wrappers", "injections", "hook_patches", "current_hooks", "forced_hooks"),
)
PLAIN = (type(None), bool, int, float, str, bytes, uuid.UUID, torch.dtype, torch.device)
DEEPEST = 24


class Unkeyable(Exception):
    """A value that cannot be told from others by its content."""


class Originals:
    """Latents by what they were drawn from; the least used go first. Models are not kept alive, and take their latents along.

    Args:
        entries, size: how many latents and bytes to keep at most.
    """

    def __init__(self, entries: int = 64, size: int = 256 << 20):
        self.entries, self.size = entries, size
        self._kept: OrderedDict[str, tuple[weakref.ref[Any], torch.Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        return sum(latent.numel() * latent.element_size() for _, latent in self._kept.values())

    def clear(self) -> None:
        self._kept.clear()

    def get(self, patcher: Any, made_from: Any, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `draw` returns, from memory if this model has drawn it from the same before; its own copy either way.

        Args:
            patcher: the ModelPatcher that draws.
            made_from: all else that `draw` depends on.
        """
        try:
            found = key(patcher, made_from)
        except Unkeyable:
            return draw()
        if found in self._kept:
            model, latent = self._kept[found]
            if model() is patcher.model:
                self._kept.move_to_end(found)
                return latent.clone()
        drawn = draw()
        if type(drawn) is torch.Tensor and not drawn.is_nested:
            forget = lambda _: self._kept.pop(found, None)  # noqa: E731
            self._kept[found] = (weakref.ref(patcher.model, forget), drawn.detach().to("cpu", copy=True))
            self._kept.move_to_end(found)
            while len(self) > self.entries or self.bytes > self.size:
                self._kept.popitem(last=False)
        return drawn


def key(patcher: Any, made_from: Any) -> str:
    """A digest that is equal only for the same model, patched and set up the same, that draws from the same.

    Raises:
        Unkeyable: something that could make a difference cannot be told by its content.
    """
    digest = hashlib.sha256()
    _add(digest, [id(type(patcher)), id(patcher.model)])
    for part in PARTS:
        _add(digest, [part, getattr(patcher, part, None)])
    _add(digest, made_from)
    return digest.hexdigest()


def _add(digest: Any, value: Any, depth: int = 0) -> None:
    """Feeds a value to `digest` so that different ones differ."""
    if depth > DEEPEST:
        raise Unkeyable("too deep, or within itself")
    kind = type(value)
    if isinstance(value, PLAIN):
        text = repr(value).encode()
        digest.update(f"{kind.__name__} {len(text)} ".encode() + text)
    elif kind in (list, tuple, dict):
        parts = [part for item in value.items() for part in item] if kind is dict else value
        digest.update(f"{kind.__name__} {len(parts)} ".encode())
        for part in parts:
            _add(digest, part, depth + 1)
    elif kind in (torch.Tensor, nn.Parameter):
        if value.is_nested or value.is_meta or value.layout is not torch.strided:
            raise Unkeyable("a tensor without plain values")
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        raise Unkeyable(f"a {kind.__name__}")
