"""Automatic1111: a mask as hooks on the inputs and outputs of a model's layers, for as long as one sampling takes.

No weight is touched: its LoRA extension keeps copies of weights and restores them, whoever else has changed them. Hooks compose with
it, ``(W + L)(f x) = ((W + L) f) x``, and with whatever moves weights between devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ...mask.edit import hooked
from ...model.fingerprint import fingerprint
from ...model.names import modules_of, weights_of
from ...model.sites import find_sites, fingerprint_targets
from ..stored import Stored
from . import Landed, Run


@contextmanager
def applied(model: nn.Module, run: Run) -> Iterator[Landed]:
    """Within it, `model` (a diffusion model) computes with what `run` asks for; its hooks are gone afterwards, however it ends.

    Raises:
        FamilyError: the model's family is unknown.
        MismatchError: the mask is not for this model.
    """
    modules = modules_of(model)
    shapes = {name: tuple(weight.shape) for name, weight in weights_of(model).items()}
    edits = run.learned.edits(shapes, run.strength, run.per_kind)
    landed = Landed(len(run.learned.names), _fingerprint(modules, shapes))
    with hooked(modules, edits):
        yield landed


def _fingerprint(modules: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]) -> str:
    """Fingerprint of the model without its LoRAs; "": its weights cannot be read."""
    weights = {}
    for site in fingerprint_targets(find_sites(shapes)[1]):
        module: Any = modules[site.places[0].path]
        backup = getattr(module, "network_weights_backup", None)  # where its LoRA extension keeps the original
        weights[site.name] = Stored(module, module.weight if not torch.is_tensor(backup) else backup)
    if not weights or not all(weight.readable for weight in weights.values()):
        return ""
    return fingerprint(weights)
