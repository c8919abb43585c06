"""Beyond the product: other ways to choose directions, measured beside it. What helps moves into the engine; what does not, stays here.

Each function takes a :class:`bench.forgetting.Bed` and returns an edited copy of its network, with how much was removed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from uniforget.config import PRESETS
from uniforget.learn import learn
from uniforget.learn.subspace import moments as collect
from uniforget.learn.subspace import subspace_of
from uniforget.learn.sums import Sums
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import SubspaceMask
from uniforget.model.sites import Place, Site


class Rotated(nn.Module):
    """A Linear that computes in other coordinates of its input: ``x -> (W U) (U^T x)``."""

    def __init__(self, linear: nn.Linear, vectors: torch.Tensor):
        super().__init__()
        self.vectors = vectors
        self.inner = nn.Linear(vectors.shape[1], linear.out_features, linear.bias is not None)
        self.inner.weight = nn.Parameter(linear.weight.detach() @ vectors, requires_grad=False)
        self.inner.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x @ self.vectors.to(x.dtype))


def moments(bed: Any, seed: int) -> Sums:
    """Second moments of all layers on the bed's neutral prompts."""

    def make() -> Sums:
        model = bed.model()
        return collect(model, model.layers, bed.settings(seed))

    return bed.once(f"moments {seed}", make)


def eigen_gates(bed: Any, preset: str, seed: int = 0) -> tuple[Any, GateMask]:
    """Gates of the paper's objective, on the directions of the neutral second moments instead of on neurons."""
    network = copy.deepcopy(bed.network)
    model = bed.model(network)
    whole = subspace_of(moments(bed, seed), model.layers, 1e-6, MaskInfo(family=model.family.name, base=""))
    paths: dict[str, list[str]] = {}
    for layer in model.layers:
        if layer.name in whole.shared:
            paths.setdefault(whole.shared[layer.name], []).extend(layer.paths)
    model.sites = []
    for name, found in paths.items():
        vectors = whole.bases[name].vectors
        for path in found:
            parent, _, leaf = path.rpartition(".")
            setattr(network.get_submodule(parent), leaf, Rotated(network.get_submodule(path), vectors))
        places = tuple(Place(f"{path}.inner", "in", len(vectors)) for path in found)
        model.sites.append(Site(name, "ffn", len(vectors), places))
    model.modules = dict(network.named_modules())
    info = MaskInfo(family=model.family.name, base="", beta=PRESETS[preset], preset=preset, targets=("ffn",), seed=seed)
    with torch.autocast("cpu", torch.bfloat16):
        mask = learn(model, bed.settings(seed, beta=PRESETS[preset]), info).mask
    out = copy.deepcopy(bed.network)
    for name, found in paths.items():
        kept = whole.bases[name].vectors[:, mask.gates[name] >= 0.5]
        for path in found:
            weight = out.get_submodule(path).weight
            weight.data.copy_((weight.detach() @ kept) @ kept.T)
    return out, mask


def _each(bed: Any, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], seed: int = 0) -> Any:
    """A copy of the network with `change(weight, mean second moments)` for each Linear, both float64."""
    network, found = copy.deepcopy(bed.network), moments(bed, seed)
    for layer in bed.model().layers:
        base = found.shared.get(layer.name)
        if base is not None:
            for path in layer.paths:
                weight = network.get_submodule(path).weight
                weight.data.copy_(change(weight.detach().double(), found.sums[base] / found.counts[base]))
    return network


def output_side(bed: Any, threshold: float) -> tuple[Any, None]:
    """Directions of least energy among the outputs ``W x`` go, not among the inputs (the other factor of Kronecker's curvature)."""

    def change(weight: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        energy, vectors = torch.linalg.eigh(weight @ mean @ weight.T)
        gone = vectors[:, energy.clamp(min=0).cumsum(0) <= threshold * energy.sum()]
        return weight - gone @ (gone.T @ weight)

    return _each(bed, change), None


def shrinkage(bed: Any, threshold: float) -> tuple[Any, None]:
    """No cut: each direction is scaled by ``e / (e + t)``, with t such that `threshold` of the energy is given up on the whole."""

    def change(weight: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        energy, vectors = torch.linalg.eigh(mean)
        energy = energy.clamp(min=0)
        low, high = 0.0, float(energy.max())
        for _ in range(60):
            t = (low + high) / 2
            lost = float((energy * (t / (energy + t + 1e-30)) ** 2).sum() / energy.sum())
            low, high = (t, high) if lost < threshold else (low, t)
        return weight @ (vectors * (energy / (energy + low + 1e-30))) @ vectors.T

    return _each(bed, change), None


def wider(bed: Any, threshold: float, more: int = 400, seed: int = 0) -> tuple[Any, SubspaceMask]:
    """The subspace of more prompts: as many again that string words of the neutral prompts together at random."""
    rng = np.random.default_rng(seed)
    words = sorted({word for prompt in bed.prompts for word in prompt.split()})
    strung = [" ".join(rng.choice(words, 6)) for _ in range(more)]
    model = bed.model(prompts=[*bed.prompts, *strung])
    found = subspace_of(
        collect(model, model.layers, bed.settings(seed)), model.layers, threshold, MaskInfo(family=model.family.name, base="")
    )
    return bed.edited(found), found
