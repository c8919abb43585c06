"""Scores without gradients: how much output each unit contributes on neutral prompts, in one pass.

``energy_j = mean(h_j^2) * ||W[:, j]||^2`` is the output energy lost when input j of a Linear goes (Wanda in its structured form);
for heads the same with the head's second-moment matrix. Works on any weights that run, quantized ones included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import METHODS, Settings
from ..mask.info import GateMask, MaskInfo
from ..model.families.schema import KINDS
from ..model.sites import Site
from .model import Model, Progress, Result, Session
from .sums import Sums, Watched, collect


def run(model: Model, settings: Settings, info: MaskInfo, session: Session) -> Result:
    """A mask from activation energies, in one pass over neutral prompts and without a gradient."""
    began = time.monotonic()
    found = energies(model, squares(model, settings, session.report).all_reduce())
    kinds = {s.name: s.kind for s in model.sites}
    # `target_sparsity` of every kind, else the preset's shares.
    shares = METHODS["scores"].amount(info.preset)
    if settings.target_sparsity:
        shares = dict.fromkeys(KINDS, settings.target_sparsity)
    info = replace(info, method="scores", steps=len(model.sigmas) - 1, learn_seconds=round(time.monotonic() - began, 1))
    mask = rank(found, kinds, shares, info)
    return Result(mask, mask)


def squares(
    model: Model,
    settings: Settings,
    report: Callable[[Progress], None] = lambda p: None,
    rows: Sequence[int] | None = None,
    file: Path | None = None,
) -> Sums:
    """Sums of what each site's units see: (units,) squares, or for heads (units, width, width) products."""
    watched = {s.name: Watched(s.places[0].path, s.places[0].axis, _product(s)) for s in model.sites}
    return collect(model, watched, settings, report, rows, file)


def _product(site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
    place = site.places[0]

    def product(values: torch.Tensor) -> torch.Tensor:
        values = values[:, place.start : place.start + site.units * place.width]
        if place.width > 1:
            grouped = values.view(len(values), site.units, place.width)
            return torch.einsum("tuw,tuv->uwv", grouped, grouped)
        found = values.square().sum(0)
        return torch.cat(found.chunk(2)[::-1]) if place.swapped else found

    return product


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
def energies(model: Model, found: Sums) -> dict[str, torch.Tensor]:
    """Site name -> float32 (units,) mean output energy that each unit contributes."""
    out = {}
    for site in model.sites:
        mean = found.sums[site.name] / max(found.counts[site.name], 1)
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


def rank(scores: Mapping[str, torch.Tensor], kinds: Mapping[str, str], shares: Mapping[str, float], info: MaskInfo) -> GateMask:
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
    return GateMask({n: gates[n].clone() for n in scores}, dict(kinds), info)
