"""What learning a mask and recovering quality share: one flat vector under Adam, moved update by update, kept and gone on with."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import torch

from ..errors import LearnError
from ..mask.info import MaskInfo
from . import memory, shards, state
from .model import Model, Progress, Settings
from .objectives import Objective

Report = Callable[[Progress], None]
Kind = TypeVar("Kind", bound=Objective)


class Training(ABC, Generic[Kind]):
    """A run: its state, and how it moves on. What is kept leads to the same result, bit for bit.

    Attributes:
        numbers: what is trained, float32 (size,) on the model's device, requires grad.
        generator: the run's only source of randomness.
        curve: progress so far.
        key: tells this run from those that would not give the same.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        numbers: torch.Tensor,
        generator: torch.Generator,
        info: MaskInfo,
        report: Report,
        folder: Path | None,
        every: int,
        prefix: str = "",
    ):
        self.model, self.settings, self.generator = model, settings, generator
        self.report, self.every, self.folder = report, every, folder
        self.device = model.sigmas.device
        self.numbers = numbers.to(self.device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.numbers], lr=settings.learning_rate)
        self.curve: list[Progress] = []
        self.memory = settings.memory
        self.key = prefix + run_key(model, settings, info)
        self.file = state.path_of(folder, self.key) if folder else None

    @abstractmethod
    def update(self, objective: Kind, step: int) -> Progress:
        """Move `numbers` once."""

    def look(self, objective: Kind, progress: Progress) -> None:
        """After an update, when there is more to measure than its loss."""

    def small(self) -> dict[str, float]:
        """Numbers of a subclass that the next update depends on."""
        return {}

    def restore(self, small: dict[str, float]) -> None:
        """Take them back."""

    def advance(self, objective: Kind, first: int) -> None:
        """All updates from `first` on. Whatever ends them early, what was done up to there is kept."""
        order = objective.batches
        for step in range(first, self.settings.steps):
            before, done = (self.generator.get_state(), list(order.left)), step
            try:
                progress = self.update(objective, step)
                self.curve.append(progress)
                before, done = (self.generator.get_state(), order.left), step + 1
                self.look(objective, progress)
                if done % self.every == 0:
                    self._keep(done, *before)
                self.report(progress)
            except BaseException:
                self._keep(done, *before)
                raise

    def resume(self, objective: Kind, chain: int = 1) -> int:
        """Go on from what is kept; returns the number of updates done. `chain`: model evaluations that one backward pass goes through."""
        kept = state.read(self.file, len(self.numbers)) if self.file else None
        if kept is None:
            objective.settle_memory(memory.free_bytes(self.device), chain)
            self.memory = objective.memory
            return 0
        with torch.no_grad():
            self.numbers.copy_(kept.numbers)
        self.optimizer.state[self.numbers] = {
            "step": torch.tensor(float(kept.step)),
            "exp_avg": kept.first.to(self.device),
            "exp_avg_sq": kept.second.to(self.device),
        }
        self.generator.set_state(kept.generator)
        objective.batches.left = kept.left
        self.curve = kept.curve
        # Another way of spending memory rounds differently.
        self.memory = objective.memory = memory.MODES[int(kept.extra["memory"])]
        self.restore(kept.extra)
        return kept.step

    def step(self, loss: float, gradient: torch.Tensor, done: int) -> None:
        """One step of Adam along `gradient`, at the cosine schedule's rate after `done` updates.

        Raises:
            LearnError: the loss is no number.
        """
        if not math.isfinite(loss):
            raise LearnError(
                f"The loss is not a number at step {done + 1} of {self.settings.steps}. Lower the learning rate "
                f"(now {self.settings.learning_rate}), or load the model in fp32 or bf16 instead of fp16."
            )
        rate = self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done / self.settings.steps))
        self.optimizer.param_groups[0]["lr"] = rate
        self.numbers.grad = gradient
        self.optimizer.step()

    def finish(self, objective: Kind, save: Callable[[], object]) -> None:
        """Save the result, and only then remove what an unfinished run needs. A run that could not save goes straight back to saving."""
        with contextlib.suppress(LearnError):  # on a full disk: the result may go to another one
            self._keep(self.settings.steps, self.generator.get_state(), objective.batches.left)
        save()
        if self.folder is not None and not shards.rank():
            for path in self.folder.glob(f"{self.key}.*"):
                if path != state.lock_of(self.folder, self.key):
                    path.unlink(missing_ok=True)

    def _keep(self, step: int, generator: torch.Tensor, left: list[int]) -> None:
        if self.file is None or shards.rank() or not step:
            return
        moments = self.optimizer.state[self.numbers]
        extra = {"memory": float(memory.MODES.index(self.memory)), **self.small()}
        first, second = moments["exp_avg"], moments["exp_avg_sq"]
        state.write(self.file, state.State(step, self.numbers, first, second, generator, left, extra, self.curve))


def run_key(model: Model, settings: Settings, info: MaskInfo) -> str:
    """:func:`state.key` of a run on `model`."""
    shape = model.initial(1, torch.Generator().manual_seed(0)).shape[1:]
    return state.key(settings, info, model.sites, model.sigmas, shape)


def out_of_memory(error: torch.OutOfMemoryError, settings: Settings, kept: bool, also: str = "") -> LearnError:
    """What to tell the user; `also`: another setting that could be lowered, as ", the rank (now 16)"."""
    again = " What was learned so far is kept: start again with the same settings to go on." if kept else ""
    return LearnError(
        f"The device ran out of memory ({str(error).splitlines()[0]}). Lower the batch (now {settings.batch}){also} or the picture "
        f"size, or set memory to 'block' (now {settings.memory!r}).{again}"
    )
