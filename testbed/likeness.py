"""How much of one picture is in another: what a copy shares with its original, whole or in parts. Pictures are planes, float32
(n, 3, 96, 96) in [0, 255]."""

import numpy as np
import torch
from torch.nn import functional as F

MOVES = 2  # steps of two pixels, to each side, both ways
CELLS = 4  # of those steps: side of the squares that correlation compares, 8 pixels
SCALES = (0.0448, 0.2856, 0.3001)  # Wang et al. 2003: the first three weights; five scales would need 161 pixels


def planes(pictures):
    """uint8 (n, 96, 96, 3) -> float32 (n, 3, 96, 96)."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()


def _unit(x):
    """Rows of length 1, every channel about its own mean: neither brightness nor contrast nor the hue of all matters."""
    x = x.flatten(2)
    return F.normalize((x - x.mean(2, keepdim=True)).flatten(1), eps=1e-3)


def _moved(x):
    """``(whether mirrored, down, across, picture)`` of all small moves of half-size pictures."""
    side = x.shape[-1] - 2 * MOVES
    for mirrored in (False, True):
        y = x.flip(-1) if mirrored else x
        for down in range(2 * MOVES + 1):
            for across in range(2 * MOVES + 1):
                yield mirrored, down, across, y[..., down : down + side, across : across + side]


def correlation(x, reference):
    """The highest low-resolution correlation over mirroring and moves of up to four pixels, and the picture moved so.

    Args:
        reference: (n, 3, 96, 96) or (1, 3, 96, 96).

    Returns:
        ``(float32 (n,), planes (n, 3, 96, 96))``: edges that a move uncovers are repeated.
    """
    half = F.avg_pool2d(x, 2)
    side = half.shape[-1] - 2 * MOVES
    own = F.avg_pool2d(reference, 2)[..., MOVES : MOVES + side, MOVES : MOVES + side]
    own = _unit(F.avg_pool2d(own, CELLS))
    moves = [(m, 2 * (MOVES - d), 2 * (MOVES - a), (_unit(F.avg_pool2d(v, CELLS)) * own).sum(1)) for m, d, a, v in _moved(half)]
    best, which = torch.stack([m[3] for m in moves]).max(0)
    pad = 2 * MOVES
    aligned = []
    for picture, k in zip(x, which.tolist(), strict=True):
        mirrored, down, across, _ = moves[k]
        wide = F.pad((picture.flip(-1) if mirrored else picture)[None], (pad,) * 4, mode="replicate")[0]
        aligned.append(wide[:, pad - down : pad - down + x.shape[-1], pad - across : pad - across + x.shape[-1]])
    return best, torch.stack(aligned) if aligned else x


def ms_ssim(x, y, where=None):
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003) of brightness, three scales, squares of 7 pixels: (n,).

    Args:
        where: bool (n, 96, 96); the rest is painted white in both pictures, as FB-Mem does, but does not count: much white
            would make any two small foregrounds alike.
    """
    grey = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x, y = (x * grey).sum(1, keepdim=True), (y * grey).sum(1, keepdim=True)
    where = torch.ones_like(x) if where is None else where[:, None].to(x)
    x, y = x * where + 255 * (1 - where), y * where + 255 * (1 - where)
    mean = lambda v: F.avg_pool2d(v, 7, 1)  # noqa: E731
    out = torch.ones(max(len(x), len(y)))
    for i, weight in enumerate(SCALES):
        mx, my = mean(x), mean(y)
        cov = mean(x * y) - mx * my
        alike = (2 * cov + 58.5) / (mean(x * x) - mx * mx + mean(y * y) - my * my + 58.5)
        if i == len(SCALES) - 1:
            alike = alike * (2 * mx * my + 6.5) / (mx * mx + my * my + 6.5)
        inside = where[..., 3:-3, 3:-3]
        score = (alike * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1e-6)
        out = out * score.clamp(min=0) ** (weight / sum(SCALES))
        x, y, where = (F.avg_pool2d(v, 2) for v in (x, y, where))
    return out


def difference(x, y, where):
    """Root mean square difference, grey levels, over the pixels that `where` (n, 96, 96) weighs: (n,)."""
    where = where.to(x)
    return ((x - y).square().mean(1) * where).sum((1, 2)).div(where.sum((1, 2)).clamp(min=1e-6)).sqrt()
