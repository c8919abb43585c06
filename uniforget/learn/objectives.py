"""Losses that compare the student (the model with gates) with the teacher (the model without), and their gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext

import torch

from . import memory, shards
from .model import Model, Settings, euler, guided
from .teacher import Bank, Order


class Objective(ABC):
    """What the objectives share: installing gates, choosing rows, and how memory is spent.

    Args:
        factors: the mapping that :func:`uniforget.mask.gates.gated` reads.
    """

    def __init__(
        self, model: Model, bank: Bank, settings: Settings, generator: torch.Generator, factors: dict[str, torch.Tensor]
    ):
        self.model, self.bank, self.settings, self.factors = model, bank, settings, factors
        self.names = [s.name for s in model.sites]
        self.units = [s.units for s in model.sites]
        self.device = model.sigmas.device
        self.steps = len(model.sigmas) - 1
        self.batches = Order(self.items(), settings.batch, generator)
        self.memory = settings.memory

    @abstractmethod
    def items(self) -> int:
        """Number of things that a batch is chosen from."""

    @abstractmethod
    def compare(self, chosen: list[int], gates: torch.Tensor, share: float) -> tuple[float, torch.Tensor]:
        """Sum over `chosen` of the relative reconstruction losses times `share`, and its gradient for flat `gates`."""

    @abstractmethod
    def loss(self, chosen: list[int], gates: torch.Tensor) -> float:
        """Mean relative reconstruction loss of `chosen` under flat `gates`, without a gradient."""

    def install(self, gates: torch.Tensor) -> None:
        """Make the model's hooks use `gates` (flat, all sites in order)."""
        self.factors.update(zip(self.names, gates.split(self.units), strict=True))

    def loss_and_gradient(self, gates: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Mean relative reconstruction loss of the next batch under flat `gates`, and its gradient with respect to them."""
        batch = next(self.batches)
        mine = shards.mine(batch)
        loss, gradient = self.compare(mine, gates.detach(), 1 / len(batch)) if mine else (0.0, torch.zeros_like(gates))
        if shards.world() > 1:
            loss = shards.total_(torch.tensor(loss, dtype=torch.float64)).item()
            shards.total_(gradient)
        return loss, gradient

    def saving(self) -> AbstractContextManager[None]:
        """The context in which forward passes with a gradient run."""
        return (
            memory.checkpointed(memory.blocks_in(self.model.modules, self.model.sites))
            if self.memory == "block"
            else nullcontext()
        )

    def settle_memory(self, free: int, chain: int) -> None:
        """Replace "auto" by what fits, from what one step of one row keeps. `chain`: steps that one backward pass spans."""
        if self.memory != "auto":
            return
        x = self.bank.states[:1, 0].to(self.device).float()
        gates = torch.ones(sum(self.units), device=self.device, requires_grad=True)
        self.install(gates)
        modules = {id(m): m for m in self.model.modules.values()}.values()
        weights = (p for m in modules for p in (*m.parameters(recurse=False), *m.buffers(recurse=False)))
        one = memory.saved_bytes(lambda: euler(self.model, x, 0, self.bank.which[:1], self.settings.cfg), weights)
        rows = -(-self.settings.batch // shards.world())
        self.memory = memory.choose(one * rows, chain, free)


class Stepwise(Objective):
    """Student against teacher at single states, derivative ``(x - clean) / sigma`` in both guidance branches.

    States are the teacher's, or (``along="student"``) those that the student itself reaches from the teacher's start.
    """

    def __init__(self, model, bank, settings, generator, factors):
        super().__init__(model, bank, settings, generator, factors)
        gaps = model.sigmas[:-1] - model.sigmas[1:]
        self.weights = gaps / gaps.mean()

    def items(self) -> int:
        return len(self.bank.which) * self.steps

    def _states(
        self, rows: list[int], ks: torch.Tensor, which: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """States to compare at, and what the teacher predicts there (positive, negative)."""
        bank = self.bank
        if self.settings.along == "teacher":
            negative = None if bank.negative is None else bank.negative[rows, ks]
            return bank.states[rows, ks].to(self.device).float(), bank.positive[rows, ks], negative
        with torch.no_grad():
            x = bank.states[rows, 0].to(self.device).float()
            at = ks.to(self.device).view(-1, *[1] * (x.ndim - 1))
            for k in range(int(ks.max())):
                x = torch.where(at > k, euler(self.model, x, k, which, self.settings.cfg)[0], x)
            gates = dict(self.factors)
            self.factors.clear()
            _, positive, negative = guided(self.model, x, self.model.sigmas[ks.to(self.device)], which, self.settings.cfg)
            self.factors.update(gates)
        return x, positive, negative

    def errors(self, chosen: list[int]) -> torch.Tensor:
        """Relative loss of each chosen state (n,) under the installed gates."""
        rows = [i // self.steps for i in chosen]
        ks = torch.tensor([i % self.steps for i in chosen])
        which = [self.bank.which[r] for r in rows]
        x, wanted, unwanted = self._states(rows, ks, which)
        sigma = self.model.sigmas[ks.to(self.device)]
        _, positive, negative = guided(self.model, x, sigma, which, self.settings.cfg)
        error = (positive - wanted.to(positive)).square().flatten(1).mean(1)
        if negative is not None and unwanted is not None:
            error = (error + (negative - unwanted.to(negative)).square().flatten(1).mean(1)) / 2
        return error * self.weights[ks.to(self.device)] / sigma.square() / self.bank.scale

    def compare(self, chosen, gates, share):
        gates = gates.requires_grad_()
        self.install(gates)
        with self.saving():
            loss = self.errors(chosen).sum() * share
            (gradient,) = torch.autograd.grad(loss, gates)
        return loss.item(), gradient

    @torch.no_grad()
    def loss(self, chosen, gates):
        self.install(gates)
        parts = [chosen[i : i + self.settings.batch] for i in range(0, len(chosen), self.settings.batch)]
        return sum(self.errors(part).sum().item() for part in parts) / len(chosen)


class Trajectory(Objective):
    """The paper's loss on final latents (eq. 4).

    "keep" differentiates the whole chain of N steps; otherwise the chain runs without a gradient first, and the backward pass
    re-computes one step at a time with the same gates. One ``autograd.grad`` returns the gradients for gates and latent; the last
    step's graph is kept, so it is not re-computed.
    """

    def items(self) -> int:
        return len(self.bank.which)

    def _start(self, chosen: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        states = self.bank.states
        return (
            states[chosen, 0].to(self.device).float(),
            states[chosen, self.steps].to(self.device).float(),
            [self.bank.which[row] for row in chosen],
        )

    def compare(self, chosen, gates, share):
        x, target, which = self._start(chosen)
        unit = share / target[0].numel() / self.bank.final_scale
        step = lambda x, k: euler(self.model, x, k, which, self.settings.cfg)[0]  # noqa: E731
        with self.saving():
            if self.memory == "keep":
                gates = gates.requires_grad_()
                self.install(gates)
                for k in range(self.steps):
                    x = step(x, k)
                loss = (x - target).square().sum() * unit
                (gradient,) = torch.autograd.grad(loss, gates)
                return loss.item(), gradient
            states = [x]
            self.install(gates)
            with torch.no_grad():
                for k in range(self.steps - 1):
                    states.append(step(states[-1], k))
            total = torch.zeros_like(gates)
            gradient_x, value = None, 0.0
            for k in reversed(range(self.steps)):
                # The same gates are installed again as a fresh leaf, so one call returns the gradients of both inputs.
                leaf = gates.clone().requires_grad_()
                self.install(leaf)
                x = states.pop().requires_grad_(k > 0)
                after = step(x, k)
                if gradient_x is None:
                    difference = after.detach() - target
                    value = difference.square().sum().item() * unit
                    gradient_x = 2 * difference * unit
                found = torch.autograd.grad(after, (leaf, x) if k else (leaf,), grad_outputs=gradient_x)
                total += found[0]
                gradient_x = found[-1]
        return value, total

    @torch.no_grad()
    def loss(self, chosen, gates):
        self.install(gates)
        value = 0.0
        for start in range(0, len(chosen), self.settings.batch):
            x, target, which = self._start(chosen[start : start + self.settings.batch])
            for k in range(self.steps):
                x = euler(self.model, x, k, which, self.settings.cfg)[0]
            value += (x - target).square().flatten(1).mean(1).sum().item()
        return value / len(chosen) / self.bank.final_scale


OBJECTIVES: dict[str, type[Objective]] = {"stepwise": Stepwise, "trajectory": Trajectory}
