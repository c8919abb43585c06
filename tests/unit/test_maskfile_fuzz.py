"""Thousands of damaged mask files and texts: each is a valid mask or one of our errors, never another exception or a wrong mask."""

import base64
import copy
import random
from collections import Counter

import pytest
import torch

from tests.unit.masks import hard_mask, join, long_mask, soft_mask, split
from uniforget import errors
from uniforget.mask import file as maskfile
from uniforget.mask import text as masktext
from uniforget.mask.info import GateMask
from uniforget.model.families.schema import KINDS

SEEDS = [maskfile.dumps(mask) for mask in (hard_mask(), soft_mask(), long_mask(100, 60, every=25))]
DIGESTS = {maskfile.loads(data).digest() for data in SEEDS}
WORDS = [b"0", b"-1", b"99999999999", b"1e9", b"null", b"[]", b"{}", b'"ffn"', b"true", b"NaN", b'"2"', b'"F32"', b'"sites"']
VALUES = [
    *(
        None,
        True,
        0,
        -1,
        1,
        2,
        10**30,
        0.5,
        "",
        "0",
        "1",
        "nan",
        "ffn",
        "\0",
        "é",
        "\ud800",
        [],
        [0],
        [[0]],
        {},
        {"a": 1},
        "x" * 3000,
    ),
]


def damage(rng, data, times=None):
    """Flips a bit, or sets, removes, doubles, inserts or copies from another file some bytes; once or a few times."""
    data = bytearray(data)
    for _ in range(times or rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(max(1, len(data)))
        size = rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del data[at : at + size]
        elif kind == 3:
            data[at:at] = data[at : at + size]
        elif kind == 4:
            data[at:at] = rng.choice(WORDS)
        elif kind == 5:
            data[at : at + size] = rng.choice(SEEDS)[at : at + size]
        else:
            digits = [i for i in range(8, min(len(data), 700)) if 48 <= data[i] <= 57]
            if digits:
                data[rng.choice(digits)] = rng.choice(b"0123456789")
    return bytes(data)


def cut(rng, data):
    return data[: rng.randrange(len(data))]


def splice(rng, data):
    """The head of one file before the tail of another, cut at the same place or at two."""
    other = rng.choice(SEEDS)
    at = rng.randrange(len(data))
    return data[:at] + other[at if rng.random() < 0.3 else rng.randrange(len(other)) :]


def edit_information(rng, data):
    """Some of what the metadata says is another value, or has gone."""
    about, tensors = split(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        key = rng.choice([*about, "more"])
        if rng.randrange(4):
            about[key] = copy.deepcopy(rng.choice(VALUES))
        else:
            about.pop(key, None)
    return join(about, tensors)


def edit_contents(rng, data):
    """Sites or gates damaged before they are packed: this gets past all checks of the file's form."""
    about, tensors = split(data)
    name = rng.choice([*tensors])
    return join(about, tensors | {name: damage(rng, tensors[name])})


def forge(rng, data):
    """As `edit_contents`, with the digest of the new contents where they have any: nothing gives them away."""
    about, tensors = split(data)
    name = rng.choice([*tensors])
    tensors[name] = damage(rng, tensors[name], 1)
    for _ in range(2):
        try:
            return join(about | {"digest": maskfile.loads(join(about, tensors)).digest()}, tensors)
        except errors.MaskFileError as error:
            about["digest"] = str(error).rpartition("gates say '")[2][:10]
    return join(about, tensors)


def assert_valid(mask):
    """What is a mask, written out again here: nothing that a file says can get around it."""
    assert type(mask) is GateMask and mask.gates and list(mask.gates) == list(mask.kinds)
    assert set(mask.kinds.values()) <= set(KINDS) and mask.info.family
    for name, gates in mask.gates.items():
        assert name and all(part and part.isascii() and part.isprintable() and " " not in part for part in name.split("."))
        assert gates.dtype == torch.float32 and gates.ndim == 1 and gates.numel()
        assert bool(((gates >= 0) & (gates <= 1)).all())
    again = maskfile.loads(maskfile.dumps(mask))
    assert again.digest() == mask.digest() and again.info == mask.info


@pytest.mark.parametrize("embedded", [False, True], ids=["file", "text"])
@pytest.mark.parametrize(
    ("change", "count", "least"),
    [
        (damage, 1500, {"BadContentsError", "TruncatedError", "NotAMaskError"}),
        (cut, 200, {"TruncatedError"}),
        (splice, 300, {"BadContentsError", "TruncatedError"}),
        (edit_information, 500, {"BadContentsError", "NewerFormatError", "GateMask"}),
        (edit_contents, 400, {"BadContentsError"}),
        (forge, 500, {"BadContentsError", "GateMask"}),
    ],
)
def test_every_damaged_file_is_a_valid_mask_or_one_of_our_errors(change, count, least, embedded):
    rng = random.Random(change.__name__)
    outcomes, forged = Counter(), set()
    for _ in range(count):
        data = change(rng, rng.choice(SEEDS))
        try:
            if embedded:
                mask = masktext.from_text(masktext.MARK + base64.b64encode(data).decode())
            else:
                mask = maskfile.loads(data, "x.safetensors")
        except errors.MaskFileError as error:
            outcome = type(error)
            assert outcome is not errors.MaskFileError, "there is a more telling error"
            assert str(error).startswith("embedded mask: " if embedded else "x.safetensors: ") and len(str(error)) < 500
            assert str(error).isprintable() or not embedded
        else:
            outcome = GateMask
            assert_valid(mask)
            if change is forge:
                forged.add(mask.digest())
            else:
                assert mask.digest() in DIGESTS, "damaged gates were not noticed"
        outcomes[outcome.__name__] += 1
    assert least <= outcomes.keys(), outcomes
    # The last of all checks was passed by many files that no encoder wrote.
    assert len(forged - DIGESTS) > 50 or change is not forge


def test_every_damaged_text_is_the_mask_or_one_of_our_errors():
    rng = random.Random(0)
    texts = [masktext.MARK + base64.b64encode(data).decode() for data in SEEDS]
    odd = [*"+/=AZ09az:-_", *'"\\`<&%{}| \n\t\0é\u202e\ud800\U0001f600', masktext.MARK, "9" * 400, "<script>"]
    outcomes = Counter()
    for _ in range(1500):
        text = rng.choice(texts)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(odd) + text[at + rng.choice((0, 1, 1, 20)) :]
        try:
            mask = masktext.from_text(text)
        except errors.MaskFileError as error:
            assert str(error).startswith("embedded mask: ") and len(str(error)) < 500 and str(error).isprintable()
            outcomes[type(error).__name__] += 1
        else:
            assert_valid(mask)
            assert mask.digest() in DIGESTS
            outcomes["GateMask"] += 1
    assert {"BadContentsError", "TruncatedError", "NotAMaskError", "GateMask"} <= outcomes.keys(), outcomes
