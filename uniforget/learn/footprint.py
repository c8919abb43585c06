"""What learning costs before it is run: FLOPs and bytes, counted on the meta device.

Operations run on shapes alone. The FLOPs are those of the matrix products, convolutions and attentions (torch's own counter); the
bytes are those of all tensors alive at once, as an allocator without waste would hold them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ..mask.gates import gated
from ..model.sites import Site
from . import memory


@dataclass(frozen=True)
class Footprint:
    """One pass of a batch through the denoiser; guidance by a second prediction needs another row per picture.

    Attributes:
        forward_flops: of a forward pass; ``backward_flops``: of the backward pass to gates and latent.
        forward_bytes: peak of a forward pass that keeps nothing.
        saved_bytes: what a forward pass keeps for the backward pass.
        peak_bytes: peak of forward and backward; ``block_bytes``: with re-computation block by block.
    """

    forward_flops: int
    backward_flops: int
    forward_bytes: int
    saved_bytes: int
    peak_bytes: int
    block_bytes: int


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, and how many were alive at once (``peak``)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if (address := storage._cdata) not in self.known and address not in given:
                    self.known.add(address)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, address, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def _fused(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
    log = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, log, 0.0, is_causal)[0]


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it, attention is as GPUs run it: without the matrix of all pairs of tokens."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _fused  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def meta_gates(sites: list[Site], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Gates on the meta device that want a gradient."""
    return {s.name: torch.empty(s.units, device="meta", dtype=dtype, requires_grad=True) for s in sites}


def footprint(
    network: nn.Module,
    modules: dict[str, nn.Module],
    sites: list[Site],
    x: torch.Tensor,
    run: Callable[[torch.Tensor], torch.Tensor],
) -> Footprint:
    """Measure one pass.

    Args:
        network: the denoiser on the meta device, without gradients for its weights.
        x: the batch of latents, on the meta device.
        run: the network's prediction for latents.
    """
    x = x.requires_grad_()
    factors = meta_gates(sites)
    leaves = [*factors.values(), x]
    with fused_attention(), gated(modules, sites, factors):
        weights = [*network.parameters(), *network.buffers()]
        saved = memory.saved_bytes(lambda: run(x), [*weights, x])
        with torch.no_grad():
            forward = _peak(lambda: run(x))
        counter = FlopCounterMode(display=False)
        with counter:
            out = run(x)
        forward_flops = counter.get_total_flops()
        with counter:
            torch.autograd.grad(out, leaves, torch.empty_like(out), allow_unused=True)
        backward_flops = counter.get_total_flops()
        del out
        both = lambda: torch.autograd.grad(y := run(x), leaves, torch.empty_like(y), allow_unused=True)  # noqa: E731
        peak = _peak(both)
        with memory.checkpointed(memory.blocks_in(modules, sites)):
            block = _peak(both)
    return Footprint(forward_flops, backward_flops, forward, saved, peak, block)


def _peak(run: Callable[[], Any]) -> int:
    with Alive() as alive:
        run()
    return alive.peak


@contextmanager
def on_meta(dtype: torch.dtype) -> Iterator[None]:
    """New modules within it are on the meta device, with weights of `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)
