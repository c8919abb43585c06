"""A mask as text, which a workflow or a message can carry: its file in base64 behind a word that says what it is."""

from __future__ import annotations

import base64
import re

from ..errors import BadContentsError, MaskFileMissingError, NotAMaskError, TooLargeError, TruncatedError
from . import file as maskfile
from .edit import Mask
from .files import gates_of
from .info import GateMask

MARK = "uniforget-mask:"
# Hard masks of the largest models take about 650,000 characters.
MAX_TEXT = 1 << 20
# Gates that a text may claim. A few thousand characters could claim the 16 million of a mask file, and keep a computer busy.
MAX_GATES = 4 << 20

_NAME = "embedded mask"
_AGAIN = "Copy the whole text again, or load the workflow again."


def to_text(mask: Mask) -> str:
    """`mask` as one line of at most MAX_TEXT printable ASCII characters. Soft gates are rounded to steps of 1/255, as in files.

    Raises:
        SettingError: it is a subspace, which is far too large.
        TooLargeError: it has too many gates, or its text would be too long.
        MaskError: see :func:`uniforget.mask.file.dumps`.
    """
    mask = gates_of(mask, "Embed mask in workflow")
    count = sum(gates.numel() for gates in mask.gates.values())
    text = MARK + base64.b64encode(maskfile.dumps(mask, _NAME)).decode("ascii") if count <= MAX_GATES else ""
    if not 0 < len(text) <= MAX_TEXT:
        takes = f" and would take {len(text)} characters" if text else ""
        raise TooLargeError(
            f"{_NAME}: at most {MAX_GATES} gates and {MAX_TEXT} characters can be embedded; this {'' if mask.hard else 'soft '}mask has "
            f"{count} gates{takes}. Save it with Save Memorization Mask and share the file."
        )
    return text


def from_text(text: str) -> GateMask:
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
    if not text.startswith(MARK):
        # The beginning of the mark is what a text cut very short has.
        what = "only its beginning" if MARK.startswith(text) else f"text that starts with {text[:20]!a}"
        raise NotAMaskError(f"{_NAME}: expected text that starts with '{MARK}'; found {what}. {_AGAIN}")
    body = text[len(MARK) :]
    odd = re.search("[^A-Za-z0-9+/]", body.rstrip("="))
    if odd:
        raise BadContentsError(f"{_NAME}: this text is damaged: it holds the character {odd[0]!a}. {_AGAIN}")
    try:
        data = base64.b64decode(body, validate=True)
    except ValueError:
        raise TruncatedError(f"{_NAME}: the text is cut off, or something follows its end. {_AGAIN}") from None
    return maskfile.loads(data, _NAME, MAX_GATES)
