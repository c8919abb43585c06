"""Losses that compare the student (the model with gates, or with a LoRA) with the teacher (the model without), and their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ..config import Settings
from . import distributed, memory
from .model import Model, euler, fetch, guided
from .trajectories import Batches, TeacherCache


class Objective(ABC):
    """What the objectives share: choosing rows, and how memory is spent.

    The student is run as it is, not compiled: hosts patch their models from Python, hooks and re-computation break graphs, and
    compiling takes as long as many updates.

    Args:
        install: makes the student compute with the values that are trained, a flat tensor; None: makes it the teacher.

    Attributes:
        memory, rows: see :func:`.memory.choose`.
    """

    def __init__(
        self,
        model: Model,
        cache: TeacherCache,
        settings: Settings,
        generator: torch.Generator,
        install: Callable[[torch.Tensor | None], None],
    ):
        self.model, self.cache, self.settings, self._install = model, cache, settings, install
        self.values: torch.Tensor | None = None
        self.device = model.sigmas.device
        self.steps = len(model.sigmas) - 1
        several = len(set(model.groups[:-1])) > 1
        self.batches = Batches(self.items(), settings.batch, generator, self._group if several else None)
        self.memory, self.rows = settings.memory, settings.batch

    @property
    def chain(self) -> int:
        """Model evaluations that one backward pass goes through."""
        return 1

    @abstractmethod
    def items(self) -> int:
        """Number of things that a batch is chosen from."""

    @abstractmethod
    def compare(self, chosen: list[int], leaf: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum over `chosen` of the relative losses times `share`, and its gradient for the values `leaf`, which has no graph yet."""

    @abstractmethod
    def losses(self, chosen: list[int]) -> torch.Tensor:
        """Relative loss of each of `chosen`, without a gradient, under the installed values."""

    def install(self, values: torch.Tensor) -> None:
        """Let the student compute with `values`."""
        self.values = values
        self._install(values)

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """Within it, the model is the untouched one."""
        self._install(None)
        try:
            yield
        finally:
            assert self.values is not None, "the student's values come first"
            self._install(self.values)

    def _group(self, item: int) -> int:
        return self.model.groups[self.cache.which[item * len(self.cache.which) // self.items()]]

    def loss_and_gradient(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean relative loss of the next batch under `values`, float32 (), and its gradient with respect to them. Both on the device."""
        batch = next(self.batches)
        mine = distributed.shard(batch)
        loss, gradient = torch.zeros((), device=self.device), torch.zeros_like(values, requires_grad=False)
        with self._saving():
            for start in range(0, len(mine), self.rows):
                leaf = values.detach().requires_grad_()
                part, slope = self.compare(mine[start : start + self.rows], leaf, 1 / len(batch))
                loss, gradient = loss + part.detach(), gradient + slope
        return distributed.all_reduce(loss), distributed.all_reduce(gradient)

    @torch.no_grad()
    def loss(self, chosen: list[int], values: torch.Tensor) -> float:
        """Mean relative loss of `chosen` under `values`, without a gradient."""
        self.install(values)
        size = self.settings.batch
        return torch.cat([self.losses(chosen[i : i + size]) for i in range(0, len(chosen), size)]).double().mean().item()

    def _saving(self) -> AbstractContextManager[None]:
        if self.memory != "block":
            return nullcontext()
        return memory.checkpointed(memory.blocks_in(self.model.modules, self.model.sites))

    def settle_memory(self, values: torch.Tensor, free: int) -> None:
        """Choose how to spend memory, from what one evaluation of one row keeps for a backward pass to `values`."""
        batch = -(-self.settings.batch // distributed.world_size())
        row = 0
        if self.memory not in ("keep", "step"):
            x = self._latents([0], 0)
            self.install(values.detach().requires_grad_())
            modules = {id(m): m for m in self.model.modules.values()}.values()
            weights = (p for m in modules for p in (*m.parameters(recurse=False), *m.buffers(recurse=False)))
            row = memory.saved_bytes(lambda: euler(self.model, x, 0, self.cache.which[:1], self.settings.cfg), weights)
        self.memory, self.rows = memory.choose(self.memory, row, batch, self.chain, free if row else 1 << 62)

    def _latents(self, rows: list[int], k: int | torch.Tensor) -> torch.Tensor:
        """The teacher's latents at step `k`, float32 on the device."""
        return fetch(self.cache.states[rows, k], self.device).float()


# Where student and teacher are asked different prompts, only the first half of the steps is compared, in which it is decided which picture
# it will be; later on, both see it in the latents. Those steps are the shortest: with the weights of the others, by length, they
# would count least.
REDIRECTED = 4.0


class Stepwise(Objective):
    """Student against teacher at single states, derivative ``(x - clean) / sigma`` in both guidance branches.

    States are the teacher's, or (``along="student"``) those that the student itself reaches from the teacher's start.
    """

    def __init__(self, model, cache, settings, generator, install):
        super().__init__(model, cache, settings, generator, install)
        gaps = model.sigmas[:-1] - model.sigmas[1:]
        self.weights = gaps / gaps.mean()
        self.early = -(-self.steps // 2)
        self.redirected = torch.tensor([a != b for a, b in zip(cache.which, cache.answers, strict=True)])

    def items(self) -> int:
        return len(self.cache.which) * self.steps

    def _states(
        self, rows: list[int], ks: torch.Tensor, which: list[int], answers: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """States to compare at, and what the teacher predicts there (positive, negative)."""
        cache = self.cache
        if self.settings.along == "teacher":
            negative = None if cache.negative is None else fetch(cache.negative[rows, ks], self.device)
            return self._latents(rows, ks), fetch(cache.positive[rows, ks], self.device), negative
        with torch.no_grad():
            x = self._latents(rows, 0)
            at = fetch(ks, self.device).view(-1, *[1] * (x.ndim - 1))
            for k in range(int(ks.max())):
                x = torch.where(at > k, euler(self.model, x, k, which, self.settings.cfg)[0], x)
        with self.as_teacher(), torch.no_grad():
            _, positive, negative = guided(self.model, x, self.model.sigmas[at.flatten()], answers, self.settings.cfg)
        return x, positive, negative

    def compare(self, chosen, leaf, share):
        self.install(leaf)
        loss = self.losses(chosen).sum() * share
        return loss, torch.autograd.grad(loss, leaf)[0]

    def losses(self, chosen):
        rows = [i // self.steps for i in chosen]
        ks = torch.tensor([i % self.steps for i in chosen])
        ks = torch.where(self.redirected[rows], ks % self.early, ks)
        which, answers = ([of[r] for r in rows] for of in (self.cache.which, self.cache.answers))
        x, wanted, unwanted = self._states(rows, ks, which, answers)
        ks, redirected = fetch(ks, self.device), fetch(self.redirected[rows], self.device)
        sigma = self.model.sigmas[ks]
        _, positive, negative = guided(self.model, x, sigma, which, self.settings.cfg)
        error = (positive - wanted.to(positive)).square().flatten(1).mean(1)
        if negative is not None and unwanted is not None:
            error = (error + (negative - unwanted.to(negative)).square().flatten(1).mean(1)) / 2
        weights = torch.where(redirected, REDIRECTED, self.weights[ks])
        return error * weights / sigma.square() / self.cache.scale


class Trajectory(Objective):
    """The paper's loss on final latents (eq. 4).

    With "keep" and "micro" the whole chain of N steps is differentiated; otherwise it runs without a gradient first, and the backward
    pass re-computes one step at a time with the same gates. One ``autograd.grad`` returns the gradients for gates and latent.
    """

    @property
    def chain(self):
        return self.steps

    def items(self) -> int:
        return len(self.cache.which)

    def _step(self, x: torch.Tensor, k: int, which: list[int]) -> torch.Tensor:
        return euler(self.model, x, k, which, self.settings.cfg)[0]

    def compare(self, chosen, leaf, share):
        x, target = self._latents(chosen, 0), self._latents(chosen, self.steps)
        which = [self.cache.which[row] for row in chosen]
        unit = share / target[0].numel() / self.cache.final_scale
        self.install(leaf)
        if self.memory in ("keep", "micro"):
            for k in range(self.steps):
                x = self._step(x, k, which)
            loss = (x - target).square().sum() * unit
            return loss, torch.autograd.grad(loss, leaf)[0]
        states = [x]
        with torch.no_grad():
            for k in range(self.steps - 1):
                states.append(self._step(states[-1], k, which))
        loss = total = gradient = None
        for k in reversed(range(self.steps)):
            # The same values are installed as a fresh leaf, so that one call returns the gradients of both inputs.
            fresh = leaf.detach().requires_grad_()
            self.install(fresh)
            x = states.pop().requires_grad_(k > 0)
            after = self._step(x, k, which)
            if gradient is None:
                difference = after.detach() - target
                loss, gradient = difference.square().sum() * unit, 2 * difference * unit
            found = torch.autograd.grad(after, (fresh, x) if k else (fresh,), grad_outputs=gradient)
            total = found[0] if total is None else total + found[0]
            gradient = found[-1]
        return loss, total

    def losses(self, chosen):
        x, target = self._latents(chosen, 0), self._latents(chosen, self.steps)
        for k in range(self.steps):
            x = self._step(x, k, [self.cache.which[row] for row in chosen])
        return (x - target).square().flatten(1).mean(1) / self.cache.final_scale


OBJECTIVES: dict[str, type[Objective]] = {"stepwise": Stepwise, "trajectory": Trajectory}
