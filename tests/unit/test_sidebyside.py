"""The labelled sheet of pairs: sizes and pixels worked out by hand."""

import numpy as np
import pytest
import torch

from nodes.sidebyside import BAR, FRAME, GAP, LARGEST, ROWS, WIDTH_PER_BAR, side_by_side, to_pil

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour, height=64, width=64):
    return (torch.tensor(colour) / 255).expand(height, width, 3)


def test_a_small_pair_is_enlarged_four_times():
    sheet = side_by_side([(plain(RED), plain(BLUE))], ("original", "forgotten"))
    assert sheet.size == (2 * 256 + 2 * GAP + GAP, BAR + 256 + GAP)
    assert sheet.getpixel((GAP, BAR)) == RED
    assert sheet.getpixel((GAP + 255, BAR + 255)) == RED
    assert sheet.getpixel((GAP + 256 + GAP // 2, BAR)) == BLUE


def test_another_size_is_fitted_whole():
    sheet = side_by_side([(plain(RED, 256, 256), plain(BLUE, 64, 128))], ("a", "b"))
    left = GAP + 256 + GAP // 2
    assert sheet.getpixel((left + 128, BAR + 128)) == BLUE
    assert sheet.getpixel((left + 128, BAR + 63)) == FRAME
    assert sheet.getpixel((left + 128, BAR + 64)) == BLUE


def test_many_pairs_make_columns():
    pairs = [(plain(RED), plain(BLUE))] * ROWS + [(plain(BLUE), plain(RED))]
    sheet = side_by_side(pairs, ("a", "b"))
    rows = (len(pairs) + 1) // 2
    assert sheet.height == BAR + rows * (256 + GAP)
    second = GAP + 2 * 256 + 2 * GAP
    last = BAR + (len(pairs) - 1 - rows) * (256 + GAP)
    assert sheet.getpixel((second, last)) == BLUE


def test_a_large_sheet_is_made_smaller():
    sheet = side_by_side([(plain(RED, 2048, 2048), plain(BLUE, 2048, 2048))] * 4, ("a", "b"))
    assert sheet.width * sheet.height < 1.2 * LARGEST


def test_labels_grow_with_large_pictures():
    small = side_by_side([(plain(RED, 512, 512), plain(BLUE, 512, 512))], ("original", "strength 0.8"))
    large = side_by_side([(plain(RED, 2048, 2048), plain(BLUE, 2048, 2048))], ("original", "strength 0.8"))
    bar = 2048 // WIDTH_PER_BAR
    assert (small.height, large.height) == (BAR + 512 + GAP, bar + 2048 + GAP)
    rows = [np.flatnonzero((np.asarray(sheet)[:top] > 128).all(-1).any(1)) for sheet, top in ((small, BAR), (large, bar))]
    heights = [found[-1] - found[0] + 1 for found in rows]
    assert heights[1] / heights[0] == pytest.approx(bar / BAR, rel=0.15)


def test_long_and_foreign_labels_fit():
    assert side_by_side([(plain(RED), plain(BLUE))], ("x" * 500, "Ünï 忘")).size[0] == 2 * 256 + 3 * GAP


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.full((2, 2, 1), 1.0), (255, 255, 255)),
        (torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(2, 2, 4), FRAME),
        (torch.full((2, 2, 3), float("nan")), (0, 0, 0)),
        (torch.tensor([2.0, -1.0, 0.5]).expand(2, 2, 3), (255, 0, 127)),
    ],
)
def test_any_channels_become_rgb(image, expected):
    assert to_pil(image).getpixel((0, 0)) == expected
