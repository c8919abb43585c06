"""Automatic1111: a mask as hooks on the inputs and outputs of a model's layers, for as long as one sampling takes.

No weight is touched: its LoRA extension keeps copies of weights and restores them, whoever else has changed them. Hooks compose with
it, ``(W + L)(f x) = ((W + L) f) x``, and with whatever moves weights between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...mask.fold import edits, factors
from ...mask.info import MaskSet
from ...mask.subspace import Subspace, effective, match_layers
from ...model.fingerprint import fingerprint
from ...model.layers import find_layers
from ...model.sites import find_sites, match_sites, telling
from ..stored import Stored
from . import Landed, Run


@contextmanager
def hooked(model: nn.Module, run: Run) -> Iterator[Landed]:
    """Within it, `model` (a diffusion model) computes with what `run` asks for; its hooks are gone afterwards, however it ends.

    Raises:
        FamilyError: the model's family is unknown.
        MismatchError: mask or subspace are not for this model.
    """
    modules = dict(model.named_modules())
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    plan = _projections if isinstance(run.learned, Subspace) else _scales
    before, after, count = plan(shapes, run)
    of = len(run.learned.gates if isinstance(run.learned, MaskSet) else run.learned.shared)
    landed = Landed(count, of, _fingerprint(modules, shapes))
    with ExitStack() as hooks:
        for path, edit in before.items():
            hooks.callback(modules[path].register_forward_pre_hook(_on_input(edit)).remove)
        for path, edit in after.items():
            hooks.callback(modules[path].register_forward_hook(_on_output(edit)).remove)
        yield landed


Change = Callable[[torch.Tensor], torch.Tensor]


def _on_input(change: Change) -> Any:
    return lambda module, args: (change(args[0]), *args[1:])


def _on_output(change: Change) -> Any:
    return lambda module, args, output: change(output)


def _scales(shapes: dict[str, tuple[int, ...]], run: Run) -> tuple[dict[str, Change], dict[str, Change], int]:
    """What to do to inputs and to outputs by module path for a mask, and the number of sites."""
    matched = match_sites(run.learned, *find_sites(shapes))  # type: ignore[arg-type]
    before: dict[str, Change] = {}
    after: dict[str, Change] = {}
    for edit in edits(matched, factors(run.learned, run.strength, run.per_kind)):  # type: ignore[arg-type]
        (before if edit.axis == "in" else after)[edit.path] = _Scaled(edit.scale)
    return before, after, len(matched)


def _projections(shapes: dict[str, tuple[int, ...]], run: Run) -> tuple[dict[str, Change], dict[str, Change], int]:
    """The same for a subspace. Projecting what a layer reads is projecting its weight."""
    family, layers = find_layers(shapes)
    matched = match_layers(run.learned, family.name, layers)  # type: ignore[arg-type]
    found = effective(run.learned, run.strength, run.per_kind)  # type: ignore[arg-type]
    before: dict[str, Change] = {}
    for layer in matched:
        for path in layer.paths if layer.name in found else ():
            before[path] = _Projected(*found[layer.name])
    return before, {}, len(matched)


class _Placed:
    """A tensor, and its copy where it was needed last."""

    def __init__(self, value: torch.Tensor):
        self.value = self.copy = value

    def like(self, x: torch.Tensor) -> torch.Tensor:
        if self.copy.device != x.device or self.copy.dtype != x.dtype:
            self.copy = self.value.to(x.device, x.dtype)
        return self.copy


class _Scaled:
    """x (..., units) times a factor per unit."""

    def __init__(self, scale: torch.Tensor):
        self.scale = _Placed(scale)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.like(x)


class _Projected:
    """x (..., width) without its part in a basis (width, r), or with only that part, as far as `strength` goes."""

    def __init__(self, basis: torch.Tensor, complement: bool, strength: float):
        self.basis, self.complement, self.strength = _Placed(basis), complement, strength

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        basis = self.basis.like(x)
        part = (x @ basis) @ basis.T
        return torch.lerp(x, part, self.strength) if self.complement else x - self.strength * part


def _fingerprint(modules: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]) -> str:
    """Fingerprint of the model without its LoRAs; "": its weights cannot be read."""
    weights = {}
    for site in telling(find_sites(shapes)[1]):
        module: Any = modules[site.places[0].path]
        backup = getattr(module, "network_weights_backup", None)  # where its LoRA extension keeps the original
        weights[site.name] = Stored(module, module.weight if not torch.is_tensor(backup) else backup)
    if not weights or not all(weight.readable for weight in weights.values()):
        return ""
    return fingerprint(weights)
