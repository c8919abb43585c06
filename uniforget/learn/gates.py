"""Learning gates from neutral prompts (UniForget, arXiv 2512.09687, eq. 4).

Teacher and student are one set of weights: the student is the model with gates in it. Only the gate logits, one flat
float32 vector, ever get a gradient.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from ..config import Settings
from ..mask.gates import gated
from ..mask.info import GateMask, MaskInfo
from .model import Model, Progress, Result, Session, fetch
from .objectives import OBJECTIVES, Objective
from .optimize import Optimizer
from .relax import INITIAL_LOGIT, hard_gates, sample_noise, soft_gates, sparsity_loss, split
from .resume import run_key
from .trajectories import record_teacher

# What beta = 1 weighs. The reconstruction loss is relative (1 = predicting nothing at all), so that one unit serves models
# of any latent scale. Calibrated on the testbed; docs/method.md says how.
BETA_UNIT = 0.02
PROBES = 10  # times that the gap between relaxed gates and hard mask is measured
PROBE_ITEMS = 32


def run(model: Model, settings: Settings, info: MaskInfo, session: Session) -> Result:
    """Learn gates.

    The last ``settings.harden`` share of the updates trains with hard gates and straight-through gradients, which closes the gap
    between the relaxed gates and the binary mask that ships.
    """
    began = time.monotonic()
    key = run_key(model, settings, info)
    cache = record_teacher(model, settings, session.report, session.folder, key)
    with gated(model.modules, model.sites) as install:
        generator = torch.Generator().manual_seed(settings.seed)
        gates = lambda flat: install({} if flat is None else split(flat, model.sites))  # noqa: E731
        objective = OBJECTIVES[settings.objective](model, cache, settings, generator, gates)
        learner = Learner(model, settings, objective, key, session)
        learner.optimizer.run(objective, learner.update, learner.progress, learner.on_step_end)
        if settings.max_neutral_loss:
            learner.choose_cut()
    last = learner.optimizer.curve[-1]
    extra = {**info.extra, "loss_soft": f"{last.soft:.6g}", "loss_hard": f"{last.hard:.6g}"}
    info = replace(info, steps=settings.steps, learn_seconds=round(time.monotonic() - began, 1), extra=extra)
    kinds = {s.name: s.kind for s in model.sites}
    mask, soft = (
        GateMask({name: piece.clone() for name, piece in split(flat.cpu(), model.sites).items()}, kinds, info)
        for flat in (learner.hard(), soft_gates(learner.logits.detach() - learner.cut))
    )
    return Result(mask, soft, learner.optimizer.curve)


class Learner:
    """Gate logits, where they are cut into on and off, and how hard they are pushed."""

    def __init__(self, model: Model, settings: Settings, objective: Objective, key: str, session: Session):
        self.settings, self.objective, self.generator = settings, objective, objective.batches.generator
        self.size = sum(s.units for s in model.sites)
        self.optimizer = Optimizer(model, settings, torch.full((self.size,), INITIAL_LOGIT), self.generator, key, session)
        self.logits, self.state = self.optimizer.params, self.optimizer.extra_state
        self.state |= {"cut": 0.0, "beta": settings.beta * BETA_UNIT}
        self.soft_steps = settings.steps - round(settings.steps * settings.harden)
        self.targeted = bool(settings.target_sparsity or settings.max_neutral_loss)
        often = max(5, settings.steps // PROBES)
        self.measured = {1, self.soft_steps, settings.steps, *range(often, settings.steps, often)}
        items = torch.randperm(objective.items(), generator=torch.Generator().manual_seed(settings.seed + 1))
        self.probe = items[:PROBE_ITEMS].tolist()
        self.kinds = {
            kind: torch.tensor([s.kind == kind for s in model.sites]) for kind in dict.fromkeys(s.kind for s in model.sites)
        }
        self.units = torch.tensor([s.units for s in model.sites])

    @property
    def cut(self) -> float:
        """Gates with logits above it stay on."""
        return self.state["cut"]

    def hard(self) -> torch.Tensor:
        """The mask as it ships, float32 (size,)."""
        return (self.logits.detach() > self.cut).float()

    def update(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and gradient of the next update."""
        settings, soft = self.settings, step < self.soft_steps
        if step == self.soft_steps:
            self.choose_cut()
        if soft:
            gates = soft_gates(self.logits, fetch(sample_noise(self.size, self.generator), self.logits.device))
        else:
            if settings.target_sparsity:
                self.state["cut"] = self._quantile(settings.target_sparsity)
            gates = hard_gates(self.logits - self.cut)
        loss, gradient = self.objective.loss_and_gradient(gates)
        # With a target the share of hard gates is fixed by the cut, and nothing pushes.
        push = 0.0 if self.targeted and not soft else self.state["beta"]
        (gradient,) = torch.autograd.grad((gates * gradient).sum() + push * sparsity_loss(self.logits), self.logits)
        return loss, gradient

    def progress(self, step: int, loss: float) -> Progress:
        """What to report: shares of gates that are off, in one transfer from the device. With a target, also steers towards it."""
        off = (self.logits.detach() <= self.cut).cpu().split(self.units.tolist())
        counts = torch.stack([piece.sum() for piece in off])
        share = (counts.sum() / self.size).item()
        if self.settings.target_sparsity and step <= self.soft_steps:
            self._steer(step, share)
        shares = {kind: (counts[of].sum() / self.units[of].sum()).item() for kind, of in self.kinds.items()}
        return Progress(step, self.settings.steps, loss, share, off=shares)

    def on_step_end(self, progress: Progress) -> None:
        """The gap between relaxed gates and the hard mask, now and then."""
        if progress.step in self.measured and math.isnan(progress.hard):
            progress.soft = self.objective.loss(self.probe, soft_gates(self.logits.detach() - self.cut))
            progress.hard = self.objective.loss(self.probe, self.hard())

    def _steer(self, step: int, share: float) -> None:
        """Set the sparsity weight so that the relaxed gates, of which `share` are off, arrive near the target too."""
        target = self.settings.target_sparsity
        miss = target * min(1.0, 2 * step / max(1, self.soft_steps)) - share
        self.state["beta"] = min(max(self.state["beta"] * math.exp(0.5 * miss), 1e-6), 100.0)

    def _quantile(self, share: float) -> float:
        """The cut that switches off `share` of the gates, as nearly as equal logits allow."""
        count = min(round(share * self.size), self.size - 1)
        if count <= 0:
            return self.logits.detach().min().item() - 1.0
        return self.logits.detach().kthvalue(count).values.item()

    def choose_cut(self) -> None:
        """Where the relaxed gates are cut into on and off: at 0, or where the target is met."""
        if self.settings.target_sparsity:
            self.state["cut"] = self._quantile(self.settings.target_sparsity)
        elif self.settings.max_neutral_loss:
            low, high = 0.0, 1.0
            for _ in range(8):
                middle = (low + high) / 2
                self.state["cut"] = self._quantile(middle)
                if self.objective.loss(self.probe, self.hard()) <= self.settings.max_neutral_loss:
                    low = middle
                else:
                    high = middle
            self.state["cut"] = self._quantile(low)
