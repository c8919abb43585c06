"""Small masks, and their files taken apart and put together again, for the tests of mask files."""

import json
import zlib

import pytest
import torch

from uniforget.mask import file as maskfile
from uniforget.mask.info import GateMask, MaskInfo

FFN, NORM, ATTN = (f"joint_blocks.0.x_block.{p}" for p in ("mlp.fc2", "adaLN_modulation.1", "attn.proj"))
INFO = MaskInfo(
    *("sd3", "b4se", "Mein Modell é", "stepwise", 2.5, "custom", ("ffn", "norm", "attn"), "0123abcd"),
    **{"seed": 2**64 - 1, "steps": 400, "learn_seconds": 12.5, "version": "0.1.0", "extra": {"note": "made for tests"}},
)


def hard_mask():
    gates = {
        FFN: torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 1, 0], dtype=torch.float32),
        NORM: torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.float32),
        ATTN: torch.tensor([0, 1, 1], dtype=torch.float32),
    }
    return GateMask(gates, {FFN: "ffn", NORM: "norm", ATTN: "attn"}, INFO)


def soft_mask():
    gates = {FFN: torch.tensor([0, 1, 51 / 255, 254 / 255]), NORM: torch.tensor([128 / 255, 1])}
    return GateMask(gates, {FFN: "ffn", NORM: "norm"}, INFO)


def long_mask(ffn=3000, norm=2000, every=7):
    """Every 7th neuron and every 29th channel is off."""
    gates = {FFN: (torch.arange(ffn) % every != 0).float(), NORM: (torch.arange(norm) % 29 != 0).float()}
    return GateMask(gates, {FFN: "ffn", NORM: "norm"}, INFO)


MASKS = {"hard": hard_mask, "soft": soft_mask, "long": long_mask}


def split(data):
    """``(about, tensors)`` of a mask file's bytes: what its metadata says, and what its tensors hold, unpacked."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    about = json.loads(header.pop("__metadata__")[maskfile.MARK])
    return about, {name: zlib.decompress(body[slice(*entry["data_offsets"])]) for name, entry in header.items()}


def join(about, tensors, packed=None):
    """A mask file of any information and contents; `packed` tensors are put in as they are."""
    parts = {name: zlib.compress(data, 9) for name, data in tensors.items()} | (packed or {})
    header, body = {"__metadata__": {maskfile.MARK: about if isinstance(about, str) else json.dumps(about)}}, b""
    for name, data in sorted(parts.items()):
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def assert_same(found, expected):
    assert list(found.gates) == list(expected.gates)
    assert found.kinds == expected.kinds
    assert found.info == expected.info
    for name, gates in expected.gates.items():
        assert found.gates[name].dtype == torch.float32
        assert torch.equal(found.gates[name], gates), name


def refused(data, kind, *words):
    """Checks that a file of these bytes is refused with exactly this error, naming the file and all `words`."""
    with pytest.raises(kind) as caught:
        maskfile.loads(data, "folder/some.safetensors")
    message = str(caught.value)
    assert message.startswith("folder/some.safetensors: ") and len(message) < 500
    for word in words:
        assert word in message, message
    assert type(caught.value) is kind


def changed(about=None, drop=(), make=hard_mask, packed=None, **tensors):
    """A mask file with other information or contents, in a header that fits them."""
    old, contents = split(maskfile.dumps(make()))
    known = {key: value for key, value in (old | (about or {})).items() if key not in drop}
    return join(known, {k: v for k, v in (contents | tensors).items() if v is not None}, packed)
