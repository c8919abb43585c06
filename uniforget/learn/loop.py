"""Learning a mask from neutral prompts (UniForget, arXiv 2512.09687, eq. 4).

Teacher and student are one set of weights: the student is the model with gates in it. Only the gate logits, one flat
float32 vector, ever get a gradient. Two objectives share everything else:

* ``trajectory``: the paper's. The student samples N steps; the loss compares its final latent with the teacher's. The
  backward pass re-computes one sampling step at a time with the same gates, so memory is that of one step.
* ``stepwise``: the student is compared with the teacher at states along the teacher's trajectories; no chain, so one
  forward and one backward per update.

Under classifier-free guidance both branches are matched.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import nn

from .errors import LearnError
from .gates import INITIAL_LOGIT, gated, hard_gates, sample_noise, soft_gates, sparsity_loss
from .maskset import MaskInfo, MaskSet
from .sites import Site

# What beta = 1 weighs. The reconstruction loss is relative (1 = predicting nothing at all), so that one unit serves models
# of any latent scale. Calibrated on the testbed; docs/method.md says how.
BETA_UNIT = {"stepwise": 0.02, "trajectory": 0.02}


class Model(Protocol):
    """What learning needs from a host. Latents are float32 (n, ...) tensors on the host's device."""

    sites: list[Site]
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
    """How to learn. Defaults and ranges that users see stand in :mod:`uniforget.config`."""

    beta: float = 2.0
    steps: int = 400
    learning_rate: float = 0.1
    batch: int = 16
    cfg: float = 3.0
    seed: int = 0
    objective: str = "stepwise"
    noises: int = 0  # teacher's trajectories per prompt; 0: about 512 in all, or as many as the updates can use
    harden: float = 0.3


@dataclass
class Progress:
    """State after one update. ``reconstruction`` is relative to the teacher's own magnitude."""

    step: int
    steps: int
    reconstruction: float
    off_share: float
    stage: str = "learning"


@dataclass
class Result:
    """What learning returns: the mask to ship, the soft gates it came from, and the curve."""

    mask: MaskSet
    soft: MaskSet
    curve: list[Progress] = field(default_factory=list)


@dataclass
class Bank:
    """The teacher's trajectories. float16 on the CPU; states are rounded before the teacher sees them."""

    which: list[int]
    states: torch.Tensor  # (trajectories, N + 1, ...)
    positive: torch.Tensor  # (trajectories, N, ...)
    negative: torch.Tensor | None
    scale: float  # mean square of the teacher's derivative
    final_scale: float  # mean square of the final latents


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


@torch.no_grad()
def record_teacher(model: Model, settings: Settings, generator: torch.Generator, report: Callable[[Progress], None]) -> Bank:
    """Sample every prompt with the untouched model, each time with other noise, and keep what it saw and said."""
    noises = settings.noises or max(1, math.ceil(min(512, settings.steps * settings.batch) / model.prompts))
    which = [p for _ in range(noises) for p in range(model.prompts)]
    steps = len(model.sigmas) - 1
    states, positives, negatives = [], [], []
    square = final = 0.0
    for start in range(0, len(which), settings.batch):
        chunk = which[start : start + settings.batch]
        x = model.initial(len(chunk), generator)
        xs, ps, ns = [], [], []
        for k in range(steps):
            x = x.half().float()
            xs.append(x.half().cpu())
            following, positive, negative = euler(model, x, k, chunk, settings.cfg)
            square += ((x - positive) / model.sigmas[k]).square().mean().item() * len(chunk) / steps
            ps.append(positive.half().cpu())
            if negative is not None:
                ns.append(negative.half().cpu())
            x = following
        final += x.square().mean().item() * len(chunk)
        xs.append(x.half().cpu())
        states.append(torch.stack(xs, 1))
        positives.append(torch.stack(ps, 1))
        if ns:
            negatives.append(torch.stack(ns, 1))
        report(Progress(start + len(chunk), len(which), 0.0, 0.0, stage="teacher"))
    count = len(which)
    negative = torch.cat(negatives) if negatives else None
    return Bank(which, torch.cat(states), torch.cat(positives), negative, square / count, final / count)


def _pick(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of `size` out of `count`, every item once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += torch.randperm(count, generator=generator).tolist()
        yield order[:size]
        del order[:size]


class _Objective(ABC):
    """What both objectives share."""

    def __init__(
        self, model: Model, bank: Bank, settings: Settings, generator: torch.Generator, factors: dict[str, torch.Tensor]
    ):
        self.model, self.bank, self.settings, self.factors = model, bank, settings, factors
        self.units = [s.units for s in model.sites]
        self.device = model.sigmas.device

    def install(self, gates: torch.Tensor) -> None:
        """Make the model's hooks use `gates` (flat, all sites in order)."""
        self.factors.update(zip((s.name for s in self.model.sites), gates.split(self.units), strict=True))

    @abstractmethod
    def loss_and_gradient(self, gates: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Relative reconstruction loss of the next batch under flat `gates`, and its gradient with respect to them."""


class Stepwise(_Objective):
    """Student against teacher at single states, derivative ``(x - clean) / sigma`` in both guidance branches."""

    def __init__(self, model, bank, settings, generator, factors):
        super().__init__(model, bank, settings, generator, factors)
        self.steps = len(model.sigmas) - 1
        self.batches = _pick(len(bank.which) * self.steps, settings.batch, generator)
        gaps = model.sigmas[:-1] - model.sigmas[1:]
        self.weights = gaps / gaps.mean()

    def loss_and_gradient(self, gates: torch.Tensor) -> tuple[float, torch.Tensor]:
        chosen = next(self.batches)
        rows = [i // self.steps for i in chosen]
        ks = torch.tensor([i % self.steps for i in chosen])
        x = self.bank.states[rows, ks].to(self.device).float()
        sigma = self.model.sigmas[ks.to(self.device)]
        which = [self.bank.which[r] for r in rows]
        gates = gates.detach().requires_grad_()
        self.install(gates)
        _, positive, negative = guided(self.model, x, sigma, which, self.settings.cfg)
        error = (positive - self.bank.positive[rows, ks].to(positive)).square().flatten(1).mean(1)
        if negative is not None and self.bank.negative is not None:
            error = (error + (negative - self.bank.negative[rows, ks].to(negative)).square().flatten(1).mean(1)) / 2
        loss = (error * self.weights[ks.to(self.device)] / sigma.square()).mean() / self.bank.scale
        (gradient,) = torch.autograd.grad(loss, gates)
        return loss.item(), gradient


class Trajectory(_Objective):
    """The paper's loss on final latents; the backward pass re-computes one sampling step at a time."""

    def __init__(self, model, bank, settings, generator, factors):
        super().__init__(model, bank, settings, generator, factors)
        self.batches = _pick(len(bank.which), settings.batch, generator)

    def loss_and_gradient(self, gates: torch.Tensor) -> tuple[float, torch.Tensor]:
        rows = next(self.batches)
        which = [self.bank.which[r] for r in rows]
        steps = len(self.model.sigmas) - 1
        gates = gates.detach()
        states = [self.bank.states[rows, 0].to(self.device).float()]
        self.install(gates)
        with torch.no_grad():
            for k in range(steps):
                states.append(euler(self.model, states[-1], k, which, self.settings.cfg)[0])
        target = self.bank.states[rows, steps].to(states[-1])
        difference = states.pop() - target
        loss = difference.square().mean() / self.bank.final_scale
        gradient_x = 2 * difference / difference.numel() / self.bank.final_scale
        total = torch.zeros_like(gates)
        for k in reversed(range(steps)):
            # The same gates are installed again as a fresh leaf, so one call returns the gradients of both inputs.
            leaf = gates.clone().requires_grad_()
            self.install(leaf)
            x = states.pop().requires_grad_()
            after = euler(self.model, x, k, which, self.settings.cfg)[0]
            gradient_x, gradient = torch.autograd.grad(after, (x, leaf), grad_outputs=gradient_x)
            total += gradient
        return loss.item(), total


OBJECTIVES = {"stepwise": Stepwise, "trajectory": Trajectory}


def learn(model: Model, settings: Settings, info: MaskInfo, report: Callable[[Progress], None] = lambda p: None) -> Result:
    """Learn a mask. `report` is called after every update and may raise to cancel; hooks are removed whatever happens.

    The last ``settings.harden`` share of the updates trains with hard gates and straight-through gradients, which closes
    the gap between the relaxed gates and the binary mask that ships. Deterministic for a seed on one machine; torch's
    global random state is neither read nor changed.

    Raises:
        LearnError: there is nothing to gate, or the loss is no longer a number.
    """
    if not model.sites:
        raise LearnError("The chosen targets have no sites in this model. Choose other targets, for example 'ffn + norm'.")
    began = time.monotonic()
    generator = torch.Generator().manual_seed(settings.seed)
    bank = record_teacher(model, settings, generator, report)
    device = model.sigmas.device
    size = sum(s.units for s in model.sites)
    logits = torch.full((size,), INITIAL_LOGIT, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=settings.learning_rate)
    beta = settings.beta * BETA_UNIT[settings.objective]
    soft_steps = settings.steps - round(settings.steps * settings.harden)
    factors: dict[str, torch.Tensor] = {}
    curve: list[Progress] = []
    with gated(model.modules, model.sites, factors):
        objective = OBJECTIVES[settings.objective](model, bank, settings, generator, factors)
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            if step < soft_steps:
                gates = soft_gates(logits, sample_noise(size, generator).to(device))
            else:
                gates = hard_gates(logits)
            reconstruction, gradient = objective.loss_and_gradient(gates)
            if not math.isfinite(reconstruction):
                raise LearnError(
                    f"The loss is not a number at step {step + 1} of {settings.steps}. Lower the learning rate "
                    f"(now {settings.learning_rate}), or load the model in fp32 or bf16 instead of fp16."
                )
            optimizer.zero_grad(set_to_none=True)
            (logits.grad,) = torch.autograd.grad((gates * gradient).sum() + beta * sparsity_loss(logits), logits)
            optimizer.step()
            progress = Progress(step + 1, settings.steps, reconstruction, (logits.detach() <= 0).float().mean().item())
            curve.append(progress)
            report(progress)
    info = replace(info, steps=settings.steps, learn_seconds=round(time.monotonic() - began, 1))
    return Result(_mask(model, (logits.detach() > 0).float(), info), _mask(model, soft_gates(logits.detach()), info), curve)


def _mask(model: Model, gates: torch.Tensor, info: MaskInfo) -> MaskSet:
    pieces = gates.cpu().split([s.units for s in model.sites])
    named = {s.name: piece.clone() for s, piece in zip(model.sites, pieces, strict=True)}
    return MaskSet(named, {s.name: s.kind for s in model.sites}, info)
