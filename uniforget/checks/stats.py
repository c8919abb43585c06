"""Intervals and areas under curves for small samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, median, stdev

import torch

CONFIDENCE = 0.95


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution, to 1 % or better from 3 degrees of freedom on and exact for 1 and 2."""
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        return (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    z, n = NormalDist().inv_cdf(probability), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """``(mean, low, high)`` of independent measurements of one thing; without bounds (infinite) for a single one."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    half = t_quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def bound(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """What one more draw like `values` stays below with this confidence (a one-sided prediction bound, normal values)."""
    n = len(values)
    return fmean(values) + t_quantile(confidence, n - 1) * stdev(values) * math.sqrt(1 + 1 / n)


def upper_bound(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """The same for skewed values: from their median, and the spread of those above it alone; all equal, that value."""
    n, middle = len(values), median(values)
    above = [v - middle for v in values if v > middle]
    if not above:
        return middle
    spread = math.sqrt(fmean([v * v for v in above]))
    return middle + t_quantile(confidence, max(1, len(above) - 1)) * spread * math.sqrt(1 + 1 / n)


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Share of pairs in which the positive one is larger; ties count half."""
    a, b = torch.tensor(positive, dtype=torch.float64)[:, None], torch.tensor(negative, dtype=torch.float64)
    return float(((a > b).double() + (a == b).double() / 2).mean())


def auc_interval(positive: Sequence[float], negative: Sequence[float], draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of :func:`auc`: both sides drawn anew with replacement."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.tensor(positive, dtype=torch.float64), torch.tensor(negative, dtype=torch.float64)
    wins = (a[:, None] > b).double() + (a[:, None] == b).double() / 2
    rows = torch.randint(len(a), (draws, len(a)), generator=generator)
    columns = torch.randint(len(b), (draws, len(b)), generator=generator)
    found = torch.stack([wins[r][:, c].mean() for r, c in zip(rows, columns, strict=True)])
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
