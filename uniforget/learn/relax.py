"""Relaxed gates: what logits stand for while they are learned."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..model.sites import Site

# Hard concrete, UniForget supplement eq. 10-11 (values from EcoDiff).
DELTA, ZETA, GAMMA, ALPHA = 0.5, 1.1, -0.1, 0.83
INITIAL_LOGIT = 3.0


def sample_noise(size: int, generator: torch.Generator) -> torch.Tensor:
    """Logistic-type noise of the hard concrete, float32 (size,), bounded by +-ln 3.

    Drawn by a CPU generator and uploaded (4 bytes per gate and update), so that a seed gives the same noise on every device.
    """
    u = torch.rand(size, generator=generator)
    return torch.log(u + DELTA) - torch.log(1 - u + DELTA)


def soft_gates(logits: torch.Tensor, noise: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Relaxed gates in [0, 1] for `logits` (UniForget supplement eq. 10-11). Without noise: the expected gate."""
    return (torch.sigmoid((logits + noise) / ALPHA) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def hard_gates(logits: torch.Tensor) -> torch.Tensor:
    """Binary gates with a straight-through gradient: forward 1 where the logit is positive, backward as the sigmoid's."""
    soft = torch.sigmoid(logits / ALPHA)
    return (logits > 0).float() + (soft - soft.detach())


def sparsity_loss(logits: torch.Tensor) -> torch.Tensor:
    """``||s(M)||_1 / |M|`` with ``s(M) = sigmoid(0.4 M + 1)``, over all gates of all sites together (UniForget eq. 4)."""
    return torch.sigmoid(0.4 * logits + 1).mean()


def split(flat: torch.Tensor, sites: Iterable[Site]) -> dict[str, torch.Tensor]:
    """Flat gates (all sites in order) by site name."""
    sites = list(sites)
    return dict(zip((s.name for s in sites), flat.split([s.units for s in sites]), strict=True))
