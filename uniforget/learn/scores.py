"""Scores without gradients: how much output each unit contributes on neutral prompts, in one pass.

``energy_j = mean(h_j^2) * ||W[:, j]||^2`` is the output energy lost when input j of a Linear goes (Wanda in its structured form);
for heads the same with the head's second-moment matrix. Works on any weights that run, quantized ones included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .. import atomic
from ..errors import LearnError
from ..mask.info import MaskInfo, MaskSet
from ..model.families.schema import KINDS
from ..model.sites import Place, Site
from . import shards
from .model import Model, Progress, Settings
from .teacher import euler

# Shares switched off, by kind: what the paper's weak, medium and strong masks switch off on FLUX.1-schnell (supplement).
PRESETS = {
    "weak": {"ffn": 0.242, "norm": 0.056, "attn": 0.056},
    "medium": {"ffn": 0.350, "norm": 0.123, "attn": 0.123},
    "strong": {"ffn": 0.453, "norm": 0.191, "attn": 0.191},
}


@dataclass
class Statistics:
    """Sums over tokens, prompts and steps; those of several runs on different prompts add up exactly.

    Attributes:
        squares: site name -> float64: (units,) sums of squares, or for heads (units, width, width) sums of products.
        count: site name -> tokens seen.
    """

    squares: dict[str, torch.Tensor]
    count: dict[str, float]

    def __add__(self, other: Statistics) -> Statistics:
        if self.squares.keys() != other.squares.keys():
            raise LearnError("These statistics are of different models or targets, and cannot be added.")
        return Statistics(
            {n: s + other.squares[n] for n, s in self.squares.items()}, {n: c + other.count[n] for n, c in self.count.items()}
        )

    def save(self, path: Path) -> None:
        """Write the sums as safetensors, in one step."""
        counts = {f"{n}#count": torch.tensor([c], dtype=torch.float64) for n, c in self.count.items()}
        atomic.replace_by(path, lambda temporary: save_file({**self.squares, **counts}, temporary))

    @classmethod
    def load(cls, path: Path) -> Statistics:
        """Read what :meth:`save` wrote."""
        found = load_file(path)
        squares = {n: t for n, t in found.items() if not n.endswith("#count")}
        return cls(squares, {n: found[f"{n}#count"].item() for n in squares})


@contextmanager
def _watching(model: Model, into: Statistics) -> Iterator[None]:
    """Within it, every forward pass adds to the statistics."""

    def add(site: Site, place: Place, values: torch.Tensor) -> None:
        values = values.detach().float().reshape(-1, values.shape[-1])
        values = values[:, place.start : place.start + site.units * place.width]
        if place.width > 1:
            grouped = values.view(len(values), site.units, place.width)
            found = torch.einsum("tuw,tuv->uwv", grouped, grouped)
        else:
            found = values.square().sum(0)
            found = torch.cat(found.chunk(2)[::-1]) if place.swapped else found
        into.squares[site.name] += found.double().cpu()
        into.count[site.name] += len(values)

    handles = []
    try:
        for site in model.sites:
            place = site.places[0]
            module = model.modules[place.path]
            if place.axis == "in":
                handles.append(module.register_forward_pre_hook(lambda m, args, s=site, p=place: add(s, p, args[0])))
            else:
                handles.append(module.register_forward_hook(lambda m, args, out, s=site, p=place: add(s, p, out)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def collect(
    model: Model, settings: Settings, report: Callable[[Progress], None] = lambda p: None, rows: Sequence[int] | None = None
) -> Statistics:
    """Sample neutral prompts once with the untouched model, in both guidance branches, and sum up what its sites see.

    Args:
        rows: which trajectories to look at (as :func:`uniforget.learn.teacher.record_teacher` counts them); None: this process'
            share of all.
    """
    noises = settings.noises or 1
    which = [p for _ in range(noises) for p in range(model.prompts)]
    rows = shards.mine(list(range(len(which)))) if rows is None else rows
    out = Statistics(
        {s.name: torch.zeros(_shape(s), dtype=torch.float64) for s in model.sites}, {s.name: 0.0 for s in model.sites}
    )
    with _watching(model, out):
        for start in range(0, len(rows), settings.batch):
            chunk = rows[start : start + settings.batch]
            noise = [model.initial(1, torch.Generator().manual_seed(settings.seed * 1_000_003 + i)) for i in chunk]
            x = torch.cat(noise)
            for k in range(len(model.sigmas) - 1):
                x = euler(model, x, k, [which[i] for i in chunk], settings.cfg)[0]
            report(Progress(min(start + settings.batch, len(rows)), len(rows), 0.0, 0.0, stage="teacher"))
    return out


def _shape(site: Site) -> tuple[int, ...]:
    width = site.places[0].width
    return (site.units, width, width) if width > 1 else (site.units,)


@torch.no_grad()
def columns(module: nn.Module, inputs: int, device: torch.device) -> torch.Tensor:
    """The module's weight (out, inputs) as it computes with it, whatever format it is stored in."""
    weight: Any = getattr(module, "weight", None)
    # With little memory ComfyUI patches a weight whenever it is used.
    stored = type(weight) is nn.Parameter and not getattr(module, "weight_function", None)
    if stored and weight.is_floating_point() and weight.element_size() > 1 and weight.device == device:
        return weight.float()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    zero = module(torch.zeros(1, inputs, device=device, dtype=dtype)).float()
    eye = torch.eye(inputs, device=device, dtype=dtype)
    return torch.cat([module(part).float() - zero for part in eye.split(512)]).T


@torch.no_grad()
def energies(model: Model, statistics: Statistics) -> dict[str, torch.Tensor]:
    """Site name -> float32 (units,) mean output energy that each unit contributes."""
    out = {}
    for site in model.sites:
        mean = statistics.squares[site.name] / max(statistics.count[site.name], 1)
        if site.places[0].axis == "out":
            out[site.name] = mean.float()
            continue
        total = torch.zeros(site.units, dtype=torch.float64)
        for place in site.places:
            weight = columns(model.modules[place.path], place.size, model.sigmas.device).double().cpu()
            weight = weight[:, place.start : place.start + site.units * place.width]
            if place.width > 1:
                grouped = weight.view(len(weight), site.units, place.width)
                total += torch.einsum("ouw,uwv,ouv->u", grouped, mean, grouped)
            else:
                total += mean * weight.square().sum(0)
        out[site.name] = total.float()
    return out


def rank(scores: Mapping[str, torch.Tensor], kinds: Mapping[str, str], shares: Mapping[str, float], info: MaskInfo) -> MaskSet:
    """The hard mask that switches off the lowest scores of each kind: ``shares[kind]`` of its gates, over all its sites together."""
    gates: dict[str, torch.Tensor] = {}
    for kind in KINDS:
        names = [n for n in scores if kinds[n] == kind]
        if not names:
            continue
        flat = torch.cat([scores[n] for n in names])
        off = torch.zeros(len(flat))
        off[flat.argsort(stable=True)[: round(shares.get(kind, 0.0) * len(flat))]] = 1
        gates |= dict(zip(names, (1 - off).split([scores[n].numel() for n in names]), strict=True))
    return MaskSet({n: gates[n].clone() for n in scores}, dict(kinds), info)


def shares_of(settings: Settings, preset: str) -> dict[str, float]:
    """Shares to switch off: `target_sparsity` for every kind, else the preset's."""
    if settings.target_sparsity:
        return dict.fromkeys(KINDS, settings.target_sparsity)
    return PRESETS.get(preset, PRESETS["medium"])


def score(model: Model, settings: Settings, info: MaskInfo, report: Callable[[Progress], None] = lambda p: None) -> MaskSet:
    """A mask from activation energies, in one pass over neutral prompts and without a gradient."""
    found = collect(model, settings, report)
    for name in found.squares:
        shards.total_(found.squares[name])
        found.count[name] = shards.total_(torch.tensor(found.count[name], dtype=torch.float64)).item()
    kinds = {s.name: s.kind for s in model.sites}
    info = replace(info, method="scores", steps=len(model.sigmas) - 1)
    return rank(energies(model, found), kinds, shares_of(settings, info.preset), info)
