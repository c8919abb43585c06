"""The bundled neutral prompts: everyday things in many styles; no names, brands, characters or titles."""

from functools import cache
from pathlib import Path


@cache
def neutral_prompts() -> list[str]:
    """256 neutral prompts, one per line of ``neutral.txt``."""
    text = Path(__file__).with_name("neutral.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]
