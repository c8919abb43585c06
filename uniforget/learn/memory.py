"""Trading memory for time in the backward pass: what activations take, what is free, and re-computing block by block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..model.sites import Site
from .inplace import OutOfPlace

MODES = ("auto", "keep", "micro", "step", "block")
# A transformer block's path, in every family and both namings: the innermost numbered entry of a row of blocks.
_BLOCK = re.compile(r".*(?:blocks|layers|refiner)\.\d+(?=\.)")
# Convolutional blocks of UNets in diffusers and in ComfyUI: no sites, but most of the activations.
_CONVOLUTIONAL = ("ResnetBlock2D", "ResBlock")
# Room for what is not saved for backward: temporaries, the optimizer, the allocator's slack.
SLACK = 1.3
# What re-computation block by block keeps of what is kept without (bench/learn.py: 0.19 to 0.35).
BLOCK_SHARE = 0.35


def blocks_in(modules: Mapping[str, nn.Module], sites: Iterable[Site]) -> dict[str, nn.Module]:
    """Path -> block worth re-computing: transformer blocks that hold sites, and convolutional blocks of UNets."""
    found = {path: module for path, module in modules.items() if type(module).__name__ in _CONVOLUTIONAL}
    for site in sites:
        for place in site.places:
            match = _BLOCK.match(place.path)
            if match:
                found[match.group()] = modules[match.group()]
    return found


@contextmanager
def checkpointed(blocks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Within it, each block keeps only its inputs for the backward pass and is re-computed there.

    FLUX-type blocks change their inputs in place, and must see the old ones again: nothing inside happens in place.
    """

    def again(forward: Callable) -> Callable:
        def kept(*args, **kwargs):
            with OutOfPlace() as mode:
                return mode.current(forward(*args, **kwargs))

        def run(*args, **kwargs):
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            return checkpoint(kept, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return run

    before = {path: block.__dict__.get("forward") for path, block in blocks.items()}
    try:
        for block in blocks.values():
            block.forward = again(block.forward)
        yield
    finally:
        for path, block in blocks.items():
            block.__dict__.pop("forward", None)
            if (own := before[path]) is not None:
                block.forward = own


def saved_bytes(run: Callable[[], object], parameters: Iterable[torch.Tensor]) -> int:
    """Bytes that `run` keeps for a backward pass, beside the model's own weights."""
    seen = {p.untyped_storage()._cdata for p in parameters}
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = run()
    del kept
    return total


def free_bytes(device: torch.device) -> int:
    """Free memory of `device`, 0 where that cannot be told."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        try:
            import psutil  # comes with ComfyUI, and with accelerate
        except ModuleNotFoundError:
            return 0
        return psutil.virtual_memory().available
    return 0


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use so far: the allocator's on `device` if it is a GPU, else the process'; 0 where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        import resource
        import sys
    except ModuleNotFoundError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def choose(mode: str, row_bytes: int, batch: int, chain: int, free: int) -> tuple[str, int]:
    """How to spend memory: ``(mode, rows at a time)``.

    A batch's loss is a sum over its rows, so that taking them a few at a time and adding up the gradients is exact, and costs nothing
    but smaller matrix products. It comes before re-computation, which costs a forward pass more.

    Args:
        mode: "keep": all rows at once; "micro": a few rows at a time; "step": one sampling step of the chain at a time; "block": one
            block of the model at a time; "auto": the first of these that fits.
        row_bytes: that one model evaluation of one row keeps; `chain`: evaluations that one backward pass goes through.
    """

    def fit(each: float) -> int:
        return min(batch, int(free / (SLACK * max(each, 1))))

    if mode == "keep" or (mode == "auto" and fit(row_bytes * chain) == batch):
        return "keep", batch
    if mode == "micro" or (mode == "auto" and fit(row_bytes * chain)):
        return "micro", max(1, fit(row_bytes * chain))
    if mode == "step" or (mode == "auto" and fit(row_bytes)):
        return "step", max(1, fit(row_bytes))
    return "block", max(1, fit(row_bytes * BLOCK_SHARE))
