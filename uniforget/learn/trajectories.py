"""What the untouched model does on neutral prompts: watched once, compared with ever after."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import atomic
from ..config import Settings
from . import distributed, resume
from .model import Clock, Model, Progress, euler, pairs_of

# Above this size the recording lives in a file that is mapped into memory.
MAPPED_ABOVE = 1 << 30
# Trajectories that are recorded where updates could use more.
ENOUGH = 512


@dataclass
class Step:
    """One Euler step of a batch of trajectories.

    Attributes:
        rows: which trajectories; ``k``: which step; ``last``: whether they are finished with it.
        x: latents before; ``after``: latents behind it; ``positive``, ``negative``: predictions, see :func:`.model.guided`.
        progress: how far all rows are, with this step.
    """

    rows: list[int]
    k: int
    last: bool
    x: torch.Tensor
    after: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor | None
    progress: Progress


@torch.no_grad()
def watch(model: Model, settings: Settings, rows: Sequence[int], first: int = 0) -> Iterator[Step]:
    """Sample trajectories with the model as it is, from the `first` of `rows` on, batch after batch.

    Trajectory i is of the answer of pair ``i % pairs`` and has noise of its own: neither the batch nor the number of processes changes
    what it is.
    Latents are rounded to float16 before the model sees them, because that is how recorded ones are kept.
    """
    # Prompts that share forward passes follow each other.
    answers = [answer for _, answer in pairs_of(model)]
    rows = sorted(rows, key=lambda i: model.groups[answers[i % len(answers)]])
    steps, clock = len(model.sigmas) - 1, Clock(len(rows), first)
    for start in range(first, len(rows), settings.batch):
        chunk = rows[start : start + settings.batch]
        which = [answers[i % len(answers)] for i in chunk]
        # One generator per trajectory, on the CPU: the same noise on every device. Some MB per batch to upload.
        x = torch.cat([model.initial(1, torch.Generator().manual_seed(settings.seed * 1_000_003 + i)) for i in chunk])
        for k in range(steps):
            x = x.half().float()
            after, positive, negative = euler(model, x, k, which, settings.cfg)
            last = k + 1 == steps
            done = start + len(chunk) if last else start
            progress = Progress(done, len(rows), stage="teacher", left=clock.left(done))
            yield Step(chunk, k, last, x, after, positive, negative, progress)
            x = after


def all_rows(model: Model, settings: Settings) -> list[int]:
    """Every prompt once, or as often as ``settings.noises`` says."""
    return list(range((settings.noises or 1) * len(pairs_of(model))))


def recorded_rows(model: Model, settings: Settings) -> list[int]:
    """Which trajectories the teacher records: as many as the updates can compare with, and about 512 at most.

    Single states are compared by *stepwise*, so that each trajectory serves as many times as it has states.
    """
    if settings.noises:
        return all_rows(model, settings)
    wanted, pairs = settings.steps * settings.batch, len(pairs_of(model))
    rows = math.ceil(min(ENOUGH, wanted) / pairs) * pairs
    needed = math.ceil(wanted / (1 if settings.objective == "trajectory" else len(model.sigmas) - 1))
    chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(settings.seed)).tolist()[:needed]
    return sorted(chosen)


@dataclass
class TeacherCache:
    """The teacher's trajectories. float16 on the CPU.

    Attributes:
        which: the prompt of each trajectory that the student is asked; ``answers``: that which the teacher was.
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
    answers: list[int]


def record_teacher(
    model: Model,
    settings: Settings,
    report: Callable[[Progress], None] = lambda p: None,
    folder: Path | None = None,
    key: str = "",
) -> TeacherCache:
    """Sample neutral prompts with the untouched model, and keep what it saw and said.

    Args:
        folder: where large recordings are kept, and others that were cancelled; what is there already under `key` is not watched again.
    """
    rows = recorded_rows(model, settings)
    pairs, place = pairs_of(model), {row: i for i, row in enumerate(rows)}
    which, answers = ([pairs[i % len(pairs)][side] for i in rows] for side in (0, 1))
    steps = len(model.sigmas) - 1
    shape = model.initial(1, torch.Generator().manual_seed(0)).shape[1:]
    names = ["states", "positive", *([] if settings.cfg == 1.0 else ["negative"])]
    sizes = {name: (len(rows), steps + (name == "states"), *shape) for name in names}
    total = sum(map(math.prod, sizes.values()))
    mapped = folder if folder and total * 2 > MAPPED_ABOVE else None
    note = (mapped or Path()) / f"{key}.teacher.json"
    flat = _mapped(mapped / f"{key}.teacher.f16", total) if mapped else torch.zeros(total, dtype=torch.float16)
    parts = zip(sizes.items(), flat.split([math.prod(s) for s in sizes.values()]), strict=True)
    kept = {name: part.view(size) for (name, size), part in parts}
    if mapped and note.is_file():
        scale, final = json.loads(note.read_text(encoding="utf-8"))
        return TeacherCache(which, kept["states"], kept["positive"], kept.get("negative"), scale, final, answers)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    # Several processes start over: each has a part of the rows only.
    part = folder / f"{key}.teacher.safetensors" if folder and distributed.world_size() == 1 else None
    first, before = (
        _read_part(part, None if mapped else flat, len(rows)) if part and part.is_file() else (0, [torch.zeros(0)] * 2)
    )
    scales: list[torch.Tensor] = []
    finals: list[torch.Tensor] = []

    def sizes_so_far() -> list[torch.Tensor]:
        """Of each step, and of each finished batch of trajectories, on the CPU."""
        new = (scales[: len(finals) * steps], finals)
        return [torch.cat([old, *([torch.stack(found).cpu()] if found else [])]) for old, found in zip(before, new, strict=True)]

    done = first
    try:
        for step in watch(model, settings, distributed.shard(rows), first):
            scales.append(((step.x - step.positive) / model.sigmas[step.k]).square().mean() * (len(step.rows) / steps))
            for name, values in (("states", step.x), ("positive", step.positive), ("negative", step.negative)):
                if values is not None:
                    seen[name].append(values.half())
            if step.last:
                seen["states"].append(step.after.half())
                finals.append(step.after.square().mean() * len(step.rows))
                at = [place[row] for row in step.rows]
                with torch.autocast(step.x.device.type, enabled=False):  # which knows no float16 on CPUs
                    for name, found in seen.items():
                        kept[name][at] = torch.stack(found, 1).cpu()  # waits, once per batch of trajectories
                        found.clear()
                done = step.progress.step
                report(step.progress)
    except BaseException:
        if part and first < done:
            part.parent.mkdir(parents=True, exist_ok=True)
            tensors = dict(zip(("scales", "finals"), sizes_so_far(), strict=True)) | ({} if mapped else {"flat": flat})
            resume.write(part, tensors, {"done": done})
        raise
    # Summed here, at the end, so that no step has to wait for the device.
    sums = torch.stack([found.double().sum() for found in sizes_so_far()])
    if not mapped:
        distributed.all_reduce(flat)
    distributed.all_reduce(sums)
    scale, final = (sums / len(rows)).tolist()
    if mapped:
        atomic.replace(note, json.dumps([scale, final]).encode())
    return TeacherCache(which, kept["states"], kept["positive"], kept.get("negative"), scale, final, answers)


def _read_part(path: Path, flat: torch.Tensor | None, rows: int) -> tuple[int, list[torch.Tensor]]:
    """How many of `rows` are recorded in a cancelled recording, and the sizes so far; its values are copied into `flat`, if they are in it.

    Raises:
        LearnError: the file is damaged, or something else.
    """

    def make(tensors: dict[str, torch.Tensor], note: Any) -> tuple[int, list[torch.Tensor]]:
        done, found = note["done"], [tensors["scales"], tensors["finals"]]
        resume.expect(resume.is_count(done) and 0 < done <= rows, "its number of pictures is none")
        resume.expect(
            all(one.dtype == torch.float32 and one.dim() == 1 and one.isfinite().all() for one in found), "its sizes are none"
        )
        if flat is not None:
            resume.expect(tensors["flat"].shape == flat.shape and tensors["flat"].dtype == flat.dtype, "it is of another model")
            flat.copy_(tensors["flat"])
        return done, found

    return resume.read(path, make)


def _mapped(path: Path, size: int) -> torch.Tensor:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.stat().st_size != 2 * size:
        for ending in ("json", "safetensors"):
            path.with_name(path.name.removesuffix("f16") + ending).unlink(missing_ok=True)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float16)


class Batches:
    """Endless batches of `size` out of `count` items, every item once before any comes again. Its ``left`` is its state.

    Args:
        group: of each item; most batches are of one group. None: all are alike.
    """

    def __init__(self, count: int, size: int, generator: torch.Generator, group: Callable[[int], int] | None = None):
        self.count, self.size, self.generator, self.group = count, size, generator, group
        self.left: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        while len(self.left) < self.size:
            self.left += torch.randperm(self.count, generator=self.generator).tolist()
            if self.group:
                self.left.sort(key=self.group)
                whole = len(self.left) // self.size
                chunks = [self.left[i * self.size : (i + 1) * self.size] for i in range(whole)]
                order = torch.randperm(whole, generator=self.generator).tolist()
                self.left = [item for i in order for item in chunks[i]] + self.left[whole * self.size :]
        batch, self.left = self.left[: self.size], self.left[self.size :]
        return batch
