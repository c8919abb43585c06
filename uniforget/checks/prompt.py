"""Is a prompt memorized? Its text pulls harder at pure noise than everyday prompts do.

After Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024, arXiv 2407.21720): at the first
sampling step the **pull** of a prompt c is the size of its text-conditional prediction, d(c) = eps(x, c) - eps(x, empty). Predictions of
noise, velocity and clean latent differ by one factor per step, the same for all prompts; so pulls are given as multiples of the
median pull of neutral prompts, and families compare.

A plain background in a strong colour pulls hard as well, and every prompt may ask for one. So what counts is the pull **beyond** neutral
prompts: the size of what is left of d(c) when its projection onto the span of the neutral prompts' d is taken away (for a neutral prompt:
the span of the others). Where latents have many more dimensions than there are neutral prompts, this comes close to the plain pull.

With several seeds there is the **agreement**: the mean cosine between a prompt's d from different noises. It tells whether all noises lead to
the same picture; it is shown, and does not decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from .denoiser import Denoiser
from .stats import upper_bound

SURE, LIKELY = 0.99, 0.95  # shares of neutral prompts that stay below a verdict's bounds


@dataclass(frozen=True)
class Pull:
    """One prompt in one model, means over seeds.

    Attributes:
        size, beyond: root mean square of the text-conditional prediction, whole and without what neutral prompts span.
        agreement: mean cosine between seeds; NaN for one seed.
    """

    size: float
    beyond: float
    agreement: float


def pulls(
    denoiser: Denoiser,
    prompts: int,
    neutral: int,
    shape: Sequence[int],
    seeds: int,
    seed: int = 0,
    level: float = 1.0,
    at_once: int = 8,
    report: Callable[[int], None] = lambda count: None,
) -> list[Pull]:
    """The pull of each of the denoiser's first `prompts` conditions, and then of `neutral` more, which are the neutral prompts.

    Args:
        shape: of one latent, without the batch: (channels, height, width, ...).
        seeds: noises; `seed` is that of their generator, the random state is left alone.
        at_once: conditions that are handed to the denoiser together.
        report: called with the number of prompts done since.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(seeds, *shape, generator=generator)
    x, sigma = denoiser.noised(torch.zeros_like(noise), noise, level)
    [empty] = denoiser.predict(x, sigma, [-1])

    def parts(first: int, last: int) -> Iterator[torch.Tensor]:
        for start in range(first, last, at_once):
            which = list(range(start, min(last, start + at_once)))
            for found in denoiser.predict(x, sigma, which):
                yield (found - empty).flatten(1).float().cpu()
            report(len(which))

    # (seeds, neutral, elements); only these are kept, prompts come one by one
    base = torch.stack(list(parts(prompts, prompts + neutral)), 1)
    spans = [Span(each) for each in base]
    out = [_pull(one, [span.beyond(part) for span, part in zip(spans, one, strict=True)]) for one in parts(0, prompts)]
    others = [span.beyond_others() for span in spans]
    return out + [_pull(base[:, j], [each[j] for each in others]) for j in range(neutral)]


class Span:
    """What some vectors (n, elements) span, through their Gram matrix: n is small, elements may be many."""

    def __init__(self, vectors: torch.Tensor):
        self.vectors = vectors.double()  # also because autocast leaves these alone
        gram = self.vectors @ self.vectors.T
        # a trace of a ridge: prompts that draw the same would make it singular
        ridge = 1e-6 * gram.diagonal().mean().clamp(min=1e-12)
        self.inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))

    def beyond(self, vector: torch.Tensor) -> float:
        """Root mean square of what is left of `vector` (elements,) without its projection onto the span."""
        vector = vector.double()
        along = self.vectors @ vector
        left = vector.square().sum() - along @ self.inverse @ along
        return math.sqrt(max(float(left), 0.0) / len(vector))

    def beyond_others(self) -> list[float]:
        """The same of each of the vectors themselves and the span of the others."""
        # the diagonal of an inverse Gram matrix holds one over the squared distances to the others' span
        return [math.sqrt(1 / max(float(d), 1e-30) / self.vectors.shape[1]) for d in self.inverse.diagonal()]


def _pull(parts: torch.Tensor, beyond: Sequence[float]) -> Pull:
    """From the text-conditional parts (seeds, elements) of one prompt."""
    n, parts = len(parts), parts.double()
    agreement = math.nan
    if n > 1:
        unit = parts / parts.norm(dim=1, keepdim=True).clamp(min=1e-12)
        agreement = float((unit.sum(0).square().sum() - unit.square().sum()) / (n * (n - 1)))
    return Pull(float(parts.square().mean(1).sqrt().mean()), sum(beyond) / n, agreement)


@dataclass(frozen=True)
class Score:
    """One prompt beside neutral ones.

    Attributes:
        pull, beyond: as multiples of the neutral prompts' medians.
        percentile: share of neutral prompts with a smaller `beyond`.
        agreement: see :class:`Pull`.
        verdict: "memorized" (`beyond` is above what 99 % of neutral prompts stay below), "unclear" (above 95 %), "usual".
    """

    pull: float
    beyond: float
    percentile: float
    agreement: float
    verdict: str


def scores(found: Sequence[Pull], neutral: Sequence[Pull]) -> list[Score]:
    """`found` beside the `neutral` prompts (at least 3) of the same model and noises.

    Sizes are judged by their logarithms and by the spread of the larger half: a few flat prompts, such as textures, must not widen it.
    """
    logs = [math.log(max(p.beyond, 1e-12)) for p in neutral]
    sure, likely = (math.exp(upper_bound(logs, share)) for share in (SURE, LIKELY))
    size, beyond = (max(median(values), 1e-12) for values in ([p.size for p in neutral], [p.beyond for p in neutral]))
    out = []
    for p in found:
        verdict = "memorized" if p.beyond > sure else "unclear" if p.beyond > likely else "usual"
        percentile = sum(n.beyond < p.beyond for n in neutral) / len(neutral)
        out.append(Score(p.size / size, p.beyond / beyond, percentile, p.agreement, verdict))
    return out
