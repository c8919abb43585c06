"""Can a picture still be told to be the original's? One number for two pictures, and one of three words for it.

The **structural likeness** of two pictures is the higher of two figures, each the highest over mirroring and small moves: the correlation of
their layouts (12 by 12 squares, colour by colour, so that neither brightness nor contrast counts) and the multi-scale structural similarity of
their brightness (Wang, Simoncelli and Bovik 2003, three scales, squares of 7 pixels). Both are taken at 96 pixels: it is about what somebody
sees at a glance, not about detail.

The word answers one question: *could the original's picture be picked out among those of ten other prompts by its likeness alone?* If a share s
of other prompts' pictures is less alike than the picture in question, it is picked with a chance of s to the power of ten.

gone
    No better than guessing: at most one in eleven.
traces
    Sometimes.
recognizable
    At least every second time.

``GONE`` and ``RECOGNIZABLE`` are the likenesses of those two chances; ``python -m bench.likeness`` measures them on the demo model's training
pictures. The word is about that pair of pictures. It does not prove that nobody gets the picture back by other words or seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

GONE, RECOGNIZABLE = 0.34, 0.54
OTHERS = 10
WORDS = ("gone", "traces", "recognizable")
SIDE = 96
MOVES = 2  # steps of two pixels, to each side, both ways
CELLS = 4  # of those steps: side of the squares that correlation compares
SCALES = (0.0448, 0.2856, 0.3001)  # the first three weights; five scales would need 161 pixels


def word(likeness: float) -> str:
    """One of :data:`WORDS` for a structural likeness."""
    return WORDS[(likeness >= GONE) + (likeness >= RECOGNIZABLE)]


def verdict(values: Sequence[float]) -> str:
    """The word for several pictures of one prompt: as long as one is recognizable, or shows traces, that is what the prompt is."""
    return word(max(values))


def sentence(values: Sequence[float]) -> str:
    """What is left of the original in these pictures, by their likenesses: "gone (alike 0.21)", or how many of each."""
    if len(values) == 1:
        return f"{word(values[0])} (alike {values[0]:.2f})"
    counts = [(name, sum(word(value) == name for value in values)) for name in WORDS]
    return ", ".join(f"{count} of {len(values)} {name}" for name, count in counts if count)


def likeness(pictures: Any, originals: Any) -> list[float]:
    """The structural likeness of each picture to its original: 1 is the same, about 0.2 is usual for two that have nothing in common.

    Args:
        pictures: (n, height, width, 1, 3 or 4 channels) floats in [0, 1], as ComfyUI has them.
        originals: as many, or one for all; of any size.

    Raises:
        ValueError: neither as many originals as pictures nor one.
    """
    x, y = planes(pictures), planes(originals)
    if len(y) not in (1, len(x)):
        raise ValueError(f"expected one original, or one for each of the {len(x)} pictures; found {len(y)}")
    found = []
    for i in range(len(x)):
        reference = y[i % len(y)][None]
        layout, moved = correlation(x[i][None], reference)
        structure = torch.maximum(ms_ssim(moved, reference), ms_ssim(x[i][None], reference))
        found.append(min(1.0, float(torch.maximum(layout, structure))))
    return found


def variety(pictures: Any) -> float:
    """How different pictures of one prompt are: 1 minus the mean structural likeness of all pairs. 0: all seeds draw the same.

    Args:
        pictures: (n, height, width, channels), at least two; see :func:`likeness`.

    Raises:
        ValueError: fewer than two pictures.
    """
    if len(pictures) < 2:
        raise ValueError(f"expected at least two pictures; found {len(pictures)}")
    pairs = [(i, j) for i in range(len(pictures)) for j in range(i)]
    a, b = zip(*pairs, strict=True)
    return 1 - math.fsum(likeness(pictures[list(a)], pictures[list(b)])) / len(pairs)


def planes(pictures: Any) -> torch.Tensor:
    """Pictures (n, height, width, channels), floats in [0, 1], as float32 (n, 3, SIDE, SIDE) in [0, 255]."""
    x = torch.as_tensor(pictures).detach().float().cpu().nan_to_num().clamp(0, 1)[..., :3].movedim(-1, 1)
    x = x.expand(-1, 3, -1, -1) * 255
    return x if x.shape[-2:] == (SIDE, SIDE) else F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, every channel about its own mean."""
    x = x.flatten(2)
    return F.normalize((x - x.mean(2, keepdim=True)).flatten(1), eps=1e-3)


def correlation(x: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest correlation of layouts over mirroring and moves of up to four pixels: (n,), and each picture moved so.

    Args:
        x, reference: (n, 3, SIDE, SIDE); `reference` may be one for all.
    """
    half, side, edge = F.avg_pool2d(x, 2), SIDE // 2 - 2 * MOVES, 2 * MOVES
    own = _unit(F.avg_pool2d(F.avg_pool2d(reference, 2)[..., MOVES : MOVES + side, MOVES : MOVES + side], CELLS))
    moves = []
    for mirrored in (False, True):
        view = half.flip(-1) if mirrored else half
        for down in range(2 * MOVES + 1):
            for across in range(2 * MOVES + 1):
                cut = _unit(F.avg_pool2d(view[..., down : down + side, across : across + side], CELLS))
                moves.append((mirrored, 2 * down, 2 * across, (cut * own).sum(1)))
    best, which = torch.stack([move[3] for move in moves]).max(0)
    moved = []
    for picture, k in zip(x, which.tolist(), strict=True):
        mirrored, down, across, _ = moves[k]
        wide = F.pad((picture.flip(-1) if mirrored else picture)[None], (edge,) * 4, mode="replicate")[0]
        moved.append(wide[:, down : down + SIDE, across : across + SIDE])
    return best, torch.stack(moved)


def ms_ssim(x: torch.Tensor, y: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    """Multi-scale structural similarity of brightness of (n, 3, SIDE, SIDE) in [0, 255]: (n,).

    Args:
        where: bool (n, SIDE, SIDE); the rest is painted white in both pictures, as FB-Mem does, but does not count: much white
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
