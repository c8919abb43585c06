"""Sums over what modules of the untouched model read or answer on neutral prompts: what scores and subspaces are made of.

Forward passes only, so it works on whatever weights run. Sums are kept in float64 on the CPU: those of several runs on different
prompts (processes, interrupted runs) add up to the sums of one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .. import untrusted
from ..config import Settings
from ..errors import LearnError
from . import distributed, resume
from .model import Model, Progress
from .trajectories import all_rows, watch

KEEP_EVERY = 300  # seconds between two savings of unfinished sums
# Bytes of products that wait on the device for the way to main memory, which the device has to wait for.
PENDING = 256 << 20


@dataclass
class Sums:
    """Sums over tokens, prompts, steps and guidance branches.

    Attributes:
        sums: name -> float64 CPU, of products whose shape the watcher decides.
        traces: name -> sum of squares of all values; ``counts``: tokens seen.
        shared: name -> the name whose entry it shares, because both read the very same input (itself otherwise).
        done: trajectories seen.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    traces: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    done: int = 0

    def __add__(self, other: Sums) -> Sums:
        if self.shared != other.shared or any(t.shape != other.sums[n].shape for n, t in self.sums.items()):
            raise LearnError("These sums are of different models or targets, and cannot be added.")
        return Sums(
            {n: t + other.sums[n] for n, t in self.sums.items()},
            {n: t + other.traces[n] for n, t in self.traces.items()},
            {n: c + other.counts[n] for n, c in self.counts.items()},
            dict(self.shared),
            self.done + other.done,
        )

    def all_reduce(self) -> Sums:
        """Add up the sums of all processes, in place; returns itself."""
        for name in self.sums:
            distributed.all_reduce(self.sums[name])
            numbers = torch.tensor([self.traces[name], self.counts[name]], dtype=torch.float64)
            self.traces[name], self.counts[name] = distributed.all_reduce(numbers).tolist()
        return self

    def save(self, path: Path) -> None:
        """See :func:`.resume.write`."""
        note = {"traces": self.traces, "counts": self.counts, "shared": self.shared, "done": self.done}
        resume.write(path, self.sums, note)

    @classmethod
    def load(cls, path: Path) -> Sums:
        """What :meth:`save` wrote. Errors: see :func:`.resume.read`."""

        def make(tensors: dict[str, torch.Tensor], note: Any) -> Sums:
            # In the order in which they were first seen, which the file does not keep: digests of subspaces depend on it.
            resume.expect(len(note) == 4, "its note is of other things")
            found = cls({name: tensors[name] for name in note["counts"]}, **note)
            fits = found.traces.keys() == found.counts.keys() == tensors.keys() and found.shared.keys() >= tensors.keys()
            resume.expect(fits and set(found.shared.values()) == tensors.keys(), "its names do not belong together")
            resume.expect(all(t.dtype == torch.float64 for t in tensors.values()), "its sums are no float64")
            resume.expect(all(map(untrusted.is_number, (*found.traces.values(), *found.counts.values()))), "its numbers are none")
            resume.expect(resume.is_count(found.done), "how much is done is no number")
            return found

        return resume.read(path, make)


@dataclass(frozen=True)
class Watched:
    """One module, and what is summed up of it.

    Attributes:
        path, side: the module, and whether its input ("in") or its output ("out") is meant.
        product: of values float32 (tokens, width): what is added for them.
    """

    path: str
    side: str
    product: Callable[[torch.Tensor], torch.Tensor]


class Collector:
    """Adds up products while a model runs. They are added one by one: how much memory is free changes no result.

    Attributes:
        whole: whether the sums hold whole trajectories only; whoever runs the model sets it.
    """

    def __init__(self, model: Model, watched: Mapping[str, Watched], into: Sums, share: bool):
        self.model, self.watched, self.into, self.share = model, watched, into, share
        self.last: tuple[str, torch.Tensor] | None = None
        self.pending: list[tuple[str, torch.Tensor, torch.Tensor, int]] = []
        self.bytes = 0
        self.whole = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, every forward pass is added."""
        handles = []
        try:
            for name, one in self.watched.items():
                module = self.model.modules[one.path]
                if one.side == "in":
                    handles.append(module.register_forward_pre_hook(lambda m, args, n=name: self._see(n, args[0])))
                else:
                    handles.append(module.register_forward_hook(lambda m, args, out, n=name: self._see(n, out)))
            yield
            self.flush()
        finally:
            self.last = None
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _see(self, name: str, x: torch.Tensor) -> None:
        shared = self.into.shared
        # Queries, keys and values read one input: it is counted once. The reference keeps its memory from being used again.
        if name not in shared:
            shared[name] = self.last[0] if self.share and self.last is not None and self.last[1] is x else name
        if shared[name] != name:
            return
        self.last = (name, x)
        values = x.detach().reshape(-1, x.shape[-1]).float()
        with torch.autocast(values.device.type, enabled=False):  # whatever the model itself runs in
            product = self.watched[name].product(values)
        self.pending.append((name, product, values.square().sum(), len(values)))
        self.bytes += product.nbytes
        if self.bytes > PENDING:
            self.flush()

    def flush(self) -> None:
        """Add what waits on the device: one wait for all of it."""
        if not self.pending:
            return
        self.whole = False
        there = [product.to("cpu", non_blocking=True) for _, product, _, _ in self.pending]  # into pinned memory
        traces = torch.stack([trace for _, _, trace, _ in self.pending]).tolist()  # waits for the device, and so for the copies
        out = self.into
        for (name, _, _, count), product, trace in zip(self.pending, there, traces, strict=True):
            if name in out.sums and out.sums[name].shape != product.shape:
                raise LearnError(
                    f"The sums that were kept of {name} are of another model. Delete the folder of unfinished work to start over."
                )
            if name not in out.sums:
                out.sums[name] = torch.zeros(product.shape, dtype=torch.float64)
                out.traces[name] = out.counts[name] = 0.0
            out.sums[name] += product
            out.traces[name] += trace
            out.counts[name] += count
        self.pending.clear()
        self.bytes = 0


def collect(
    model: Model,
    watched: Mapping[str, Watched],
    settings: Settings,
    report: Callable[[Progress], None] = lambda p: None,
    rows: Sequence[int] | None = None,
    file: Path | None = None,
    share: bool = False,
) -> Sums:
    """Sample neutral prompts with the untouched model, in both guidance branches, and add up what is `watched`, by name.

    Args:
        rows: which trajectories, see :func:`.trajectories.watch`; None: this process' part of all.
        file: where unfinished sums are kept, every few minutes, and when it is
            cancelled between two batches; a run that finds them resumes from there.
        share: count an input that several modules read once.
    """
    rows = distributed.shard(all_rows(model, settings)) if rows is None else rows
    out = Sums.load(file) if file and file.is_file() else Sums()
    kept = time.monotonic()
    collector = Collector(model, watched, out, share)
    try:
        with collector.watching():
            for step in watch(model, settings, rows, out.done):
                collector.flush()
                if step.last:
                    out.done, collector.whole = step.progress.step, True
                    if file and time.monotonic() - kept > KEEP_EVERY:
                        out.save(file)
                        kept = time.monotonic()
                    report(step.progress)
    except BaseException:
        # Sums that hold a part of some trajectories are of no use; the last saved ones are.
        if file and out.done and collector.whole:
            out.save(file)
        raise
    if file and out.done:
        out.save(file)
    return out
