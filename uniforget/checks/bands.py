"""While a model draws: does this prompt pull the picture to one place, as memorized prompts do? Bands from neutral prompts say what is usual.

Two figures are looked at in the first half of sampling, at whatever noise levels the sampler asks:

* the **update**, the size of (x - prediction) / sigma: how far a step moves the latent. After "Broken Memories" (arXiv 2605.22050), which draws stability
  regions from the norms of latent updates; both sides count.
* the **pull**, the size of the text's part of the prediction, as Prompt Check measures it (arXiv 2407.21720). Where a sampler makes no prediction
  without the text (guidance 1), the update alone counts.

Both are taken from the model's predictions before guidance, so that they do not depend on how strong it is. Ours: logarithms, one band over all noise
levels, and one bound on the largest deviation of a whole sampling, so that looking at several steps raises no more false alarms than looking at one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from .stats import upper_bound

SURE = 0.99  # share of neutral prompts that stay inside
FEWEST = 8  # neutral prompts
LEAST_SPREAD = 0.01  # of logarithms: nothing is steadier than 1 %
FIGURES = ("update", "pull")


def figures(x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor | None) -> dict[str, list[float]]:
    """Logarithms of both figures, for each picture of a batch.

    Args:
        x: latents (n, ...) as the model sees them; `cond`, `uncond`: its predictions of the clean latent with and without the text.
        sigma: (n,) or one for all.
    """
    sizes = {"update": (x - cond) / sigma.view(-1, *[1] * (x.ndim - 1))}
    if uncond is not None:
        sizes["pull"] = cond - uncond
    return {
        name: value.float().flatten(1).square().mean(1).sqrt().clamp(min=1e-12).log().tolist() for name, value in sizes.items()
    }


@dataclass(frozen=True)
class Bands:
    """What is usual for one model.

    Attributes:
        sigmas: the noise levels that were looked at, descending; nothing is said below the last one.
        middle, spread: for each figure, its mean and standard deviation over neutral prompts at each of `sigmas`.
        limit: the most spreads that 99 % of neutral samplings ever are away from the middle.
    """

    sigmas: Sequence[float]
    middle: Mapping[str, Sequence[float]]
    spread: Mapping[str, Sequence[float]]
    limit: float

    def _at(self, table: Mapping[str, Sequence[float]], name: str, sigma: float) -> float:
        logs = [math.log(s) for s in reversed(self.sigmas)]
        return float(np.interp(math.log(sigma), logs, list(reversed(table[name]))))

    def watches(self, sigma: float) -> bool:
        """Whether something can be said at this noise level."""
        return sigma >= self.sigmas[-1] * (1 - 1e-6)

    def deviation(self, name: str, value: float, sigma: float) -> float:
        """How many spreads a figure is away from the middle; a pull below it is none."""
        z = (value - self._at(self.middle, name, sigma)) / self._at(self.spread, name, sigma)
        return z if name == "pull" else abs(z)

    def factor(self, name: str, value: float, sigma: float) -> float:
        """What brings a figure back to the edge of its band; 1 inside of it."""
        middle, reach = self._at(self.middle, name, sigma), self.limit * self._at(self.spread, name, sigma)
        low = -math.inf if name == "pull" else middle - reach
        return math.exp(min(max(value, low), middle + reach) - value)

    def as_dict(self) -> dict[str, Any]:
        """What files hold."""
        tables = {
            name: {key: [*values] for key, values in table.items()}
            for name, table in (("middle", self.middle), ("spread", self.spread))
        }
        return {"sigmas": [*self.sigmas], **tables, "limit": self.limit}

    @classmethod
    def from_dict(cls, found: Any) -> Bands:
        """The inverse of :meth:`as_dict`.

        Raises:
            ValueError: it is something else.
        """
        try:
            sigmas = [_number(v) for v in found["sigmas"]]
            tables = {t: {k: [_number(v) for v in found[t][k]] for k in FIGURES if k in found[t]} for t in ("middle", "spread")}
            limit = _number(found["limit"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no bands: {error}") from error
        whole = all(len(values) == len(sigmas) for table in tables.values() for values in table.values())
        ordered = all(a > b > 0 for a, b in itertools.pairwise(sigmas)) and bool(sigmas)
        if not whole or not ordered or "update" not in tables["middle"] or tables["middle"].keys() != tables["spread"].keys():
            raise ValueError("no bands: their parts do not fit together")
        if limit <= 0 or any(v <= 0 for values in tables["spread"].values() for v in values):
            raise ValueError("no bands: a width is not positive")
        return cls(sigmas, tables["middle"], tables["spread"], limit)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"no bands: expected numbers; found {str(value)[:40]}")
    return float(value)


@dataclass
class Recorder:
    """Notes the figures of neutral samplings, and makes bands of them."""

    seen: list[list[tuple[float, dict[str, float]]]] = field(default_factory=list)

    def begin(self) -> None:
        """Another sampling begins."""
        self.seen.append([])

    def see(self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor | None) -> None:
        """One prediction of a sampling of one picture."""
        found = figures(x[:1], sigma[:1], cond[:1], None if uncond is None else uncond[:1])
        self.seen[-1].append((float(sigma[0]), {name: values[0] for name, values in found.items()}))

    def bands(self) -> Bands:
        """Of the first half of each sampling; all must have asked for the same noise levels.

        Raises:
            ValueError: there are too few, or they differ.
        """
        if len(self.seen) < FEWEST:
            raise ValueError(f"expected at least {FEWEST} neutral samplings; found {len(self.seen)}")
        half = max(1, len(self.seen[0]) // 2)
        runs = [run[:half] for run in self.seen]
        sigmas = [sigma for sigma, _ in runs[0]]
        if any([sigma for sigma, _ in run] != sigmas for run in runs):
            raise ValueError("neutral samplings asked for different noise levels")
        names = [name for name in FIGURES if all(name in found for run in runs for _, found in run)]
        columns = {name: [[run[k][1][name] for run in runs] for k in range(half)] for name in names}
        middle = {name: [fmean(values) for values in column] for name, column in columns.items()}
        spread = {name: [max(LEAST_SPREAD, stdev(values)) for values in column] for name, column in columns.items()}
        bands = Bands(sigmas, middle, spread, 1.0)
        worst = [max(bands.deviation(name, found[name], sigma) for sigma, found in run for name in names) for run in runs]
        return Bands(sigmas, middle, spread, max(1.0, upper_bound(worst, SURE)))


@dataclass
class Watch:
    """Looks at one sampling, of a batch of pictures.

    Attributes:
        worst: for each picture, the most spreads that it was outside of its middle so far, relative to the limit: above 1 is an alarm.
        steps: predictions that were looked at.
    """

    bands: Bands
    worst: list[float] = field(default_factory=list)
    steps: int = 0

    @property
    def alarms(self) -> list[int]:
        """Which pictures of the batch are not usual."""
        return [i for i, value in enumerate(self.worst) if value > 1]

    def see(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor,
        denoised: torch.Tensor,
        cond: torch.Tensor,
        uncond: torch.Tensor | None,
        steer: bool,
    ) -> torch.Tensor:
        """The prediction that sampling goes on with: `denoised` itself, or with `steer` and on an alarm a copy whose figures are in their bands.

        Args:
            denoised: what guidance made of the predictions `cond` and `uncond`; see :func:`figures`.
        """
        at = float(sigma.flatten()[0])
        if not self.bands.watches(at):
            return denoised
        found = {name: values for name, values in figures(x, sigma, cond, uncond).items() if name in self.bands.middle}
        self.worst = self.worst or [0.0] * len(x)
        self.steps += 1
        out = denoised
        for i in range(len(x)):
            deviations = [self.bands.deviation(name, values[i], at) for name, values in found.items()]
            self.worst[i] = max(self.worst[i], *(d / self.bands.limit for d in deviations))
            if steer and max(deviations) > self.bands.limit:
                out = out.clone() if out is denoised else out
                factors = {name: self.bands.factor(name, values[i], at) for name, values in found.items()}
                if uncond is not None:
                    out[i] = uncond[i] + (out[i] - uncond[i]) * factors.get("pull", 1.0)
                out[i] = x[i] + (out[i] - x[i]) * factors["update"]
        return out
