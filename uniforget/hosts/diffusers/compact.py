"""diffusers: cut what a mask switches off out of a model's Linears."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...checkpoint.compact import Plan, plan
from ...mask.info import GateMask
from ...model.names import modules_of, weights_of
from .apply import merge_


@torch.no_grad()
def compact_(model: nn.Module, mask: GateMask, multiple: int = 8) -> Plan:
    """Merge `mask` into the model and cut out what it switches off, in place.

    Raises:
        FamilyError, MismatchError, SettingError: see :func:`uniforget.checkpoint.compact.plan`; nothing was changed.
    """
    found = plan({name: tuple(p.shape) for name, p in weights_of(model).items()}, mask, multiple)
    merge_(model, mask)
    modules: dict[str, Any] = dict(modules_of(model))
    for cut in found.cuts.values():
        linear = modules[cut.path]
        linear.weight = nn.Parameter(cut.gather(linear.weight).contiguous(), requires_grad=False)
        if linear.bias is not None:
            linear.bias = nn.Parameter(cut.gather_bias(linear.bias).contiguous(), requires_grad=False)
        linear.out_features, linear.in_features = cut.kept
    for path, heads in found.heads.items():
        modules[path].heads = heads
    for path, hidden in found.hidden.items():
        parent = modules[path.rpartition(".")[0]]
        if hasattr(parent, "mlp_hidden_dim"):  # FLUX's single blocks split by it
            parent.mlp_hidden_dim = hidden
    return found
