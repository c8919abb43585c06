"""Subspace forgetting: what neutral prompts never look at, a model's Linears need not read.

Gradient-free: watch the model draw neutral prompts (:mod:`.moments`), keep the directions that hold nearly all the energy of
each Linear's inputs, and project the weights onto them (:mod:`uniforget.mask.subspace`). Blocks are watched a few at a time, so
that memory stays bounded.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import LearnError
from ..mask.info import MaskInfo
from ..mask.subspace import Basis, Subspace, basis_of
from ..model.layers import Layer
from . import memory, shards
from .model import Model, Progress, Settings
from .moments import Moments, collect, distinct, passes, size

# Share of the energy on neutral prompts that is given up. docs/forgetting.md has what each costs and brings.
PRESETS = {"weak": 0.007, "medium": 0.01, "strong": 0.015}
# What a learned subspace can still be moved between.
LOW, HIGH = 0.002, 0.03
# Bytes for the sums of one pass where free memory cannot be told.
UNKNOWN = 4 << 30


@dataclass(frozen=True)
class Plan:
    """What learning a subspace will take.

    Attributes:
        passes: how often the neutral prompts are sampled: once for each group of layers.
        sums: bytes that the largest group's sums take in main memory.
        vectors: bytes that the vectors of all layers take at most, in memory and in a file.
    """

    passes: int
    sums: int
    vectors: int

    def __str__(self) -> str:
        return (
            f"{self.passes} pass{'es' if self.passes > 1 else ''} over the neutral prompts, up to {self.sums / 1e9:.2f} GB of main memory for sums, "
            f"up to {self.vectors / 1e9:.2f} GB for the result"
        )


def plan(layers: list[Layer], budget: int) -> tuple[Plan, list[list[Layer]]]:
    """What learning on `layers` takes with `budget` bytes for sums, and the groups of layers that are watched together."""
    groups = passes(layers, budget)
    sums = max(8 * sum(size(layer) for layer in distinct(group)) for group in groups)
    return Plan(len(groups), sums, sum(2 * size(layer) for layer in distinct(layers))), groups


def budget() -> int:
    """Bytes for sums: half of what main memory has free."""
    return memory.free_bytes(torch.device("cpu")) // 2 or UNKNOWN


def learn_subspace(
    model: Model,
    settings: Settings,
    info: MaskInfo,
    report: Callable[[Progress], None] = lambda p: None,
    file: Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
    room: int = 0,
    save: Callable[[Subspace], object] = lambda found: None,
) -> Subspace:
    """Watch the untouched model on neutral prompts, and keep the directions that its Linears use.

    Args:
        file: where unfinished sums are kept: a cancelled run goes on from the last ones saved.
        tell: is told the plan before anything starts.
        room: bytes for sums; 0: half of what is free. The result does not depend on it.
        save: puts the result on disk; what was kept is removed after it.

    Raises:
        LearnError: the model has no layers to look at.
    """
    layers: list[Layer] = model.layers
    if not layers:
        raise LearnError("This model has no Linears inside blocks, so there is no subspace to learn. Learn a mask instead.")
    began = time.monotonic()
    told, groups = plan(layers, room or budget())
    tell(str(told))
    threshold = settings.threshold or PRESETS.get(info.preset, PRESETS["medium"])
    low, high = min(LOW, threshold), max(HIGH, threshold)
    bases: dict[str, Basis] = {}
    shared: dict[str, str] = {}
    for number, group in enumerate(groups):
        # Named by its layers: with more or less memory free, another run groups them otherwise.
        names = hashlib.sha256("\n".join(layer.name for layer in group).encode()).hexdigest()[:12]
        part = file.with_name(f"{file.stem}.{names}.{shards.rank()}of{shards.world()}.safetensors") if file else None

        def along(p: Progress, number: int = number) -> None:
            report(replace(p, step=number * p.steps + p.step, steps=len(groups) * p.steps))

        found = collect(model, group, settings, along, file=part)
        _total(found)
        for name in list(found.sums):
            basis = basis_of(found.sums.pop(name), found.traces[name], model.sigmas.device)
            bases[name] = basis.trimmed(low, high)
        shared |= found.shared
    kinds = {layer.name: layer.kind for layer in layers if layer.name in shared}
    shared = {name: shared[name] for name in kinds}
    info = replace(
        info, method="subspace", steps=len(model.sigmas) - 1, targets=tuple(k for k in ("ffn", "attn") if k in kinds.values()),
        beta=0.0, learn_seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip
    result = Subspace(bases, shared, kinds, threshold, info, low, high)
    save(result)
    if file and not shards.rank():
        for path in file.parent.glob(f"{file.stem}.*.safetensors"):
            path.unlink(missing_ok=True)
    return result


def _total(found: Moments) -> None:
    """Add up the sums of all processes."""
    for name in found.sums:
        shards.total_(found.sums[name])
        numbers = shards.total_(torch.tensor([found.traces[name], found.counts[name]], dtype=torch.float64)).tolist()
        found.traces[name], found.counts[name] = numbers
