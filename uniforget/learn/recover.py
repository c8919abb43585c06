"""Recovering quality (the paper's "retrain"): a LoRA that makes the masked model predict what the original predicts, on neutral prompts only.

The LoRA sees what gates and subspace let through, so it cannot read neurons that are off (its columns for them are exactly zero), nor directions that are
removed. All its numbers are one flat float32 vector, kept and resumed like the gates' logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ..config import Settings
from ..errors import LearnError
from ..mask.edit import Mask
from ..mask.gates import assemble, by_weight, gated
from ..mask.info import GateMask, MaskInfo
from ..mask.subspace import SubspaceMask, effective, project
from ..model.names import eager
from . import resume
from .model import Model, Progress, Session, self_found
from .objectives import Stepwise
from .optimize import Optimizer, out_of_memory
from .resume import run_key
from .trajectories import record_teacher


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
    mask: GateMask | None,
    settings: Settings,
    rank: int = 16,
    subspace: SubspaceMask | None = None,
    about: str = "",
    session: Session | None = None,
) -> Lora:
    """Train a LoRA for `model` (the original) through `mask` and `subspace` at full strength. Deterministic for a seed on one machine.

    Args:
        model: its ``sites`` are those of the mask; its ``layers`` have those of the subspace.
        settings: steps, learning rate, batch, guidance, seed and memory count; there is nothing else to choose.
        about: tells this model and these prompts from others (fingerprint, hash), so that no other run is resumed.
        session: a run with the same settings, model, mask and prompts goes on from what is kept in its folder.

    Raises:
        LearnError: there are no Linears to change, memory ran out, or the loss is no longer a number. What was kept stays.
    """
    if not model.layers:
        raise LearnError("This model has no Linears inside blocks, so there is nothing that a LoRA could change.")
    if rank < 1:
        raise LearnError(f"rank: expected a whole number of at least 1; found {rank}.")
    if mask is None and subspace is None:
        raise LearnError("There is neither a mask nor a subspace, so there is nothing to recover from.")
    session = session or Session()
    try:
        settings = replace(settings, objective="stepwise", along="teacher")
        run = _Recovery(model, mask, subspace, settings, rank, about, session)
        with resume.kept(session.folder, run.key), eager():
            lora = run.run()
            session.save(lora)
        return lora
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, settings, session.folder is not None, also=f", the rank (now {rank})") from error


class _Recovery:
    """One training run over the numbers of all the LoRA's matrices."""

    def __init__(
        self,
        model: Model,
        mask: GateMask | None,
        subspace: SubspaceMask | None,
        settings: Settings,
        rank: int,
        about: str,
        session: Session,
    ):
        self.model, self.settings, self.rank, self.session = model, settings, rank, session
        self.learned = [one for one in (mask, subspace) if one is not None]
        self.info = self.learned[0].info
        self.digests = " ".join(one.digest() for one in self.learned)
        self.gates = {} if mask is None else mask.gates
        self.sites = [s for s in model.sites if s.name in self.gates]
        self.removed = {} if subspace is None else effective(subspace)
        # Of each layer's Linears, one behind the other: how many rows they have.
        self.rows = [[len(model.modules[path].get_parameter("weight")) for path in layer.paths] for layer in model.layers]
        generator, parts = torch.Generator().manual_seed(settings.seed), []
        for layer, rows in zip(model.layers, self.rows, strict=True):
            parts.append(torch.randn(rank * layer.width, generator=generator) / math.sqrt(layer.width))
            parts.append(torch.zeros(sum(rows) * rank))
        base = replace(self.info, base=f"{about} {self.digests} rank {rank}")
        self.key = f"recover-{run_key(model, settings, base)}"
        self.optimizer = Optimizer(model, settings, torch.cat(parts), generator, self.key, session)
        self.matrices = self._matrices(self.optimizer.params)

    def run(self) -> Lora:
        began = time.monotonic()
        cache = record_teacher(self.model, self.settings, self.session.report, self.session.folder, self.key)
        first, device = self.learned[0], self.model.sigmas.device
        progress = lambda step, loss: Progress(step, self.settings.steps, loss, first.off_share(), off=first.sparsity())  # noqa: E731
        # In the order in which they reach the weights: what is removed is removed from what the gates read.
        with self._hooks(self._projections()), gated(self.model.modules, self.sites) as install, self._hooks(self._changes()):
            # Copies: hosts may have read them in inference mode.
            install({s.name: self.gates[s.name].to(device).clone() for s in self.sites})
            objective = Stepwise(self.model, cache, self.settings, self.optimizer.generator, self._install)
            self.optimizer.run(objective, lambda step: objective.loss_and_gradient(self.optimizer.params), progress)
        return self._result(began)

    def _install(self, params: torch.Tensor | None) -> None:
        assert params is not None, "the teacher's predictions are recorded"
        self.matrices = self._matrices(params)

    def _matrices(self, params: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For each layer its ``down`` (rank, in) and ``up`` (out, rank), out of the flat vector."""
        shapes = [
            shape
            for layer, rows in zip(self.model.layers, self.rows, strict=True)
            for shape in ((self.rank, layer.width), (sum(rows), self.rank))
        ]
        parts = [part.view(shape) for part, shape in zip(params.split([a * b for a, b in shapes]), shapes, strict=True)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    @contextmanager
    def _hooks(self, handles: Iterator[RemovableHandle]) -> Iterator[None]:
        made: list[RemovableHandle] = []
        try:
            made.extend(handles)
            yield
        finally:
            for handle in made:
                handle.remove()

    def _projections(self) -> Iterator[RemovableHandle]:
        """Let the model's Linears read nothing of what the subspace removes."""
        for layer in self.model.layers:
            if layer.name in self.removed:
                basis, complement, strength = self.removed[layer.name]
                hook = _projection(basis.to(self.model.sigmas.device).clone(), complement, strength)
                for path in layer.paths:
                    yield self.model.modules[path].register_forward_pre_hook(hook)

    def _changes(self) -> Iterator[RemovableHandle]:
        """Let the model's Linears compute with the LoRA."""
        for number, (layer, rows) in enumerate(zip(self.model.layers, self.rows, strict=True)):
            for path, last, count in zip(layer.paths, accumulate(rows), rows, strict=True):

                def add(module, args, output, number=number, of=slice(last - count, last)):
                    down, up = self.matrices[number]
                    x = args[0]
                    return output + functional.linear(functional.linear(x, down.to(x.dtype)), up[of].to(x.dtype))

                yield self.model.modules[path].register_forward_hook(add)

    def _result(self, began: float) -> Lora:
        columns = {
            path: assemble([(place, self.gates[name]) for name, place in on])
            for (path, axis), on in by_weight(self.sites).items()
            if axis == "in"
        }
        down, up = {}, {}
        for layer, (a, b) in zip(self.model.layers, self._matrices(self.optimizer.params.detach().cpu()), strict=True):
            gates = columns.get(layer.paths[0])
            change = a.clone() if gates is None else a * gates
            # Directions are orthonormal, so that projecting the rows is projecting what they read.
            down[layer.name] = project(change, *self.removed[layer.name]) if layer.name in self.removed else change
            up[layer.name] = b.clone()
        extra = {"recovered": self.digests, "recover_seconds": f"{time.monotonic() - began:.1f}"}
        if count := self_found(self.model):
            extra["self_found"] = str(count)
        info = replace(self.info, extra={**self.info.extra, **extra})
        return Lora(down, up, info, self.optimizer.curve)


def _projection(basis: torch.Tensor, complement: bool, strength: float):
    def project_input(module, args):
        x = args[0]
        directions = basis.to(x.dtype)
        part = (x @ directions) @ directions.T
        # Not lerp: under autocast the two may have other dtypes.
        return (x + strength * (part - x) if complement else x - strength * part, *args[1:])

    return project_input


def one_of_each(learned: Sequence[Mask]) -> tuple[GateMask | None, SubspaceMask | None]:
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
