"""What a gradient passes through is changed in a copy, and whoever uses it afterwards gets that copy."""

import torch

from uniforget.learn.inplace import OutOfPlace


def checked(block, x):
    """What `block` makes of `x` and its gradient, compared with what it makes without any gradient and with finite differences."""
    x = x.double()
    with torch.no_grad():
        plain = block(x.clone() * 1)
        direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        slope = (block(x + 1e-5 * direction) - block(x - 1e-5 * direction)).sum() / 2e-5
    x = x.clone().requires_grad_()
    with OutOfPlace() as mode:
        out = mode.current(block(x * 1))
    assert torch.equal(out.detach(), plain)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)
    return out


def test_operators():
    def block(a):
        b = a * 1
        alias = b
        c = b * b  # needs b for backward
        b += c
        b *= 2
        b -= 1
        b /= 4
        return alias * b

    out = checked(block, torch.tensor([2.0, 3.0]))
    assert out.tolist() == [2.75**2, 5.75**2]


def test_methods_whose_result_nobody_looks_at():
    def block(a):
        c = a * a
        a.add_(c)
        a.clamp_(max=10.0)
        a.mul_(c)
        return a

    checked(block, torch.tensor([2.0, 3.0]))


def test_index_assignment_as_in_freeu():
    def block(h):
        mean = h.mean(1, keepdim=True)
        h[:, :2] = h[:, :2] * (0.5 * mean + 1)
        h[h > 2] = 0.1
        h[:, 3] += 1
        return torch.cat([h, h * h], 1)

    checked(block, torch.rand(2, 4, generator=torch.Generator().manual_seed(1)) * 3)


def test_views_reach_what_they_look_into():
    def block(x):
        y = x * 1
        square = y * y
        part = y.view(2, 2)[1]
        part *= 3
        y.view(4)[0].mul_(5)
        return y + square

    checked(block, torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_modes_inside_of_modes_and_nothing_is_held():
    def inner(a):
        with OutOfPlace() as mode:
            a += a * a
            return mode.current(a)

    checked(lambda a: inner(inner(a)), torch.tensor([1.0, 2.0]))
    with OutOfPlace() as mode:
        a = torch.ones(2, requires_grad=True) * 1
        for _ in range(3):
            a += 1
        assert len(mode.copies) == 0, "rebound names leave nothing behind"


def test_without_a_gradient_tensors_change_in_place():
    with OutOfPlace():
        a = torch.ones(3)
        same = a
        a.add_(1)
        a[:2] += 1
        half = torch.ones(2, dtype=torch.float16)
        half += torch.ones(2)
    assert same is a and same.tolist() == [3, 3, 2] and half.dtype == torch.float16
    with torch.no_grad(), OutOfPlace() as mode:
        b = same.requires_grad_(False)
        b += 1
    assert b is same and not mode.copies
