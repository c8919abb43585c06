"""What learning needs from a host, what it reports, and what it hands back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..model.sites import Site

if TYPE_CHECKING:
    from ..model.layers import Layer


class Model(Protocol):
    """A loaded model. Latents are float32 (n, ...) tensors on the host's device.

    Attributes:
        groups: for each prompt, and last for the negative one, a number; prompts of one group can share a forward pass (their
            encodings have the same shape). Batches are made of one group where that is possible.
        pairs: may be missing; see :func:`pairs_of`.
    """

    sites: list[Site]
    layers: list[Layer]
    modules: dict[str, nn.Module]
    sigmas: torch.Tensor
    prompts: int
    groups: Sequence[int]

    def initial(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """`count` pure-noise latents at ``sigmas[0]``, drawn from `generator` (a CPU generator)."""
        ...

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        """Predicted clean latents of `x` (n, ...) at `sigma` (n,) for prompts `which`; -1 is the negative prompt."""
        ...


def pairs_of(model: Model) -> Sequence[tuple[int, int]]:
    """``(asked, answer)``: the prompts that student and teacher are asked. The same, unless the model has ``pairs`` of its own."""
    return getattr(model, "pairs", None) or [(i, i) for i in range(model.prompts)]


def self_found(model: Model) -> int:
    """How many prompts are to be answered like others."""
    return len({asked for asked, answer in pairs_of(model) if asked != answer})


@dataclass
class Progress:
    """State after one update, or while the untouched model is watched. Losses are relative to the teacher's own magnitude.

    Attributes:
        reconstruction: loss of this update's batch.
        off_share: share of gates that the mask switches off now, of all and (``off``) per kind.
        soft, hard: loss on a batch that stays the same, with relaxed gates and with the hard mask; NaN where not measured.
        seconds: that this update took; ``left``: that this stage will still take. NaN where unknown.
    """

    step: int
    steps: int
    reconstruction: float = 0.0
    off_share: float = 0.0
    stage: str = "learning"
    off: dict[str, float] = field(default_factory=dict)
    soft: float = float("nan")
    hard: float = float("nan")
    seconds: float = field(default=float("nan"), repr=False, compare=False)
    left: float = field(default=float("nan"), repr=False, compare=False)

    def __str__(self) -> str:
        if self.stage == "finding":
            said = f"asking the model: {self.step} of {self.steps} prompts"
        elif self.stage == "teacher":
            said = f"watching the model: {self.step} of {self.steps} pictures"
        else:
            said = f"learning: {self.step} of {self.steps}, loss {self.reconstruction:.4f}, off {self.off_share:.1%}"
        return said if math.isnan(self.left) else f"{said}, {duration(self.left)} left"


@dataclass(frozen=True)
class Session:
    """How a run talks to its host, and what it keeps.

    Attributes:
        report: called after every update, and while the untouched model is watched; may raise to cancel.
        folder: where unfinished learning is kept, every `every` updates and when it is cancelled. None: nothing is kept.
        log: called with words worth showing.
        save: puts the result on disk. What was kept is removed after it, so that a result which could not be saved is not lost.
    """

    report: Callable[[Progress], None] = lambda progress: None
    folder: Path | None = None
    every: int = 25
    log: Callable[[str], None] = lambda text: None
    save: Callable[[Any], object] = lambda result: None


@dataclass
class Result:
    """What learning returns: the mask (or subspace) to ship, the soft gates it came from, and the curve."""

    mask: Any
    soft: Any
    curve: list[Progress] = field(default_factory=list)


def guided(model: Model, x, sigma, which, cfg):
    """``(guided, positive, negative)`` predictions of the clean latent; negative is None without guidance."""
    if cfg == 1.0:
        positive = model.denoise(x, sigma, which)
        return positive, positive, None
    both = model.denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), which + [-1] * len(which))
    positive, negative = both.chunk(2)
    return negative + cfg * (positive - negative), positive, negative


def euler(model: Model, x, k, which, cfg):
    """One Euler step from ``sigmas[k]`` to ``sigmas[k + 1]``; returns ``(next x, positive, negative)``."""
    sigma, after = model.sigmas[k], model.sigmas[k + 1]
    clean, positive, negative = guided(model, x, sigma.expand(len(x)), which, cfg)
    return x + (x - clean) / sigma * (after - sigma), positive, negative


def fetch(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` (CPU) on `device`; for a GPU by way of pinned memory, so that nobody waits."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def by_group(groups: Sequence[int], denoise: Callable, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
    """``denoise(x, sigma, which)``, called once for each group among the prompts; the rows in their order."""
    rows: dict[int, list[int]] = {}
    for row, prompt in enumerate(which):
        rows.setdefault(groups[prompt], []).append(row)
    if len(rows) == 1:
        return denoise(x, sigma, which)
    order = torch.tensor([row for r in rows.values() for row in r])
    there, back = fetch(order, x.device), fetch(order.argsort(), x.device)
    parts = [
        denoise(x[at], sigma[at], [which[row] for row in r])
        for r, at in zip(rows.values(), there.split([*map(len, rows.values())]), strict=True)
    ]
    return torch.cat(parts)[back]


def grouped(items: Sequence[Any], alike: Callable[[Any, Any], bool]) -> list[int]:
    """For each item the number of the first one that it is like: a model's ``groups``."""
    groups: list[int] = []
    for i, item in enumerate(items):
        groups.append(next((j for j in sorted(set(groups)) if alike(items[j], item)), i))
    return groups


class Clock:
    """Tells how long something will still take, from what is done since the clock was made."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.first, self.began = total, done, time.monotonic()

    def left(self, done: int) -> float:
        """Seconds until all is done; NaN while nothing is."""
        since = done - self.first
        return (time.monotonic() - self.began) / since * (self.total - done) if since > 0 else math.nan


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# What every curve's file begins with, which tells it from other tables.
CURVE_BEGINS = b"step,reconstruction,off"


def curve_csv(curve: list[Progress]) -> str:
    """The learning curve as comma-separated values, one line per update; empty where something was not measured."""
    kinds = list(curve[-1].off) if curve else []
    lines = [",".join([CURVE_BEGINS.decode(), *(f"off_{kind}" for kind in kinds), "loss_soft", "loss_hard"])]
    for p in curve:
        values = [p.reconstruction, p.off_share, *(p.off[kind] for kind in kinds), p.soft, p.hard]
        lines.append(",".join([str(p.step), *("" if math.isnan(v) else f"{v:.6g}" for v in values)]))
    return "\n".join(lines) + "\n"
