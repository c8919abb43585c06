"""Mask files that must be refused, each with its own error."""

import io
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save as safetensors_bytes

from tests.unit.masks import FFN, INFO, MASKS, assert_same, changed, coded_mask, hard_mask, join, refused, split
from uniforget import errors
from uniforget.mask import file as maskfile
from uniforget.mask import sitetable
from uniforget.mask.info import MaskSet


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
        (lambda h: h["gates"].update(shape=[3]), "shape [3]"),
        (lambda h: h["gates"].update(shape=[True]), "shape [True]"),
        (lambda h: h["gates"].update(shape=[-4]), "shape [-4]"),
        (lambda h: h["gates"].update(data_offsets=[0, 4]), "data_offsets [0, 4]"),
        (lambda h: h["gates"].pop("shape"), "not described"),
        (lambda h: h["sites"].update(extra=1), "not described"),
    ],
)
def test_wrong_tensors(change, word):
    refused(with_header(change), errors.BadContentsError, word)


@pytest.mark.parametrize("value", [float("nan"), -1.0, 7.0])
def test_float_gates_are_refused_whatever_they_are(value):
    # What a homemade tool might write: the right metadata around plain numbers.
    header, sites, _ = split(maskfile.dumps(hard_mask()))
    gates = np.array([0, value, 1], np.float32).tobytes()
    header["gates"] = {"dtype": "F32", "shape": [3], "data_offsets": [len(sites), len(sites) + len(gates)]}
    refused(join(header, sites, gates, fit=False), errors.BadContentsError, "'gates': expected dtype U8; found 'F32'")
    plain = safetensors_bytes({FFN: np.array([value], np.float32)}, header["__metadata__"])
    refused(plain, errors.BadContentsError, "it lacks the tensor 'sites'")


def test_every_gate_that_a_soft_file_can_hold_is_a_gate():
    for byte in range(256):
        sites = zlib.compress(b"ffn.2.a")
        gates = bytes([3, byte, 255])
        mask = MaskSet({"a": torch.tensor([byte / 255, 1.0])}, {"a": "ffn"}, INFO)
        shares = f"ffn={mask.off_share():.3f},all={mask.off_share():.3f}"
        loaded = maskfile.loads(changed({"digest": mask.digest(), "sparsity": shares}, sites=sites, gates=gates))
        assert torch.equal(loaded.gates["a"], mask.gates["a"])


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
    ("change", "word"),
    [
        (lambda coded: coded[:-1] + bytes([coded[-1] ^ 2]), "the gates do not end where they must"),
        (lambda coded: coded[:-2], "the gates end too early"),
        (lambda coded: coded[:-1], "the gates end too early"),
        (lambda coded: coded + b"\0\0", "2 bytes follow the last gate"),
    ],
)
def test_wrong_coded_gates(change, word):
    coded = split(maskfile.dumps(coded_mask()))[2]
    assert coded[0] == 1
    refused(changed(make=coded_mask, gates=change(coded)), errors.BadContentsError, word)


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


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"metadata": {"k" * 50_000: "v"}}, "kkk"),
        ({"metadata": {"targets": "ffn," + "x" * 50_000}}, "targets"),
        ({"metadata": {"seed": "9" * 50_000}}, "seed"),
        ({"metadata": {"digest": "x" * 50_000}}, "digest"),
        ({"sites": zlib.compress(b"ffn.19." + b"y" * 50_000)}, "dotted path"),
        ({"sites": zlib.compress(b"z" * 50_000 + b".19.a")}, "kind"),
    ],
)
def test_long_junk_does_not_flood_the_message(change, word):
    refused(changed(**change), errors.BadContentsError, word, "this mask file is damaged", "Download or copy the mask again")
    with pytest.raises(errors.BadContentsError, match="damaged: ") as caught:
        maskfile.loads(changed(**change))
    assert len(str(caught.value)) < 450, str(caught.value)
