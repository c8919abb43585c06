"""Names of a network's modules and weights, whatever torch has wrapped around them."""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

# What torch leaves in names of a module that was compiled, sharded or checkpointed.
WRAPPER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def plain(name: str) -> str:
    """A name without wrappers: ``blocks.0._orig_mod.attn.qkv.weight`` -> ``blocks.0.attn.qkv.weight``."""
    return WRAPPER.sub("", name)


def modules_of(network: nn.Module) -> dict[str, nn.Module]:
    """Modules by plain path; of a wrapper and what is in it, the latter."""
    return {plain(f"{path}.")[:-1]: module for path, module in network.named_modules()}


def weights_of(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by plain name."""
    return {plain(name): parameter for name, parameter in network.named_parameters()}


def eager() -> AbstractContextManager[object]:
    """Within it, what torch has compiled runs as it was written. Code that was compiled before sees no hooks that came later."""
    # Where its compiler was never loaded, nothing is compiled. Stances are there since torch 2.6.
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
