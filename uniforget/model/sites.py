"""Sites: the places in a model where gates sit, read off its weight shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange, repeat

from ..errors import MismatchError, SettingError
from .detect import Piece, canonical, detect
from .families.schema import KINDS, Family, Rule

TARGETS = {
    "ffn + norm": ("ffn", "norm"),
    "ffn": ("ffn",),
    "norm": ("norm",),
    "attn": ("attn",),
    "ffn + norm + attn": ("ffn", "norm", "attn"),
}


@dataclass(frozen=True)
class Place:
    """Columns (``axis`` "in") or rows (``axis`` "out") of one module's weight that a site's gates scale.

    Attributes:
        path: the module, in the host's naming.
        start: the first column or row; ``width`` neighbours share a gate.
        size: length of the weight's whole axis.
        swapped: the host stores the two halves of the rows in exchanged order (see :class:`~uniforget.model.families.schema.Alias`).
    """

    path: str
    axis: str
    size: int
    start: int = 0
    width: int = 1
    swapped: bool = False

    def spread(self, gates: torch.Tensor) -> torch.Tensor:
        """Gates (..., units) -> one factor per column or row from ``start`` on (..., units * width)."""
        factors = repeat(gates, "... units -> ... (units width)", width=self.width)
        if self.swapped:
            first, second = rearrange(factors, "... (half rows) -> half ... rows", half=2)
            factors = torch.cat([second, first], dim=-1)
        return factors


@dataclass(frozen=True)
class Site:
    """``units`` gates with one meaning: neurons, norm channels or heads of one layer, and the ``places`` they fold into.

    ``name`` is what masks call it (ComfyUI's path of the Linear or norm), whatever the host's naming.
    """

    name: str
    kind: str
    units: int
    places: tuple[Place, ...]


def find_sites(shapes: Mapping[str, Sequence[int]], kinds: Iterable[str] = KINDS) -> tuple[Family, list[Site]]:
    """The model's family and its sites of the given kinds, in the order of `shapes`.

    Args:
        shapes: weight name, relative to the diffusion model -> shape, in ComfyUI's or diffusers' naming.

    Raises:
        FamilyError: the family is unknown.
        MismatchError: a site's size does not fit its gates, or a part of it is missing or not computed with.
    """
    found, sites = _find(tuple((name, tuple(shape)) for name, shape in shapes.items()), frozenset(kinds))
    return found, list(sites)


@lru_cache(maxsize=8)  # a sweep over strengths must not look for the same model's sites again
def _find(pairs: tuple[tuple[str, tuple[int, ...]], ...], wanted: frozenset[str]) -> tuple[Family, tuple[Site, ...]]:
    shapes = dict(pairs)
    entry, naming = detect(shapes)
    known, origin = canonical(shapes, naming)
    rules = [(rule, _compiled(rule, known)) for rule in entry.rules]
    sites = []
    for weight, shape in known.items():
        path = weight.removesuffix(".weight")
        if path == weight or len(shape) not in (1, 2):
            continue
        used = ""
        for rule, pattern in rules:
            # A Linear may carry several sites, on different parts of its axis.
            if used and not rule.part:
                continue
            match = pattern.fullmatch(path)
            if match:
                used = rule.kind
                if rule.kind in wanted:
                    sites.append(_site(rule, match, known, origin))
                if not rule.part:
                    break
    _refuse_fused(sites, shapes)
    return entry, tuple(sites)


def _refuse_fused(sites: Iterable[Site], shapes: Mapping[str, Sequence[int]]) -> None:
    """diffusers' fuse_qkv_projections() copies Linears together and leaves the old ones unused: gates there would do nothing."""
    for site in sites:
        for place in site.places:
            parent = place.path.rpartition(".")[0]
            for copy in ("to_qkv", "to_added_qkv", "to_kv"):
                if f"{parent}.{copy}.weight" in shapes:
                    raise MismatchError(
                        f"{site.name}: its gates act on {place.path}, and this model may compute with its fused copy {parent}.{copy}. "
                        "Load the model again, and fold the mask before calling fuse_qkv_projections()."
                    )


def _compiled(rule: Rule, known: Mapping[str, Sequence[int]]) -> re.Pattern[str]:
    if "{last}" not in rule.path:
        return re.compile(rule.path)
    number = re.compile(rule.path.split("{last}")[0] + r"(\d+)\.")
    numbers = [int(m.group(1)) for m in map(number.match, known) if m]
    return re.compile(rule.path.replace("{last}", str(max(numbers, default=-1))))


def _site(rule: Rule, match: re.Match[str], known: Mapping[str, Sequence[int]], origin: Mapping[str, tuple[Piece, ...]]) -> Site:
    name = match.expand(rule.name) if rule.name else match.group()
    paths = [match.group(), *(match.expand(p) for p in rule.also)]
    places: list[Place] = []
    for path in paths:
        shape = known.get(f"{path}.weight")
        if shape is None:
            raise MismatchError(
                f"{name}: its gates also act on {path}, which this model lacks. Load the model as it was published."
            )
        size = shape[1] if rule.axis == "in" else shape[0]
        start, length = {"": (0, size), "first": (0, shape[0]), "rest": (shape[0], size - shape[0])}[rule.part]
        length = length * rule.chunks[0] // rule.chunks[1]
        width = _width(rule, match, known, length, name)
        if length <= 0 or length % width:
            raise MismatchError(
                f"{name}: {length} {'columns' if rule.axis == 'in' else 'rows'} of {path} are no multiple of {width}."
            )
        for piece in origin[path]:
            places.append(Place(piece.path, rule.axis, size, start, width, piece.swapped))
    units = length // width
    return Site(name, rule.kind, units, tuple(places))


def _width(rule: Rule, match: re.Match[str], known: Mapping[str, Sequence[int]], length: int, name: str) -> int:
    """Columns or rows per gate."""
    if rule.heads:
        return max(1, length // rule.heads)
    if not rule.like:
        return rule.width
    names = [match.expand(template) for template in rule.like]
    for weight in names:
        if weight in known:
            return known[weight][0]
    raise MismatchError(
        f"{name}: the size of its heads cannot be told, because the model lacks {names[0]}. Load it as it was published."
    )


def fingerprint_targets(sites: Iterable[Site]) -> list[Site]:
    """The sites whose weights a fingerprint is taken of: down projections, which every host keeps in one piece, by name."""
    return sorted((s for s in sites if s.kind == "ffn"), key=lambda s: s.name)


def target_kinds(targets: str) -> tuple[str, ...]:
    """Kinds that a ``targets`` setting names.

    Raises:
        SettingError: no such choice.
    """
    try:
        return TARGETS[targets]
    except KeyError:
        raise SettingError(f"targets: expected one of {', '.join(TARGETS)}; found {targets!r}.") from None
