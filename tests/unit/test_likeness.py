"""Structural likeness: what does not count, what does, and the three words."""

import pytest
import torch
from torch.nn import functional as F

from uniforget.checks.likeness import GONE, RECOGNIZABLE, SIDE, likeness, variety, word


def picture(seed, size=SIDE):
    """A smooth picture (1, size, size, 3) with something in every part of it."""
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, (size, size), mode="bicubic").clamp(0, 1).movedim(1, -1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: 0.5 * x + 0.3,
        lambda x: x.flip(2),
        lambda x: x.roll(4, 2),
        lambda x: picture(0, 512),
        lambda x: F.interpolate(F.avg_pool2d(x.movedim(-1, 1), 4), scale_factor=4).movedim(1, -1),
    ],
    ids=["same", "brightness and contrast", "mirrored", "moved", "larger", "detail"],
)
def test_what_somebody_would_still_recognize(change):
    [found] = likeness(change(picture(0)), picture(0))
    assert 0.85 < found <= 1 and word(found) == "recognizable"


def test_other_pictures_are_gone():
    found = likeness(torch.cat([picture(i) for i in range(1, 9)]), picture(0))
    assert max(found) < GONE and {word(value) for value in found} == {"gone"}


def test_a_mixture_is_between():
    shares = torch.linspace(0, 1, 21)
    found = [likeness((1 - s) * picture(0) + s * picture(1), picture(0))[0] for s in shares]
    assert found == sorted(found, reverse=True)
    assert [word(value) for value in (found[0], found[-1])] == ["recognizable", "gone"] and "traces" in map(word, found)


def test_the_words_begin_at_their_thresholds():
    assert [word(value) for value in (GONE - 1e-6, GONE, RECOGNIZABLE - 1e-6, RECOGNIZABLE)] == [
        "gone",
        "traces",
        "traces",
        "recognizable",
    ]


def test_plain_grey_and_damaged_pictures_have_a_likeness():
    plain = torch.full((2, 16, 24, 1), 0.5)
    assert likeness(plain, plain)[0] == pytest.approx(1, abs=1e-3)
    assert all(0 <= value <= 1 for value in likeness(torch.full((1, 96, 96, 3), float("nan")), picture(0)))


def test_a_number_of_originals_that_fits_nothing_is_an_error():
    with pytest.raises(ValueError, match="3 pictures; found 2"):
        likeness(torch.zeros(3, 8, 8, 3), torch.zeros(2, 8, 8, 3))


def test_variety_is_none_of_one_picture_again_and_again_and_more_of_others():
    same = picture(0).expand(4, -1, -1, -1)
    assert variety(same) == pytest.approx(0, abs=1e-4)
    assert variety(torch.cat([picture(i) for i in range(4)])) > 0.6
    with pytest.raises(ValueError, match="at least two"):
        variety(picture(0))
