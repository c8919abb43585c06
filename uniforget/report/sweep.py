"""What a sweep over strengths draws: which prompts and seeds, at which strengths, in which order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..config import APPLY, SWEEP
from ..errors import SettingError
from ..prompts import parse_prompts

MOST_PICTURES = 128  # of 1024 x 1024 pixels: 1.6 GB
SEEDS = 2**64


@dataclass(frozen=True)
class Plan:
    """A grid of pictures: a row per prompt and seed, a column per strength.

    Attributes:
        rows: ``(prompt, seed)``, all seeds of a prompt together.
        strengths: ascending; the first one is 0, the original.
        everyday: how many of the rows, the last ones, are of prompts that should stay as they are.
    """

    rows: tuple[tuple[str, int], ...]
    strengths: tuple[float, ...]
    everyday: int = 0

    @property
    def pictures(self) -> int:
        return len(self.rows) * len(self.strengths)


def plan(prompts: str, strengths: str, seeds: int, seed: int, everyday: str = "") -> Plan:
    """The grid that these settings ask for. Seeds count up from `seed`.

    Raises:
        SettingError: a strength is none, there are no prompts, or it would be more than MOST_PICTURES.
        PromptFileError: a line of `prompts` is no prompt.
    """
    seeds = SWEEP["seeds"].check(seeds)
    columns = parse_strengths(strengths)
    texts, usual = (parse_prompts(SWEEP[name].check(text)) for name, text in (("prompts", prompts), ("everyday", everyday)))
    if not texts:
        raise SettingError("Setting 'prompts': expected at least one prompt; found none. Write one prompt a line.")
    texts += usual
    rows = tuple((text, (seed + i) % SEEDS) for text in texts for i in range(seeds))
    found = Plan(rows, columns, len(usual) * seeds)
    if found.pictures > MOST_PICTURES:
        raise SettingError(
            f"The sweep would be {len(texts)} prompts x {seeds} seeds x {len(columns)} strengths = {found.pictures} pictures; at most "
            f"{MOST_PICTURES} are allowed. Take fewer prompts, seeds or strengths."
        )
    return found


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths in "0, 0.25, 0.5", ascending and each once; 0 is always among them, because the others are compared with it.

    Raises:
        SettingError: one is no number from 0 to 1, or there are none.
    """
    words = re.split(r"[\s,;]+", SWEEP["strengths"].check(text).strip(" \t\r\n,;"))
    if words == [""]:
        raise SettingError(
            f"Setting 'strengths': expected numbers from 0 to 1 such as {SWEEP['strengths'].default!r}; found none."
        )
    found = {0.0}
    for word in words[: MOST_PICTURES + 1]:
        try:
            found.add(APPLY["strength"].check(float(word)))
        except (ValueError, SettingError):
            short = word if len(word) <= 20 else f"{word[:20]}..."
            raise SettingError(
                f"Setting 'strengths': expected numbers from 0 to 1 with a comma between them, such as {SWEEP['strengths'].default!r}; "
                f"found {short!r}. Write decimals with a point."
            ) from None
    return tuple(sorted(found))


HALVINGS = 3  # of the step between two strengths of the grid


def least(strengths: Iterable[float], enough: Callable[[float], bool], halvings: int = HALVINGS) -> float | None:
    """The least strength that is enough, between two of the given ones found by halving; None if none of them is.

    Args:
        strengths: ascending, the first one is not enough.
        enough: asked once for each strength that is looked at, up to `halvings` times for one that is not in the list.
    """
    low = 0.0
    for high in strengths:
        if enough(high):
            break
        low = high
    else:
        return None
    for _ in range(halvings):
        middle = round((low + high) / 2, 4)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
