"""Gates: what they multiply, and how they act inside a running model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..errors import MismatchError
from ..model.families.schema import Family
from ..model.sites import Place, Site
from .edit import Scale

if TYPE_CHECKING:
    from .info import GateMask


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
def gated(
    modules: Mapping[str, nn.Module], sites: Iterable[Site], gates: Mapping[str, torch.Tensor] | None = None
) -> Iterator[Callable[[Mapping[str, torch.Tensor]], None]]:
    """Within it each site's modules act as if folded with its gates.

    What it yields takes other gates, site name -> (units,); a site without any is left as it is. One vector per weight is made when gates
    are handed over, not in every forward pass. Hooks are gone when the context ends, however it ends.
    """
    places = by_weight(sites)
    vectors: dict[tuple[str, str], torch.Tensor] = {}

    def install(factors: Mapping[str, torch.Tensor]) -> None:
        vectors.clear()
        for at, on in places.items():
            pieces = [(place, factors[name]) for name, place in on if name in factors]
            if pieces:
                vectors[at] = assemble(pieces)

    def before(at):
        return lambda module, args: (args[0] * vectors[at].to(args[0]), *args[1:]) if at in vectors else None

    def after(at):
        return lambda module, args, output: output * vectors[at].to(output) if at in vectors else None

    handles = []
    try:
        for path, axis in places:
            module = modules[path]
            hook = module.register_forward_pre_hook if axis == "in" else module.register_forward_hook
            handles.append(hook((before if axis == "in" else after)((path, axis))))
        install(gates or {})
        yield install
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


def match_sites(mask: GateMask, family: Family, sites: Iterable[Site]) -> list[Site]:
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
