"""Mask files: round trips, the frozen format, and sizes."""

import math
import os
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.unit.masks import INFO, MASKS, assert_same, coded_mask, hard_mask, split
from uniforget.mask import file as maskfile
from uniforget.mask.info import MaskInfo, MaskSet

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

# --- round trips and the frozen format


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_round_trip_is_exact_and_deterministic(make, tmp_path):
    path = tmp_path / "mask.safetensors"
    maskfile.save(make(), path)
    loaded = maskfile.load(path)
    assert_same(loaded, make())
    assert loaded.digest() == make().digest()
    assert maskfile.dumps(loaded) == path.read_bytes() == maskfile.dumps(make())
    assert os.listdir(tmp_path) == ["mask.safetensors"]


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_files_of_format_1_stay_readable_and_are_still_written(make):
    name = next(k for k, v in MASKS.items() if v is make)
    golden = (FIXTURES / f"mask_v1_{name}.safetensors").read_bytes()
    assert_same(maskfile.loads(golden), make())
    (old, old_sites, old_gates), (new, new_sites, new_gates) = split(golden), split(maskfile.dumps(make()))
    assert new["__metadata__"] == old["__metadata__"]
    assert new_gates == old_gates
    # Compressed bytes may differ between builds of zlib.
    assert zlib.decompress(new_sites) == zlib.decompress(old_sites)


def test_golden_bytes_by_hand():
    _, sites, gates = split((FIXTURES / "mask_v1_hard.safetensors").read_bytes())
    assert zlib.decompress(sites) == (b"ffn.10.joint_blocks.0.x_block.mlp.fc2\nnorm.6....adaLN_modulation.1\nattn.3....attn.proj")
    # Coding 0, then 1001 1101 | 10 111011 | 011 read upwards from the lowest bit.
    assert gates == bytes([0, 0b10111001, 0b11011101, 0b110])
    _, _, gates = split((FIXTURES / "mask_v1_soft.safetensors").read_bytes())
    assert gates == bytes([3, 0, 255, 51, 254, 128, 255])


def decode_by_the_book(coded, units):
    """docs/mask_format.md in plain integers."""
    total = sum(units)
    assert coded[0] in (1, 2)
    number = lambda start, size: int.from_bytes(coded[start : start + size], "little")  # noqa: E731
    rates = [number(1 + 2 * i, 2) for i in range(len(units))]
    lanes = math.ceil(total / 32768)
    at = 1 + 2 * len(units)
    states = [number(at + 6 * lane, 6) for lane in range(lanes)]
    at += 6 * lanes
    per_gate = [rate for rate, count in zip(rates, units, strict=True) for _ in range(count)]
    out = []
    for i, r in enumerate(per_gate):
        x = states[i % lanes]
        slot = x % 65536
        out.append(slot >= r)
        x = (65536 - r) * (x // 65536) + slot - r if out[-1] else r * (x // 65536) + slot
        if x < 2**32:
            x = x * 65536 + number(at, 2)
            at += 2
        states[i % lanes] = x
    assert at == len(coded)
    assert states == [2**32] * lanes
    return out


def test_the_coder_does_what_the_document_says():
    generator = torch.Generator().manual_seed(1)
    wide = MaskSet(
        {"a": (torch.rand(9000, generator=generator) < 0.6).float(), "b": (torch.rand(30001, generator=generator) < 0.9).float()},
        {"a": "ffn", "b": "norm"},
        INFO,
    )
    for mask in (coded_mask(), wide):
        _, _, gates = split(maskfile.dumps(mask))
        assert (
            decode_by_the_book(gates, [g.numel() for g in mask.gates.values()])
            == torch.cat([*mask.gates.values()]).bool().tolist()
        )
        assert len(gates) < sum(g.numel() for g in mask.gates.values()) / 8


@pytest.mark.parametrize(
    ("units", "share"),
    [
        *(
            (units, share)
            for units in ([1], [1, 1, 1], [7, 64, 1], [1000, 5, 600])
            for share in (0.0, 1e-4, 0.02, 0.5, 0.97, 1.0)
        ),
        # one lane, two lanes of unequal length, and a last group that is not full
        *(([32768], 0.0), ([32769], 0.02), ([3, 98302], 0.02)),
    ],
)
def test_any_shape_and_share_comes_back(share, units):
    rng = np.random.default_rng(len(units))
    gates = {f"s.{i}": torch.from_numpy((rng.random(n) >= share).astype(np.float32)) for i, n in enumerate(units)}
    kinds = {name: ("ffn", "norm", "attn")[i % 3] for i, name in enumerate(gates)}
    mask = MaskSet(gates, kinds, INFO)
    assert_same(maskfile.loads(maskfile.dumps(mask)), mask)


def test_soft_gates_are_exactly_multiples_of_1_255():
    every = MaskSet({"a": torch.arange(256) / 255}, {"a": "ffn"}, INFO)
    assert torch.equal(maskfile.loads(maskfile.dumps(every)).gates["a"], torch.arange(256, dtype=torch.float32) / 255)
    rough = MaskSet({"a": torch.tensor([0.3, 0.7001, 0.0, 1.0])}, {"a": "ffn"}, INFO)
    loaded = maskfile.loads(maskfile.dumps(rough))
    assert loaded.gates["a"].tolist() == [np.float32(v) / np.float32(255) for v in (76, 179, 0, 255)]
    assert loaded.digest() == rough.digest()


def test_other_readers_open_it(tmp_path):
    path = tmp_path / "mask.safetensors"
    maskfile.save(coded_mask(), path)
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == {"sites", "gates"}
        metadata = file.metadata()
    assert metadata["family"] == "sd3"
    assert metadata["sparsity"] == "ffn=0.143,norm=0.035,all=0.100"
    assert metadata["extra.note"] == "made for tests"
    assert metadata["digest"] == coded_mask().digest()


def test_loaded_gates_are_ordinary_tensors_even_in_inference_mode():
    with torch.inference_mode():
        loaded = maskfile.loads(maskfile.dumps(hard_mask()))
    assert not any(g.is_inference() for g in loaded.gates.values())


def test_only_what_was_set_is_stored():
    plain = MaskSet({"a": torch.ones(1)}, {"a": "ffn"}, MaskInfo("sd3", ""))
    header, _, _ = split(maskfile.dumps(plain))
    assert header["__metadata__"].keys() >= {"format_version", "uniforget", "family", "sparsity", "digest"}
    assert "base_name" not in header["__metadata__"]
    assert maskfile.loads(maskfile.dumps(plain)).info == plain.info


# --- sizes


def sd15():
    blocks = [(f"input_blocks.{i}.1", c) for i, c in ((1, 320), (2, 320), (4, 640), (5, 640), (7, 1280), (8, 1280))]
    blocks += [
        ("middle_block.1", 1280),
        *((f"output_blocks.{i}.1", c) for i, c in zip(range(3, 12), [1280] * 3 + [640] * 3 + [320] * 3)),
    ]
    for name, channels in blocks:
        yield "ffn", 4 * channels, f"{name}.transformer_blocks.0.ff.net.2"
        for k in (1, 2, 3):
            yield "norm", channels, f"{name}.transformer_blocks.0.norm{k}"


def flux():
    for i in range(19):
        for stream in ("img", "txt"):
            yield "norm", 18432, f"double_blocks.{i}.{stream}_mod.lin"
            yield "ffn", 12288, f"double_blocks.{i}.{stream}_mlp.2"
    for i in range(38):
        yield "norm", 9216, f"single_blocks.{i}.modulation.lin"
        yield "ffn", 12288, f"single_blocks.{i}.linear2"


def random_mask(sites, off):
    generator = torch.Generator().manual_seed(0)
    sites = list(sites)
    gates = {name: (torch.rand(units, generator=generator) >= off[kind]).float() for kind, units, name in sites}
    info = MaskInfo(
        *("sd15", "A" * 172, "v1-5-pruned-emaonly", "trajectory", 2.0, "medium", ("ffn", "norm"), "0123456789abcdef"),
        **{"seed": 123456789, "steps": 2000, "learn_seconds": 1234.5, "version": "0.1.0"},
    )
    return MaskSet(gates, {name: kind for kind, _, name in sites}, info)


def entropy_bytes(mask):
    total = 0.0
    for kind in ("ffn", "norm"):
        p = mask.off_share(kind)
        total -= sum(g.numel() for n, g in mask.gates.items() if mask.kinds[n] == kind) * (
            p * math.log2(p) + (1 - p) * math.log2(1 - p)
        )
    return total / 8


@pytest.mark.parametrize(
    ("model", "gates", "off", "limit"),
    [
        (sd15, 87360, {"ffn": 0.35, "norm": 0.123}, 10_000),
        # The paper's strong preset. Random gates alone have 9,490 and 208,400 bytes of entropy here.
        (sd15, 87360, {"ffn": 0.453, "norm": 0.191}, 10_400),
        (flux, 1984512, {"ffn": 0.35, "norm": 0.123}, 200_000),
        (flux, 1984512, {"ffn": 0.453, "norm": 0.191}, 210_000),
    ],
    ids=["sd15-medium", "sd15-strong", "flux-medium", "flux-strong"],
)
def test_files_are_small_and_quick(model, gates, off, limit):
    mask = random_mask(model(), off)
    assert sum(g.numel() for g in mask.gates.values()) == gates
    began = time.monotonic()
    data = maskfile.dumps(mask)
    loaded = maskfile.loads(data)
    # Far above what it takes (1 s on a laptop): this catches a coder that went quadratic, not a busy machine.
    assert time.monotonic() - began < 30
    assert loaded.digest() == mask.digest()
    assert len(data) < limit
    assert len(data) < 1.006 * entropy_bytes(mask) + 900
