"""What a sweep draws: strengths, rows, their order and their bounds; and its sheet."""

import pytest
import torch

from nodes.gridsheet import FOOT, GAP, HEADER, TITLE, grid_sheet
from nodes.sidebyside import FRAME, LARGEST
from uniforget.errors import SettingError
from uniforget.report.sweep import MOST_PICTURES, least, parse_strengths, plan

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, 0.25, 0.5, 0.75, 1", (0, 0.25, 0.5, 0.75, 1)),
        ("1", (0, 1)),
        ("1;0.5 \n 0.5,\t.25,", (0, 0.25, 0.5, 1)),
        ("0", (0,)),
        ("-0", (0,)),
        ("1e-1 0.10", (0, 0.1)),
    ],
)
def test_strengths(text, expected):
    assert parse_strengths(text) == expected


@pytest.mark.parametrize("text", ["", " , ", "0.5, x", "2", "inf", "nan", "0,25,0,5", "1" * 5000, "0x1", "0.5%"])
def test_what_is_no_strength_is_refused(text):
    with pytest.raises(SettingError, match=r"strengths.*0 to 1") as error:
        parse_strengths(text)
    assert len(str(error.value)) < 250


def test_rows_are_prompts_by_seeds():
    found = plan("a cat\n\n# a comment\na dog\na cat", "1", 2, 2**64 - 1)
    assert found.rows == (("a cat", 2**64 - 1), ("a cat", 0), ("a dog", 2**64 - 1), ("a dog", 0))
    assert found.pictures == 8


def test_everyday_prompts_are_the_last_rows():
    found = plan("a copy", "1", 2, 0, "a cat\na dog")
    assert [prompt for prompt, _ in found.rows] == ["a copy"] * 2 + ["a cat"] * 2 + ["a dog"] * 2 and found.everyday == 4


def test_the_least_strength_is_halved_down_to():
    asked = []
    enough = lambda strength: asked.append(strength) or strength >= 0.6  # noqa: E731
    assert least((0.25, 0.5, 0.75, 1.0), enough) == 0.625
    assert asked == [0.25, 0.5, 0.75, 0.625, 0.5625, 0.5938]
    assert least((0.5, 1.0), lambda strength: False) is None
    assert least((0.5,), lambda strength: True) == 0.0625, "below the first one, down to 0"


def test_the_number_of_pictures_is_bounded():
    prompts = "\n".join(f"prompt {i}" for i in range(MOST_PICTURES // 2))
    assert plan(prompts, "0, 1", 1, 0).pictures == MOST_PICTURES
    with pytest.raises(SettingError, match="Take fewer"):
        plan(f"{prompts}\none more", "0, 1", 1, 0)
    with pytest.raises(SettingError, match="Take fewer"):
        plan("a", " ".join(str(i / 1000) for i in range(1000)), 1, 0)


def plain(colour, height=64, width=64):
    return (torch.tensor(colour) / 255).expand(height, width, 3)


def test_the_sheet_holds_every_picture_at_its_place():
    pictures = [plain(RED), plain(BLUE), plain(BLUE), plain(RED, 32, 64)]
    sheet = grid_sheet(["original", "strength 1"], ["one", "two " * 200], pictures, ["alike 1.00"] * 4)
    assert sheet.size == (3 * GAP + 2 * 192, HEADER + 2 * (TITLE + 192 + FOOT) + GAP)
    top = [HEADER + TITLE, HEADER + 2 * TITLE + 192 + FOOT]
    right = 2 * GAP + 192
    assert [sheet.getpixel((x + 96, y + 96)) for y in top for x in (GAP, right)] == [RED, BLUE, BLUE, RED]
    assert sheet.getpixel((right + 96, top[1] + 2)) == FRAME, "another size is fitted whole"
    assert len(sheet.crop((GAP, 0, right, HEADER)).getcolors()) > 2, "no label"
    assert len(sheet.crop((GAP, top[0] + 192, right, top[0] + 192 + FOOT)).getcolors()) > 2, "no likeness"


def test_large_sheets_are_made_smaller():
    sheet = grid_sheet(["a"] * 4, ["b"] * 4, [plain(RED, 4096, 4096)] * 16, ["x"] * 16)
    assert sheet.width * sheet.height < 1.3 * LARGEST
