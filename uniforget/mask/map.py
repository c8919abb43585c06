"""Where a mask bites: what it switches off in each block of the model, by kind and stream."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import MaskError
from ..model.blocks import block_name, block_of, block_rows, select_blocks
from ..model.detect import family
from ..model.families.schema import KINDS, Family
from .edit import Mask

# No model has a tenth as many; a mask from a stranger may claim anything.
MOST_BLOCKS = 512
UNITS = {"ffn": "neurons", "norm": "channels", "attn": "heads"}
DIRECTIONS = "directions"


class Cell(NamedTuple):
    """What one kind of gates has switched off in one stream of one block.

    Attributes:
        stream: "image", "text", "self", ... (:class:`~uniforget.model.families.schema.Stream`); "" for the whole block.
        block: as a ``blocks`` setting names it, e.g. "IN4"; "" for sites outside of all blocks.
        kind: "ffn", "norm" or "attn".
        units: how many gates there are; of a subspace, directions.
        off: how many are switched off (gates below 0.5).
        share: how far they are turned down on average, 0 to 1; for hard masks and subspaces ``off / units``.
        energy: of a subspace, the share of the energy on neutral prompts that goes along; else 0.
    """

    stream: str
    block: str
    kind: str
    units: int
    off: int
    share: float
    energy: float = 0.0


def mask_table(mask: Mask) -> list[Cell]:
    """All cells of a mask or subspace: blocks in the model's order, in each the kinds, in each the streams.

    Raises:
        FamilyError: this version does not know the mask's family.
        MaskError: it has more blocks than any model.
    """
    entry = family(mask.info.family)
    sums: dict[tuple[tuple[str, int] | None, str, str], list[float]] = {}
    for name, kind, units, off, turned, energy in mask.parts():
        total = sums.setdefault((block_of(entry, name), kind, _stream(entry, name)), [0, 0, 0.0, 0.0])
        for i, value in enumerate((units, off, turned, energy * units)):
            total[i] += value
    labels = [row.label for row in entry.blocks]
    streams = ["", *(stream.label for stream in entry.streams)]
    if len({place for place, _, _ in sums}) > MOST_BLOCKS:
        raise MaskError(
            f"This mask has gates in more than {MOST_BLOCKS} blocks, which no model has. Do not trust where it is from."
        )
    # Sites outside of all blocks come last.
    order = lambda key: (  # noqa: E731
        (labels.index(key[0][0]), key[0][1]) if key[0] else (len(labels), 0),
        KINDS.index(key[1]),
        streams.index(key[2]),
    )
    return [
        Cell(stream, block_name(entry, place) if place else "", kind, int(units), int(off), turned / units, energy / units)
        for place, kind, stream in sorted(sums, key=order)
        for units, off, turned, energy in [sums[place, kind, stream]]
    ]


class Spot(NamedTuple):
    """Where a cell is on the map: its column, its first row, and how many rows it covers."""

    column: int
    row: int
    span: int


@dataclass(frozen=True)
class MaskMap:
    """A mask as a map: a column for each block, a row for each kind, or for each of its streams.

    Attributes:
        columns: blocks; rows: ``(kind, stream)``.
        cells: what was switched off, and where that is drawn. A block without streams covers all rows of its kind.
        top: the share that has the last colour of the scale, a multiple of 0.1 that none exceeds.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]
    cells: tuple[tuple[Cell, Spot], ...]
    top: float


def mask_map(mask: Mask) -> MaskMap:
    """The map of a mask or subspace.

    Raises:
        FamilyError, MaskError: as for :func:`mask_table`.
    """
    cells = mask_table(mask)
    columns = list(dict.fromkeys(cell.block for cell in cells))
    streams = ["", *(stream.label for stream in family(mask.info.family).streams)]
    found: dict[tuple[str, str], set[str]] = {}
    for cell in cells:
        found.setdefault((cell.block, cell.kind), set()).add(cell.stream)
    rows: list[tuple[str, str]] = []
    for kind in KINDS:
        groups = [group for (_, k), group in found.items() if k == kind]
        # "" is a row of its own where some block has it beside a stream, or where there are no streams.
        apart = {stream for group in groups if len(group) > 1 or "" not in group for stream in group}
        rows += [(kind, stream) for stream in streams if stream in (apart or ({""} if groups else ()))]
    places = []
    for cell in cells:
        own = [i for i, (kind, _) in enumerate(rows) if kind == cell.kind]
        exact = (cell.kind, cell.stream)
        spot = Spot(columns.index(cell.block), *((rows.index(exact), 1) if exact in rows else (own[0], len(own))))
        places.append((cell, spot))
    most = max(cell.share for cell in cells)
    # In tenths, and a rounding error is no reason for one more.
    top = max(1, min(10, int(most * 10 - 1e-6) + 1)) / 10
    return MaskMap(tuple(columns), tuple(rows), tuple(places), top)


def named_blocks(mask: Mask, blocks: str) -> set[str]:
    """The columns of the map that a selection names, as :func:`uniforget.model.blocks.select_blocks` reads it; "": all.

    Raises:
        FamilyError: as for :func:`mask_table`.
        SettingError: see :func:`uniforget.model.blocks.select_blocks`.
    """
    entry = family(mask.info.family)
    places = {block_of(entry, name) for name in select_blocks(blocks, entry, mask.names)}
    return {block_name(entry, place) if place else "" for place in places}


def map_data(mask: Mask) -> dict:
    """The map as JSON that web/maskmap.js draws: what :class:`MaskMap` has, and what the blocks are called.

    Raises:
        FamilyError, MaskError: as for :func:`mask_table`.
    """
    entry = family(mask.info.family)
    found = mask_map(mask)
    return {
        "digest": mask.digest(),
        "title": entry.title,
        "what": mask.what,
        "columns": list(found.columns),
        "rows": [list(row) for row in found.rows],
        "top": found.top,
        "off": {kind: round(share, 5) for kind, share in mask.sparsity().items()},
        "units": {kind: DIRECTIONS if mask.what == "subspace" else word for kind, word in UNITS.items()},
        "cells": [
            [*spot, cell.kind, cell.stream, cell.units, cell.off, round(cell.share, 5), round(cell.energy, 6)]
            for cell, spot in found.cells
        ],
        "blocks": [row._asdict() for row in block_rows(entry, mask.names)],
    }


def _stream(entry: Family, name: str) -> str:
    return next((stream.label for stream in entry.streams if re.search(stream.path, name)), "")
