"""Recognising a base model: a few dozen sampled weights, compared with a tolerance.

A hash would change with the dtype a file is loaded in; sampled values correlate almost perfectly across fp32, fp16, bf16
and fp8 copies of one model, and visibly less between a model and its fine-tunes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np
import torch

SAMPLES = 48
SAME = 0.995


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """SAMPLES values spread over the matrices among `weights`, scaled to int8, as base64.

    Args:
        weights: name -> unpatched weight, in an order that is the same for every copy of the model. Norms' are left out:
            they are near 1 in every model.
    """
    matrices = [w for w in weights.values() if w.ndim == 2]
    values = []
    for i in range(SAMPLES):
        weight = matrices[i * len(matrices) // SAMPLES]
        row = (i * 131) % weight.shape[0]
        column = (i * 197) % weight.shape[1]
        values.append(weight[row, column].float().item())
    scaled = np.array(values) / max(max(map(abs, values)), 1e-12)
    return base64.b64encode(np.round(scaled * 127).astype(np.int8).tobytes()).decode()


def similarity(a: str, b: str) -> float:
    """Correlation of two fingerprints in [-1, 1]; 0 when either is unreadable."""
    try:
        x, y = (np.frombuffer(base64.b64decode(text, validate=True), np.int8).astype(np.float64) for text in (a, b))
    except ValueError:
        return 0.0
    if x.shape != y.shape or x.size != SAMPLES:
        return 0.0
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def same_base(a: str, b: str) -> bool:
    """Whether two fingerprints are of the same model, whatever dtypes it was loaded in."""
    return similarity(a, b) >= SAME
