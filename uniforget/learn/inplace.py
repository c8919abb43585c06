"""Models that change tensors in place, made safe for backward passes and re-computation."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

# These end in "_" and change no values.
_NO_CHANGE = {"requires_grad_", "detach_", "share_memory_", "retain_grad_", "set_", "resize_"}


class OutOfPlace(TorchFunctionMode):
    """Within it, whatever changes a tensor that a gradient passes through changes a copy, and later uses of the tensor get that copy.

    FLUX-type blocks write ``img += ...``, other packs' patches ``h[:, :n] = ...``. That overwrites values which backward still needs, or
    (worse, because nothing complains) the inputs from which a checkpointed block is re-computed. Views are copied with what they look
    into; other views of the same tensor, taken before, keep the old values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies = WeakTensorKeyDictionary()  # tensor -> the copy that stands for it now

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.copies:
            args, kwargs = self.current(args), self.current(kwargs)
        if not torch.is_grad_enabled() or not _changes(function) or not _differentiable(args):
            return function(*args, **kwargs)
        target, *rest = args
        with torch._C.DisableTorchFunction():  # another such mode outside would copy the copy
            copy = self._copy(target)
            found = function(copy, *rest, **kwargs)
        self.copies[target] = copy
        return copy if found is copy else found

    def _copy(self, target: torch.Tensor) -> torch.Tensor:
        base = target._base
        if base is None:
            return target.clone()
        whole = base.clone(memory_format=torch.preserve_format)
        if whole.stride() != base.stride():
            return target.clone()
        self.copies[base] = whole
        return whole.as_strided(target.size(), target.stride(), target.storage_offset() - base.storage_offset())

    def current(self, value: Any) -> Any:
        """`value` (a tensor, or lists, tuples and dicts of anything) with the copies that stand for its tensors."""
        if isinstance(value, torch.Tensor):
            while value in self.copies:
                value = self.copies[value]
            return value
        if type(value) in (list, tuple):
            return type(value)(map(self.current, value))
        return {name: self.current(part) for name, part in value.items()} if type(value) is dict else value


def _changes(function: Any) -> bool:
    name = getattr(function, "__name__", "")
    if name == "__setitem__" or (name.startswith("__i") and hasattr(torch.Tensor, f"__{name[3:]}")):
        return name not in ("__int__", "__index__", "__invert__")
    return name.endswith("_") and not name.endswith("__") and name not in _NO_CHANGE and isinstance(function, _METHOD)


_METHOD = type(torch.Tensor.add_)


def _differentiable(args: tuple) -> bool:
    return isinstance(args[0], torch.Tensor) and any(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
