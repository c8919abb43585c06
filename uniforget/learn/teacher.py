"""What the untouched model does on neutral prompts: recorded once, compared with ever after."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import atomic
from . import shards
from .model import Model, Progress, Settings, euler

# Above this size the recording lives in a file that is mapped into memory.
MAPPED_ABOVE = 1 << 30


@dataclass
class Bank:
    """The teacher's trajectories. float16 on the CPU; states are rounded before the teacher sees them.

    Attributes:
        which: prompt of each trajectory.
        states: (trajectories, N + 1, ...) latents; the last is the finished one.
        positive, negative: (trajectories, N, ...) predictions in both guidance branches; negative is None without guidance.
        scale: mean square of the teacher's derivative; ``final_scale``: of the final latents.
    """

    which: list[int]
    states: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor | None
    scale: float
    final_scale: float


def trajectories(settings: Settings, prompts: int) -> int:
    """How many trajectories of the teacher are recorded: every prompt equally often."""
    noises = settings.noises or max(1, math.ceil(min(512, settings.steps * settings.batch) / prompts))
    return noises * prompts


@torch.no_grad()
def record_teacher(
    model: Model,
    settings: Settings,
    report: Callable[[Progress], None] = lambda p: None,
    folder: Path | None = None,
    key: str = "",
) -> Bank:
    """Sample every prompt with the untouched model, each time with other noise, and keep what it saw and said.

    Noise belongs to a trajectory, not to a batch: the recording does not depend on the batch size or on the number of processes.

    Args:
        folder: where large recordings are kept; one that is there already under `key` is used again.
    """
    count = trajectories(settings, model.prompts)
    which = [i % model.prompts for i in range(count)]
    steps = len(model.sigmas) - 1
    shape = model.initial(1, torch.Generator().manual_seed(0)).shape[1:]
    names = ["states", "positive", *([] if settings.cfg == 1.0 else ["negative"])]
    sizes = {name: (len(which), steps + (name == "states"), *shape) for name in names}
    mapped = _Mapped(folder, key, sizes) if folder and sum(map(math.prod, sizes.values())) * 2 > MAPPED_ABOVE else None
    if mapped and (found := mapped.finished()):
        return Bank(which, found["states"], found["positive"], found.get("negative"), *mapped.scales())
    kept = mapped.create() if mapped else {name: torch.zeros(size, dtype=torch.float16) for name, size in sizes.items()}
    sums = torch.zeros(2, dtype=torch.float64)
    rows = shards.mine(list(range(len(which))))
    for start in range(0, len(rows), settings.batch):
        chunk = rows[start : start + settings.batch]
        prompts = [which[i] for i in chunk]
        noise = [model.initial(1, torch.Generator().manual_seed(settings.seed * 1_000_003 + i)) for i in chunk]
        x = torch.cat(noise)
        for k in range(steps):
            x = x.half().float()
            kept["states"][chunk, k] = x.half().cpu()
            following, positive, negative = euler(model, x, k, prompts, settings.cfg)
            sums[0] += ((x - positive) / model.sigmas[k]).square().mean().item() * len(chunk) / steps
            kept["positive"][chunk, k] = positive.half().cpu()
            if negative is not None:
                kept["negative"][chunk, k] = negative.half().cpu()
            x = following
        sums[1] += x.square().mean().item() * len(chunk)
        kept["states"][chunk, steps] = x.half().cpu()
        report(Progress(min(start + settings.batch, len(rows)), len(rows), 0.0, 0.0, stage="teacher"))
    if mapped is None:
        for tensor in kept.values():
            shards.total_(tensor)
    shards.total_(sums)
    scale, final = (sums / len(which)).tolist()
    if mapped:
        mapped.finish(scale, final)
    return Bank(which, kept["states"], kept["positive"], kept.get("negative"), scale, final)


class _Mapped:
    """Tensors in files of one folder, and a note that says whether they are complete."""

    def __init__(self, folder: Path, key: str, sizes: dict[str, tuple[int, ...]]):
        self.folder, self.sizes = folder, sizes
        self.note = folder / f"{key}.teacher.json"
        self.files = {name: folder / f"{key}.teacher.{name}" for name in sizes}

    def _open(self) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_file(str(self.files[name]), shared=True, size=math.prod(size), dtype=torch.float16).view(size)
            for name, size in self.sizes.items()
        }

    def create(self) -> dict[str, torch.Tensor]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.note.unlink(missing_ok=True)
        return self._open()

    def finished(self) -> dict[str, torch.Tensor] | None:
        complete = all(p.is_file() and p.stat().st_size == 2 * math.prod(self.sizes[n]) for n, p in self.files.items())
        return self._open() if complete and self.note.is_file() else None

    def scales(self) -> tuple[float, float]:
        note = json.loads(self.note.read_text(encoding="utf-8"))
        return note["scale"], note["final_scale"]

    def finish(self, scale: float, final: float) -> None:
        atomic.replace(self.note, json.dumps({"scale": scale, "final_scale": final}).encode())


class Order:
    """Endless batches of `size` out of `count` items, every item once before any comes again. Its ``left`` is its state."""

    def __init__(self, count: int, size: int, generator: torch.Generator):
        self.count, self.size, self.generator = count, size, generator
        self.left: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        while len(self.left) < self.size:
            self.left += torch.randperm(self.count, generator=self.generator).tolist()
        batch, self.left = self.left[: self.size], self.left[self.size :]
        return batch
