"""Neutral prompts: the bundled list, and the users' own as text (one a line) or JSONL (one JSON object or string a line)."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import PromptFileError
from .untrusted import parse_json

MAX_PROMPTS = 100_000
MAX_CHARACTERS = 2_000  # of one prompt
MAX_BYTES = 16 << 20  # of a file
MAX_LINES = 500_000  # with those that hold nothing
MAX_LINE = 256 << 10  # characters of a JSON line, which can hold other things beside its prompt
KEYS = ("prompt", "text")  # of a JSON object; the first one that is there counts
ANSWERS = "answers"  # a key beside it
MAX_ANSWERS = 64
JSONL_ENDINGS = (".jsonl", ".ndjson")

_LINE_END = re.compile("\r\n|\r|\n")  # not str.splitlines: JSON strings may hold other characters that it splits at
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
_LIKE_JSON = re.compile(r'\{\s*("|\}|$)|\[\s*("|\{|$)')  # but not {day|night} and [[cat]], which other tools read in prompts


class Prompt(str):
    """A prompt, and ``answers``: prompts that a model shall answer it like, where it is not to be answered as ever."""

    answers: tuple[str, ...] = ()


def neutral_prompts() -> list[str]:
    """The bundled prompts of ``neutral.txt``. Its headings take turns: the first n are about as varied as n can be."""
    text = Path(__file__).with_name("neutral.txt").read_text(encoding="utf-8")
    turns = itertools.zip_longest(*(parse_prompts(block, "neutral.txt") for block in text.split("\n\n")))
    return [prompt for turn in turns for prompt in turn if prompt]


def prompts_hash(prompts: list[str]) -> str:
    """Sixteen hexadecimal digits that tell lists of prompts apart, as masks keep them."""
    lines = ["\t".join([prompt, *getattr(prompt, ANSWERS, ())]) for prompt in prompts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def to_jsonl(prompts: list[str]) -> str:
    """The prompts as JSONL, with their answers: what :func:`parse_prompts` reads."""
    lines = [{"prompt": prompt} | ({ANSWERS: answers} if (answers := getattr(prompt, ANSWERS, ())) else {}) for prompt in prompts]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a user's file, text or JSONL, in UTF-8; see :func:`parse_prompts`.

    Raises:
        PromptFileError: it cannot be read, or holds no prompts or something else than prompts.
    """
    path = Path(path)
    if path.is_dir():
        raise PromptFileError(f"{path}: expected a file with prompts; found a folder. Name one file inside it.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PromptFileError(f"{path}: expected a file with prompts; found no such file. Check the path.") from None
    except (OSError, ValueError) as error:
        raise PromptFileError(
            f"{path}: expected a file with prompts; it cannot be read: {error}. Check its permissions."
        ) from None
    if len(data) > MAX_BYTES:
        raise PromptFileError(
            f"{path}: expected at most {MAX_BYTES >> 20} MiB of prompts; found more. Is it another kind of file?"
        )
    prompts = parse_prompts(_decode(data, path), str(path), True if path.suffix.lower() in JSONL_ENDINGS else None)
    if not prompts:
        raise PromptFileError(f"{path}: expected at least one prompt; found none. Write one prompt a line.")
    return prompts


def parse_prompts(text: str, name: str = "prompts", jsonl: bool | None = None) -> list[str]:
    """The prompts in a text, without blank lines, lines that start with ``#`` and repetitions; empty if there are none.

    Args:
        name: what the text is called in messages.
        jsonl: whether its lines are JSON; None looks at the first one.

    Raises:
        PromptFileError: a line is no prompt; the message tells which.
    """
    lines = _lines(text, name)
    first = next(lines, None)
    if first is None:
        return []
    if jsonl is None:
        jsonl = _is_json(first[1])
    prompts: dict[str, None] = {}
    for number, line in itertools.chain([first], lines):
        where = f"{name}, line {number}"
        if not jsonl and _LIKE_JSON.match(line):
            raise PromptFileError(f"{where}: expected plain text; found JSON: {_short(line)}. Write all lines as JSON, or none.")
        prompts[_from_json(line, where) if jsonl else _checked(line, where)] = None
        if len(prompts) > MAX_PROMPTS:
            raise PromptFileError(f"{where}: expected at most {MAX_PROMPTS:,} different prompts; found more. Leave some out.")
    return list(prompts)


def _lines(text: str, name: str) -> Iterator[tuple[int, str]]:
    """``(number, line)`` of each line that holds something, one after the other: a list of all could be many times the text."""
    if len(text) > MAX_BYTES or _ends(text) > MAX_LINES:
        raise PromptFileError(
            f"{name}: expected at most {MAX_BYTES >> 20} MiB and {MAX_LINES:,} lines; found {len(text):,} characters and {_ends(text):,} line "
            "ends. Is it another kind of text?"
        )
    start = 0
    for number, end in enumerate(itertools.chain(_LINE_END.finditer(text), [None]), 1):
        line = text[start : end.start() if end else len(text)].replace("\ufeff", "").strip()
        if line and not line.startswith("#"):
            yield number, line
        start = end.end() if end else len(text)


def _ends(text: str) -> int:
    """How many lines end in `text`."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _decode(data: bytes, path: Path) -> str:
    save = "Save the file as UTF-8."
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PromptFileError(f"{path}: expected text in UTF-8; found UTF-16. {save}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = _ends(data[: error.start].decode("utf-8")) + 1
        found = f"the byte 0x{data[error.start]:02x}"
        raise PromptFileError(f"{path}, line {line}: expected text in UTF-8; found {found}, which is not. {save}") from None


def _is_json(line: str) -> bool:
    """Whether a first line is JSON, or was meant to be: a mistake in it shall not turn all lines into plain text."""
    if _LIKE_JSON.match(line):
        return True
    try:
        return isinstance(parse_json(line, MAX_LINE), str)
    except ValueError:
        return False


def _from_json(line: str, where: str) -> str:
    """The prompt of a line, checked; a :class:`Prompt` if it has answers."""
    try:
        value = parse_json(line, MAX_LINE)
    except ValueError as error:
        why = f"column {error.colno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise PromptFileError(
            f"{where}: expected a JSON object or string, as the lines of a JSONL file are; found {_short(line)}, which is not valid "
            f"JSON ({why}). Write all lines as JSON, each object in one line of its own, or none."
        ) from None
    answers: Any = ()
    if isinstance(value, dict):
        answers = value.get(ANSWERS, ())
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            keys = ", ".join(_short(key) for key in list(value)[:5]) or "nothing"
            raise PromptFileError(f"{where}: expected the key 'prompt' or 'text' in the object; found {keys}. Rename the key.")
        there, value = f"{where}, key '{key}'", value[key]
    else:
        there = where
    prompt = Prompt(_checked(_text(value, there), where))
    if answers:
        if not isinstance(answers, list) or len(answers) > MAX_ANSWERS:
            found = f"{len(answers)}" if isinstance(answers, list) else _kind(answers)
            raise PromptFileError(f"{where}, key '{ANSWERS}': expected a list of at most {MAX_ANSWERS} prompts; found {found}.")
        there = f"{where}, key '{ANSWERS}'"
        prompt.answers = tuple(_checked(_text(answer, there), there) for answer in answers)
    return prompt


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PromptFileError(f"{where}: expected text; found {_kind(value)}. Write each prompt as a JSON string.")
    return value.strip()


def _checked(prompt: str, where: str) -> str:
    """`prompt`, if text encoders can be given it."""
    if not prompt:
        raise PromptFileError(f"{where}: expected a prompt; found an empty text. Delete the line.")
    if "\0" in prompt:
        raise PromptFileError(
            f"{where}: expected text; found a NUL character. Is it another kind of file, or UTF-16? Save it as UTF-8."
        )
    if _HALF.search(prompt):
        raise PromptFileError(
            f"{where}: expected text; found half of a character (\\ud800 to \\udfff) in {_short(prompt)}. Delete it."
        )
    if len(prompt) > MAX_CHARACTERS:
        raise PromptFileError(
            f"{where}: expected at most {MAX_CHARACTERS:,} characters; found {len(prompt):,}, from {_short(prompt)}. Write one prompt a line."
        )
    return prompt


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    return {list: "a list", dict: "an object", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")
