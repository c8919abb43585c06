"""Over 10,000 damaged mask files: each is a valid mask or one of our errors, never another exception or a wrong mask."""

import copy
import random
import zlib
from collections import Counter

import numpy as np
import pytest
import torch

from tests.unit.masks import INFO, coded_mask, hard_mask, join, soft_mask, split
from uniforget import errors
from uniforget.mask import bitcode, sitetable
from uniforget.mask import file as maskfile
from uniforget.mask.info import MaskSet
from uniforget.model.families.schema import KINDS

SEEDS = [maskfile.dumps(mask) for mask in (hard_mask(), soft_mask(), coded_mask(100, 60, every=25))]
DIGESTS = {maskfile.loads(data).digest() for data in SEEDS}
WORDS = [b"0", b"-1", b"99999999999", b"1e9", b"null", b"[]", b"{}", b'"ffn"', b"true", b"NaN", b'"2"', b'"F32"', b'"sites"']
VALUES = [
    *(None, True, 0, -1, 1, 2, 10**30, 0.5, "", "0", "1", "2", "-1", "1e3", "nan", "ffn", "ffn,ffn", "\0", "é", "\ud800"),
    *([], [0], [0, 1], [1, 0], [0, 10**9], [[0]], {}, {"dtype": "U8"}, "U8", "F32", "x" * 3000),
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


def edit_header(rng, data):
    """Some values, keys or entries of the header changed; it is valid JSON, before the same contents."""
    header, sites, gates = split(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = rng.choice([header, *(v for v in header.values() if isinstance(v, dict))])
        key = rng.choice([*place, "more"])
        kind = rng.randrange(4)
        if kind == 0:
            place.pop(key, None)
        elif kind == 1:
            place[str(rng.choice(VALUES))] = place.get(key)
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return join(header, sites, gates, fit=False)


def edit_contents(rng, data):
    """The site table or the coded gates damaged, in a header that fits them: this gets past all checks of the file's form."""
    header, sites, gates = split(data)
    if rng.random() < 0.5:
        return join(header, sites, damage(rng, gates))
    return join(header, zlib.compress(damage(rng, zlib.decompress(sites))), gates)


def forge(rng, data):
    """As `edit_contents`, but with the digest and sparsity of the new contents where they have any: nothing gives them away."""
    header, sites, gates = split(data)
    pick = rng.random()
    if pick < 0.4:
        gates = damage(rng, gates, 1)
    elif pick < 0.6:
        gates = gates[:1] + rng.randbytes(len(gates) - 1)
    else:
        sites = zlib.compress(damage(rng, zlib.decompress(sites), 1))
    try:
        kinds, units, names = zip(*sitetable.unpack(sites))
        if gates[:1] == b"\3":
            values = np.frombuffer(gates[1:], np.uint8).astype(np.float32) / np.float32(255)
        else:
            values = bitcode.decode(gates, units, kinds).astype(np.float32)
        pieces = torch.from_numpy(values).split(units)
        mask = MaskSet(dict(zip(names, pieces)), dict(zip(names, kinds)), INFO)
    except (ValueError, RuntimeError, errors.MaskError):
        return join(header, sites, gates)
    shares = ",".join(f"{kind}={share:.3f}" for kind, share in mask.sparsity().items())
    header["__metadata__"] |= {"digest": mask.digest(), "sparsity": shares}
    return join(header, sites, gates)


def assert_valid(mask):
    """What is a mask, written out again here: nothing that a file says can get around it."""
    assert type(mask) is MaskSet and mask.gates and list(mask.gates) == list(mask.kinds)
    assert set(mask.kinds.values()) <= set(KINDS) and mask.info.family
    for name, gates in mask.gates.items():
        assert name and all(part and part.isascii() and part.isprintable() and " " not in part for part in name.split("."))
        assert gates.dtype == torch.float32 and gates.ndim == 1 and gates.numel()
        assert bool(((gates >= 0) & (gates <= 1)).all())
    again = maskfile.loads(maskfile.dumps(mask))
    assert again.digest() == mask.digest() and again.info == mask.info


@pytest.mark.parametrize(
    ("change", "count", "least"),
    [
        (damage, 5500, {"BadContentsError", "TruncatedError", "NotAMaskError", "NewerFormatError", "MaskSet"}),
        (cut, 600, {"TruncatedError"}),
        (splice, 1000, {"BadContentsError", "TruncatedError"}),
        (edit_header, 2000, {"BadContentsError", "NotAMaskError", "NewerFormatError", "MaskSet"}),
        (edit_contents, 1200, {"BadContentsError"}),
        (forge, 1000, {"BadContentsError", "MaskSet"}),
    ],
)
def test_every_damaged_file_is_a_valid_mask_or_one_of_our_errors(change, count, least):
    rng = random.Random(change.__name__)
    outcomes, forged = Counter(), set()
    for _ in range(count):
        data = change(rng, rng.choice(SEEDS))
        try:
            mask = maskfile.loads(data, "x.safetensors")
        except errors.MaskFileError as error:
            outcome = type(error)
            assert outcome is not errors.MaskFileError, "there is a more telling error"
            assert str(error).startswith("x.safetensors: ") and len(str(error)) < 500
        else:
            outcome = MaskSet
            assert_valid(mask)
            if change is forge:
                forged.add(mask.digest())
            else:
                assert mask.digest() in DIGESTS, "damaged gates were not noticed"
        outcomes[outcome.__name__] += 1
    assert sum(outcomes.values()) == count
    assert least <= outcomes.keys(), outcomes
    # The last of all checks was passed by many files that no encoder wrote.
    assert len(forged - DIGESTS) > 100 or change is not forge


def test_ten_thousand_files_are_damaged():
    [mark] = test_every_damaged_file_is_a_valid_mask_or_one_of_our_errors.pytestmark
    assert sum(count for _, count, _ in mark.args[1]) >= 10_000
