"""Masks as text: round trips, sizes, the frozen format, and what is said about texts that are none."""

import base64
import json
import random
import tracemalloc
import zlib
from dataclasses import replace

import pytest
import torch

from tests.unit.masks import INFO, MASKS, assert_same, changed, hard_mask
from tests.unit.test_maskfile import flux, random_mask, sd15
from uniforget import errors
from uniforget.mask import file as maskfile
from uniforget.mask import sitetable
from uniforget.mask import text as masktext
from uniforget.mask.info import MaskSet
from uniforget.mask.subspace import Basis, Subspace

PRESETS = {"weak": (0.242, 0.056), "medium": (0.35, 0.123), "strong": (0.453, 0.191)}  # the paper's shares of ffn and norm


def wrap(packed, version=1, length=None, check=None):
    """A text around packed bytes, with the length and checksum that belong to it unless others are given."""
    body = base64.b85encode(packed).decode().translate(masktext._TO_OURS)
    length = len(body) if length is None else length
    return f"uniforget-mask:{version}:{length}:{check or masktext._check(body)}:{body}"


def refused(text, kind, *words):
    with pytest.raises(kind) as caught:
        masktext.from_text(text)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith("embedded mask: ") and len(message) < 500
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_round_trip_is_exact_and_deterministic(make):
    text = masktext.to_text(make())
    assert_same(masktext.from_text(text), make())
    assert masktext.from_text(text).digest() == make().digest()
    assert masktext.to_text(make()) == text and masktext.to_text(masktext.from_text(text)) == text


def test_rough_soft_gates_are_rounded_as_in_files():
    rough = MaskSet({"a": torch.tensor([0.3, 0.7001, 0.0, 1.0])}, {"a": "ffn"}, INFO)
    assert_same(masktext.from_text(masktext.to_text(rough)), maskfile.loads(maskfile.dumps(rough)))


@pytest.mark.parametrize("preset", PRESETS)
def test_sd15_takes_about_ten_kilobytes(preset):
    mask = random_mask(sd15(), dict(zip(("ffn", "norm"), PRESETS[preset])))
    # A real fingerprint has no pattern either.
    base = base64.b64encode(random.Random(0).randbytes(129)).decode()
    mask = replace(mask, info=replace(mask.info, base=base))
    text = masktext.to_text(mask)
    assert_same(masktext.from_text(text), mask)
    # Random gates are the worst case: base85 of their entropy alone takes 8,400, 10,400 and 11,900 characters.
    assert len(text) < {"weak": 9_100, "medium": 11_500, "strong": 12_900}[preset]
    # Nothing of it is escaped on its way into a workflow.
    assert len(json.dumps(text)) == len(text) + 2


def test_flux_fits_as_well():
    mask = random_mask(flux(), {"ffn": 0.453, "norm": 0.191})
    text = masktext.to_text(mask)
    assert masktext.from_text(text).digest() == mask.digest()
    assert len(text) < 265_000 < masktext.MAX_TEXT


def test_the_text_holds_no_character_that_means_something_elsewhere():
    assert len(masktext.ALPHABET) == len(set(masktext.ALPHABET)) == 85
    for make in MASKS.values():
        text = masktext.to_text(make())
        assert text.isascii() and text.isprintable() and not set(text) & set(' "\\`<&%{}|\n')


# Written once, never again: texts of version 1 stay readable.
GOLDEN = (
    "uniforget-mask:1:565:8bb0fb17ae14:KnVVG3r(Mn*P#,S]ZK_+h:e,'_LnmbsF0Oe$HD)c@A'jaW+^I0n6nnkY/m+ZAwQc;LRnE@WdtUi)"
    "qr=2)4shd.sGT-Hs*qJF)@>/wwn,+W).5TN.mgVF]E!N-l?1Lna@-65?pH8bu]/uoLoWe1/9Rrtr.ul_dEiEbMzD5Wm66^8[EzK)[E$F=5rgEP"
    "zdDH$xbv9J[Kp[QoZS5_bp~Vatp$4j!#1=p]61;mWWZ#jyB-Bdy3xj0Re>':I,RCE@Q4tdc];q)A=8Q(!IeHvFJ~vks~]A1JYyeUEPVZ,b12=;"
    "Sw]8T,T0v53Bd:LAHp]U:t31+5ye6d;~jYfP/N1D-'l~KNa2d)SFc'f,Hu#G;x=f#)PBagz320]-;yy_-Fsjj]cgLsTSJ$r/!YQ@Bg0v0vQ[!p"
    "bbhthdjO3WtwtFwFcD6]xntL:IH6H'RJ)MMzf1bpr~NN)Lud45fCc4'aM)CKcPMpJIM?*uLpNa>BhLJQvBXoy:^MNws6ZEn;WvaMecrSxL1j#v"
    "D/O)J3M06cs:26t:s,lIbq=ld5g/Kua?^tc@]6ktIb8+3j7W;"
)


def test_a_text_of_version_1_stays_readable():
    assert_same(masktext.from_text(GOLDEN), hard_mask())


def test_the_format_is_what_the_document_says():
    text = masktext.to_text(hard_mask())
    mark, version, length, check, body = text.split(":", 4)
    assert (mark, version, int(length)) == ("uniforget-mask", "1", len(body))
    import hashlib

    assert check == hashlib.sha256(body.encode()).hexdigest()[:12]
    alphabet = "!#$'()*+,-./0123456789:;=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz~"
    assert alphabet == masktext.ALPHABET
    packed = bytearray()
    for at in range(0, len(body), 5):
        group = body[at : at + 5]
        number = 0
        for character in group.ljust(5, "~"):
            number = number * 85 + alphabet.index(character)
        packed += number.to_bytes(4, "big")[: len(group) - 1]
    assert zlib.decompress(packed) == maskfile.dumps(hard_mask())


@pytest.mark.parametrize("between", ["\n", "\r\n", "   ", "\n    "])
def test_line_breaks_and_spaces_on_the_way_do_no_harm(between):
    text = masktext.to_text(hard_mask())
    wrapped = between.join(text[i : i + 64] for i in range(0, len(text), 64))
    assert_same(masktext.from_text(f"\n {wrapped}\n"), hard_mask())


def test_texts_that_are_no_mask():
    refused("", errors.MaskFileMissingError, "this node is empty", "Paste")
    refused(" \n ", errors.MaskFileMissingError)
    refused("a cat on a mat", errors.NotAMaskError, "'acatonamat'")
    refused("uniforget-m", errors.NotAMaskError, "only its beginning")
    refused("\u202e" * 50, errors.NotAMaskError, "u202e")
    refused(None, errors.NotAMaskError, "NoneType")
    refused("x" * (masktext.MAX_TEXT + 1), errors.TooLargeError, f"{masktext.MAX_TEXT} characters")


def test_damaged_texts_are_told_apart():
    text = masktext.to_text(hard_mask())
    refused(text[:-1], errors.TruncatedError, "cut off", f"{len(text.split(':', 4)[4])} characters were embedded")
    refused(text[:20], errors.TruncatedError, "cut off after 20 characters")
    refused(text + "!", errors.BadContentsError, "1 characters follow its end")
    other = "B" if text[-9] == "A" else "A"
    refused(text[:-9] + other + text[-8:], errors.BadContentsError, "checksum")
    refused(text.replace(":1:", ":2:", 1), errors.NewerFormatError, "version 2", "Update")
    refused(text.replace(":1:", ":0:", 1), errors.BadContentsError, "version is 0")
    refused(text.replace(":1:", ":x:", 1), errors.BadContentsError, "goes on with 'x:")
    body = "{" * 40
    refused(f"uniforget-mask:1:40:{masktext._check(body)}:{body}", errors.BadContentsError, "'{'")
    body = "~" * 40
    refused(f"uniforget-mask:1:40:{masktext._check(body)}:{body}", errors.BadContentsError, "cannot be unpacked")
    half = "\ud800" * 40
    refused(f"uniforget-mask:1:40:{masktext._check(half)}:{half}", errors.BadContentsError, "ud800")


def test_forged_texts_get_no_further_than_forged_files():
    data = maskfile.dumps(hard_mask())
    refused(wrap(b"no zlib"), errors.BadContentsError, "cannot be unpacked")
    refused(wrap(zlib.compress(data)[:-3]), errors.BadContentsError, "does not end where it must")
    refused(wrap(zlib.compress(data) + b"more"), errors.BadContentsError, "does not end where it must")
    refused(wrap(zlib.compress(b"")), errors.TruncatedError, "empty")
    refused(wrap(zlib.compress(b"\x80\x04pickle.")), errors.PickleRefusedError, "pickle")
    refused(wrap(zlib.compress(changed({"digest": "0" * 10}))), errors.BadContentsError, "digest")
    refused(wrap(zlib.compress(changed({"format_version": "2"}))), errors.NewerFormatError, "Update")


def test_a_bomb_does_not_go_off():
    bomb = wrap(zlib.compress(b"\0" * (256 << 20), 9))
    assert len(bomb) < masktext.MAX_TEXT
    many = wrap(zlib.compress(changed(sites=sitetable.pack([("ffn", masktext.MAX_GATES + 1, "a")])), 9))
    tracemalloc.start()
    try:
        refused(bomb, errors.TooLargeError, "would unpack to more than")
        refused(many, errors.BadContentsError, f"more than {masktext.MAX_GATES} gates")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 32 << 20


def test_what_cannot_be_embedded_is_said():
    big = MaskSet({"a": torch.rand(masktext.MAX_TEXT, generator=torch.Generator().manual_seed(0))}, {"a": "ffn"}, INFO)
    with pytest.raises(errors.TooLargeError, match=r"this soft mask has 1048576 gates.*Save it with Save Memorization Mask"):
        masktext.to_text(big)
    wide = MaskSet({"a": torch.ones(masktext.MAX_GATES + 1)}, {"a": "ffn"}, INFO)
    with pytest.raises(errors.TooLargeError, match="this mask has 4194305 gates"):
        masktext.to_text(wide)
    basis = Basis(torch.eye(4), torch.tensor([0.7, 0.2, 0.1, 0.0]))
    subspace = Subspace({"a": basis}, {"a": "a"}, {"a": "ffn"}, 0.05, INFO)
    with pytest.raises(errors.SettingError, match="subspace has megabytes.*Share its file"):
        masktext.to_text(subspace)


def test_ordinary_tensors_even_in_inference_mode():
    with torch.inference_mode():
        mask = masktext.from_text(masktext.to_text(hard_mask()))
    assert not any(gates.is_inference() for gates in mask.gates.values())
