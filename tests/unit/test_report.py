"""The report's page: whole in itself, whatever is put into it, and bounded."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.unit.masks import hard_mask
from uniforget.errors import SettingError
from uniforget.mask.info import MaskInfo
from uniforget.report import report
from uniforget.report.report import Pair, Picture, Report, embed, mask_rows, page

HOSTILE = (
    '</title></style></pre><script>alert(1)</script><img src=x onerror=alert(2)> " onload="x\' &lt; javascript:\u202ex\x00\ud800'
)
ADDRESSES = {"src", "href", "action", "srcset", "poster", "data", "background", "formaction", "xlink:href"}


class Seen(HTMLParser):
    """Elements, attributes and text of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def noise(width, height, seed=0):
    """A picture that does not compress."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def plain(colour="red", size=(8, 6)):
    return embed(Image.new("RGB", size, colour))


def everything(text):
    """A report with `text` wherever text can be."""
    rows = [(text, text)]
    return Report(
        *(text, text, text, [text], [Pair(plain(), plain("blue"), text, text)], [(text, text)], {"ffn": 0.5, "all": 0.25}),
        *(plain(), rows, rows, rows, [(text, rows)], text, text, [Pair(plain(), plain("blue"), text)]),
    )


def test_hostile_text_stays_text():
    harmless, hostile = (Seen(page(everything(text))) for text in ("x", HOSTILE))
    assert hostile.tags == harmless.tags
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(hostile.tags)
    assert [(t, n) for t, n, _ in hostile.attributes] == [(t, n) for t, n, _ in harmless.attributes]
    assert not [n for _, n, _ in hostile.attributes if n.startswith("on")]
    seen = "".join(hostile.texts)
    assert "<script>alert(1)</script>" in seen, "what was escaped has to be readable"
    assert not re.search("[\x00\u202e\ud800]", page(everything(HOSTILE)))


def test_nothing_is_outside_the_file():
    text = page(everything("https://example.com/a.png url(https://example.com) @import"))
    seen = Seen(text)
    for tag, name, value in seen.attributes:
        if name in ADDRESSES:
            assert value.startswith("data:"), (tag, name, value[:80])
        assert name != "style" or "url" not in value
    [policy] = [value for tag, name, value in seen.attributes if name == "content" and "default-src" in value]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert page(everything("a")).count("http") == 1, "http-equiv only"


def test_the_policy_comes_before_everything_that_could_load():
    text = page(everything("a"))
    assert text.index("Content-Security-Policy") < min(text.index(what) for what in ("<style", "<img", "<title", "href="))


@pytest.mark.parametrize(
    "address", ["https://example.com/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,A" onload="x']
)
def test_a_picture_from_elsewhere_is_refused(address):
    with pytest.raises(SettingError, match=r"embed\(\)"):
        page(Report("t", "m", pairs=[Pair(Picture(address, 1, 1), plain())]))


def test_small_pictures_are_kept_exactly_and_drawn_crisp():
    image = noise(64, 48)
    picture = embed(image)
    assert (picture.width, picture.height, picture.crisp) == (64, 48, True)
    kept = Image.open(io.BytesIO(base64.b64decode(picture.address.split(",")[1])))
    assert kept.format == "PNG" and np.array_equal(np.asarray(kept), np.asarray(image))


@pytest.mark.parametrize("size", [(2048, 2048), (5000, 40), (1, 3000)])
def test_large_pictures_are_bounded(size):
    picture = embed(noise(*size), longest=512, most=60_000)
    assert max(picture.width, picture.height) <= 512 and min(picture.width, picture.height) >= 1
    data = base64.b64decode(picture.address.split(",")[1])
    assert len(data) <= 60_000
    kept = Image.open(io.BytesIO(data))
    assert kept.size == (picture.width, picture.height)
    assert not picture.crisp


def test_an_empty_picture_is_refused():
    with pytest.raises(SettingError, match="0 x 5"):
        embed(Image.new("RGB", (0, 5)))


def test_the_file_is_bounded():
    long = "ä" * 10_000_000
    pairs = [Pair(plain(), plain("blue"))] * 1000
    rows = [("n", long)] * 1000
    text = page(Report(long, long, long, [long], pairs, [(long, long)], {}, None, rows, rows, rows, [(long, rows)], long))
    assert len(text) < 12_000_000
    assert text.count("<figure class=") == report.PAIRS
    assert "976 more pairs are not in this file" in text
    assert "not in this file: it has 20.0 MB" in text
    assert "9,999,800 more characters" in text and "600 more are not shown" in text


def test_shares_are_bars_as_long_as_they_say():
    text = page(Report("t", "m", shares={"ffn": 0.453, "norm": 0.0, "all": 0.0004, "attn": float("nan")}))
    assert re.findall(r"<span>([^<]+)</span><i><b style=\"width:([0-9.]+)%\"></b></i>", text) == [
        ("45.3 %", "45.30"), ("0 %", "0.00"), ("less than 0.1 %", "0.04"),
    ]  # fmt: skip


def test_an_empty_report_is_a_page_all_the_same():
    text = page(Report("", ""))
    assert "<h1>What the model forgot</h1>" in text and "$" not in text
    assert "<h2>More pictures<" not in text and "<h2>What was switched off<" not in text and '<i class="light' not in text


def test_the_first_page_has_the_prompt_one_pair_an_everyday_one_and_a_light():
    pairs = [Pair(plain(), plain(), "first", "gone"), Pair(plain(), plain(), "second", "recognizable")]
    text = page(Report("t", "m", "0.8", pairs=pairs, prompt="a portrait", everyday=[Pair(plain(), plain(), "usual")] * 2))
    first, appendix = text.split("<h1>Appendix</h1>")
    assert "a portrait" in first and "first" in first and "usual" in first and "at strength 0.8" in first
    assert "second" not in first and "second" in appendix and "Everyday picture 2" in appendix
    assert '<i class="light recognizable"></i><span>Still recognizable' in first and "(1 of 2 pictures)" in first
    assert "<b>What this does not prove:</b>" in first


def test_losses_are_told_in_words():
    found = hard_mask()
    rows = dict(mask_rows(replace(found, info=replace(found.info, extra={"loss_hard": "0.01", "own": "x"}))))
    assert (
        rows["error on everyday prompts of the mask as it is applied"] == "0.01"
        and rows["own"] == "x"
        and "loss_hard" not in rows
    )


def test_dollars_in_texts_are_no_placeholders():
    assert page(everything("$title ${made} $$")).count("$title ${made} $$") > 5


def test_tables_of_nodes_are_lined_up():
    text = page(Report("t", "m", texts=[("a", "copies    100 %\nright      3 %"), ("b", "Just words. And more.")]))
    assert text.count("text figures") == 1


def test_a_masks_rows_identify_it_and_skip_what_is_unknown():
    found = hard_mask()
    rows = dict(mask_rows(found, "ab" * 32))
    assert rows["identity"] == f"{found.digest()} (hard mask)"
    assert rows["SHA-256 of its file"] == "ab" * 32
    assert rows["learned with"] == "custom, beta 2.5, stepwise" and rows["seed, updates"] == f"{2**64 - 1}, 400"
    assert rows["learned in"] == "12 s" and rows["note"] == "made for tests"
    unknown = replace(found, info=MaskInfo("sd3", ""))
    assert set(dict(mask_rows(unknown))) == {"identity", "learned with", "seed, updates", "learned on"}
