"""Small masks, and their files taken apart and put together again, for the tests of mask files."""

import json

import pytest
import torch

from uniforget.mask import file as maskfile
from uniforget.mask.info import MaskInfo, MaskSet

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
    return MaskSet(gates, {FFN: "ffn", NORM: "norm", ATTN: "attn"}, INFO)


def soft_mask():
    gates = {FFN: torch.tensor([0, 1, 51 / 255, 254 / 255]), NORM: torch.tensor([128 / 255, 1])}
    return MaskSet(gates, {FFN: "ffn", NORM: "norm"}, INFO)


def coded_mask(ffn=3000, norm=2000, every=7):
    """Enough gates for the entropy coder: every 7th neuron and every 29th channel is off."""
    gates = {FFN: (torch.arange(ffn) % every != 0).float(), NORM: (torch.arange(norm) % 29 != 0).float()}
    return MaskSet(gates, {FFN: "ffn", NORM: "norm"}, INFO)


MASKS = {"hard": hard_mask, "soft": soft_mask, "coded": coded_mask}


def split(data):
    """``(header, sites, gates)`` of a mask file's bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    ends = [header[k]["data_offsets"][1] for k in ("sites", "gates")]
    return header, body[: ends[0]], body[ends[0] : ends[1]]


def join(header, sites, gates, fit=True):
    """A mask file; with `fit`, the header is made to describe these contents."""
    if fit:
        header["sites"] |= {"shape": [len(sites)], "data_offsets": [0, len(sites)]}
        header["gates"] |= {"shape": [len(gates)], "data_offsets": [len(sites), len(sites) + len(gates)]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + sites + gates


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
    assert message.startswith("folder/some.safetensors: ")
    for word in words:
        assert word in message, message
    assert type(caught.value) is kind


def changed(metadata=None, drop=(), make=hard_mask, **tensors):
    """A mask file with other metadata or contents, in a header that fits them."""
    header, sites, gates = split(maskfile.dumps(make()))
    header["__metadata__"] |= metadata or {}
    for key in drop:
        del header["__metadata__"][key]
    return join(header, tensors.get("sites", sites), tensors.get("gates", gates))
