"""Models that change tensors in place, made safe for backward passes and re-computation.

FLUX-type blocks write ``img += ...``. That overwrites values which backward still needs, or (worse, because nothing complains) the
inputs from which a checkpointed block is re-computed.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

_METHODS: dict[Callable, Callable] = {
    torch.Tensor.add_: torch.add,
    torch.Tensor.sub_: torch.sub,
    torch.Tensor.mul_: torch.mul,
    torch.Tensor.div_: torch.div,
}
_OPERATORS: dict[Callable, Callable] = {
    torch.Tensor.__iadd__: torch.add,
    torch.Tensor.__isub__: torch.sub,
    torch.Tensor.__imul__: torch.mul,
    torch.Tensor.__itruediv__: torch.div,
}


class OutOfPlace(TorchFunctionMode):
    """Within it, ``a += b`` and the like make a new tensor while gradients are recorded; ``a.add_(b)`` stays as it is.

    An operator gives its result a name again, so a new tensor changes nothing for the caller; a method call does not. Newer
    versions of torch report both as ``add_``: the caller's instruction tells them apart.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_grad_enabled():
            new = _OPERATORS.get(function) if function not in _METHODS else _METHODS[function] if _by_operator() else None
            if new is not None:
                return new(*args, **kwargs).to(args[0].dtype)
        return function(*args, **kwargs)


def _by_operator() -> bool:
    """Whether the Python code that led here is at an operator, not at a call."""
    frame = sys._getframe(2)
    name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return name.startswith(("BINARY_", "INPLACE_"))
