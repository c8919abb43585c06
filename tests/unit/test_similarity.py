"""How alike pictures are: worked out by hand."""

import numpy as np
import pytest
import torch

from uniforget.checks.similarity import correlation


def test_by_hand():
    a = np.array([[0.0, 0.0, 1.0, 1.0]])
    assert correlation(a, a)[0] == 1
    assert correlation(a, 1 - a)[0] == pytest.approx(-1)
    assert correlation(a, [[0.0, 1.0, 0.0, 1.0]])[0] == pytest.approx(0)
    assert correlation(a, [[0.0, 1.0, 1.0, 1.0]])[0] == pytest.approx(1 / np.sqrt(3))


def test_light_and_contrast_do_not_count():
    a = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    assert correlation(a, 0.5 * a + 0.3) == pytest.approx([1, 1, 1])


def test_bytes_and_plain_pictures():
    grey = np.full((2, 4, 4, 3), 128, np.uint8)
    assert list(correlation(grey, grey)) == [1, 1]
    assert list(correlation(grey, grey - 10)) == [0, 0]
    noisy = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert correlation(noisy, noisy[::-1]) == pytest.approx([1, 1]), "a step of brightness between the two"
    assert list(correlation(noisy, grey)) == [0, 0]


def test_other_sizes_are_an_error():
    with pytest.raises(ValueError, match="equal shapes"):
        correlation(np.zeros((1, 2, 2)), np.zeros((1, 2, 3)))
