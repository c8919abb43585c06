"""A mask as text, which a workflow or a message can carry (docs/mask_format.md has the format).

It holds a whole mask file, compressed, in characters that JSON, HTML and prompt syntax leave alone. Texts come from strangers:
nothing is unpacked before its length and checksum fit, and never more than MAX_FILE bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from typing import NoReturn

from ..errors import (
    BadContentsError,
    MaskFileMissingError,
    NewerFormatError,
    NotAMaskError,
    SettingError,
    TooLargeError,
    TruncatedError,
)
from . import file as maskfile
from .info import MaskSet
from .subspace import Subspace

MARK = "uniforget-mask"
VERSION = 1
# Hard masks of the largest models take about 600,000 characters.
MAX_TEXT = 1 << 20
MAX_FILE = 4 << 20
# Gates that a text may claim. A few thousand characters could claim the 16 million of a mask file, and keep a computer busy.
MAX_GATES = 4 << 20
# Printable ASCII without the nine characters that JSON, HTML, Markdown's code, date patterns and dynamic prompts read something into.
ALPHABET = "".join(chr(c) for c in range(33, 127) if chr(c) not in '"\\`<&%{}|')

_PYTHONS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_TO_OURS = str.maketrans(_PYTHONS, ALPHABET)
_TO_PYTHONS = str.maketrans(ALPHABET, _PYTHONS)
_HEAD = re.compile(rf"{MARK}:([0-9]{{1,9}}):([0-9]{{1,9}}):([0-9a-f]{{12}}):")
_NAME = "embedded mask"
_AGAIN = "Copy the whole text again, or load the workflow again."


def to_text(mask: MaskSet) -> str:
    """`mask` as one line of at most MAX_TEXT printable ASCII characters. Soft gates are rounded to steps of 1/255, as in files.

    Raises:
        SettingError: it is a subspace, which is far too large.
        TooLargeError: it has too many gates, or its text would be too long.
        MaskError: see :func:`uniforget.mask.file.dumps`.
    """
    if isinstance(mask, Subspace):
        refuse_subspace()
    data = maskfile.dumps(mask, _NAME)
    count = sum(gates.numel() for gates in mask.gates.values())
    packed = zlib.compress(data, 9)
    # Base85 makes 5 characters of 4 bytes.
    length = (len(packed) * 5 + 3) // 4
    if count > MAX_GATES or len(data) > MAX_FILE or length > MAX_TEXT - 100:
        raise TooLargeError(
            f"{_NAME}: at most {MAX_GATES} gates and {MAX_TEXT} characters can be embedded; this {'' if mask.hard else 'soft '}mask has "
            f"{count} gates and would take {length} characters. Save it with Save Memorization Mask and share the file."
        )
    body = base64.b85encode(packed).decode("ascii").translate(_TO_OURS)
    return f"{MARK}:{VERSION}:{len(body)}:{_check(body)}:{body}"


def refuse_subspace() -> NoReturn:
    """Say why a subspace cannot be embedded.

    Raises:
        SettingError: always.
    """
    raise SettingError(
        "This is a subspace, and a subspace has megabytes: it cannot be embedded in a workflow. Share its file, or save a sanitized "
        "checkpoint. Masks of gates can be embedded."
    )


def from_text(text: str) -> MaskSet:
    """The mask that :func:`to_text` wrote; line breaks and spaces that were added on the way do no harm.

    Raises:
        MaskFileMissingError: the text is empty.
        MaskFileError: another of its subclasses (see :mod:`uniforget.errors`) that says what is wrong with the text.
    """
    if not isinstance(text, str):
        raise NotAMaskError(f"{_NAME}: expected text; found {type(text).__name__}. {_AGAIN}")
    if len(text) > MAX_TEXT:
        raise TooLargeError(
            f"{_NAME}: expected at most {MAX_TEXT} characters; found {len(text)}. This is no mask that UniForget embedded."
        )
    text = "".join(text.split())
    if not text:
        raise MaskFileMissingError(
            f"{_NAME}: this node is empty. Paste a mask's text into it, or right-click Load Memorization Mask and choose 'Embed mask in "
            "workflow'."
        )
    packed = _unwrapped(text)
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed, MAX_FILE + 1)
    except zlib.error as error:
        _bad(f"it cannot be unpacked ({error})")
    if len(data) > MAX_FILE:
        raise TooLargeError(
            f"{_NAME}: it would unpack to more than {MAX_FILE} bytes, which no embedded mask has. Do not trust where it is from."
        )
    if not stream.eof or stream.unused_data:
        _bad("its packed part does not end where it must")
    return maskfile.loads(data, _NAME, MAX_GATES)


def _unwrapped(text: str) -> bytes:
    """The packed bytes of a text without white space."""
    if not text.startswith(f"{MARK}:"):
        # The beginning of the mark is what a text cut very short has.
        what = "only its beginning" if f"{MARK}:".startswith(text) else f"text that starts with {text[:20]!a}"
        raise NotAMaskError(f"{_NAME}: expected text that starts with '{MARK}:'; found {what}. {_AGAIN}")
    head = _HEAD.match(text)
    if head is None:
        if len(text) < 60:
            raise TruncatedError(f"{_NAME}: the text is cut off after {len(text)} characters. {_AGAIN}")
        _bad(f"after '{MARK}:' it goes on with {text[len(MARK) + 1 :][:30]!a}")
    version, length, check = int(head[1]), int(head[2]), head[3]
    if version > VERSION:
        raise NewerFormatError(
            f"{_NAME}: this text has version {version}, and this UniForget reads up to {VERSION}. Update UniForget."
        )
    if version != VERSION:
        _bad(f"its version is {version}")
    body = text[head.end() :]
    if len(body) < length:
        raise TruncatedError(
            f"{_NAME}: the text is cut off: {length} characters were embedded and {len(body)} are there. {_AGAIN}"
        )
    if len(body) > length:
        _bad(f"{len(body) - length} characters follow its end")
    if _check(body) != check:
        _bad("its checksum does not fit, so the text was changed")
    odd = next((c for c in body if c not in ALPHABET), None)
    if odd is not None:
        _bad(f"it holds the character {odd!a}, which no embedded mask has")
    try:
        return base64.b85decode(body.translate(_TO_PYTHONS))
    except ValueError as error:
        _bad(f"it cannot be unpacked ({error})")


def _check(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _bad(what: str) -> NoReturn:
    raise BadContentsError(f"{_NAME}: this text is damaged: {what}. {_AGAIN}") from None
