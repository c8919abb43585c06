"""Subspace forgetting: what neutral prompts never look at, a model's Linears need not read.

Gradient-free: watch the model draw neutral prompts, add up the second moments ``A = sum x x^T`` of what each Linear reads (:mod:`.sums`),
keep the directions that hold nearly all of their energy, and project the weights onto them (:mod:`uniforget.mask.subspace`). Blocks are
watched a few at a time, so that memory stays bounded.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..config import METHODS, Settings
from ..mask.info import MaskInfo
from ..mask.subspace import Basis, SubspaceMask
from ..model.layers import Layer
from . import distributed, memory
from .model import Model, Progress, Result, Session
from .resume import run_key
from .sums import Sums, Watched, collect

# What a learned subspace can still be moved between.
LOW, HIGH = 0.002, 0.03
# Bytes for the sums of one pass where free memory cannot be told.
UNKNOWN = 4 << 30
# Inputs wider than this are sketched: the full moments of FLUX's 15,360 inputs would take 1.9 GB for each of 38 layers.
WIDE = 8192
SKETCH = 2048
_PROJECTIONS = {"to_q", "to_k", "to_v", "q", "k", "v", "q_proj", "k_proj", "v_proj", "add_q_proj", "add_k_proj", "add_v_proj"}


def run(model: Model, settings: Settings, info: MaskInfo, session: Session, room: int = 0) -> Result:
    """Watch the untouched model on neutral prompts, and keep the directions that its Linears use.

    Args:
        room: bytes for sums; 0: half of what is free. The result does not depend on it.
    """
    began = time.monotonic()
    layers: list[Layer] = model.layers
    groups = passes(layers, room or memory.free_bytes(torch.device("cpu")) // 2 or UNKNOWN)
    session.log(cost(layers, groups))
    key = run_key(model, settings, info)
    threshold = settings.threshold or METHODS["subspace"].amount(info.preset)
    low, high = min(LOW, threshold), max(HIGH, threshold)
    bases: dict[str, Basis] = {}
    shared: dict[str, str] = {}
    for number, group in enumerate(groups):
        # Named by its layers: with more or less memory free, another run groups them otherwise.
        names = hashlib.sha256("\n".join(layer.name for layer in group).encode()).hexdigest()[:12]
        part = f"{key}.sums.{names}.{distributed.rank()}of{distributed.world_size()}.safetensors"

        def report(p: Progress, number: int = number) -> None:
            left = p.left + (len(groups) - 1 - number) * p.left * p.steps / max(1, p.steps - p.step)
            session.report(replace(p, step=number * p.steps + p.step, steps=len(groups) * p.steps, left=left))

        found = moments(model, group, settings, report, file=session.folder / part if session.folder else None).all_reduce()
        for name in list(found.sums):
            bases[name] = basis_of(found.sums.pop(name), found.traces[name], model.sigmas.device).trimmed(low, high)
        shared |= found.shared
    probe.cache_clear()
    kinds = {layer.name: layer.kind for layer in layers if layer.name in shared}
    shared = {name: shared[name] for name in kinds}
    info = replace(
        info, method="subspace", steps=len(model.sigmas) - 1, targets=tuple(k for k in ("ffn", "attn") if k in kinds.values()),
        beta=0.0, learn_seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip
    result = SubspaceMask(bases, shared, kinds, threshold, info, low, high)
    return Result(result, result)


def size(layer: Layer) -> int:
    """Numbers that a layer's moments take."""
    return layer.width * min(layer.width, SKETCH if layer.width > WIDE else layer.width)


def distinct(layers: Sequence[Layer]) -> list[Layer]:
    """Those of the layers that have inputs of their own, as far as names tell (running tells for sure)."""
    first: dict[Any, Layer] = {}
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        first.setdefault((parent, layer.width) if leaf in _PROJECTIONS else layer.name, layer)
    return list(first.values())


def passes(layers: Sequence[Layer], budget: int) -> list[list[Layer]]:
    """The layers in groups that are watched together, whose sums take at most `budget` bytes."""
    own = {layer.name for layer in distinct(layers)}
    groups: list[list[Layer]] = []
    room = 0
    for layer in layers:
        need = 8 * size(layer) if layer.name in own else 0
        if not groups or need > room:
            groups.append([])
            room = budget
        groups[-1].append(layer)
        room -= need
    return groups


def cost(layers: Sequence[Layer], groups: Sequence[Sequence[Layer]]) -> str:
    """What these groups take, in words."""
    sums = max(8 * sum(map(size, distinct(group))) for group in groups)
    passes = f"{len(groups)} pass{'es' if len(groups) > 1 else ''}"
    return (
        f"{passes} over the neutral prompts, up to {sums / 1e9:.2f} GB of main memory for sums, "
        f"up to {sum(2 * size(layer) for layer in distinct(layers)) / 1e9:.2f} GB for the result"
    )


@lru_cache(maxsize=2)
def probe(width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The fixed Gaussian matrix float32 (width, SKETCH) that sketches multiply by; the same in every run, so that sums add up.

    Kept, because a wide layer needs it in every forward pass: FLUX's takes 126 MB.
    """
    drawn = torch.randn(width, SKETCH, generator=torch.Generator().manual_seed(width))
    return drawn.to(device)


def moments(
    model: Model,
    layers: Iterable[Layer],
    settings: Settings,
    report: Callable[[Progress], None] = lambda p: None,
    rows: Sequence[int] | None = None,
    file: Path | None = None,
) -> Sums:
    """Second moments of what `layers` read: (width, width), or for wide ones (width, SKETCH), the moments times :func:`probe`."""

    def product(values: torch.Tensor) -> torch.Tensor:
        width = values.shape[1]
        return values.T @ (values @ probe(width, values.device) if width > WIDE else values)

    watched = {layer.name: Watched(layer.paths[0], "in", product) for layer in layers}
    return collect(model, watched, settings, report, rows, file, share=True)


def basis_of(moments: torch.Tensor, trace: float, device: torch.device | str = "cpu") -> Basis:
    """The ordered directions of second moments (width, width), or of their sketch (width, SKETCH) by Nystrom's approximation.

    Nystrom's approximation is never more than the moments in any direction, so the share of the trace that it lacks is its error.
    """
    width, columns = moments.shape
    if columns == width:
        energy, vectors = torch.linalg.eigh(moments.to(device, torch.float64 if width <= 2048 else torch.float32))
        energy, vectors = energy.flip(0).clamp(min=0), vectors.flip(1)
        missed = 0.0
    else:
        found = moments.to(device, torch.float64)
        omega = probe(width, device).double()
        # Shifted a little, so that the core is positive definite in floating point.
        shift = 1e-9 * max(trace, 1e-30) / math.sqrt(columns)
        found = found + shift * omega
        factor = torch.linalg.cholesky(omega.T @ found)
        left, singular, _ = torch.linalg.svd(torch.linalg.solve_triangular(factor, found.T, upper=False).T, full_matrices=False)
        some = (singular.square() - shift).clamp(min=0)
        energy = torch.cat([some, some.new_zeros(width - len(some))])
        vectors = left
        missed = max(0.0, 1 - float(energy.sum()) / max(trace, 1e-30))
    total = max(trace, 1e-30)
    return Basis(vectors.float().cpu().contiguous(), (energy / total).float().cpu(), 0, missed)


def subspace_of(
    found: Sums, layers: Iterable[Layer], threshold: float, info: MaskInfo, device: torch.device | str = "cpu"
) -> SubspaceMask:
    """The subspace that moments span, with all its directions.

    Raises:
        MaskError: the threshold is out of range.
    """
    bases = {name: basis_of(sums, found.traces[name], device) for name, sums in found.sums.items()}
    kinds = {layer.name: layer.kind for layer in layers if layer.name in found.shared}
    return SubspaceMask(bases, {name: found.shared[name] for name in kinds}, kinds, threshold, info)
