"""Choosing kinds and blocks of a mask, whatever it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .. import config, untrusted
from ..errors import SettingError
from ..model.blocks import select_blocks
from ..model.detect import family
from ..model.families.schema import KINDS

if TYPE_CHECKING:
    from .info import MaskInfo


def choose(
    found: Mapping[str, str], info: MaskInfo, kinds: Iterable[str], blocks: str, digest: str
) -> tuple[set[str], dict[str, str]]:
    """Names of what a selection keeps, and what to note of it in the mask's information.

    Args:
        found: site or layer -> kind.
        kinds: out of "ffn", "norm" and "attn".
        blocks: a selection as :func:`uniforget.model.blocks.select_blocks` reads it; "": all.
        digest: of the mask that is chosen from.

    Raises:
        SettingError: a kind or block that is not there, or nothing is chosen.
        FamilyError: blocks of a family that this version does not know.
    """
    wanted = set(kinds)
    if not wanted or not wanted <= set(KINDS):
        raise SettingError(f"Kinds to keep: expected some of {', '.join(KINDS)}; found {', '.join(sorted(wanted)) or 'none'}.")
    chosen = {name for name, kind in found.items() if kind in wanted}
    if not chosen:
        raise SettingError(
            f"Kinds to keep: this mask has nothing of {' or '.join(sorted(wanted))}; it has {_present(found, ', ')}. Choose those."
        )
    blocks = " ".join(config.COMBINE["blocks"].check(blocks).split())
    if blocks:
        inside = select_blocks(blocks, family(info.family), found)
        chosen &= inside
        if not chosen:
            there = _present({name: found[name] for name in inside}, " and ")
            raise SettingError(
                f"Setting 'blocks': in {blocks!r} this mask has {there} only, and none of the kinds to keep "
                f"({', '.join(sorted(wanted))}). Choose other kinds or blocks."
            )
    named = [kind for kind in KINDS if kind in wanted and len(wanted) < len(KINDS)]
    what = ", ".join([*named, *([blocks] if blocks else [])])
    before = info.extra.get("selected")
    # Of what else is noted (losses, for example) nothing holds for a part of the mask.
    kept = {name: text for name, text in info.extra.items() if name.startswith("combined_")}
    # What was chosen last counts most.
    selected = (f"{before}; then {what}" if before else what)[-untrusted.TEXT :]
    return chosen, {**kept, "selected": selected, "selected_from": digest}


def _present(found: Mapping[str, str], between: str) -> str:
    return between.join(kind for kind in KINDS if kind in found.values())
