"""Text of strangers is the same for people and harmless everywhere: in HTML, in the page's own markup, in a terminal."""

from html.parser import HTMLParser

import pytest

from uniforget.untrusted import MOST, safe

MARKUP = (
    "<img src=x onerror=alert(1)>",
    "</span><script>alert(1)</script>",
    "&lt;img src=x onerror=alert(1)&gt;",
    "&#60;img src=x&#62;",
    '" onmouseover="alert(1)',
    "[[label|https://x onmouseover=alert(1)]]",
    "[[[label|https://x]]",
    "http://x/__LNK0__ [[a|https://x onmouseover=alert(1) y]]",
)


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", MARKUP)
def test_no_page_can_make_markup_of_it_and_all_show_the_same(text):
    found = safe(text, page=True)
    for shown in (Reader(found), Reader(f"<span>{found}</span>"), Reader(f'<p title="{found}">{found}</p>')):
        assert shown.text == found
        assert all(tag in ("span", "p") and [name for name, _ in given] in ([], ["title"]) for tag, given in shown.tags)
    assert not set(found) & set('<>&"')
    assert "[[" not in found and "__LNK" not in found
    assert safe(found, page=True) == found


def test_a_terminal_is_not_steered_and_lines_are_not_forged():
    text = "red \x1b[31m\x9b2J \x07\x08\x7f \u202eback\u2066 \u200bnothing \ud800 \u2028line"
    found = safe(text)
    assert found.encode("utf-8")
    assert not [c for c in found if ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e\u2066\u200b\u2028"]
    assert "[31m" in found and "back" in found  # what was there can be seen
    assert safe("ok\nWRONG\r\nand\rmore\tthere", line=True) == "ok WRONG and more there"
    assert safe("two\r\nlines\tin\ncolumns") == "two\nlines\tin\ncolumns"


def test_what_is_no_markup_stays_as_people_wrote_it():
    text = "Größe 50 % — modèle 中文 😀 [link] a_b__c (x|y) C:\\masks\\new"
    assert safe(text, page=True) == safe(text) == safe(text, line=True) == text
    assert safe("R&D's <b>") == "R&D's <b>"


def test_long_text_is_cut_and_says_so():
    found = safe("x" * (MOST + 1234))
    assert len(found) < MOST + 50 and found.endswith("(1,234 more characters)")
    assert safe("abc" * 10, most=3) == "abc ... (27 more characters)"
