"""Does a model know a picture? It restores one that it memorized better than the same picture moved or mirrored.

A picture x is mixed with noise to several levels and the model predicts it back. The error alone says little: a plain sky is easy
for every model. So each picture is its own yardstick: the same is done with copies of x (mirrored, moved sideways by 5 %), which are as hard
as x and which nobody trained on. With E the mean squared error of the prediction, the picture's **gain** is

    gain(x) = min over copies of  mean over levels and noises of  log E(copy) - log E(x)

in natural logarithms: 0 is "no better than a copy", 0.7 is half its error. Picture and copies get the same noises. What a gain means for
this model says a baseline: the gains of pictures that the model itself drew from neutral prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .denoiser import Denoiser
from .stats import bound, interval

LEVELS = (0.3, 0.5, 0.7)  # shares of noise
MOVE = 0.05  # of the picture's width; not a multiple of 8 pixels at the usual sizes, as models work in such blocks
SMALLEST_ERROR = 1e-8


def with_copies(pictures: torch.Tensor) -> torch.Tensor:
    """The pictures, then them mirrored, moved left and moved right: float (4, n, height, width, channels).

    Args:
        pictures: float (n, height, width, channels), at least 16 pixels wide.
    """
    move = max(1, round(MOVE * pictures.shape[2]))
    # what comes in at an edge is a mirror image of what is there
    left = torch.cat([pictures[:, :, move:], pictures[:, :, -move - 1 : -1].flip(2)], 2)
    right = torch.cat([pictures[:, :, 1 : move + 1].flip(2), pictures[:, :, :-move]], 2)
    return torch.stack([pictures, pictures.flip(2), left, right])


def gains(
    denoiser: Denoiser,
    latents: torch.Tensor,
    targets: torch.Tensor,
    which: Sequence[int],
    noises: int,
    seed: int = 0,
    levels: Sequence[float] = LEVELS,
    report: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """The gain of each picture for each noise, over the copy that is restored best: float64 (n, noises).

    Args:
        latents: float (v, n, ...), encoded :func:`with_copies`; the pictures themselves first.
        targets: the same as the model's predictions have them.
        which: condition of each picture; -1 asks without a caption.
        seed: of the noises; the random state is left alone, and two models get the same noises.
        report: called after each prediction.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(latents.shape[2:], generator=generator) for _ in range(noises)]
    over = torch.zeros(len(latents) - 1, latents.shape[1], noises, dtype=torch.float64)
    for i, condition in enumerate(which):
        for k, noise in enumerate(drawn):
            for level in levels:
                x, sigma = denoiser.noised(latents[:, i], noise.expand_as(latents[:, i]), level)
                [found] = denoiser.predict(x, sigma, [condition])
                error = (found - targets[:, i].to(found)).double().square().flatten(1).mean(1)
                logs = error.clamp(min=SMALLEST_ERROR).log().cpu()
                over[:, i, k] += (logs[1:] - logs[0]) / len(levels)
                report()
    nearest = over.mean(2).argmin(0)
    return over[nearest, torch.arange(len(nearest))]


@dataclass(frozen=True)
class Finding:
    """What was found out about one picture in one model.

    Attributes:
        gain, low, high: the gain and its 95 % interval over noises.
        usual, bound: mean gain of the model's own neutral pictures, and what 95 % of such pictures stay below.
        verdict: "known" (the whole interval is above the bound), "unknown" (all of it is below) or "unclear".
    """

    gain: float
    low: float
    high: float
    usual: float
    bound: float

    @property
    def verdict(self) -> str:
        if self.low > self.bound:
            return "known"
        return "unknown" if self.high < self.bound else "unclear"


def findings(picture_gains: torch.Tensor, baseline_gains: torch.Tensor) -> list[Finding]:
    """One finding per picture.

    Args:
        picture_gains: (n, noises), from :func:`gains`; `baseline_gains`: (m, noises) of neutral pictures, m at least 3.
    """
    own = baseline_gains.mean(1).tolist()
    usual, most = sum(own) / len(own), bound(own)
    return [Finding(*interval(row), usual, most) for row in picture_gains.tolist()]


def saved(gain: float) -> float:
    """A gain as the share of the best copy's error that it saves; below 0 where the copy is restored better."""
    return math.copysign(1 - math.exp(-abs(gain)), gain)


def sentence(before: Finding, after: Finding | None, name: str = "this picture") -> str:
    """What was found about one picture, in words: what the model does, and what that means; after forgetting as well."""
    said = {
        "known": f"Yes, the model knows {name}",
        "unknown": f"No sign that the model knows {name}",
        "unclear": f"It cannot be told whether the model knows {name}",
    }
    words = f"{said[before.verdict]}: {_figures(before)}."
    if after is None:
        return words
    still = {"known": "it still knows it", "unknown": "no sign of it any more", "unclear": "it cannot be told"}
    if before.verdict == "unknown":
        still["unknown"] = "no sign of it either"
    return f"{words} After forgetting, {still[after.verdict]}: {_figures(after)}."


def _figures(f: Finding) -> str:
    gain, low, high, most = (100 * saved(v) for v in (f.gain, f.low, f.high, f.bound))
    return (
        f"it repairs it {abs(gain):.0f} % {'better' if gain >= 0 else 'worse'} than its mirror image or a moved copy "
        f"(most likely {low:.0f} to {high:.0f} %); up to {most:.0f} % is usual for pictures that it does not know"
    )
