"""While a model draws: does this prompt pull the picture to one place, as memorized prompts do? Bands from neutral prompts say what is usual.

Three figures are looked at in the first half of sampling, at whatever noise levels the sampler asks:

* how **settled** the prediction is: the size of its detail over how much it moved since the last look, for the change of the noise level. Ours: what a prompt
  means is open at high noise, and takes shape step by step; what is known by heart is there at once and stays.
* the **update**, the size of (x - prediction) / sigma: how far a step moves the latent. After "Broken Memories" (arXiv 2605.22050), which draws stability
  regions from the norms of latent updates; both sides count.
* the **pull**, the size of the text's part of the prediction, as Prompt Check measures it (arXiv 2407.21720). Where a sampler makes no prediction
  without the text (guidance 1), there is no pull.

All are taken from the model's predictions before guidance, so that they do not depend on how strong it is. Ours: logarithms, one band over all noise
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

from ..untrusted import is_number
from .stats import upper_bound

SURE = 0.99  # share of neutral prompts that stay inside
FEWEST = 8  # neutral prompts
LEAST_SPREAD = 0.01  # of logarithms: nothing is steadier than 1 %
LEAST_CHANGE = 1e-3  # of the logarithm of the noise level, for a look to be another step
FIGURES = ("settled", "update", "pull")


def _size(tensor: torch.Tensor) -> torch.Tensor:
    """Logarithm of the root mean square of each of (n, ...)."""
    return tensor.float().flatten(1).square().mean(1).sqrt().clamp(min=1e-12).log()


def _detail(tensor: torch.Tensor) -> torch.Tensor:
    """Without each channel's mean: a plain background in a strong colour is no detail."""
    return tensor - tensor.mean(tuple(range(2, tensor.ndim)) if tensor.ndim > 3 else 1, keepdim=True)


class Eye:
    """Takes the figures of one sampling, look by look."""

    def __init__(self) -> None:
        self.last: tuple[float, torch.Tensor] | None = None

    def look(
        self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor | None
    ) -> dict[str, list[float]]:
        """Logarithms of the figures, for each picture of a batch; what cannot be told at this look is left out.

        Args:
            x: latents (n, ...) as the model sees them; `cond`, `uncond`: its predictions of the clean latent with and without the text.
            sigma: (n,) or one for all.
        """
        at = float(sigma.flatten()[0])
        sizes = {"update": _size((x - cond) / sigma.view(-1, *[1] * (x.ndim - 1)))}
        if uncond is not None:
            sizes["pull"] = _size(cond - uncond)
        change = math.log(self.last[0] / at) if self.last else 0.0
        if self.last and change > LEAST_CHANGE:
            sizes["settled"] = _size(_detail(cond)) - _size(cond - self.last[1]) + math.log(change)
        if not self.last or change > LEAST_CHANGE:
            self.last = at, cond
        return {name: value.tolist() for name, value in sizes.items()}


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
        """How many spreads a figure is away from the middle; of the update on either side, of the others above."""
        z = (value - self._at(self.middle, name, sigma)) / self._at(self.spread, name, sigma)
        return abs(z) if name == "update" else z

    def factor(self, name: str, value: float, sigma: float) -> float:
        """What brings a figure back to the edge of its band; 1 inside of it."""
        middle, reach = self._at(self.middle, name, sigma), self.limit * self._at(self.spread, name, sigma)
        low = middle - reach if name == "update" else -math.inf
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
    if not is_number(value):
        raise ValueError(f"no bands: expected numbers; found {str(value)[:40]}")
    return float(value)


@dataclass
class Recorder:
    """Notes the figures of neutral samplings, and makes bands of them."""

    seen: list[list[tuple[float, dict[str, float]]]] = field(default_factory=list)
    eye: Eye = field(default_factory=Eye)

    def begin(self) -> None:
        """Another sampling begins."""
        self.seen.append([])
        self.eye = Eye()

    def see(self, x: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor | None) -> None:
        """One prediction of a sampling of one picture."""
        found = self.eye.look(x[:1], sigma[:1], cond[:1], None if uncond is None else uncond[:1])
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
        # at the first look nothing can have settled: as at the second one, which makes no difference
        names = [name for name in FIGURES if all(name in found for run in runs for _, found in run[1:] or run)]
        columns = {name: [[run[k if name in run[k][1] else 1][1][name] for run in runs] for k in range(half)] for name in names}
        middle = {name: [fmean(values) for values in column] for name, column in columns.items()}
        spread = {name: [max(LEAST_SPREAD, stdev(values)) for values in column] for name, column in columns.items()}
        bands = Bands(sigmas, middle, spread, 1.0)
        worst = [max(bands.deviation(n, found[n], sigma) for sigma, found in run for n in names if n in found) for run in runs]
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
    eye: Eye = field(default_factory=Eye)

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
        """The prediction that sampling goes on with: `denoised` itself, or with `steer` and on an alarm a copy that is held back: the text's part is
        left out of what settled too early, and the other figures are brought back into their bands.

        Args:
            denoised: what guidance made of the predictions `cond` and `uncond`; see :meth:`Eye.look`.
        """
        at = float(sigma.flatten()[0])
        if not self.bands.watches(at):
            return denoised
        looked = self.eye.look(x, sigma, cond, uncond)
        found = {name: values for name, values in looked.items() if name in self.bands.middle}
        self.worst = self.worst or [0.0] * len(x)
        self.steps += 1
        out = denoised
        for i in range(len(x)):
            deviations = {name: self.bands.deviation(name, values[i], at) for name, values in found.items()}
            self.worst[i] = max(self.worst[i], *(d / self.bands.limit for d in deviations.values()))
            if steer and max(deviations.values()) > self.bands.limit:
                out = out.clone() if out is denoised else out
                if uncond is not None:
                    early = deviations.get("settled", 0.0) > self.bands.limit
                    pull = 0.0 if early else self.bands.factor("pull", found["pull"][i], at) if "pull" in found else 1.0
                    out[i] = uncond[i] + (out[i] - uncond[i]) * pull
                out[i] = x[i] + (out[i] - x[i]) * self.bands.factor("update", found["update"][i], at)
        return out
