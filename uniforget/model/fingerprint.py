"""Recognising a base model: a few dozen sampled weights, compared with a tolerance.

A hash would change with the dtype a file is loaded in; sampled values correlate almost perfectly across fp32, fp16, bf16
and fp8 copies of one model, and visibly less between a model and its fine-tunes. A copy of four bits per weight is further from
its original than many a fine-tune: such fingerprints carry a mark, and only tell other models.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

SAMPLES = 48
SAME = 0.995
# Q4_0 copies reach 0.99, two-bit ones 0.9; other models stay below 0.5 (48 independent values: 0.14 is one sigma).
SAME_COARSE = 0.8
_COARSE = "~"


class Weight(Protocol):
    """What is read of a weight: a tensor, or something like it that reads single values."""

    @property
    def ndim(self) -> int: ...

    @property
    def shape(self) -> Any: ...

    def __getitem__(self, index: tuple[int, int]) -> Any: ...


def fingerprint(weights: Mapping[str, Weight], coarse: bool = False) -> str:
    """SAMPLES values spread over the matrices among `weights`, scaled to int8, as base64; "" when they are no numbers.

    Args:
        weights: name -> unpatched weight, in an order that is the same for every copy of the model. Norms' are left out:
            they are near 1 in every model.
        coarse: the values are only roughly the original's (fewer than eight bits per weight).
    """
    matrices = [w for w in weights.values() if w.ndim == 2]
    values = []
    for i in range(SAMPLES):
        weight = matrices[i * len(matrices) // SAMPLES]
        row = (i * 131) % weight.shape[0]
        column = (i * 197) % weight.shape[1]
        values.append(weight[row, column].float().item())
    if not np.isfinite(values).all():
        return ""
    scaled = np.array(values) / max(max(map(abs, values)), 1e-12)
    return _COARSE * coarse + base64.b64encode(np.round(scaled * 127).astype(np.int8).tobytes()).decode()


def similarity(a: str, b: str) -> float:
    """Correlation of two fingerprints in [-1, 1]; 0 when either is unreadable."""
    try:
        coded = (base64.b64decode(text.removeprefix(_COARSE), validate=True) for text in (a, b))
        x, y = (np.frombuffer(values, np.int8).astype(np.float64) for values in coded)
    except ValueError:
        return 0.0
    if x.shape != y.shape or x.size != SAMPLES:
        return 0.0
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def same_base(a: str, b: str) -> bool:
    """Whether two fingerprints are of the same model, whatever formats it was loaded in (as far as coarse ones can tell)."""
    return similarity(a, b) >= (SAME_COARSE if _COARSE in (a[:1], b[:1]) else SAME)
