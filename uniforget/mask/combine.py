"""Masks out of masks: union, intersection, difference and blend of two, and a selection of one's kinds and blocks.

A gate g switches its unit off by 1 - g. A site that only one of two masks has gates for counts as kept (1) in the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import torch

from .. import __version__, config, untrusted
from ..errors import FamilyError, MismatchError
from ..model.blocks import describe_blocks
from ..model.detect import family
from ..model.families.schema import KINDS
from ..model.fingerprint import same_base
from .edit import Mask
from .info import GateMask, MaskInfo


def _difference(a: torch.Tensor, b: torch.Tensor, weight: float) -> torch.Tensor:
    # Switched off by max(0, (1 - a) - (1 - b)). Of the ways to extend "off in a and not in b" to soft gates, this is the one
    # where a mask without itself is empty, and the difference and the intersection add up to a again.
    return torch.where(a < b, a + (1 - b), torch.ones(()))


MODES: Mapping[str, Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]] = {
    "union": lambda a, b, weight: torch.minimum(a, b),
    "intersection": lambda a, b, weight: torch.maximum(a, b),
    "difference": _difference,
    # Not (1 - w) * a + w * b, which can round to above 1.
    "blend": lambda a, b, weight: torch.lerp(a, b, weight),
}


def combine(a: GateMask, b: GateMask, mode: str = "union", weight: float = 0.5) -> GateMask:
    """One mask out of two of the same family. Hard masks stay hard, except when blended.

    Args:
        mode: "union": off in either; "intersection": off in both; "difference": off in `a` and not in `b`; "blend": the
            weighted mean of the gates, ``(1 - weight) * a + weight * b``, which turns units down that only one switches off.
        weight: how much of `b` a blend has.

    The result covers the sites of both. Its information keeps what is the same in both; it is of several base models when they
    are (``info.base`` holds a fingerprint of each, and applying it anywhere warns).

    Raises:
        MismatchError: the masks are of different families, or a site has another size or kind in one than in the other.
        SettingError: no such mode, or the weight is out of range.
    """
    mode = config.COMBINE["mode"].check(mode)
    weight = config.COMBINE["weight"].check(weight)
    names = _sites_of_both(a, b)
    # ComfyUI runs nodes in inference mode; masks are ordinary tensors wherever they were made.
    with torch.inference_mode(False):
        pairs = zip(names, _filled(a, b, names), _filled(b, a, names), strict=True)
        gates = {name: MODES[mode](x, y, weight) for name, x, y in pairs}
    extra = {"combined_a": a.digest(), "combined_b": b.digest()}
    if mode == "blend":
        extra["combined_weight"] = f"{weight:g}"
    kinds = {**a.kinds, **b.kinds}
    return GateMask(gates, {name: kinds[name] for name in names}, _info_of_both(a.info, b.info, mode, extra))


def chosen_kinds(kinds: str) -> tuple[str, ...]:
    """The kinds that a ``kinds`` setting names.

    Raises:
        SettingError: no such choice.
    """
    kinds = config.COMBINE["kinds"].check(kinds)
    return KINDS if kinds == "all" else tuple(kinds.split(" + "))


class Change(NamedTuple):
    """What became of a kind of gates: the shares switched off before and after, and how many went off and on again."""

    before: float
    after: float
    off: int
    on: int


def changes(before: GateMask, after: GateMask) -> dict[str, Change]:
    """How the gates that are off (below 0.5) differ between two masks, for each kind and for "all" of both masks' sites.

    Raises:
        MismatchError: as for :func:`combine`.
    """
    names = _sites_of_both(before, after)
    kinds = {**before.kinds, **after.kinds}
    closed = {
        name: (x < 0.5, y < 0.5)
        for name, x, y in zip(names, _filled(before, after, names), _filled(after, before, names), strict=True)
    }
    out = {}
    for kind in [*(k for k in KINDS if k in kinds.values()), "all"]:
        olds, news = zip(*(pair for name, pair in closed.items() if kind in ("all", kinds[name])), strict=True)
        old, new = torch.cat(olds), torch.cat(news)
        out[kind] = Change(
            int(old.sum()) / old.numel(), int(new.sum()) / new.numel(), int((new & ~old).sum()), int((old & ~new).sum())
        )
    return out


def report(made: Mask, sources: Mapping[str, Any]) -> str:
    """What people want to know about a mask made from others: what it switches off, and how that differs from each of them.

    Args:
        sources: what to call each mask that it was made from -> the mask.
    """
    if made.what == "subspace":
        return "\n".join([made.summary(), *made.cautions()])
    made = cast(GateMask, made)
    lines = made.summary().splitlines()[:2]
    if not made.hard:
        lines.append("turned down on average: " + _shares(_mean_off(made)))
    for name, source in sources.items():
        change = changes(source, made)
        shares = ", ".join(f"{kind} {c.before:.1%} -> {c.after:.1%}" for kind, c in change.items())
        lines.append(f"from {name} ({source.digest()}): {shares}; {change['all'].off} more off, {change['all'].on} on again")
    return "\n".join(lines + made.cautions())


def blocks_in(mask: Mask) -> str:
    """The blocks that the mask acts in, as a ``blocks`` setting names them; "" for a family that is not known."""
    try:
        return describe_blocks(family(mask.info.family), mask.names)
    except FamilyError:
        return ""


def _mean_off(mask: Mask) -> dict[str, float]:
    """How far units are turned down on average, for each kind and for "all"."""
    parts = list(mask.parts())
    chosen = {kind: [part for part in parts if kind in ("all", part.kind)] for kind in mask.sparsity()}
    return {kind: sum(part.turned for part in some) / sum(part.units for part in some) for kind, some in chosen.items()}


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {share:.1%}" for kind, share in shares.items())


def _sites_of_both(a: GateMask, b: GateMask) -> list[str]:
    """The sites of either mask, in an order that does not depend on which mask comes first.

    Raises:
        MismatchError: they do not fit together.
    """
    if a.info.family != b.info.family:
        raise MismatchError(
            f"These masks are of different model families, {a.info.family!r} and {b.info.family!r}. Combine masks of one family."
        )
    wrong = [
        f"{name} has {gates.numel()} {a.kinds[name]} gates in one and {b.gates[name].numel()} {b.kinds[name]} gates in the other"
        for name, gates in a.gates.items()
        if name in b.gates and (gates.numel(), a.kinds[name]) != (b.gates[name].numel(), b.kinds[name])
    ]
    if wrong:
        raise MismatchError(
            f"{len(wrong)} sites differ in size or kind between the two masks: {', '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. They belong to different variants of the family: combine "
            "masks that fit the same model."
        )
    # A mask with all the sites knows the model's order.
    whole = [list(x.gates) for x, y in ((a, b), (b, a)) if x.gates.keys() >= y.gates.keys()]
    if whole and all(names == whole[0] for names in whole):
        return whole[0]
    return sorted(a.gates.keys() | b.gates.keys(), key=_natural)


def _natural(name: str) -> list[str | int]:
    """Sorts block 10 behind block 9."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]


def _filled(mask: GateMask, other: GateMask, names: Iterable[str]) -> list[torch.Tensor]:
    """The mask's gates of all these sites; those that only `other` has are kept."""
    return [mask.gates[n] if n in mask.gates else torch.ones(other.gates[n].shape) for n in names]


def _info_of_both(a: MaskInfo, b: MaskInfo, method: str, extra: Mapping[str, str]) -> MaskInfo:
    fields = ("beta", "preset", "prompts_hash", "seed", "steps", "learn_seconds")
    bases: list[str] = []
    # Masks that were combined before have several; a mask of an unknown model makes the whole unknown.
    for one in [*a.base.split(), *b.base.split()] if a.base and b.base else []:
        if not any(one == known or same_base(one, known) for known in bases):
            bases.append(one)
    # Too many make the whole unknown, too.
    base = " ".join(bases)
    names = [*a.base_name.split(" + "), *b.base_name.split(" + ")]
    return MaskInfo(
        family=a.family,
        base=base if len(base) <= untrusted.TEXT else "",
        base_name=" + ".join(dict.fromkeys(filter(None, names)))[: untrusted.TEXT],
        method=method,
        targets=tuple(kind for kind in KINDS if kind in (*a.targets, *b.targets)),
        version=__version__,
        extra=extra,
        **{field: getattr(a, field) for field in fields if getattr(a, field) == getattr(b, field)},
    )
