"""What comes from strangers: how much of it is taken in, and how its text is shown.

Files, texts and graphs are looked at before anything is put together: lengths first. What a reader needs stays below 300 MB and five
seconds, whatever it is given; all limits are far above what UniForget writes.

Hosts do not agree on what text is. ComfyUI's page takes a node's text for HTML, and makes links of ``[[label|address]]`` in it; newer
pages, gradio and terminals show it as it stands. So what could be markup is replaced by characters that look alike, rather than
escaped for one of them: the result is the same text everywhere, and code nowhere.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import zlib
from typing import Any, TypeGuard

from .errors import UniForgetError

# Characters of one text of a mask's information (base model, preset, extra notes, ...); how many extra notes, and of the name of one.
TEXT, EXTRAS, EXTRA_NAME = 2_000, 64, 80
# Bytes of a safetensors header, values and tensors in it, and characters of a tensor's name. The largest models have about 5,000
# tensors, which take 1 MB; the rest is room for what is noted beside them.
HEADER, HEADER_VALUES, TENSORS, TENSOR_NAME = 8 << 20, 1 << 20, 16_384, 256
# Controls, line and paragraph separators, halves of surrogate pairs, and what is not seen or turns the direction of writing: with these
# a value could forge lines of output, steer a terminal, or look like another value.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]")

# Characters of a text that are shown.
MOST = 40_000
# Apostrophes stay: they are in every second sentence, and no host puts such text between single quotes.
_LIKE = str.maketrans({"<": "\u2039", ">": "\u203a", "&": "\uff06", '"': "\u201d"})
# ComfyUI's page replaces these by links, inside of other links as well, where an address becomes attributes.
_LINKS = re.compile(r"\[(?=\[)|_(?=_LNK)")


class OverLimit(ValueError):
    """More than a reader takes in. The message says of what, and how much is the most."""


def at_most(found: int, most: int, what: str) -> None:
    """See that there are not more than `most` of `what`.

    Raises:
        OverLimit: there are.
    """
    if found > most:
        raise OverLimit(f"it has {found:,} {what}, and {most:,} is the most")


def inflate(data: bytes, most: int) -> bytes:
    """What zlib-compressed `data` stands for; never more than `most` bytes are made of it.

    Raises:
        OverLimit: it would be more.
        ValueError: it is damaged, cut off, or something follows it.
    """
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked ({error})") from error
    if len(found) > most:
        raise OverLimit(f"it would unpack to more than {most:,} bytes")
    if not stream.eof or stream.unused_data:
        raise ValueError("its packed part does not end where it must")
    return found


def parse_json(data: bytes | str, most: int, values: int = HEADER_VALUES, **options: Any) -> Any:
    """JSON of at most `most` bytes (or characters) and about `values` values. `options` are those of :func:`json.loads`.

    Raises:
        OverLimit: it is longer or has more. Nothing was parsed.
        ValueError: it is no JSON in UTF-8, or nested too deeply.
    """
    at_most(len(data), most, "bytes of JSON" if isinstance(data, bytes) else "characters of JSON")
    # Every value but the first follows one of these. Some stand in texts, where they count as well.
    marks = sum(data.count(m.encode()) if isinstance(data, bytes) else data.count(m) for m in ",:[{")
    at_most(marks, values, "values of JSON")
    try:
        return json.loads(data.decode("utf-8") if isinstance(data, bytes) else data, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value out of JSON is a finite number, and no whole number that is too large for a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def header_length(path: str | os.PathLike[str]) -> int:
    """Length of the header of a safetensors file, to be looked at before any library reads it.

    Raises:
        OverLimit: it is longer than any that UniForget reads.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    at_most(length, HEADER, "bytes in its header")
    return length


def fault_of_text(text: str, most: int = TEXT) -> str:
    """What was expected of a text of a mask's information, and what it is instead; "" when nothing is wrong with it.

    Such texts have one line, without controls and without what cannot be seen.
    """
    if len(text) > most:
        return f"at most {most:,} characters; found {len(text):,}"
    odd = UNSEEN.search(text)
    return f"text of one line without control characters; found {odd[0]!a}" if odd else ""


def safe(text: object, page: bool = False, line: bool = False, most: int = MOST) -> str:
    """`text` without controls (line breaks and tabs excepted) and without characters that are not seen or turn the direction of writing.

    Args:
        page: it goes to a host's page: without anything that HTML or the page's own markup could be made of.
        line: it must stay within one line: line breaks and tabs become spaces.
        most: characters that are kept.
    """
    whole = str(text)
    kept = whole[:most].replace("\r\n", "\n").replace("\r", "\n")
    parts = re.split("([\n\t])", kept)
    kept = "".join((" " if line else part) if i % 2 else UNSEEN.sub("\ufffd", part) for i, part in enumerate(parts))
    if page:
        kept = _LINKS.sub(lambda found: f"{found[0]} ", kept.translate(_LIKE))
    return kept + (f" ... ({len(whole) - most:,} more characters)" if len(whole) > most else "")


def told(error: Exception, log: str) -> str:
    """What a host's page says of an error. One that nobody foresaw asks for a report; its traceback goes into the log, called `log`."""
    if not isinstance(error, UniForgetError):
        logging.error("UniForget: unexpected error", exc_info=error)
        return safe(
            f"Something went wrong that should not: {type(error).__name__}: {error}. If all inputs belong together, this is a fault of "
            f"UniForget: please report it, with the lines of {log}.",
            page=True,
        )
    return safe(error, page=True)
