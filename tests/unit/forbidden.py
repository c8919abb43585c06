"""What the bundled neutral prompts must not hold: kinds of words (tests/fixtures/forbidden_words.txt) and signs of names."""

import re
from pathlib import Path

LIST = Path(__file__).resolve().parents[1] / "fixtures" / "forbidden_words.txt"
# what may have a capital: "I", and words that begin a sentence without being a name
CAPITALS = {"I", "A", "An", "The", "In", "On", "From", "Broad", "Dust", "Five", "Heavy", "Rolling", "Two", "White"}
# a name may stand behind "by"; these words may, too
AFTER_BY = {"a", "an", "the", "their", "four", "color", "rows", "size", "slow", "spray", "water"}
PLAIN = re.compile(r"[A-Za-z0-9 ,.-]+")


def kinds() -> dict[str, list[str]]:
    """The list: kind -> its words and phrases."""
    found: dict[str, list[str]] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            words = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            words += [word for word in (part.strip() for part in line.split(",")) if word]
    return found


def pattern(words: list[str]) -> re.Pattern:
    """Finds any of the words, whole, in lower-case text."""
    either = "|".join(re.escape(word).replace(r"\ ", "[ -]?") for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<![a-z0-9])(?:{either})(?:s|es|'s|esque)?(?![a-z0-9])")


PATTERNS = {kind: pattern(words) for kind, words in kinds().items()}


def findings(prompt: str) -> list[str]:
    """Why a prompt is not neutral: ``"kind: what was found"``, empty if nothing was."""
    found = [f"{kind}: {match.group()}" for kind, regex in PATTERNS.items() for match in regex.finditer(prompt.lower())]
    if not PLAIN.fullmatch(prompt):
        found.append(f"character: {''.join(sorted(set(PLAIN.sub('', prompt))))}")
    words = re.findall(r"[^\s,.]+", prompt)
    found += [f"digits: {word}" for word in words if re.search(r"\d", word) and word != "3d"]
    starts = {prompt.split()[0], *re.findall(r"(?<=\. )\S+", prompt)}
    for word in words:
        if word != word.lower() and not (word in CAPITALS and (word in starts or word == "I")):
            found.append(f"capital: {word}")
    found += [f"by: {word}" for word in re.findall(r"\bby ([^\s,.]+)", prompt) if word not in AFTER_BY]
    return found
