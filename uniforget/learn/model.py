"""What learning needs from a host, what it is told, and what it hands back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..model.sites import Site

if TYPE_CHECKING:
    from ..model.layers import Layer


class Model(Protocol):
    """A loaded model. Latents are float32 (n, ...) tensors on the host's device."""

    sites: list[Site]
    layers: list[Layer]
    modules: dict[str, nn.Module]
    sigmas: torch.Tensor
    prompts: int

    def initial(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """`count` pure-noise latents at ``sigmas[0]``, drawn from `generator` (a CPU generator)."""
        ...

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        """Predicted clean latents of `x` (n, ...) at `sigma` (n,) for prompts `which`; -1 is the negative prompt."""
        ...


@dataclass(frozen=True)
class Settings:
    """How to learn. Defaults and ranges that users see stand in :mod:`uniforget.config`.

    Attributes:
        objective: "stepwise", "trajectory", "scores" or "subspace".
        along: whose trajectories "stepwise" looks at, "teacher" or "student".
        noises: the teacher's trajectories per prompt; 0: about 512 in all, or as many as the updates can use.
        harden: share of the updates, the last ones, that train the mask as it ships, with hard gates.
        memory: "keep" keeps activations for the backward pass, "step" re-computes one sampling step at a time, "block" one block
            at a time; "auto" takes the fastest that fits.
        target_sparsity: share of gates to switch off, instead of what `beta` leads to; 0: not used.
        max_neutral_loss: switch off as much as possible while the hard mask's loss stays below this; 0: not used.
        threshold: share of the energy that a subspace gives up; 0: the preset's.
    """

    beta: float = 2.0
    steps: int = 400
    learning_rate: float = 0.1
    batch: int = 16
    cfg: float = 3.0
    seed: int = 0
    objective: str = "stepwise"
    along: str = "teacher"
    noises: int = 0
    harden: float = 0.3
    memory: str = "auto"
    target_sparsity: float = 0.0
    max_neutral_loss: float = 0.0
    threshold: float = 0.0


@dataclass
class Progress:
    """State after one update. Losses are relative to the teacher's own magnitude.

    Attributes:
        reconstruction: loss of this update's batch.
        off_share: share of gates that the mask switches off now, of all and (``off``) per kind.
        soft, hard: loss on a batch that stays the same, with relaxed gates and with the hard mask; NaN where not measured.
    """

    step: int
    steps: int
    reconstruction: float
    off_share: float
    stage: str = "learning"
    off: dict[str, float] = field(default_factory=dict)
    soft: float = float("nan")
    hard: float = float("nan")


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
