"""Recovering quality (the paper's "retrain"): a LoRA that makes the masked model predict what the original predicts, on neutral prompts only.

The LoRA sees what gates and subspace let through, so it cannot read neurons that are off (its columns for them are exactly zero), nor directions that are
removed. All its numbers are one flat float32 vector, kept and resumed like the gates' logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..errors import LearnError
from ..mask.gates import assemble, by_weight, gated
from ..mask.info import MaskInfo, MaskSet
from ..mask.subspace import Subspace, effective, project
from . import shards, state
from .model import Model, Progress, Settings
from .objectives import Stepwise
from .teacher import record_teacher
from .training import Report, Training, out_of_memory


@dataclass(frozen=True)
class Lora:
    """Low-rank changes of Linears, named as ComfyUI names them.

    Attributes:
        down: layer -> float32 CPU (rank, in); ``up``: layer -> (out, rank). The change of a weight is ``up @ down``.
        info: of the mask that it was trained with, and how it was trained.
        curve: the loss along the way.
    """

    down: Mapping[str, torch.Tensor]
    up: Mapping[str, torch.Tensor]
    info: MaskInfo
    curve: Sequence[Progress] = ()

    @property
    def rank(self) -> int:
        """Of every change."""
        return next(iter(self.down.values())).shape[0]


def recover(
    model: Model,
    mask: MaskSet | None,
    settings: Settings,
    rank: int = 16,
    report: Report = lambda p: None,
    folder: Path | None = None,
    every: int = 25,
    subspace: Subspace | None = None,
    about: str = "",
    save: Callable[[Lora], object] = lambda lora: None,
) -> Lora:
    """Train a LoRA for `model` (the original) through `mask` and `subspace` at full strength. Deterministic for a seed on one machine.

    Args:
        model: its ``sites`` are those of the mask; its ``layers`` have those of the subspace.
        settings: steps, learning rate, batch, guidance, seed and memory count; there is nothing else to choose.
        report: called after every update; may raise to cancel.
        about: tells this model and these prompts from others (fingerprint, hash), so that no other run is gone on with.
        folder: where unfinished training is kept; a run with the same settings, model, mask and prompts goes on from there.
        save: puts the result on disk; what was kept is removed after it.

    Raises:
        LearnError: there are no Linears to change, memory ran out, or the loss is no longer a number. What was kept stays.
    """
    if not model.layers:
        raise LearnError("This model has no Linears inside blocks, so there is nothing that a LoRA could change.")
    if rank < 1:
        raise LearnError(f"rank: expected a whole number of at least 1; found {rank}.")
    if mask is None and subspace is None:
        raise LearnError("There is neither a mask nor a subspace, so there is nothing to recover from.")
    try:
        settings = replace(settings, objective="stepwise", along="teacher")
        run = _Recovery(model, mask, subspace, settings, rank, report, folder, every, about)
        with state.alone(folder, run.key):
            return run.run(save)
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, settings, folder is not None, also=f", the rank (now {rank})") from error


class _Recovery(Training[Stepwise]):
    """One training run over the numbers of all the LoRA's matrices."""

    def __init__(
        self,
        model: Model,
        mask: MaskSet | None,
        subspace: Subspace | None,
        settings: Settings,
        rank: int,
        report: Report,
        folder: Path | None,
        every: int,
        about: str,
    ):
        self.rank = rank
        self.learned = [one for one in (mask, subspace) if one is not None]
        self.info = self.learned[0].info
        self.digests = " ".join(one.digest() for one in self.learned)
        self.gates = {} if mask is None else mask.gates
        self.sites = [s for s in model.sites if s.name in self.gates]
        self.removed = {} if subspace is None else effective(subspace)
        self.outs = {layer.name: [_rows(model, path) for path in layer.paths] for layer in model.layers}
        generator, parts = torch.Generator().manual_seed(settings.seed), []
        for layer in model.layers:
            parts.append(torch.randn(rank * layer.width, generator=generator) / math.sqrt(layer.width))
            parts.append(torch.zeros(sum(self.outs[layer.name]) * rank))
        told = replace(self.info, base=f"{about} {self.digests} rank {rank}")
        super().__init__(model, settings, torch.cat(parts), generator, told, report, folder, every, prefix="recover-")

    def run(self, save: Callable[[Lora], object]) -> Lora:
        began = time.monotonic()
        bank = record_teacher(self.model, self.settings, self.report, self.folder, self.key)
        factors: dict[str, torch.Tensor] = {}
        # In the order in which they reach the weights: what is removed is removed from what the gates read.
        with self._projected(), gated(self.model.modules, self.sites, factors), self._changed():
            objective = Stepwise(self.model, bank, self.settings, self.generator, factors)
            first = self.resume(objective)
            factors.clear()
            # Copies: hosts may have read them in inference mode.
            factors.update({s.name: self.gates[s.name].to(self.device).clone() for s in self.sites})
            self.advance(objective, first)
        result = self._result(began)
        self.finish(objective, lambda: save(result))
        return result

    @contextmanager
    def _projected(self) -> Iterator[None]:
        """Within it the model's Linears read nothing of what the subspace removes."""
        handles = []
        try:
            for layer in self.model.layers:
                if layer.name in self.removed:
                    basis, complement, strength = self.removed[layer.name]
                    hook = _projection(basis.to(self.device).clone(), complement, strength)
                    handles += [self.model.modules[path].register_forward_pre_hook(hook) for path in layer.paths]
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _changed(self) -> Iterator[None]:
        """Within it the model's Linears compute with the LoRA."""
        handles = []
        try:
            for layer, (down, up) in zip(self.model.layers, self._pairs(lambda: self.numbers), strict=True):
                first = 0
                for path, count in zip(layer.paths, self.outs[layer.name], strict=True):
                    hook = _hook(down, up, slice(first, first + count))
                    handles.append(self.model.modules[path].register_forward_hook(hook))
                    first += count
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _pairs(self, numbers: Callable[[], torch.Tensor]) -> list[tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]]:
        """For each layer, what gives its ``down`` and ``up`` out of the flat vector, differentiably."""
        out, at = [], 0
        for layer in self.model.layers:
            rows = sum(self.outs[layer.name])
            sizes = (self.rank * layer.width, rows * self.rank)
            out.append((_view(numbers, at, (self.rank, layer.width)), _view(numbers, at + sizes[0], (rows, self.rank))))
            at += sum(sizes)
        return out

    def update(self, objective: Stepwise, step: int) -> Progress:
        batch = next(objective.batches)
        mine = shards.mine(batch)
        value, gradient = 0.0, torch.zeros_like(self.numbers)
        if mine:
            with objective.saving():
                loss = objective.errors(mine).sum() / len(batch)
                (gradient,) = torch.autograd.grad(loss, self.numbers)
            value = loss.item()
        value = shards.total_(torch.tensor(value, dtype=torch.float64)).item()
        shards.total_(gradient)
        self.step(value, gradient, step)
        first = self.learned[0]
        return Progress(step + 1, self.settings.steps, value, first.off_share(), off=first.sparsity())

    def _result(self, began: float) -> Lora:
        down, up = {}, {}
        numbers = self.numbers.detach().cpu()
        columns = self._columns()
        for layer, (a, b) in zip(self.model.layers, self._pairs(lambda: numbers), strict=True):
            gates = columns.get(layer.paths[0])
            change = a().clone() if gates is None else a() * gates
            # Directions are orthonormal, so that projecting the rows is projecting what they read.
            down[layer.name] = project(change, *self.removed[layer.name]) if layer.name in self.removed else change
            up[layer.name] = b().clone()
        extra = {"recovered": self.digests, "recover_seconds": f"{time.monotonic() - began:.1f}"}
        return Lora(down, up, replace(self.info, extra={**self.info.extra, **extra}), self.curve)

    def _columns(self) -> dict[str, torch.Tensor]:
        """Module path -> what the mask multiplies its input columns by."""
        return {
            path: assemble([(place, self.gates[name]) for name, place in on])
            for (path, axis), on in by_weight(self.sites).items()
            if axis == "in"
        }


def _rows(model: Model, path: str) -> int:
    return model.modules[path].get_parameter("weight").shape[0]


def _view(numbers: Callable[[], torch.Tensor], at: int, shape: tuple[int, int]) -> Callable[[], torch.Tensor]:
    return lambda: numbers()[at : at + shape[0] * shape[1]].view(shape)


def _projection(basis: torch.Tensor, complement: bool, strength: float):
    def project_input(module, args):
        x = args[0]
        directions = basis.to(x.dtype)
        part = (x @ directions) @ directions.T
        # Not lerp: under autocast the two may have other dtypes.
        return (x + strength * (part - x) if complement else x - strength * part, *args[1:])

    return project_input


def _hook(down: Callable[[], torch.Tensor], up: Callable[[], torch.Tensor], rows: slice):
    def add(module, args, output):
        x = args[0]
        return output + functional.linear(functional.linear(x, down().to(x.dtype)), up()[rows].to(x.dtype))

    return add


def one_of_each(learned: Sequence[MaskSet | Subspace]) -> tuple[MaskSet | None, Subspace | None]:
    """The mask and the subspace among `learned`.

    Raises:
        LearnError: there are several of one kind, or none at all.
    """
    masks: list[Any] = [one for one in learned if one.what == "mask"]
    spaces: list[Any] = [one for one in learned if one.what == "subspace"]
    if len(masks) > 1 or len(spaces) > 1 or not learned:
        raise LearnError(
            f"Expected one mask, one subspace, or one of each; found {len(masks)} masks and {len(spaces)} subspaces. Combine masks into one first."
        )
    return (masks[0] if masks else None), (spaces[0] if spaces else None)
