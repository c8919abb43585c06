"""Sites: the places in a model where gates sit, read off its weight shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from .archs import Family, detect
from .errors import MismatchError, SettingError
from .maskset import MaskSet

TARGETS = {
    "ffn + norm": ("ffn", "norm"),
    "ffn": ("ffn",),
    "norm": ("norm",),
    "attn": ("attn",),
    "ffn + norm + attn": ("ffn", "norm", "attn"),
}


@dataclass(frozen=True)
class Site:
    """One Linear whose columns (``axis`` "in") or rows (``axis`` "out") are gated.

    ``units`` gates cover ``width`` neighbouring columns or rows each. ``swapped``: this host stores the two halves of the
    rows in exchanged order (see :class:`~uniforget.archs.Alias`); gates keep ComfyUI's order.
    """

    path: str
    kind: str
    axis: str
    units: int
    width: int = 1
    swapped: bool = False

    @property
    def weight(self) -> str:
        return f"{self.path}.weight"

    @property
    def bias(self) -> str:
        return f"{self.path}.bias"

    def spread(self, gates: torch.Tensor) -> torch.Tensor:
        """Gates (..., units) -> one factor per column or row (..., units * width)."""
        if self.width > 1:
            gates = gates.repeat_interleave(self.width, dim=-1)
        return torch.cat(gates.chunk(2, dim=-1)[::-1], dim=-1) if self.swapped else gates


def find_sites(shapes: Mapping[str, Sequence[int]], kinds: Iterable[str] = ("ffn", "norm", "attn")) -> tuple[Family, list[Site]]:
    """The model's family and its sites of the given kinds, in the order of `shapes`.

    Args:
        shapes: weight name (ComfyUI naming, relative to the diffusion model) -> shape.

    Raises:
        FamilyError: the family is unknown.
        MismatchError: a site's size is no multiple of its gates' width.
    """
    entry = detect(shapes)
    wanted = set(kinds)
    sites = []
    for name, shape in shapes.items():
        if not name.endswith(".weight") or len(shape) != 2:
            continue
        path = name.removesuffix(".weight")
        rule = entry.rule(path)
        if rule is None or rule.kind not in wanted:
            continue
        size = shape[1] if rule.axis == "in" else shape[0]
        if size % rule.width:
            raise MismatchError(f"{path}: {size} {'columns' if rule.axis == 'in' else 'rows'} are no multiple of {rule.width}.")
        sites.append(Site(path, rule.kind, rule.axis, size // rule.width, rule.width))
    return entry, sites


def target_kinds(targets: str) -> tuple[str, ...]:
    """Kinds that a ``targets`` setting names.

    Raises:
        SettingError: no such choice.
    """
    try:
        return TARGETS[targets]
    except KeyError:
        raise SettingError(f"targets: expected one of {', '.join(TARGETS)}; found {targets!r}.") from None


def match_sites(mask: MaskSet, family: Family, sites: Iterable[Site]) -> list[Site]:
    """The model's sites that `mask` has gates for, in the mask's order.

    Raises:
        MismatchError: the mask is of another family, has sites that the model lacks, or sites of another size.
    """
    if mask.info.family != family.name:
        raise MismatchError(
            f"This mask was learned on a model of family {mask.info.family!r} and this model is {family.title} ({family.name!r}). "
            "Use a mask of the same family, or learn one for this model."
        )
    there = {s.path: s for s in sites}
    missing = [name for name in mask.gates if name not in there]
    if missing:
        raise MismatchError(
            f"{len(missing)} of the mask's {len(mask.gates)} sites do not exist in this model, the first being {missing[0]}. "
            "The mask was learned on another variant of this family: learn one for this model."
        )
    wrong = [(n, g.numel(), there[n].units) for n, g in mask.gates.items() if g.numel() != there[n].units]
    if wrong:
        name, found, expected = wrong[0]
        raise MismatchError(
            f"{len(wrong)} of the mask's {len(mask.gates)} sites have another size than in this model: {name} has {found} gates "
            f"in the mask and {expected} units in the model. The mask was learned on another variant: learn one for this model."
        )
    return [there[name] for name in mask.gates]
