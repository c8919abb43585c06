"""Prompt lists of bench.paper: text, CSV or JSONL, with reference pictures beside them."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from uniforget import untrusted
from uniforget.cli.attack import FORMATS
from uniforget.errors import PromptFileError
from uniforget.prompts import JSONL_ENDINGS, KEYS, MAX_BYTES, MAX_LINE, parse_prompts, read_prompts

REFERENCE, SUBJECT = ("reference", "references", "image"), ("subject", "name")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Asked:
    """One prompt: what is drawn, what the vision-language model is asked about, and the pictures that it must not become."""

    prompt: str
    subject: str
    references: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PromptList:
    """A column of the paper's table, such as "anime" or "coco"."""

    label: str
    items: tuple[Asked, ...]

    @property
    def references(self) -> list[Path]:
        """All reference pictures, each once."""
        return list(dict.fromkeys(path for item in self.items for path in item.references))


def labelled(text: str) -> tuple[str, Path]:
    """``LABEL=FILE`` as its two parts; the label is "" for a plain FILE. What exists as a file is a file, whatever its name holds."""
    label, equals, rest = text.partition("=")
    return ("", Path(text)) if not equals or Path(text).exists() else (label.strip(), Path(rest))


def read_list(text: str) -> PromptList:
    """The prompts of ``FILE`` or ``LABEL=FILE``. Repeated prompts become one, with the references of all.

    A CSV file has a heading and an object of a JSONL file has keys: ``prompt`` (or ``text``), and where there are any ``reference`` (a
    picture's path as seen from the list's folder; in JSONL also a list of them) and ``subject``. References of a text file lie in a
    folder of its name without the ending, and are called by the line of their prompt: ``list/12.png`` for line 12 of ``list.txt``.

    Raises:
        PromptFileError: it cannot be read, or a reference is missing, no picture, or not beside the list.
    """
    label, path = labelled(text)
    found: dict[str, tuple[str, list[Path]]] = {}
    for where, record in _records(path):
        prompt = next(record[key] for key in KEYS if key in record).strip()
        subject = next((record[key] for key in SUBJECT if record.get(key)), prompt)
        if not isinstance(subject, str):
            raise PromptFileError(
                f"{where}: expected the subject as text; found {type(subject).__name__}. Write it as a JSON string."
            )
        names = next((record[key] for key in REFERENCE if record.get(key)), [])
        old = found.setdefault(prompt, (subject, []))
        old[1].extend(_beside(name, path.parent, where) for name in (names if isinstance(names, list) else [names]))
    items = (Asked(prompt, subject, tuple(dict.fromkeys(pictures))) for prompt, (subject, pictures) in found.items())
    return PromptList(label or path.stem, tuple(items))


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(place for messages, record with a prompt that was checked)``."""
    ending = path.suffix.lower()
    if ending == ".csv":
        yield from _csv(path)
        return
    read_prompts(path)  # says what is wrong with it, and in which line
    for number, line in enumerate(re.split("\r\n|\r|\n", path.read_bytes().decode("utf-8")), 1):
        line = line.replace("\ufeff", "").strip()
        if not line or line.startswith("#"):
            continue
        if ending in JSONL_ENDINGS:
            value = untrusted.parse_json(line, MAX_LINE)
            yield f"{path}, line {number}", value if isinstance(value, dict) else {"prompt": value}
        else:
            beside = path.with_suffix("")
            stems = {str(number), f"{number:05}"}
            names = [f"{beside.name}/{n}" for n in _names(beside) if Path(n).stem in stems and Path(n).suffix.lower() in PICTURES]
            yield f"{path}, line {number}", {"prompt": line, "reference": names}


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptFileError(
            f"{path}: expected a CSV file in UTF-8; it cannot be read ({error}). Check the path, or save it as UTF-8."
        ) from error
    if len(data) > MAX_BYTES:
        raise PromptFileError(
            f"{path}: expected at most {MAX_BYTES >> 20} MiB of prompts; found more. Is it another kind of file?"
        )
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="")
        heads = [str(name).strip().lower() for name in reader.fieldnames or []]
        if not set(KEYS) & set(heads):
            raise PromptFileError(
                f"{path}: expected a heading with a column {' or '.join(map(repr, KEYS))}; found {', '.join(heads)[:80] or 'nothing'}. "
                "Write the names of the columns into the first line."
            )
        reader.fieldnames = heads
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise PromptFileError(
            f"{path}: expected a CSV file; found something else ({error}). Save it as CSV with commas."
        ) from error
    if not rows:
        raise PromptFileError(f"{path}: expected at least one prompt; found none. Write one prompt a line.")
    for number, row in rows:
        record = {key: value for key, value in row.items() if key and isinstance(value, str) and value.strip()}
        where = f"{path}, line {number}"
        parse_prompts(json.dumps(record), where, jsonl=True)
        yield where, record


def _beside(name: Any, folder: Path, where: str) -> Path:
    """A reference picture, which must lie in the list's folder or below, so that no list can point at other files."""
    if not isinstance(name, str) or "\0" in name:
        raise PromptFileError(f"{where}: expected a reference picture's path as text; found {name!r:.60}. Write it as a string.")
    path = (folder / name.strip()).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise PromptFileError(f"{where}: expected the reference {name!r:.80} beside the list; found it elsewhere. Move it there.")
    if not path.is_file():
        raise PromptFileError(f"{where}: expected the reference picture {path}; found no such file. Check its name.")
    try:
        open_picture(path).close()
    except PromptFileError as error:
        raise PromptFileError(f"{where}: {error}") from error
    return path


def open_picture(path: Path) -> Image.Image:
    """A picture, not yet decoded.

    Raises:
        PromptFileError: it is none of the formats that are read, or larger than any picture should be.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PromptFileError(
            f"{path}: expected a picture ({', '.join(FORMATS)}); it cannot be read ({error}). Convert it, or leave it out."
        ) from error


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB.

    Raises:
        PromptFileError: it cannot be read, or is cut off.
    """
    with open_picture(path) as picture:
        try:
            return picture.convert("RGB")
        except (OSError, ValueError) as error:
            raise PromptFileError(f"{path}: this picture is damaged ({error}). Draw or download it again.") from error
