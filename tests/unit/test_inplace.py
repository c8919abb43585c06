"""In-place operators become new tensors; in-place methods stay what they are."""

import pytest
import torch

from uniforget.learn.inplace import OutOfPlace


def test_operators_make_new_tensors_and_gradients_are_right():
    x = torch.tensor([2.0, 3.0], requires_grad=True)

    def block(a):
        b = a * 1
        kept = b
        c = b * b  # needs b for backward
        b += c
        b *= 2
        b -= 1
        b /= 4
        assert kept is not b and kept.tolist() == [2, 3]
        return b

    with OutOfPlace():
        out = block(x)
    assert out.tolist() == [2.75, 5.75]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [2.5, 3.5]


def test_methods_and_slices_still_change_the_tensor():
    with OutOfPlace():
        a = torch.ones(3)
        same = a
        a.add_(1)
        a.mul_(torch.tensor(3.0))
        assert same is a and a.tolist() == [6, 6, 6]
        a[:2] += 1
        assert same.tolist() == [7, 7, 6]
    with torch.no_grad(), OutOfPlace():
        b = same
        b += 1
        assert b is same, "without gradients memory is not spent"


def test_the_dtype_stays_and_a_silent_mistake_is_not_hidden():
    with OutOfPlace():
        half = torch.ones(2, dtype=torch.float16)
        half += torch.ones(2)
    assert half.dtype == torch.float16
    x = torch.ones(2, requires_grad=True)
    with OutOfPlace(), pytest.raises(RuntimeError, match="inplace"):
        y = x * 1
        z = y * y
        y.add_(1)
        z.sum().backward()
