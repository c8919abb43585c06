"""The one loop that moves things: a flat vector under Adam, update by update, kept on disk and resumed bit for bit."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable

import torch

from ..config import Settings
from ..errors import LearnError
from . import distributed, memory, resume
from .model import Clock, Model, Progress, Session
from .objectives import Objective


class Optimizer:
    """A run: its state, and how it moves on.

    Attributes:
        params: what is trained, float32 (size,) on the model's device, requires grad.
        generator: the run's only source of randomness.
        extra_state: whatever else the next update depends on, by name.
        curve: progress so far.
        key: tells this run from those that would not give the same result.
    """

    def __init__(
        self, model: Model, settings: Settings, params: torch.Tensor, generator: torch.Generator, key: str, session: Session
    ):
        self.settings, self.generator, self.key, self.session = settings, generator, key, session
        self.params = params.to(model.sigmas.device).requires_grad_()
        self.adam = torch.optim.Adam([self.params], lr=settings.learning_rate)
        self.extra_state: dict[str, float] = {}
        self.curve: list[Progress] = []
        self.file = resume.path_of(session.folder, key) if session.folder else None

    def run(
        self,
        objective: Objective,
        update: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
        progress: Callable[[int, float], Progress],
        on_step_end: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """All updates that are left. Whatever ends them early, what was done up to there is kept.

        Args:
            update: after so many updates, the loss () and the gradient (size,) to move along.
            progress: what to report after so many updates, with this loss.
            on_step_end: measures more, and writes it into the progress.
        """
        first = self._resume(objective)
        if first:  # it may have been cancelled while it measured
            on_step_end(self.curve[-1])
        order, clock = objective.batches, Clock(self.settings.steps, first)
        for step in range(first, self.settings.steps):
            before, done, whole = (self.generator.get_state(), list(order.left)), step, True
            try:
                began = time.monotonic()
                loss, gradient = update(step)
                # One wait for the device before Adam's step, because a loss that is no number must not move anything; `progress` is the other.
                value = loss.item()
                whole = not math.isfinite(value)  # nothing moves along one that is no number
                self.move(value, gradient, step)
                found = progress(step + 1, value)
                found.seconds = time.monotonic() - began
                self.curve.append(found)
                before, done, whole = (self.generator.get_state(), order.left), step + 1, True
                on_step_end(found)
                if done % self.session.every == 0:
                    self._keep(objective, done, *before)
                found.left = clock.left(done)
                self.session.report(found)
            except BaseException:
                # A signal may come within the move, and what has half moved is of no use: the state before it that is on disk is.
                if whole:
                    self._keep(objective, done, *before)
                raise
        with contextlib.suppress(LearnError):  # on a full disk: the result may go to another one
            # A run whose result could not be saved goes straight back to saving.
            self._keep(objective, self.settings.steps, self.generator.get_state(), order.left)

    def move(self, loss: float, gradient: torch.Tensor, done: int) -> None:
        """One step of Adam along `gradient`, at the cosine schedule's rate after `done` updates.

        Raises:
            LearnError: the loss is no number; nothing has moved.
        """
        if not math.isfinite(loss):
            raise LearnError(
                f"The loss is not a number at step {done + 1} of {self.settings.steps}. Lower the learning rate "
                f"(now {self.settings.learning_rate}), or load the model in fp32 or bf16 instead of fp16."
            )
        rate = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done / self.settings.steps))
        self.adam.param_groups[0]["lr"] = rate
        self.params.grad = gradient
        self.adam.step()

    def _resume(self, objective: Objective) -> int:
        kept = resume.State.load(self.file, len(self.params), objective.items(), self.extra_state) if self.file else None
        if kept is None:
            objective.settle_memory(self.params, memory.free_bytes(self.params.device))
            return 0
        with torch.no_grad():
            self.params.copy_(kept.params)
        self.adam.state[self.params] = {
            "step": torch.tensor(float(kept.step)),
            "exp_avg": kept.first.to(self.params.device),
            "exp_avg_sq": kept.second.to(self.params.device),
        }
        self.generator.set_state(kept.generator)
        objective.batches.left = kept.left
        self.curve = kept.curve
        objective.memory, objective.rows = kept.memory, kept.rows
        self.extra_state.update(kept.extra_state)
        return kept.step

    def _keep(self, objective: Objective, step: int, generator: torch.Tensor, left: list[int]) -> None:
        if self.file is None or distributed.rank() or not step:
            return
        moments = self.adam.state[self.params]
        tensors = (self.params, moments["exp_avg"], moments["exp_avg_sq"], generator)
        resume.State(step, *tensors, left, objective.memory, objective.rows, self.extra_state, self.curve).save(self.file)


def out_of_memory(error: torch.OutOfMemoryError, settings: Settings, kept: bool, also: str = "") -> LearnError:
    """What to tell the user; `also`: another setting that could be lowered, as ", the rank (now 16)"."""
    again = " What was learned so far is kept: start again with the same settings to go on." if kept else ""
    return LearnError(
        f"The device ran out of memory ({str(error).splitlines()[0]}). Lower the batch (now {settings.batch}){also} or the picture "
        f"size, or set memory to 'block' (now {settings.memory!r}).{again}"
    )
