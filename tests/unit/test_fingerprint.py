"""Fingerprints tell copies of a model from other models, whatever precision they are kept in."""

import numpy as np
import pytest
import torch

from uniforget.model.fingerprint import SAME, SAME_COARSE, fingerprint, same_base, similarity


def model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {str(i): torch.randn(40, 60, generator=generator) for i in range(8)} | {"norm": torch.ones(60)}


def rounded(weights, levels):
    """As kept with 2 * levels numbers between the extremes of each row of 20."""
    out = {}
    for name, weight in weights.items():
        rows = weight.reshape(-1, 20)
        step = rows.abs().amax(1, keepdim=True) / levels
        out[name] = ((rows / step).round().clamp(-levels, levels - 1) * step).reshape(weight.shape)
    return out


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_other_dtypes_are_the_same_model(dtype):
    copy = fingerprint({k: v.to(dtype) for k, v in model().items()})
    assert same_base(copy, fingerprint(model())) and not same_base(copy, fingerprint(model(1)))


def test_few_bits_per_weight_are_the_same_model_only_roughly():
    full, other = fingerprint(model()), fingerprint(model(1))
    four, three, two = (rounded(model(), levels) for levels in (8, 4, 2))
    assert SAME_COARSE < similarity(full, fingerprint(two)) < similarity(full, fingerprint(three)) < SAME
    for copy in (four, three, two):
        coarse = fingerprint(copy, coarse=True)
        assert same_base(full, coarse) and same_base(coarse, full) and same_base(coarse, coarse)
        assert not same_base(other, coarse) and not same_base(coarse, other)
    assert not same_base(full, fingerprint(two)), "without the mark it would be another model"


def test_what_is_no_number_has_no_fingerprint():
    broken = {k: v.clone() for k, v in model().items()}
    broken["0"][:] = float("nan")
    assert fingerprint(broken) == ""
    assert similarity("", fingerprint(model())) == similarity("~", "~") == similarity("no fingerprint", "x") == 0


def test_single_values_are_read():
    """So that a weight may be kept in a format that only gives out one value at a time."""

    class OneByOne:
        ndim = 2

        def __init__(self, weight):
            self.weight, self.shape = weight, weight.shape

        def __getitem__(self, at):
            row, column = at
            assert isinstance(row, int) and isinstance(column, int | np.integer)
            return self.weight[row, column]

    weights = {k: v for k, v in model().items() if v.ndim == 2}
    assert fingerprint({k: OneByOne(v) for k, v in weights.items()}) == fingerprint(weights) != fingerprint(model(1))
