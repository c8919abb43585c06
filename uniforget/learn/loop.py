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
from ..gates import INITIAL_LOGIT, gated, hard_gates, sample_noise, soft_gates, sparsity_loss
from ..maskset import MaskInfo, MaskSet
from . import memory, scores, shards, state
from .model import Model, Progress, Result, Settings
from .objectives import OBJECTIVES, Objective
from .teacher import Order, record_teacher

# What beta = 1 weighs. The reconstruction loss is relative (1 = predicting nothing at all), so that one unit serves models
# of any latent scale. Calibrated on the testbed; docs/method.md says how.
BETA_UNIT = 0.02
PROBES = 10  # times that the gap between relaxed gates and hard mask is measured
PROBE_ITEMS = 32
Report = Callable[[Progress], None]


def learn(
    model: Model,
    settings: Settings,
    info: MaskInfo,
    report: Report = lambda p: None,
    folder: Path | None = None,
    every: int = 25,
    tell: Callable[[str], None] = lambda text: None,
) -> Result:
    """Learn a mask. `report` is called after every update and may raise to cancel; hooks are removed whatever happens.

    The last ``settings.harden`` share of the updates trains with hard gates and straight-through gradients, which closes
    the gap between the relaxed gates and the binary mask that ships. Deterministic for a seed on one machine; torch's
    global random state is neither read nor changed.

    Args:
        folder: where unfinished learning is kept, every `every` updates and when it is cancelled; a run with the same settings,
            model and prompts goes on from there. None: nothing is kept.
        tell: is told in words what learning is going to take, where that is known.

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
            return Result(mask, mask)
        if settings.objective == "subspace":
            from ..subspace.learning import learn_subspace  # which imports this package

            key = state.key(
                settings, info, model.sites, model.sigmas, model.initial(1, torch.Generator().manual_seed(0)).shape[1:]
            )
            found = learn_subspace(model, settings, info, report, folder / f"{key}.moments.safetensors" if folder else None, tell)
            return Result(found, found)
        return _Run(model, settings, info, report, folder, every).run(began)
    except torch.OutOfMemoryError as error:
        kept = " What was learned so far is kept: start again with the same settings to go on." if folder else ""
        raise LearnError(
            f"The device ran out of memory ({str(error).splitlines()[0]}). Lower the batch (now {settings.batch}) or the picture "
            f"size, or set memory to 'block' (now {settings.memory!r}).{kept}"
        ) from error


class _Run:
    """One learning run: its state, and how it moves on."""

    def __init__(self, model: Model, settings: Settings, info: MaskInfo, report: Report, folder: Path | None, every: int):
        self.model, self.settings, self.info, self.report, self.every = model, settings, info, report, every
        self.device = model.sigmas.device
        self.size = sum(s.units for s in model.sites)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.logits = torch.full((self.size,), INITIAL_LOGIT, device=self.device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits], lr=settings.learning_rate)
        self.beta = settings.beta * BETA_UNIT
        self.cut = 0.0  # gates with logits above it stay on
        self.curve: list[Progress] = []
        self.memory = settings.memory
        self.soft_steps = settings.steps - round(settings.steps * settings.harden)
        shape = model.initial(1, torch.Generator().manual_seed(0)).shape[1:]
        self.key = state.key(settings, info, model.sites, model.sigmas, shape)
        self.folder = folder
        self.file = state.path_of(folder, self.key) if folder else None

    def run(self, began: float) -> Result:
        bank = record_teacher(self.model, self.settings, self.report, self.folder, self.key)
        factors: dict[str, torch.Tensor] = {}
        with gated(self.model.modules, self.model.sites, factors):
            objective = OBJECTIVES[self.settings.objective](self.model, bank, self.settings, self.generator, factors)
            probe = torch.randperm(objective.items(), generator=torch.Generator().manual_seed(self.settings.seed + 1)).tolist()
            probe = probe[:PROBE_ITEMS]
            order = objective.batches
            assert isinstance(order, Order)
            first = self._resume(objective, order)
            often = max(5, self.settings.steps // PROBES)
            measured = {1, self.soft_steps, self.settings.steps, *range(often, self.settings.steps, often)}
            for step in range(first, self.settings.steps):
                before = self.generator.get_state(), list(order.left)
                done = step
                try:
                    if step == self.soft_steps:
                        self._choose_cut(objective, probe)
                    progress = self._update(objective, step)
                    self.curve.append(progress)
                    before, done = (self.generator.get_state(), order.left), step + 1
                    if done in measured:
                        progress.soft = objective.loss(probe, soft_gates(self.logits.detach() - self.cut))
                        progress.hard = objective.loss(probe, self._hard())
                    if done % self.every == 0:
                        self._keep(done, *before)
                    self.report(progress)
                except BaseException:
                    # Cancelled, or failed: what was learned up to here is kept.
                    self._keep(done, *before)
                    raise
            if self.settings.max_neutral_loss:
                self._choose_cut(objective, probe)
        result = self._result(began)
        self._clean()
        return result

    def _update(self, objective: Objective, step: int) -> Progress:
        settings = self.settings
        rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        self.optimizer.param_groups[0]["lr"] = rate
        targeted = bool(settings.target_sparsity or settings.max_neutral_loss)
        if step < self.soft_steps:
            gates = soft_gates(self.logits, sample_noise(self.size, self.generator).to(self.device))
        else:
            if settings.target_sparsity:
                self.cut = self._quantile(settings.target_sparsity)
            gates = hard_gates(self.logits - self.cut)
        reconstruction, gradient = objective.loss_and_gradient(gates)
        if not math.isfinite(reconstruction):
            raise LearnError(
                f"The loss is not a number at step {step + 1} of {settings.steps}. Lower the learning rate "
                f"(now {settings.learning_rate}), or load the model in fp32 or bf16 instead of fp16."
            )
        # With a target the share of hard gates is fixed by the cut, and nothing pushes.
        push = 0.0 if targeted and step >= self.soft_steps else self.beta
        self.optimizer.zero_grad(set_to_none=True)
        (self.logits.grad,) = torch.autograd.grad((gates * gradient).sum() + push * sparsity_loss(self.logits), self.logits)
        self.optimizer.step()
        if settings.target_sparsity and step < self.soft_steps:
            # Steers the sparsity weight so that the relaxed gates arrive near the target too.
            miss = settings.target_sparsity * min(1.0, 2 * (step + 1) / max(1, self.soft_steps)) - self._off(self.logits <= 0)
            self.beta = min(max(self.beta * math.exp(0.5 * miss), 1e-6), 100.0)
        on = self.logits.detach() > self.cut
        per_kind = {
            kind: 1
            - torch.cat([p for s, p in zip(self.model.sites, self._split(on.float()), strict=True) if s.kind == kind])
            .mean()
            .item()
            for kind in dict.fromkeys(s.kind for s in self.model.sites)
        }
        return Progress(step + 1, settings.steps, reconstruction, self._off(~on), off=per_kind)

    def _off(self, off: torch.Tensor) -> float:
        return off.float().mean().item()

    def _split(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return flat.split([s.units for s in self.model.sites])

    def _hard(self) -> torch.Tensor:
        return (self.logits.detach() > self.cut).float()

    def _quantile(self, share: float) -> float:
        """The cut that switches off `share` of the gates, as nearly as equal logits allow."""
        count = min(round(share * self.size), self.size - 1)
        if count <= 0:
            return self.logits.detach().min().item() - 1.0
        return self.logits.detach().kthvalue(count).values.item()

    def _choose_cut(self, objective: Objective, probe: list[int]) -> None:
        """Where the relaxed gates are cut into on and off: at 0, or where the target is met."""
        if self.settings.target_sparsity:
            self.cut = self._quantile(self.settings.target_sparsity)
        elif self.settings.max_neutral_loss:
            low, high = 0.0, 1.0
            for _ in range(8):
                middle = (low + high) / 2
                self.cut = self._quantile(middle)
                if objective.loss(probe, self._hard()) <= self.settings.max_neutral_loss:
                    low = middle
                else:
                    high = middle
            self.cut = self._quantile(low)

    def _keep(self, step: int, generator: torch.Tensor, left: list[int]) -> None:
        if self.file is None or shards.rank() or not step:
            return
        moments = self.optimizer.state[self.logits]
        extra = {"cut": self.cut, "beta": self.beta, "memory": float(memory.MODES.index(self.memory))}
        first, second = moments["exp_avg"], moments["exp_avg_sq"]
        state.write(self.file, state.State(step, self.logits, first, second, generator, left, extra, self.curve))

    def _resume(self, objective: Objective, order: Order) -> int:
        """Go on from what is kept; returns the number of updates done."""
        kept = state.read(self.file, self.size) if self.file else None
        if kept is None:
            chain = objective.steps if self.settings.objective == "trajectory" else 1
            objective.settle_memory(memory.free_bytes(self.device), chain)
            self.memory = objective.memory
            return 0
        with torch.no_grad():
            self.logits.copy_(kept.logits)
        self.optimizer.state[self.logits] = {
            "step": torch.tensor(float(kept.step)),
            "exp_avg": kept.first.to(self.device),
            "exp_avg_sq": kept.second.to(self.device),
        }
        self.generator.set_state(kept.generator)
        order.left = kept.left
        self.cut, self.beta, self.curve = kept.extra["cut"], kept.extra["beta"], kept.curve
        # Another way of spending memory rounds differently.
        self.memory = objective.memory = memory.MODES[int(kept.extra["memory"])]
        return kept.step

    def _clean(self) -> None:
        """Remove what an unfinished run needs."""
        if self.folder is not None and not shards.rank():
            for path in self.folder.glob(f"{self.key}.*"):
                path.unlink(missing_ok=True)

    def _result(self, began: float) -> Result:
        extra = dict(self.info.extra)
        last = self.curve[-1]
        extra |= {"loss_soft": f"{last.soft:.6g}", "loss_hard": f"{last.hard:.6g}"}
        info = replace(self.info, steps=self.settings.steps, learn_seconds=round(time.monotonic() - began, 1), extra=extra)
        soft = soft_gates(self.logits.detach() - self.cut)
        return Result(self._mask(self._hard(), info), self._mask(soft, info), self.curve)

    def _mask(self, gates: torch.Tensor, info: MaskInfo) -> MaskSet:
        named = {s.name: piece.clone() for s, piece in zip(self.model.sites, self._split(gates.cpu()), strict=True)}
        return MaskSet(named, {s.name: s.kind for s in self.model.sites}, info)
