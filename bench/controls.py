"""What forgetting is compared with, at equal sparsity of each kind: other ways of choosing what to switch off.

None of these belongs to the product. Scores are per site, float32 (units,); the lowest are switched off. METHOD and the papers
name them: magnitude, activation energy (Wanda, arXiv 2306.11695, in its structured form), OBS (SparseGPT, arXiv 2301.00774, in its structured
form), and Fisher (Gauss-Newton, of the output).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uniforget.learn import Settings, scores
from uniforget.learn.model import Model, euler
from uniforget.learn.subspace import moments as collect
from uniforget.learn.sums import Sums
from uniforget.mask.gates import gated
from uniforget.mask.info import GateMask, MaskInfo

NAMES = ("random", "Fisher", "activation energy", "magnitude", "OBS")


def scored(name: str, model: Model, settings: Settings) -> dict[str, torch.Tensor]:
    """Scores by one of ``NAMES``: the lowest are switched off."""
    return {
        "random": lambda: random(model, settings.seed),
        "Fisher": lambda: fisher(model, settings),
        "activation energy": lambda: energy(model, settings),
        "magnitude": lambda: magnitude(model),
        "OBS": lambda: energy(model, settings) | obs(model, neurons(model, settings)),
    }[name]()


def info_of(model, method: str, seed: int) -> MaskInfo:
    """Where a control's mask came from."""
    return MaskInfo(family=model.family.name, base="", method=method, seed=seed)


def shares(mask: GateMask, scale: float = 1.0) -> dict[str, float]:
    """Shares that `mask` switches off, per kind, times `scale`."""
    return {kind: share * scale for kind, share in mask.sparsity().items() if kind != "all"}


def ranked(model, found: Mapping[str, torch.Tensor], wanted: Mapping[str, float], method: str, seed: int = 0) -> GateMask:
    """The hard mask that switches off the lowest scores of each kind."""
    kinds = {s.name: s.kind for s in model.sites}
    return scores.rank(found, kinds, wanted, info_of(model, method, seed))


def random(model, seed: int) -> dict[str, torch.Tensor]:
    """A seeded permutation."""
    generator = torch.Generator().manual_seed(seed)
    return {s.name: torch.rand(s.units, generator=generator) for s in model.sites}


def magnitude(model) -> dict[str, torch.Tensor]:
    """Norm of what a gate scales in the weights."""
    out = {}
    for site in model.sites:
        total = torch.zeros(site.units)
        for place in site.places:
            weight = model.modules[place.path].get_parameter("weight").detach()
            rows = weight if place.axis == "out" else weight.T
            squares = rows.reshape(len(rows), -1).square().sum(1)[place.start : place.start + site.units * place.width]
            squares = squares.view(site.units, place.width).sum(1)
            total += torch.cat(squares.chunk(2)[::-1]) if place.swapped else squares
        out[site.name] = total.sqrt()
    return out


def energy(model: Model, settings: Settings) -> dict[str, torch.Tensor]:
    """Mean output energy on neutral prompts (the product's own "scores")."""
    return scores.energies(model, scores.squares(model, settings))


def fisher(model: Model, settings: Settings, draws: int = 32) -> dict[str, torch.Tensor]:
    """Mean squared sensitivity of the guided prediction to each gate: the diagonal of the Gauss-Newton matrix.

    Random signs make the cross terms of a batch vanish on average (Hutchinson).
    """
    generator = torch.Generator().manual_seed(settings.seed)
    factors = {s.name: torch.ones(s.units) for s in model.sites}
    total = {s.name: torch.zeros(s.units) for s in model.sites}
    which = torch.randperm(model.prompts, generator=generator).tolist()
    with gated(model.modules, model.sites) as install:
        for draw in range(draws):
            rows = [which[(draw * settings.batch + i) % len(which)] for i in range(settings.batch)]
            x = model.initial(len(rows), generator)
            with torch.no_grad():
                stop = draw % (len(model.sigmas) - 1)
                for k in range(stop):
                    x = euler(model, x, k, rows, settings.cfg)[0]
            for name in factors:
                factors[name] = torch.ones_like(factors[name]).requires_grad_()
            install(factors)
            prediction = model.denoise(torch.cat([x, x]), model.sigmas[stop].expand(2 * len(x)), rows + [-1] * len(x))
            signs = torch.randint(0, 2, prediction.shape, generator=generator) * 2.0 - 1
            found = torch.autograd.grad((prediction * signs).sum(), list(factors.values()), allow_unused=True)
            for name, gradient in zip(factors, found, strict=True):
                if gradient is not None:
                    total[name] += gradient.detach().square()
    return total


def neurons(model: Model, settings: Settings) -> Sums:
    """Second moments of what the down projections of `model`'s ffn sites read."""
    paths = {s.places[0].path for s in model.sites if s.kind == "ffn"}
    return collect(model, [layer for layer in model.layers if layer.paths[0] in paths], settings)


def obs(model, moments: Sums, damping: float = 0.01) -> dict[str, torch.Tensor]:
    """Optimal brain surgeon's loss of each neuron when the other columns make up for it: ``||W_j||^2 / [H^-1]_jj``."""
    out = {}
    for site in model.sites:
        if site.kind == "ffn":
            weight = model.modules[site.places[0].path].get_parameter("weight").detach().double()
            out[site.name] = (weight.square().sum(0) / _inverse(moments, site.name, damping).diagonal()).float()
    return out


def _inverse(moments: Sums, name: str, damping: float) -> torch.Tensor:
    mean = moments.sums[name] / moments.counts[name]
    return torch.linalg.inv(mean + damping * mean.diagonal().mean() * torch.eye(len(mean), dtype=mean.dtype))
