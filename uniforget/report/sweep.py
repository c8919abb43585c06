"""What a sweep over strengths draws: which prompts and seeds, at which strengths, in which order."""

from __future__ import annotations

import re
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
    """

    rows: tuple[tuple[str, int], ...]
    strengths: tuple[float, ...]

    @property
    def pictures(self) -> int:
        return len(self.rows) * len(self.strengths)


def plan(prompts: str, strengths: str, seeds: int, seed: int) -> Plan:
    """The grid that these settings ask for. Seeds count up from `seed`.

    Raises:
        SettingError: a strength is none, there are no prompts, or it would be more than MOST_PICTURES.
        PromptFileError: a line of `prompts` is no prompt.
    """
    seeds = SWEEP["seeds"].check(seeds)
    columns = parse_strengths(strengths)
    texts = parse_prompts(SWEEP["prompts"].check(prompts))
    if not texts:
        raise SettingError("Setting 'prompts': expected at least one prompt; found none. Write one prompt a line.")
    rows = tuple((text, (seed + i) % SEEDS) for text in texts for i in range(seeds))
    found = Plan(rows, columns)
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
