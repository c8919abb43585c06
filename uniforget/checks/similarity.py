"""How alike two pictures are, as one number; needs no model."""

from __future__ import annotations

from typing import Any

import numpy as np


def correlation(a: Any, b: Any) -> np.ndarray:
    """Pearson correlation of the pixel values of each picture of `a` with its partner in `b`: float64 of shape (n,).

    1 for the same picture, about 0 for pictures that have nothing in common, below 0 if one is more like the other's negative. Over
    all pixels and channels together, so a picture that only got lighter or has more contrast is still the same; another place,
    colour or shape is not. Two plain pictures of different colours have no pixel that tells them apart from their mean: 0.

    Args:
        a, b: pictures of equal shapes (n, ...), floats in [0, 1] or bytes, as anything that numpy takes.

    Raises:
        ValueError: the shapes differ.
    """
    one, other = (np.asarray(pictures, dtype=np.float64) for pictures in (a, b))
    if one.shape != other.shape:
        raise ValueError(f"expected pictures of equal shapes; found {one.shape} and {other.shape}")
    one, other = (pictures.reshape(len(pictures), -1) for pictures in (one, other))
    same = (one == other).all(1)
    x, y = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    found = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)).clip(1e-9)
    return np.where(same, 1.0, found)
