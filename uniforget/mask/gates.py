"""Gates: the relaxation they are learned with, and how they act inside a running model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import MismatchError
from ..model.families.schema import Family
from ..model.sites import Place, Site
from .edit import Scale

if TYPE_CHECKING:
    from .info import MaskSet

# Hard concrete, UniForget supplement eq. 10-11 (values from EcoDiff).
DELTA, ZETA, GAMMA, ALPHA = 0.5, 1.1, -0.1, 0.83
INITIAL_LOGIT = 3.0


def sample_noise(size: int, generator: torch.Generator) -> torch.Tensor:
    """Logistic-type noise of the hard concrete, float32 (size,), bounded by +-ln 3."""
    u = torch.rand(size, generator=generator)
    return torch.log(u + DELTA) - torch.log(1 - u + DELTA)


def soft_gates(logits: torch.Tensor, noise: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Relaxed gates in [0, 1] for `logits` (UniForget supplement eq. 10-11). Without noise: the expected gate."""
    return (torch.sigmoid((logits + noise) / ALPHA) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def hard_gates(logits: torch.Tensor) -> torch.Tensor:
    """Binary gates with a straight-through gradient: forward 1 where the logit is positive, backward as the sigmoid's."""
    soft = torch.sigmoid(logits / ALPHA)
    return (logits > 0).float() + (soft - soft.detach())


def sparsity_loss(logits: torch.Tensor) -> torch.Tensor:
    """``||s(M)||_1 / |M|`` with ``s(M) = sigmoid(0.4 M + 1)``, over all gates of all sites together (UniForget eq. 4)."""
    return torch.sigmoid(0.4 * logits + 1).mean()


def strength_factor(gates: torch.Tensor, strength: float) -> torch.Tensor:
    """What a unit is multiplied by: ``1 - strength * (1 - gate)``; exactly 1 at strength 0."""
    return 1 - strength * (1 - gates)


def assemble(pieces: Iterable[tuple[Place, torch.Tensor]]) -> torch.Tensor:
    """One factor per column or row of a weight's whole axis (size,), from the factors (units,) of the sites on it.

    Differentiable. All places must be on the same axis of the same weight; what no site covers gets exactly 1.
    """
    out: torch.Tensor | None = None
    for place, factor in pieces:
        vector = place.spread(factor)
        behind = place.size - place.start - vector.shape[-1]
        if place.start or behind:
            vector = torch.cat([vector.new_ones(place.start), vector, vector.new_ones(behind)])
        out = vector if out is None else out * vector
    assert out is not None, "at least one piece"
    return out


def by_weight(sites: Iterable[Site]) -> dict[tuple[str, str], list[tuple[str, Place]]]:
    """``(module path, axis)`` -> the sites' names and places on it."""
    out: dict[tuple[str, str], list[tuple[str, Place]]] = {}
    for site in sites:
        for place in site.places:
            out.setdefault((place.path, place.axis), []).append((site.name, place))
    return out


@contextmanager
def gated(modules: Mapping[str, nn.Module], sites: Iterable[Site], factors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within the context, each site's modules act as if folded with ``factors[site.name]``.

    Args:
        modules: host's path -> module.
        factors: site name -> (units,) tensor; read at every forward pass: replace its values to change the gates, empty it
            to run the untouched model.

    Hooks are gone when the context ends, however it ends.
    """

    def vector(on: list[tuple[str, Place]], like: torch.Tensor) -> torch.Tensor | None:
        pieces = [(place, factors[name]) for name, place in on if name in factors]
        return assemble(pieces).to(like) if pieces else None

    def before(on):
        def hook(module, args):
            scale = vector(on, args[0])
            return None if scale is None else (args[0] * scale, *args[1:])

        return hook

    def after(on):
        def hook(module, args, output):
            scale = vector(on, output)
            return None if scale is None else output * scale

        return hook

    handles = []
    try:
        for (path, axis), on in by_weight(sites).items():
            module = modules[path]
            if axis == "in":
                handles.append(module.register_forward_pre_hook(before(on)))
            else:
                handles.append(module.register_forward_hook(after(on)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def scales(sites: Iterable[Site], factors: Mapping[str, torch.Tensor], shapes: Mapping[str, Sequence[int]]) -> dict[str, Scale]:
    """The edits of weights and biases that factors (site -> (units,)) of these sites amount to; `shapes` says which biases there are."""
    vectors = {at: assemble([(place, factors[name]) for name, place in on]) for at, on in by_weight(sites).items()}
    out = {}
    for path in dict.fromkeys(path for path, _ in vectors):
        rows = vectors.get((path, "out"))
        out[f"{path}.weight"] = Scale(vectors.get((path, "in")), rows)
        if rows is not None and f"{path}.bias" in shapes:
            out[f"{path}.bias"] = Scale(None, rows)
    return out


def match_sites(mask: MaskSet, family: Family, sites: Iterable[Site]) -> list[Site]:
    """The model's sites that `mask` has gates for, in the mask's order.

    Raises:
        MismatchError: the mask is of another family, has sites that the model lacks, or sites of another size or kind.
    """
    if mask.info.family != family.name:
        raise MismatchError(
            f"This mask was learned on a model of family {mask.info.family!r} and this model is {family.title} ({family.name!r}). "
            "Use a mask of the same family, or learn one for this model."
        )
    there = {s.name: s for s in sites}
    missing = [name for name in mask.gates if name not in there]
    if missing:
        raise MismatchError(
            f"{len(missing)} of the mask's {len(mask.gates)} sites do not exist in this model: {_some(missing)}. "
            "The mask was learned on another variant of this family: learn one for this model."
        )
    wrong = [
        f"{name} has {gates.numel()} {mask.kinds[name]} gates in the mask and {there[name].units} {there[name].kind} units in the model"
        for name, gates in mask.gates.items()
        if (gates.numel(), mask.kinds[name]) != (there[name].units, there[name].kind)
    ]
    if wrong:
        raise MismatchError(
            f"{len(wrong)} of the mask's {len(mask.gates)} sites have another size or kind than in this model: {_some(wrong)}. "
            "The mask was learned on another variant: learn one for this model."
        )
    return [there[name] for name in mask.gates]


def _some(things: list[str], most: int = 5) -> str:
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more
