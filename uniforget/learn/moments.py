"""Second moments of what a model's Linears read on neutral prompts: ``A = sum x x^T`` over tokens, steps and guidance branches.

Forward passes only, so it works on whatever weights run. Sums are kept in float64 on the CPU: those of several runs on different
prompts (shards, interrupted runs) add up to the sums of one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import atomic
from ..errors import LearnError
from ..model.layers import Layer
from . import shards
from .model import Model, Progress, Settings, euler

# Inputs wider than this are sketched: the full moments of FLUX's 15,360 inputs would take 1.9 GB for each of 38 layers.
WIDE = 8192
SKETCH = 2048
KEEP_EVERY = 300  # seconds between two savings of unfinished sums
_PROJECTIONS = {"to_q", "to_k", "to_v", "q", "k", "v", "q_proj", "k_proj", "v_proj", "add_q_proj", "add_k_proj", "add_v_proj"}
_FORMAT = "uniforget moments 1"


@dataclass
class Moments:
    """Sums over everything that was seen.

    Attributes:
        sums: float64 CPU: layer -> (width, width), or for sketched layers (width, SKETCH): the moments times :func:`probe`.
        traces: layer -> sum of squares, which tells how much a sketch misses.
        counts: layer -> tokens seen.
        shared: layer -> the layer whose entry it shares, because both read the very same input (itself otherwise).
        done: trajectories seen.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    traces: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    done: int = 0

    def __add__(self, other: Moments) -> Moments:
        if self.shared != other.shared or any(t.shape != other.sums[n].shape for n, t in self.sums.items()):
            raise LearnError("These moments are of different models or layers, and cannot be added.")
        return Moments(
            {n: t + other.sums[n] for n, t in self.sums.items()},
            {n: t + other.traces[n] for n, t in self.traces.items()},
            {n: c + other.counts[n] for n, c in self.counts.items()},
            dict(self.shared),
            self.done + other.done,
        )

    def save(self, path: Path) -> None:
        """Write the sums, in one step.

        Raises:
            LearnError: it could not be written; what was there before is unchanged.
        """
        names = list(self.shared)
        numbers = torch.tensor([[self.traces.get(n, 0.0), self.counts.get(n, 0.0)] for n in names], dtype=torch.float64)
        note = {"format": _FORMAT, "names": "\n".join(names), "shared": "\n".join(self.shared.values()), "done": str(self.done)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.replace(path, save({**self.sums, "#numbers": numbers.view(-1, 2)}, note))
        except OSError as error:
            raise LearnError(f"{path}: the moments could not be saved ({error.strerror or error}). Free some space.") from error

    @classmethod
    def load(cls, path: Path) -> Moments:
        """Read what :meth:`save` wrote.

        Raises:
            LearnError: the file is damaged, or something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                note = file.metadata() or {}
                found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
            if note.get("format") != _FORMAT:
                raise ValueError(f"format {note.get('format')!r}")
            numbers = found.pop("#numbers").tolist()
            shared = dict(zip(note["names"].split("\n"), note["shared"].split("\n"), strict=True)) if note["names"] else {}
            own = {n: pair for n, pair in zip(shared, numbers, strict=True) if n in found}
            traces, counts = ({n: pair[i] for n, pair in own.items()} for i in (0, 1))
            return cls(found, traces, counts, shared, int(note["done"]))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise LearnError(f"{path}: these are no moments that can be gone on with ({error}). Delete the file.") from error


def probe(width: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The fixed Gaussian matrix float32 (width, SKETCH) that sketches multiply by; the same in every run, so that sums add up."""
    drawn = torch.randn(width, SKETCH, generator=torch.Generator().manual_seed(width))
    return drawn.to(device)


class Collector:
    """Adds up moments of some layers while a model runs.

    Each product goes straight to the float64 sums: the device holds one at a time, and how much memory is free changes nothing.
    """

    def __init__(self, model: Model, layers: Sequence[Layer], into: Moments):
        self.model, self.layers, self.into = model, layers, into
        self.last: tuple[str, torch.Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, every forward pass is added."""
        handles = []
        try:
            for layer in self.layers:
                module = self.model.modules[layer.paths[0]]
                handles.append(module.register_forward_pre_hook(lambda m, args, n=layer.name: self._see(n, args[0])))
            yield
        finally:
            self.last = None
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _see(self, name: str, x: torch.Tensor) -> None:
        out = self.into
        # Queries, keys and values read one input: it is counted once. The reference keeps its memory from being used again.
        if name not in out.shared:
            out.shared[name] = self.last[0] if self.last is not None and self.last[1] is x else name
        if out.shared[name] != name:
            return
        self.last = (name, x)
        values = x.detach().reshape(-1, x.shape[-1]).float()
        width = values.shape[1]
        with torch.autocast(values.device.type, enabled=False):  # whatever the model itself runs in
            product = values.T @ (values @ probe(width, values.device) if width > WIDE else values)
        if name not in out.sums:
            out.sums[name] = torch.zeros(product.shape, dtype=torch.float64)
            out.traces[name] = out.counts[name] = 0.0
        out.sums[name] += product.cpu()
        out.traces[name] += float(values.square().sum())
        out.counts[name] += len(values)


def size(layer: Layer) -> int:
    """Numbers that a layer's sums take."""
    return layer.width * min(layer.width, SKETCH if layer.width > WIDE else layer.width)


def distinct(layers: Sequence[Layer]) -> list[Layer]:
    """Those of the layers that have inputs of their own, as far as names tell (running tells for sure)."""
    seen, found = set(), []
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        key = (parent, layer.width) if leaf in _PROJECTIONS else layer.name
        if key not in seen:
            seen.add(key)
            found.append(layer)
    return found


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


@torch.no_grad()
def collect(
    model: Model,
    layers: Sequence[Layer],
    settings: Settings,
    report: Callable[[Progress], None] = lambda p: None,
    rows: Sequence[int] | None = None,
    file: Path | None = None,
) -> Moments:
    """Sample neutral prompts with the untouched model, in both guidance branches, and add up what `layers` read.

    Args:
        rows: which trajectories (as :func:`uniforget.learn.teacher.record_teacher` counts them); None: this process' share of all.
        file: where unfinished sums are kept, every few minutes, and when it is
            cancelled between two batches; a run that finds them goes on from there.
    """
    noises = settings.noises or 1
    which = [p for _ in range(noises) for p in range(model.prompts)]
    rows = shards.mine(list(range(len(which)))) if rows is None else rows
    out = Moments.load(file) if file and file.is_file() else Moments()
    kept, whole = time.monotonic(), True
    try:
        with Collector(model, layers, out).watching():
            for start in range(out.done, len(rows), settings.batch):
                chunk = rows[start : start + settings.batch]
                x = torch.cat([model.initial(1, torch.Generator().manual_seed(settings.seed * 1_000_003 + i)) for i in chunk])
                whole = False
                for k in range(len(model.sigmas) - 1):
                    x = euler(model, x, k, [which[i] for i in chunk], settings.cfg)[0]
                out.done += len(chunk)
                whole = True
                if file and time.monotonic() - kept > KEEP_EVERY:
                    out.save(file)
                    kept = time.monotonic()
                report(Progress(out.done, len(rows), 0.0, 0.0, stage="teacher"))
    except BaseException:
        # Sums that hold a part of some trajectories are of no use; the last saved ones are.
        if file and out.done and whole:
            out.save(file)
        raise
    if file and out.done:
        out.save(file)
    return out
