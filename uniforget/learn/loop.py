"""Learning a mask from neutral prompts (UniForget, arXiv 2512.09687, eq. 4).

Teacher and student are one set of weights: the student is the model with gates in it. Only the gate logits, one flat
float32 vector, ever get a gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import LearnError
from ..mask.gates import INITIAL_LOGIT, gated, hard_gates, sample_noise, soft_gates, sparsity_loss
from ..mask.info import MaskInfo, MaskSet
from . import scores, state
from .model import Model, Progress, Result, Settings
from .objectives import OBJECTIVES, Objective
from .teacher import record_teacher
from .training import Report, Training, out_of_memory, run_key

# What beta = 1 weighs. The reconstruction loss is relative (1 = predicting nothing at all), so that one unit serves models
# of any latent scale. Calibrated on the testbed; docs/method.md says how.
BETA_UNIT = 0.02
PROBES = 10  # times that the gap between relaxed gates and hard mask is measured
PROBE_ITEMS = 32


def learn(
    model: Model,
    settings: Settings,
    info: MaskInfo,
    report: Report = lambda p: None,
    folder: Path | None = None,
    every: int = 25,
    tell: Callable[[str], None] = lambda text: None,
    save: Callable[[Result], object] = lambda result: None,
) -> Result:
    """Learn a mask. `report` is called after every update and may raise to cancel; hooks are removed whatever happens.

    The last ``settings.harden`` share of the updates trains with hard gates and straight-through gradients, which closes
    the gap between the relaxed gates and the binary mask that ships. Deterministic for a seed on one machine; torch's
    global random state is neither read nor changed.

    Args:
        folder: where unfinished learning is kept, every `every` updates and when it is cancelled; a run with the same settings,
            model and prompts goes on from there. None: nothing is kept.
        tell: is told in words what learning is going to take, where that is known.
        save: puts the result on disk. What was kept is removed after it, so that a result which could not be saved is not lost.

    Raises:
        LearnError: there is nothing to gate, memory ran out, or the loss is no longer a number. What was kept stays.
    """
    if not model.sites and settings.objective != "subspace":
        raise LearnError("The chosen targets have no sites in this model. Choose other targets, for example 'ffn + norm'.")
    began = time.monotonic()
    try:
        if settings.objective == "scores":
            mask = scores.score(model, settings, info, report)
            mask = replace(mask, info=replace(mask.info, learn_seconds=round(time.monotonic() - began, 1)))
            result = Result(mask, mask)
            save(result)
            return result
        if settings.objective == "subspace":
            from .subspace import learn_subspace  # which imports this package

            key = run_key(model, settings, info)
            file = folder / f"{key}.moments.safetensors" if folder else None
            keep = lambda found: save(Result(found, found))  # noqa: E731
            with state.alone(folder, key):
                found = learn_subspace(model, settings, info, report, file, tell, save=keep)
            return Result(found, found)
        run = _Run(model, settings, info, report, folder, every)
        with state.alone(folder, run.key):
            return run.run(began, save)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, settings, kept=folder is not None) from error


class _Run(Training[Objective]):
    """One learning run over gate logits."""

    def __init__(self, model: Model, settings: Settings, info: MaskInfo, report: Report, folder: Path | None, every: int):
        self.size = sum(s.units for s in model.sites)
        logits, generator = torch.full((self.size,), INITIAL_LOGIT), torch.Generator().manual_seed(settings.seed)
        super().__init__(model, settings, logits, generator, info, report, folder, every)
        self.info = info
        self.beta = settings.beta * BETA_UNIT
        self.cut = 0.0  # gates with logits above it stay on
        self.soft_steps = settings.steps - round(settings.steps * settings.harden)
        often = max(5, settings.steps // PROBES)
        self.measured = {1, self.soft_steps, settings.steps, *range(often, settings.steps, often)}
        self.probe: list[int] = []

    def run(self, began: float, save: Callable[[Result], object]) -> Result:
        bank = record_teacher(self.model, self.settings, self.report, self.folder, self.key)
        factors: dict[str, torch.Tensor] = {}
        with gated(self.model.modules, self.model.sites, factors):
            objective = OBJECTIVES[self.settings.objective](self.model, bank, self.settings, self.generator, factors)
            probe = torch.randperm(objective.items(), generator=torch.Generator().manual_seed(self.settings.seed + 1)).tolist()
            self.probe = probe[:PROBE_ITEMS]
            chain = objective.steps if self.settings.objective == "trajectory" else 1
            self.advance(objective, self.resume(objective, chain))
            if self.settings.max_neutral_loss:
                self._choose_cut(objective)
        result = self._result(began)
        self.finish(objective, lambda: save(result))
        return result

    def small(self) -> dict[str, float]:
        return {"cut": self.cut, "beta": self.beta}

    def restore(self, small: dict[str, float]) -> None:
        self.cut, self.beta = small["cut"], small["beta"]

    def look(self, objective: Objective, progress: Progress) -> None:
        if progress.step in self.measured:
            progress.soft = objective.loss(self.probe, soft_gates(self.numbers.detach() - self.cut))
            progress.hard = objective.loss(self.probe, self._hard())

    def update(self, objective: Objective, step: int) -> Progress:
        settings = self.settings
        if step == self.soft_steps:
            self._choose_cut(objective)
        targeted = bool(settings.target_sparsity or settings.max_neutral_loss)
        if step < self.soft_steps:
            gates = soft_gates(self.numbers, sample_noise(self.size, self.generator).to(self.device))
        else:
            if settings.target_sparsity:
                self.cut = self._quantile(settings.target_sparsity)
            gates = hard_gates(self.numbers - self.cut)
        reconstruction, gradient = objective.loss_and_gradient(gates)
        # With a target the share of hard gates is fixed by the cut, and nothing pushes.
        push = 0.0 if targeted and step >= self.soft_steps else self.beta
        (gradient,) = torch.autograd.grad((gates * gradient).sum() + push * sparsity_loss(self.numbers), self.numbers)
        self.step(reconstruction, gradient, step)
        if settings.target_sparsity and step < self.soft_steps:
            # Steers the sparsity weight so that the relaxed gates arrive near the target too.
            miss = settings.target_sparsity * min(1.0, 2 * (step + 1) / max(1, self.soft_steps)) - self._off(self.numbers <= 0)
            self.beta = min(max(self.beta * math.exp(0.5 * miss), 1e-6), 100.0)
        on = self.numbers.detach() > self.cut
        per_kind = {
            kind: 1
            - torch.cat([p for s, p in zip(self.model.sites, self._split(on.float()), strict=True) if s.kind == kind])
            .mean()
            .item()
            for kind in dict.fromkeys(s.kind for s in self.model.sites)
        }
        return Progress(step + 1, self.settings.steps, reconstruction, self._off(~on), off=per_kind)

    def _off(self, off: torch.Tensor) -> float:
        return off.float().mean().item()

    def _split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return flat.split([s.units for s in self.model.sites])

    def _hard(self) -> torch.Tensor:
        return (self.numbers.detach() > self.cut).float()

    def _quantile(self, share: float) -> float:
        """The cut that switches off `share` of the gates, as nearly as equal logits allow."""
        count = min(round(share * self.size), self.size - 1)
        if count <= 0:
            return self.numbers.detach().min().item() - 1.0
        return self.numbers.detach().kthvalue(count).values.item()

    def _choose_cut(self, objective: Objective) -> None:
        """Where the relaxed gates are cut into on and off: at 0, or where the target is met."""
        if self.settings.target_sparsity:
            self.cut = self._quantile(self.settings.target_sparsity)
        elif self.settings.max_neutral_loss:
            low, high = 0.0, 1.0
            for _ in range(8):
                middle = (low + high) / 2
                self.cut = self._quantile(middle)
                if objective.loss(self.probe, self._hard()) <= self.settings.max_neutral_loss:
                    low = middle
                else:
                    high = middle
            self.cut = self._quantile(low)

    def _result(self, began: float) -> Result:
        extra = dict(self.info.extra)
        last = self.curve[-1]
        extra |= {"loss_soft": f"{last.soft:.6g}", "loss_hard": f"{last.hard:.6g}"}
        info = replace(self.info, steps=self.settings.steps, learn_seconds=round(time.monotonic() - began, 1), extra=extra)
        soft = soft_gates(self.numbers.detach() - self.cut)
        return Result(self._mask(self._hard(), info), self._mask(soft, info), self.curve)

    def _mask(self, gates: torch.Tensor, info: MaskInfo) -> MaskSet:
        named = {s.name: piece.clone() for s, piece in zip(self.model.sites, self._split(gates.cpu()), strict=True)}
        return MaskSet(named, {s.name: s.kind for s in self.model.sites}, info)
