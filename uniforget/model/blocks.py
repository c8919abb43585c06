"""Blocks as artists write them: ``IN4-8, MID, OUT0-5``, ``double 0-7, single 10-20``, ``3-9, 12``, ``not MID``.

What the rows of blocks are called is a family's own data (:class:`~uniforget.model.families.schema.Blocks`); which numbers there are is read off
the names of the sites.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn

from ..errors import SettingError
from .families.schema import Blocks, Family

_ITEM = re.compile(
    r"(?:(?P<word>[a-z_]+)(?:\s+(?:blocks?|layers?)\b)?[\s.]*)?"
    r"(?:(?P<first>[0-9]{1,6})(?![0-9])(?:\s*[-\u2013]\s*(?:(?P<again>[a-z_]+)[\s.]*)?(?P<last>[0-9]{1,6})(?![0-9]))?)?\s*",
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:not\b|!)\s*", re.IGNORECASE)
_PLAIN = {"block", "blocks", "layer", "layers"}  # what people call a row without a label


def block_of(family: Family, site: str) -> tuple[str, int] | None:
    """``(label, number)`` of the block that a site is in, e.g. ``("IN", 4)``; the only block of its row has number 0.

    None: the site is in no block.
    """
    for row in family.blocks:
        match = re.match(row.path, site)
        if match:
            return row.label, int(match[1]) if match.re.groups else 0
    return None


def block_name(family: Family, place: tuple[str, int]) -> str:
    """A block that :func:`block_of` found, as people write it: ``IN4``, ``MID``, ``7``."""
    label, number = place
    return label if label in _single(family) else f"{label}{number}"


class BlockRow(NamedTuple):
    """One row of blocks and what may be written about it.

    Attributes:
        label: ``"IN"``; "" for blocks that only have numbers.
        names: what a name in a selection may be the beginning of, in lower case.
        numbers: of the blocks that are there, ascending; ``(0,)`` for a row that is one block without a number.
        last: the highest number that a range may go to.
        single: whether it is one block without a number.
    """

    label: str
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    last: int
    single: bool


def block_rows(family: Family, sites: Iterable[str]) -> list[BlockRow]:
    """The rows that any of the sites is in, in the family's order."""
    reader = _Reader(family, block_numbers(family, sites))
    rows = {row.label: row for row in family.blocks}
    return [
        BlockRow(label, _names(rows[label]), tuple(numbers), reader.last[label], label in _single(family))
        for label, numbers in reader.numbers.items()
    ]


def block_numbers(family: Family, sites: Iterable[str]) -> dict[str, list[int]]:
    """For each label the numbers of its blocks that any of the sites is in, ascending; rows without any are left out."""
    found: dict[str, set[int]] = {row.label: set() for row in family.blocks}
    for place in filter(None, (block_of(family, site) for site in sites)):
        found[place[0]].add(place[1])
    return {label: sorted(numbers) for label, numbers in found.items() if numbers}


def describe_blocks(family: Family, sites: Iterable[str]) -> str:
    """The blocks that the sites are in, written as :func:`select_blocks` reads it: ``IN1-2, IN4-5, MID, OUT3-11``."""
    return _describe(family, block_numbers(family, sites))


def select_blocks(text: str, family: Family, sites: Iterable[str]) -> set[str]:
    """Those of the sites that a selection names; "" and "all" name them all.

    The parts of a selection are separated by commas, semicolons or line breaks; "not" takes its part away from the others
    (or from everything, when there are no others). A number without a label goes on with the label before it, unless the
    family has blocks without a label.

    Raises:
        SettingError: it cannot be read, it names blocks that are not there, or nothing is left.
    """
    names = list(sites)
    places = {name: block_of(family, name) for name in names}
    reader = _Reader(family, block_numbers(family, names))
    wanted: set[tuple[str, int]] = set()
    unwanted: set[tuple[str, int]] = set()
    everything = True
    for part in re.split(r"[,;\n]", text):
        part = part.strip()
        if not part:
            continue
        refused = _NOT.match(part)
        blocks = reader.read(part[refused.end() :] if refused else part)
        if refused:
            unwanted |= blocks
        else:
            wanted |= blocks
            everything = False
    chosen = {name for name in names if (everything or places[name] in wanted) and places[name] not in unwanted}
    if not chosen:
        reader.refuse(f"{text.strip()!r} leaves no block")
    return chosen


class _Reader:
    """Reads the parts of one selection, from left to right."""

    def __init__(self, family: Family, numbers: Mapping[str, list[int]]):
        self.family, self.numbers = family, numbers
        self.all = {(label, number) for label, found in numbers.items() for number in found}
        self.row: Blocks | None = None
        full = all(found == list(range(len(found))) for found in numbers.values())
        highest = max((found[-1] for found in numbers.values()), default=0)
        # Some blocks of a UNet have no gates, so its last one is not known; it has as many OUT blocks as IN blocks.
        self.last = {label: found[-1] if full or label in _single(family) else highest for label, found in numbers.items()}

    def read(self, part: str) -> set[tuple[str, int]]:
        """The blocks that a part names."""
        if part.lower() == "all":
            return self.all
        unlabelled = next((row for row in self.family.blocks if not row.label), None)
        self.row = unlabelled or self.row
        found: set[tuple[str, int]] = set()
        at = 0
        while at < len(part) or not part:
            match = _ITEM.match(part, at)
            if not match or not match.group().strip():
                self.refuse(f"cannot read {part[at:]!r}" if part else "nothing follows 'not'")
            at = match.end()
            found |= self._item(match)
        return found

    def _item(self, match: re.Match[str]) -> set[tuple[str, int]]:
        written = match.group().strip()
        if match["word"]:
            self.row = self._named(match["word"], written)
        if self.row is None:
            self.refuse(f"{written!r} does not say which kind of block it means")
        label = self.row.label
        if label not in self.numbers:
            self.refuse(f"{written!r}: this mask has no {label or 'such'} blocks")
        there = self.numbers[label]
        if match["first"] is None:
            return {(label, number) for number in there}
        first = int(match["first"])
        last = int(match["last"] or first)
        if match["again"] and self._named(match["again"], written) is not self.row:
            self.refuse(f"{written!r}: a range stays within one kind of block")
        if last < first:
            self.refuse(f"{written!r}: the range is the wrong way round, {last}-{first} would be right")
        if last > self.last[label]:
            self.refuse(f"{written!r}: there is no {label or 'block'} {last}, the last one is {self.last[label]}")
        return {(label, number) for number in there if first <= number <= last}

    def _named(self, word: str, written: str) -> Blocks:
        """The row called `word`: its label, the beginning of it, or how the model's weights call it (``input_blocks``)."""
        word = word.lower()
        rows = [row for row in self.family.blocks if any(name.startswith(word) for name in _names(row))]
        if word in _PLAIN:
            rows = [row for row in self.family.blocks if not row.label] or rows
        if len(rows) != 1:
            self.refuse(f"{written!r}: {'several kinds of block start' if rows else 'no kind of block starts'} with {word!r}")
        return rows[0]

    def refuse(self, what: str) -> NoReturn:
        raise SettingError(
            f"Setting 'blocks': {what}. This {self.family.title} mask has gates in the blocks "
            f"{_describe(self.family, self.numbers)}: choose some of them, written like this, or leave it empty for all."
        )


def _names(row: Blocks) -> tuple[str, ...]:
    module = re.match(r"\w+", row.path)
    return row.label.lower(), module.group() if module else ""


def _single(family: Family) -> set[str]:
    """Labels of the rows that are one block without a number."""
    return {row.label for row in family.blocks if not re.compile(row.path).groups}


def _describe(family: Family, numbers: Mapping[str, list[int]]) -> str:
    single = _single(family)
    parts: list[str] = []
    for label, found in numbers.items():
        if label in single:
            parts.append(label)
            continue
        starts = [n for n in found if n - 1 not in found]
        ends = [n for n in found if n + 1 not in found]
        parts += [f"{label}{a}" if a == b else f"{label}{a}-{b}" for a, b in zip(starts, ends, strict=True)]
    return ", ".join(parts)
