"""Mask files: round trips, the frozen format, and sizes."""

import base64
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.unit.masks import FFN, INFO, MASKS, NORM, assert_same, hard_mask, long_mask, split
from uniforget.mask import file as maskfile
from uniforget.mask import text as masktext
from uniforget.mask.info import GateMask, MaskInfo

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_files_and_texts_come_back_exactly_and_are_always_the_same(make, tmp_path):
    path = tmp_path / "mask.safetensors"
    maskfile.save(make(), path)
    loaded = maskfile.load(path)
    assert_same(loaded, make())
    assert loaded.digest() == make().digest()
    assert maskfile.dumps(loaded) == path.read_bytes() == maskfile.dumps(make())
    assert os.listdir(tmp_path) == ["mask.safetensors"]
    text = masktext.to_text(make())
    assert_same(masktext.from_text(text), make())
    assert text == "uniforget-mask:" + base64.b64encode(path.read_bytes()).decode()
    assert text.isprintable() and len(json.dumps(text)) == len(text) + 2


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_files_of_format_1_stay_readable_and_are_still_written(make):
    name = next(k for k, v in MASKS.items() if v is make)
    golden = (FIXTURES / f"mask_v1_{name}.safetensors").read_bytes()
    assert_same(maskfile.loads(golden), make())
    # Unpacked, because compressed bytes may differ between builds of zlib.
    assert split(golden) == split(maskfile.dumps(make()))


def test_golden_contents_by_hand():
    about, tensors = split((FIXTURES / "mask_v1_hard.safetensors").read_bytes())
    table = b"ffn 10 joint_blocks.0.x_block.mlp.fc2\nnorm 6 joint_blocks.0.x_block.adaLN_modulation.1\nattn 3 joint_blocks.0.x_block.attn.proj\n"
    # 1001 1101 | 10 111011 | 011 read upwards from the lowest bit.
    assert tensors == {"sites": table, "bits": bytes([0b10111001, 0b11011101, 0b110])}
    assert about == {
        **{"format": 1, "digest": hard_mask().digest(), "version": "0.1.0", "family": "sd3", "base": "b4se"},
        **{
            "base_name": "Mein Modell é",
            "method": "stepwise",
            "beta": 2.5,
            "preset": "custom",
            "targets": ["ffn", "norm", "attn"],
        },
        **{"prompts_hash": "0123abcd", "seed": 2**64 - 1, "steps": 400, "learn_seconds": 12.5},
        "extra": {"note": "made for tests"},
    }
    _, tensors = split((FIXTURES / "mask_v1_soft.safetensors").read_bytes())
    assert tensors["bytes"] == bytes([0, 255, 51, 254, 128, 255])


@pytest.mark.parametrize("share", (0.0, 0.02, 0.5, 1.0))
@pytest.mark.parametrize("units", ([1], [1, 1, 1], [7, 64, 1], [1000, 5, 600]), ids=str)
def test_any_shape_and_share_comes_back(share, units):
    rng = np.random.default_rng(len(units))
    gates = {f"s.{i}": torch.from_numpy((rng.random(n) >= share).astype(np.float32)) for i, n in enumerate(units)}
    mask = GateMask(gates, {name: ("ffn", "norm", "attn")[i % 3] for i, name in enumerate(gates)}, INFO)
    assert_same(maskfile.loads(maskfile.dumps(mask)), mask)


def test_soft_gates_are_exactly_multiples_of_1_255():
    every = GateMask({"a": torch.arange(256) / 255}, {"a": "ffn"}, INFO)
    assert torch.equal(maskfile.loads(maskfile.dumps(every)).gates["a"], torch.arange(256, dtype=torch.float32) / 255)
    rough = GateMask({"a": torch.tensor([0.3, 0.7001, 0.0, 1.0])}, {"a": "ffn"}, INFO)
    loaded = maskfile.loads(maskfile.dumps(rough))
    assert loaded.gates["a"].tolist() == [np.float32(v) / np.float32(255) for v in (76, 179, 0, 255)]
    assert loaded.digest() == rough.digest()
    assert_same(masktext.from_text(masktext.to_text(rough)), loaded)


def test_other_readers_open_it(tmp_path):
    path = tmp_path / "mask.safetensors"
    maskfile.save(long_mask(), path)
    with safe_open(path, framework="np") as file:
        assert set(file.keys()) == {"sites", "bits"}
        about = json.loads(file.metadata()["uniforget_mask"])
    assert about["family"] == "sd3" and about["digest"] == long_mask().digest()


def test_loaded_gates_are_ordinary_tensors_even_in_inference_mode():
    with torch.inference_mode():
        loaded = [maskfile.loads(maskfile.dumps(hard_mask())), masktext.from_text(masktext.to_text(hard_mask()))]
    assert not any(g.is_inference() for mask in loaded for g in mask.gates.values())


def test_gates_of_one_site_can_be_changed_without_the_others():
    loaded = maskfile.loads(maskfile.dumps(hard_mask()))
    loaded.gates[FFN].zero_()
    assert torch.equal(loaded.gates[NORM], hard_mask().gates[NORM])


def test_only_what_was_set_is_stored():
    plain = GateMask({"a": torch.ones(1)}, {"a": "ffn"}, MaskInfo("sd3", ""))
    about, _ = split(maskfile.dumps(plain))
    assert about.keys() == {"format", "digest", "family"}
    assert maskfile.loads(maskfile.dumps(plain)).info == plain.info


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
    return GateMask(gates, {name: kind for kind, _, name in sites}, info)


# The paper's shares of ffn and norm. Random gates are the worst case: their entropy alone is 8.4 KB for SD1.5 at "medium".
@pytest.mark.parametrize(
    ("model", "gates", "off", "file", "text"),
    [
        (sd15, 87360, {"ffn": 0.242, "norm": 0.056}, 8_600, 11_500),
        (sd15, 87360, {"ffn": 0.35, "norm": 0.123}, 10_500, 14_000),
        (sd15, 87360, {"ffn": 0.453, "norm": 0.191}, 11_600, 15_500),
        (flux, 1984512, {"ffn": 0.35, "norm": 0.123}, 205_000, 275_000),
        (flux, 1984512, {"ffn": 0.453, "norm": 0.191}, 230_000, 305_000),
    ],
    ids=["sd15-weak", "sd15-medium", "sd15-strong", "flux-medium", "flux-strong"],
)
def test_files_and_texts_are_small(model, gates, off, file, text):
    mask = random_mask(model(), off)
    # A real fingerprint has no pattern either.
    mask = replace(mask, info=replace(mask.info, base=base64.b64encode(random.Random(0).randbytes(129)).decode()))
    assert sum(g.numel() for g in mask.gates.values()) == gates
    data, written = maskfile.dumps(mask), masktext.to_text(mask)
    assert maskfile.loads(data).digest() == masktext.from_text(written).digest() == mask.digest()
    assert len(data) < file and len(written) < text < masktext.MAX_TEXT, (len(data), len(written))
