"""Mask files and texts that must be refused, each with its own error, before anything large is made of them."""

import base64
import io
import pickle
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save as safetensors_bytes

from tests.unit.masks import INFO, MASKS, assert_same, changed, hard_mask, join, refused, split
from uniforget import errors
from uniforget.mask import file as maskfile
from uniforget.mask import text as masktext
from uniforget.mask.info import GateMask
from uniforget.mask.subspace import Basis, SubspaceMask


def test_the_helpers_change_nothing_by_themselves():
    assert_same(maskfile.loads(changed()), hard_mask())


def test_newer_version():
    refused(changed({"format": 2}), errors.NewerFormatError, "format version 2", "up to 1", "Update UniForget")


@pytest.mark.parametrize("version", ["", "1", "2", 0, 1.5, -2, None, [], 10**400])
def test_odd_version(version):
    kind = errors.NewerFormatError if version == 10**400 else errors.BadContentsError
    refused(changed({"format": version}), kind, "format version")


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
    refused(maskfile.dumps(hard_mask()) + b"x", errors.TruncatedError, "something follows its end")


@pytest.mark.parametrize(
    ("about", "word"),
    [
        ({"workflow": "{}"}, "'workflow'"),
        *(({"seed": value}, "seed") for value in (-1, 1.5, "1", 2**64, True)),
        *(({"beta": value}, "beta") for value in (float("nan"), float("inf"), -1, 10**400, "1", [])),
        ({"learn_seconds": "1,5"}, "learn_seconds"),
        *(({"targets": value}, "targets") for value in ("ffn", ["ffn", "heads"], [["ffn"]], {"ffn": 1})),
        *(({"family": value}, "family") for value in ("", 3, None)),
        *(({"base": value}, "base") for value in ("\ud800", 3, {})),
        *(({"extra": value}, "extra") for value in (3, {"a": 1}, ["a"])),
        ({"digest": "0123456789"}, "digest says '0123456789'"),
        ({"digest": [1]}, "digest says"),
        ({"x" * 5000: 1}, "xxx"),
        ({"targets": ["x" * 50_000]}, "targets"),
        ({"digest": "x" * 50_000}, "digest"),
    ],
)
def test_wrong_information(about, word):
    refused(changed(about), errors.BadContentsError, word, "damaged", "Download or copy the mask again")


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "[" * 50_000, '{"format":' + "9" * 5000 + "}"])
def test_information_that_is_none(text):
    refused(join(text, split(maskfile.dumps(hard_mask()))[1]), errors.BadContentsError, "damaged")


@pytest.mark.parametrize("key", ["format", "family", "digest"])
def test_missing_information(key):
    refused(changed(drop=[key]), errors.BadContentsError, key)


@pytest.mark.parametrize("text", [b"{" * 100_000, b'{"a":' * 40_000, b"{nope}", b'{"\xff":1}', b'{"a":' + b"9" * 5000 + b"}"])
def test_wrong_header(text):
    refused(len(text).to_bytes(8, "little") + text, errors.BadContentsError, "header cannot be read")


def test_metadata_that_is_no_text_is_said():
    content = maskfile.dumps(hard_mask())
    length = int.from_bytes(content[:8], "little")
    head = content[8 : 8 + length].replace(b'"__metadata__":{', b'"__metadata__":{"step":7,').rstrip()
    refused(len(head).to_bytes(8, "little") + head + content[8 + length :], errors.BadContentsError, "metadata is no text")


@pytest.mark.parametrize("tensors", [{"bits": None}, {"sites": None}, {"bytes": b"1"}, {"more": b""}])
def test_wrong_tensors(tensors):
    refused(changed(**tensors), errors.BadContentsError, "it holds the tensors")


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({"bits": b"\xff\xff"}, "19 gates, which take 3 bytes; found 2"),
        ({"bits": b"\xff" * 4}, "more than 3 bytes"),
        ({"bits": None, "bytes": b"\xff" * 18}, "19 gates, which take 19 bytes; found 18"),
        ({"bits": None, "bytes": b"\xff" * 20}, "more than 19 bytes"),
        *(
            ({"sites": table}, "a site is described by")
            for table in (b"ffn 10", b"ffn  a", b"ffn 0 a", b"ffn -1 a", b"ffn 1e3 a", b"head 19 a", b"ffn 10 a\nffn 9 a")
        ),
        ({"sites": b""}, "gates: it would unpack to more than 0 bytes"),
        ({"sites": b"ffn 999999999 a"}, "more than 16777216 gates"),
        ({"sites": b"ffn 19 a..b"}, "dotted path"),
        ({"sites": b"ffn 19 \xe9"}, "dotted path"),
        ({"sites": b"ffn 19 " + b"y" * 50_000}, "dotted path"),
        ({"sites": b"z" * 50_000 + b" 19 a"}, "a site is described by"),
        ({"sites": b"".join(b"ffn 1 a%d\n" % i for i in range(8193))}, "more than 8192 sites"),
    ],
)
def test_wrong_contents(tensors, word):
    refused(changed(**tensors), errors.BadContentsError, word)


def test_streams_that_do_not_end_where_they_must():
    good = zlib.compress(split(maskfile.dumps(hard_mask()))[1]["sites"])
    for packed in (good + b"more", good[:-2], b""):
        refused(changed(packed={"sites": packed}), errors.BadContentsError, "sites: its packed part")
    refused(changed(packed={"sites": b"junk"}), errors.BadContentsError, "cannot be unpacked")


def text_of(data):
    return masktext.MARK + base64.b64encode(data).decode()


def no_mask(text, kind, *words):
    with pytest.raises(kind) as caught:
        masktext.from_text(text)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith("embedded mask: ") and len(message) < 500 and message.isprintable()
    for word in words:
        assert word in message, message


def test_bombs_do_not_go_off():
    zeros = zlib.compress(b"\0" * (256 << 20), 9)
    # As many sites as may be, with the longest names and each the same but for its number: short when packed.
    many = b"".join(b"ffn 2047 %s%d\n" % (b"a" * 190, i) for i in range(8192))
    bombs = [
        changed(packed={"sites": zeros}),
        changed(packed={"bits": zeros}),
        changed(sites=many),
        changed(sites=b"ffn 4194305 a"),
    ]
    assert all(len(bomb) < 300_000 for bomb in bombs)
    tracemalloc.start()
    try:
        for bomb in bombs:
            no_mask(text_of(bomb), errors.BadContentsError)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 32 << 20


@pytest.mark.parametrize("between", ["\n", "\r\n", "   ", "\n    "])
def test_line_breaks_and_spaces_on_the_way_do_no_harm(between):
    text = masktext.to_text(hard_mask())
    wrapped = between.join(text[i : i + 64] for i in range(0, len(text), 64))
    assert_same(masktext.from_text(f"\n {wrapped}\n"), hard_mask())


def test_texts_that_are_no_mask():
    no_mask("", errors.MaskFileMissingError, "this node is empty", "Paste")
    no_mask(" \n ", errors.MaskFileMissingError)
    no_mask("a cat on a mat", errors.NotAMaskError, "'acatonamat'")
    no_mask("uniforget-m", errors.NotAMaskError, "only its beginning")
    no_mask("\u202e" * 50, errors.NotAMaskError, "u202e")
    no_mask(None, errors.NotAMaskError, "NoneType")
    no_mask("x" * (masktext.MAX_TEXT + 1), errors.TooLargeError, f"{masktext.MAX_TEXT} characters")


def test_damaged_texts_are_told_apart():
    text = masktext.to_text(hard_mask())
    for end in (-1, -4, -50, 20, 16):
        no_mask(text[:end], errors.TruncatedError)
    no_mask(text + "A", errors.BadContentsError, "it holds the character '='")
    no_mask(text.rstrip("=") + "A" * 5, errors.TruncatedError)
    for odd in ("{", "!", "\ud800", "\u202e", "é"):
        no_mask(text[:-9] + odd + text[-8:], errors.BadContentsError, "it holds the character")
    no_mask(text_of(changed({"format": 2})), errors.NewerFormatError, "Update")
    no_mask(text_of(pickle.dumps([1])), errors.PickleRefusedError, "pickle")
    no_mask(text_of(changed({"digest": "0" * 10})), errors.BadContentsError, "digest")


def test_what_cannot_be_embedded_is_said():
    big = GateMask({"a": torch.rand(masktext.MAX_TEXT, generator=torch.Generator().manual_seed(0))}, {"a": "ffn"}, INFO)
    with pytest.raises(
        errors.TooLargeError, match=r"this soft mask has 1048576 gates and would take .*Save it with Save Memorization Mask"
    ):
        masktext.to_text(big)
    wide = GateMask({"a": torch.ones(masktext.MAX_GATES + 1)}, {"a": "ffn"}, INFO)
    with pytest.raises(errors.TooLargeError, match="this mask has 4194305 gates"):
        masktext.to_text(wide)
    basis = Basis(torch.eye(4), torch.tensor([0.7, 0.2, 0.1, 0.0]))
    subspace = SubspaceMask({"a": basis}, {"a": "a"}, {"a": "ffn"}, 0.05, INFO)
    with pytest.raises(errors.SettingError, match="Embed mask in workflow needs a mask of gates; found a subspace"):
        masktext.to_text(subspace)
