"""The spectral channels of a low-rank change, and how far each one follows what a model's weight already does.

A LoRA changes a weight W by ``up @ down``, of rank r. Its singular value decomposition splits that change into r **channels**: one direction
v that is read, one direction u that is written, one size. Both factors are thin, so QR of each and an SVD of an (r, r) matrix give it exactly;
the change itself is never made.

After "Filtering Memorization from Parameter-Space in Diffusion Models" (arXiv 2605.10439): channels that lie in the principal subspace of
the pretrained weight use what the model can do anyway and generalize; those that lie outside of it carry what was learned by heart. We know
the paper's abstract only. Ours are the measure of alignment, its comparison with chance, and that a factor of the same shape holds the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Directions of a weight that count as principal: a share of its smaller side, and the most of them. Finding more takes longer than it tells.
PRINCIPAL, MOST = 0.125, 128
_ITERATIONS, _SPARE = 2, 8


@dataclass(frozen=True)
class Channels:
    """``up @ down`` as ``written @ diag(size) @ read.T``.

    Attributes:
        written: float32 (out, r), orthonormal columns; ``read``: (in, r); ``size``: (r,), descending.
    """

    written: torch.Tensor
    size: torch.Tensor
    read: torch.Tensor

    def without(self, up: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """`up` (out, r) for the same ``down``, so that each channel has its size times `factors` (r,)."""
        # up @ down = U S V', so that U f U' in front of it is U f S V': nothing else changes, and nothing is divided by a size.
        return up - (self.written * (1 - factors)) @ (self.written.T @ up)


def channels(up: torch.Tensor, down: torch.Tensor) -> Channels:
    """Channels of ``up @ down``: `up` (out, r), `down` (r, in), float32."""
    written, left = torch.linalg.qr(up)
    read, right = torch.linalg.qr(down.T)
    u, size, v = torch.linalg.svd(left @ right.T, full_matrices=False)
    return Channels(written @ u, size, read @ v.T)


def principal(weight: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The directions that a weight (out, in) writes and reads most, orthonormal: ``(out, k)``, ``(in, k)``; float32.

    By randomized range finding (Halko, Martinsson, Tropp, 2011) with a generator of its own; the random state is left alone.
    """
    count = max(1, min(MOST, round(PRINCIPAL * min(weight.shape))))
    width = min(count + _SPARE, *weight.shape)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(weight @ torch.randn(weight.shape[1], width, generator=generator))[0]
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis)[0])[0]
    u, _, v = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ u[:, :count], v[:count].T


def alignment(found: Channels, weight: torch.Tensor) -> torch.Tensor:
    """How far each channel lies in the weight's principal subspaces, beside directions drawn at random: (r,).

    Of both of its directions the share of energy inside; the product, as a multiple of what chance gives. 1: the weight knows nothing of it.
    """
    written, read = principal(weight)
    inside = [(basis.T @ own).square().sum(0) for basis, own in ((written, found.written), (read, found.read))]
    chance = written.shape[1] / weight.shape[0] * read.shape[1] / weight.shape[1]
    return (inside[0] * inside[1] / chance).sqrt()
