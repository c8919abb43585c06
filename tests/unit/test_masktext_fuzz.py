"""Thousands of damaged texts: each is the mask that was embedded or one of our errors, never another exception or another mask."""

import random
import zlib
from collections import Counter

import pytest

from tests.unit.masks import coded_mask, hard_mask, soft_mask
from tests.unit.test_maskfile_fuzz import assert_valid
from tests.unit.test_maskfile_fuzz import damage as damage_bytes
from tests.unit.test_masktext import wrap
from uniforget import errors
from uniforget.mask import file as maskfile
from uniforget.mask import text as masktext

MASKS = [hard_mask(), soft_mask(), coded_mask(100, 60, every=25)]
TEXTS = [masktext.to_text(mask) for mask in MASKS]
DIGESTS = {mask.digest() for mask in MASKS}
ODD = [*masktext.ALPHABET, *'"\\`<&%{}| \n\t\0é\u202e\ud800\U0001f600', "uniforget-mask:", ":1:", ":", "0", "9" * 400, "<script>"]


def edit(rng, text):
    """Some characters changed, removed, doubled or added; once or a few times."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, size = rng.randrange(len(text) + 1), rng.choice((1, 1, 3, 20))
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(ODD) + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + text[at + size :]
        elif kind == 2:
            text = text[: at + size] + text[at:]
        else:
            text = text[:at] + rng.choice(ODD) + text[at:]
    return text


def edit_head(rng, text):
    """The version, the length or the checksum is another."""
    parts = text.split(":", 4)
    parts[rng.randrange(4)] = rng.choice(["", "0", "1", "2", "-1", "1" * 9, "1" * 30, "0" * 12, "é", parts[rng.randrange(4)]])
    return ":".join(parts)


def cut(rng, text):
    return text[: rng.randrange(len(text))]


def splice(rng, text):
    return text[: rng.randrange(len(text))] + rng.choice(TEXTS)[rng.randrange(len(text)) :]


def repack(rng, text):
    """Other packed bytes under a length and checksum that fit: this gets past the text's own checks."""
    data = maskfile.dumps(rng.choice(MASKS))
    if rng.random() < 0.5:
        return wrap(damage_bytes(rng, zlib.compress(data)))
    return wrap(zlib.compress(damage_bytes(rng, data)))


def noise(rng, text):
    return "".join(rng.choice(ODD) for _ in range(rng.randrange(300)))


@pytest.mark.parametrize(
    ("change", "count", "least"),
    [
        (edit, 3000, {"BadContentsError", "TruncatedError", "NotAMaskError", "MaskSet"}),
        (edit_head, 600, {"BadContentsError", "TruncatedError", "NotAMaskError", "NewerFormatError", "MaskSet"}),
        (cut, 600, {"TruncatedError", "NotAMaskError"}),
        (splice, 600, {"BadContentsError", "TruncatedError"}),
        (repack, 2500, {"BadContentsError", "TruncatedError", "NotAMaskError", "MaskSet"}),
        (noise, 600, {"NotAMaskError"}),
    ],
)
def test_every_damaged_text_is_the_mask_or_one_of_our_errors(change, count, least):
    rng = random.Random(change.__name__)
    outcomes = Counter()
    for _ in range(count):
        text = change(rng, rng.choice(TEXTS))
        try:
            mask = masktext.from_text(text)
        except errors.MaskFileError as error:
            outcome = type(error).__name__
            assert type(error) is not errors.MaskFileError, "there is a more telling error"
            message = str(error)
            assert message.startswith("embedded mask: ") and len(message) < 500
            assert message.isprintable(), "what strangers wrote is shown as ASCII"
        else:
            outcome = "MaskSet"
            assert_valid(mask)
            assert mask.digest() in DIGESTS
        outcomes[outcome] += 1
    assert least <= outcomes.keys(), outcomes
