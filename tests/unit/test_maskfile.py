"""Mask files: round trips, the frozen format, sizes, and everything that must be refused."""

import errno
import io
import json
import math
import os
import pickle
import random
import stat
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from uniforget import errors, maskfile, sitetable
from uniforget.maskset import MaskInfo, MaskSet

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
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


# --- what is refused


def refused(data, kind, *words):
    with pytest.raises(kind) as caught:
        maskfile.loads(data, "folder/some.safetensors")
    message = str(caught.value)
    assert message.startswith("folder/some.safetensors: ")
    for word in words:
        assert word in message, message
    assert type(caught.value) is kind


def changed(metadata=None, drop=(), make=hard_mask, **tensors):
    header, sites, gates = split(maskfile.dumps(make()))
    header["__metadata__"] |= metadata or {}
    for key in drop:
        del header["__metadata__"][key]
    return join(header, tensors.get("sites", sites), tensors.get("gates", gates))


def test_the_helpers_change_nothing_by_themselves():
    assert_same(maskfile.loads(changed()), hard_mask())


def test_newer_version():
    refused(changed({"format_version": "2"}), errors.NewerFormatError, "format version 2", "up to 1", "Update UniForget")


@pytest.mark.parametrize("version", ["", "0", "1.0", "-2", "٢", "x"])
def test_odd_version(version):
    refused(changed({"format_version": version}), errors.BadContentsError, "format_version '1'")


def test_pickles_under_any_name(tmp_path):
    for protocol in (2, 3, 4, 5):
        refused(pickle.dumps({"a": [1]}, protocol), errors.PickleRefusedError, "refused: pickle", "a pickle")
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    refused(buffer.getvalue(), errors.PickleRefusedError, "refused: pickle", "PyTorch checkpoint")
    legacy = io.BytesIO()
    torch.save({"a": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
    refused(legacy.getvalue(), errors.PickleRefusedError, "refused: pickle")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    refused((tmp_path / "empty.zip").read_bytes(), errors.PickleRefusedError, "zip")


def test_a_pickle_is_never_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "mask.safetensors"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(errors.PickleRefusedError, match="mask.safetensors: refused: pickle"):
        maskfile.load(path)
    assert not (tmp_path / "ran").exists()


def test_other_files():
    refused(b"GGUF\x03\0\0\0" + b"\0" * 99, errors.NotAMaskError, "a GGUF model")
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", errors.NotAMaskError, "git lfs pull")
    refused(b"<!DOCTYPE html><html>", errors.NotAMaskError, "<!DOCTYP", "Choose a mask")
    refused((10**9).to_bytes(8, "little") + b'{"a":', errors.NotAMaskError, "larger header")


def test_a_model_is_no_mask():
    model = safetensors_bytes({"model.diffusion_model.out.0.weight": np.zeros((4, 4), np.float32)})
    refused(model, errors.NotAMaskError, "model.diffusion_model.out.0.weight", "no UniForget mask", "Models and LoRAs")
    lora = safetensors_bytes({"lora.up": np.zeros(2, np.float32)}, {"ss_tag": "x"})
    refused(lora, errors.NotAMaskError, "lora.up")


def test_truncated_anywhere():
    for make in MASKS.values():
        data = maskfile.dumps(make())
        for length in range(len(data)):
            with pytest.raises(errors.TruncatedError):
                maskfile.loads(data[:length])
    refused(b"", errors.TruncatedError, "the file is empty", "again")


def test_tail():
    refused(maskfile.dumps(hard_mask()) + b"x", errors.BadContentsError, "1 bytes follow")


@pytest.mark.parametrize("key", ["format_version", "family", "sparsity", "digest"])
def test_missing_metadata(key):
    refused(changed(drop=[key]), errors.BadContentsError, key)


@pytest.mark.parametrize(
    ("metadata", "word"),
    [
        ({"workflow": "{}"}, "'workflow'"),
        ({"seed": "1e3"}, "seed"),
        ({"seed": "99999999999999999999"}, "seed"),
        ({"steps": "-1"}, "steps"),
        ({"beta": "nan"}, "beta"),
        ({"beta": "9e999"}, "beta"),
        ({"learn_seconds": "1,5"}, "learn_seconds"),
        ({"targets": "ffn,heads"}, "targets"),
        ({"family": ""}, "family"),
        ({"digest": "0123456789"}, "digest says '0123456789'"),
        ({"sparsity": "ffn=0.900"}, "sparsity says"),
        ({"base": "\ud800"}, "base"),
        ({"base": 3}, "must be texts"),
    ],
)
def test_wrong_metadata(metadata, word):
    refused(changed(metadata), errors.BadContentsError, word, "damaged", "Download or copy the mask again")


def with_header(change):
    header, sites, gates = split(maskfile.dumps(hard_mask()))
    change(header)
    return join(header, sites, gates, fit=False)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda h: h.pop("gates"), "lacks the tensor 'gates'"),
        (lambda h: h.pop("sites"), "lacks the tensor 'sites'"),
        (lambda h: h.update(more=h["gates"]), "unknown tensor 'more'"),
        (lambda h: h.update(gates=7), "tensor 'gates'"),
        (lambda h: h["gates"].update(dtype="F32"), "expected dtype U8; found 'F32'"),
        (lambda h: h["gates"].update(dtype=None), "expected dtype U8; found None"),
        (lambda h: h["gates"].update(shape=[2, 2]), "shape [2, 2]"),
        (lambda h: h["gates"].update(shape=[True]), "shape [True]"),
        (lambda h: h["gates"].update(shape=[-4]), "shape [-4]"),
        (lambda h: h["gates"].update(data_offsets=[0, 4]), "data_offsets [0, 4]"),
        (lambda h: h["gates"].pop("shape"), "not described"),
        (lambda h: h["sites"].update(extra=1), "not described"),
    ],
)
def test_wrong_tensors(change, word):
    refused(with_header(change), errors.BadContentsError, word)


@pytest.mark.parametrize(
    "text",
    [b"{" * 100_000, b'{"a":' * 50_000, b"{nope}", b'{"a":1,"a":2}', b'{"\xff":1}', b'{"a":' + b"9" * 5000 + b"}"],
    ids=["nested", "deep", "words", "twice", "utf8", "digits"],
)
def test_wrong_header(text):
    with pytest.raises((errors.BadContentsError, errors.NotAMaskError)):
        maskfile.loads(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    ("gates", "word"),
    [
        (b"", "missing"),
        (b"\0\xff", "take 3 bytes, not 1"),
        (b"\0\xff\xff\xff", "bits after the last"),
        (b"\4", "coding is 4"),
        (b"\1\1\0\1", "end too early"),
        (b"\1" + b"\1\0" * 3, "end too early"),
        (b"\1" + b"\0\0" * 3 + b"\0" * 6, "rate is 0"),
        (b"\1" + b"\1\0" * 3 + b"\0" * 6, "below 2**32"),
        (b"\3" + b"\xff" * 18, "19 gates and it holds 18"),
        (b"\3" + b"\xff" * 20, "19 gates and it holds 20"),
    ],
)
def test_wrong_gates(gates, word):
    refused(changed(gates=gates), errors.BadContentsError, word)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        (b"", "line 1 of its site table is malformed"),
        (b"ffn.10", "malformed"),
        (b"ffn..a", "malformed"),
        (b"ffn.10.a\n..b.", "malformed"),
        (b"ffn.0.a", "no count"),
        (b"ffn.-1.a", "no count"),
        (b"ffn.1e3.a", "no count"),
        (b"ffn.999999999.a", "more than 16777216 gates"),
        (b"ffn.10.a\nffn.9.a", "line 2 of its site table names a site again"),
        (b"head.19.a", "found 'head'"),
        (b"ffn.19.a b", "dotted path"),
        (b"ffn.19.\xe9", "dotted path"),
        (b"\n".join(b"ffn.1.a%d" % i for i in range(8193)), "8193 sites"),
    ],
)
def test_wrong_site_tables(table, word):
    refused(changed(sites=zlib.compress(table), gates=b"\3" + b"\xff" * 19), errors.BadContentsError, word)


def test_bombs_are_not_unpacked():
    bomb = zlib.compress(b"\0" * (50 << 20), 9)
    assert len(bomb) < 100_000
    refused(changed(sites=bomb), errors.BadContentsError, f"larger than {sitetable.MAX_TABLE}")
    refused(changed(sites=b"junk"), errors.BadContentsError, "cannot be unpacked")
    good = zlib.compress(b"ffn.19.a")
    refused(changed(sites=good + b"more"), errors.BadContentsError, "something after it")
    refused(changed(sites=good[:-2]), errors.BadContentsError, "cut off")


def test_long_junk_does_not_flood_the_message():
    refused(changed({"k" * 50_000: "v"}), errors.BadContentsError, "kkk")
    with pytest.raises(errors.BadContentsError) as caught:
        maskfile.loads(changed({"k" * 50_000: "v"}))
    assert len(str(caught.value)) < 300


# --- files


def test_missing_folder_and_oversized(tmp_path):
    with pytest.raises(errors.MaskFileMissingError, match=r"nothing\.safetensors: there is no such mask file"):
        maskfile.load(tmp_path / "nothing.safetensors")
    with pytest.raises(errors.NotAMaskError, match="found a folder"):
        maskfile.load(tmp_path)
    with pytest.raises(errors.MaskFileError, match="cannot be read"):
        maskfile.load("a\0b.safetensors")
    big = tmp_path / "big.safetensors"
    with open(big, "wb") as file:
        file.truncate(maskfile.MAX_BYTES + 1)
    with pytest.raises(errors.TooLargeError, match=r"big\.safetensors: expected at most 32 MB.*probably a model"):
        maskfile.load(big)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(errors.NotAMaskError, match="no regular file"):
        maskfile.load(tmp_path / "pipe.safetensors")


def test_too_many_sites_gates_or_words_are_not_written(tmp_path):
    path = tmp_path / "mask.safetensors"
    many = {f"s.{i}": torch.ones(1) for i in range(sitetable.MAX_SITES + 1)}
    wordy = MaskSet({"a": torch.ones(1)}, {"a": "ffn"}, MaskInfo("sd3", "", extra={"note": "x" * maskfile.MAX_HEADER}))
    large = MaskSet({"a": torch.ones(sitetable.MAX_GATES + 1)}, {"a": "ffn"}, INFO)
    for mask, word in (
        (MaskSet(many, dict.fromkeys(many, "ffn"), INFO), "8192 sites"),
        (wordy, "extra texts"),
        (large, "16777216 gates"),
    ):
        with pytest.raises(errors.TooLargeError, match=word):
            maskfile.save(mask, path)
    assert not os.listdir(tmp_path)


def test_saving_elsewhere(tmp_path):
    with pytest.raises(errors.MaskWriteError, match="ends in .safetensors"):
        maskfile.save(hard_mask(), tmp_path / "mask.bin")
    with pytest.raises(errors.MaskWriteError, match="Check that the folder exists"):
        maskfile.save(hard_mask(), tmp_path / "nowhere" / "mask.safetensors")
    (tmp_path / "taken.safetensors").mkdir()
    with pytest.raises(errors.MaskWriteError, match=r"taken\.safetensors: the mask was not saved"):
        maskfile.save(hard_mask(), tmp_path / "taken.safetensors")
    assert os.listdir(tmp_path) == ["taken.safetensors"]


@pytest.mark.parametrize(
    ("step", "number", "advice"),
    [
        ("fsync", errno.ENOSPC, "The disk is full"),
        ("fsync", errno.EIO, "Check that the folder exists"),
        ("replace", errno.EROFS, "read-only"),
        ("replace", errno.EACCES, "read-only"),
    ],
)
def test_a_failure_while_saving_leaves_the_old_file_and_nothing_else(step, number, advice, tmp_path, monkeypatch):
    path = tmp_path / "mask.safetensors"
    maskfile.save(hard_mask(), path)
    before = path.read_bytes()

    def fail(*args):
        # The new contents stand under another name by now, or this would test nothing.
        assert len(os.listdir(tmp_path)) == 2
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(errors.MaskWriteError, match=advice) as caught:
        maskfile.save(soft_mask(), path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["mask.safetensors"]


def test_stopping_while_saving_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        maskfile.save(hard_mask(), tmp_path / "mask.safetensors")
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(errors.MaskWriteError, match="read-only"):
            maskfile.save(hard_mask(), tmp_path / "mask.safetensors")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="no permission bits on this system")
def test_saved_files_have_the_permissions_of_any_new_file(tmp_path):
    maskfile.save(hard_mask(), tmp_path / "mask.safetensors")
    (tmp_path / "other").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "mask.safetensors").stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


# --- fuzz


def mutations(seeds, count):
    """`count` damaged files: flipped, set, removed, doubled and swapped bytes, and numbers and words swapped in the header."""
    rng = random.Random(0)
    words = [
        b"0",
        b"-1",
        b"99999999999",
        b"1e9",
        b"null",
        b"[]",
        b"{}",
        b'"ffn"',
        b"true",
        b"NaN",
        b'"2"',
        b'"U8"',
        b'"F32"',
        b'"sites"',
    ]
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
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
                data[at:at] = rng.choice(words)
            elif kind == 5:
                other = rng.choice(seeds)
                data[at : at + size] = other[at : at + size]
            else:
                text, digits = bytes(data), b"0123456789"
                places = [i for i in range(8, min(len(text), 700)) if text[i] in digits]
                if places:
                    data[rng.choice(places)] = rng.choice(digits)
        yield bytes(data)


def test_every_damaged_file_is_a_valid_mask_or_one_of_our_errors():
    seeds = [maskfile.dumps(mask) for mask in (hard_mask(), soft_mask(), coded_mask(100, 60, every=25))]
    assert split(seeds[2])[2][0] == 1  # entropy coded
    # With a valid header around damaged contents, so that the damage reaches the inner decoders too.
    inner = []
    for data in seeds:
        header, sites, gates = split(data)
        for bad in mutations([gates], 600):
            inner.append(join(header, sites, bad))
        for bad in mutations([zlib.decompress(sites)], 600):
            inner.append(join(header, zlib.compress(bad), gates))
    outcomes = {}
    for data in [*mutations(seeds, 8500), *inner]:
        try:
            mask = maskfile.loads(data)
        except errors.MaskFileError as error:
            outcome = type(error)
        else:
            assert mask.digest() == maskfile.loads(maskfile.dumps(mask)).digest()
            outcome = MaskSet
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert sum(outcomes.values()) >= 10_000
    expected = {errors.BadContentsError, errors.TruncatedError, errors.NotAMaskError, errors.NewerFormatError, MaskSet}
    assert expected <= outcomes.keys(), outcomes
