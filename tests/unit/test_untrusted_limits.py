"""What readers share against strangers' files: lengths come first, and too much is refused before anything is made of it."""

import tracemalloc
import zlib
from dataclasses import replace

import pytest

from uniforget import untrusted
from uniforget.errors import BadContentsError, MaskError
from uniforget.mask import file as maskfile
from uniforget.mask.info import MaskInfo
from uniforget.untrusted import OverLimit

from .masks import INFO, changed, hard_mask


def peak_of(work):
    """Bytes that `work` had at the same time, and what it raised."""
    tracemalloc.start()
    try:
        work()
        raised = None
    except Exception as error:
        raised = error
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, raised


def test_a_bomb_is_not_unpacked_further_than_allowed():
    bomb = zlib.compress(bytes(100 << 20), 9)
    peak, raised = peak_of(lambda: untrusted.inflate(bomb, 1 << 20))
    assert isinstance(raised, OverLimit) and "more than 1,048,576 bytes" in str(raised)
    assert peak < 4 << 20


def test_unpacking_gives_what_was_packed_and_refuses_what_is_damaged():
    packed = zlib.compress(b"some bytes")
    assert untrusted.inflate(packed, 10) == b"some bytes"
    with pytest.raises(OverLimit):
        untrusted.inflate(packed, 9)
    for broken in (packed[:-1], packed + b"x", b"", b"no zlib"):
        with pytest.raises(ValueError, match=r"unpacked|does not end"):
            untrusted.inflate(broken, 10)


@pytest.mark.parametrize("text", ["[" + "[]," * 200_000 + "0]", "{" + '"a":{},' * 200_000 + '"b":0}', "0" * (1 << 20)])
def test_json_with_too_much_in_it_is_refused_before_it_is_parsed(text):
    for given in (text, text.encode()):
        peak, raised = peak_of(lambda given=given: untrusted.parse_json(given, 1 << 20, 100_000))
        assert isinstance(raised, ValueError)
        assert peak < 2 << 20


def test_json_is_parsed_and_deep_nesting_is_an_error_of_ours():
    assert untrusted.parse_json('{"a": [1, "é"]}'.encode(), 100) == {"a": [1, "é"]}
    with pytest.raises(OverLimit):
        untrusted.parse_json("[1, 2]", 5)
    with pytest.raises(ValueError, match="nested too deeply"):
        untrusted.parse_json("[" * 200_000, 1 << 20)
    with pytest.raises(ValueError, match="utf-8"):
        untrusted.parse_json(b'"\xff"', 100)


def test_a_header_is_measured_before_a_library_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((untrusted.HEADER + 1).to_bytes(8, "little") + b"{}")
    with pytest.raises(OverLimit, match="header"):
        untrusted.header_length(path)
    path.write_bytes((2).to_bytes(8, "little") + b"{}")
    assert untrusted.header_length(path) == 2


ODD = ["a\nb", "a\x1b[31mb", "a\x00", "a\u202eb", "a\u200bb", "\ud800", "a\u2028b", "\ufeffa", "x" * (untrusted.TEXT + 1)]


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_information_that_could_mislead_people_is_refused_when_made_and_when_read(text):
    for field in ("family", "base", "base_name", "method", "preset", "prompts_hash", "version"):
        with pytest.raises(MaskError, match=field):
            replace(INFO, **{field: text})
    for extra in ({"note": text}, {text: "note"}):
        with pytest.raises(MaskError, match="extra"):
            MaskInfo("sd3", "", extra=extra)
    for about in ({"base_name": text}, {"extra": {"note": text}}, {"extra": {text: "x"}}):
        with pytest.raises(BadContentsError, match="damaged"):
            maskfile.loads(changed(about))


def test_information_may_hold_whatever_people_write():
    for text in ("Modèle 中文 العربية می‌خواهم 👨‍👩‍👧", "<b>R&D</b>", "x" * untrusted.TEXT, ""):
        found = maskfile.loads(maskfile.dumps(replace(hard_mask(), info=replace(INFO, base_name=text, extra={"note": text}))))
        assert (found.info.base_name, found.info.extra) == (text, {"note": text})


def test_there_can_be_only_so_many_notes():
    with pytest.raises(MaskError, match="at most 64"):
        MaskInfo("sd3", "", extra={str(i): "" for i in range(65)})
