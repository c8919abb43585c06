"""Networks with random weights as :class:`uniforget.learn.Model`: what learning is timed on."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from uniforget.hosts.diffusers.apply import find_modules
from uniforget.learn.model import fetch

# Takes a network, latents (n, ...), noise levels (n,) and what is given for the prompts; answers with the velocity.
Call = Callable[[nn.Module, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


class RandomModel:
    """A network that predicts velocities, and random encodings of some prompts, which wait in main memory as the hosts' do.

    Args:
        shape: of one latent; ``conditions``: name -> (prompts + 1, ...), the negative prompt's last.
    """

    def __init__(
        self, network: nn.Module, call: Call, shape: tuple[int, ...], conditions: dict[str, torch.Tensor], steps: int,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        self.network, self.call, self.shape, self.conditions = network.eval().requires_grad_(False), call, shape, conditions
        self.family, sites, self.modules = find_modules(network)
        self.sites = [s for s in sites if s.kind in ("ffn", "norm")]
        self.layers: list[Any] = []
        self.device, self.dtype = torch.device(device), dtype
        self.sigmas = torch.linspace(1, 0, steps + 1, device=self.device)
        self.prompts = len(next(iter(conditions.values()))) - 1
        self.groups = [0] * (self.prompts + 1)

    def initial(self, count: int, generator: torch.Generator) -> torch.Tensor:
        return fetch(torch.randn(count, *self.shape, generator=generator), self.device)

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        given = {name: fetch(value[which], self.device) for name, value in self.conditions.items()}
        velocity = self.call(self.network, x.to(self.dtype), sigma, given).float()
        return x - velocity * sigma.view(-1, *[1] * (x.ndim - 1))


def unet(network: nn.Module, x: torch.Tensor, sigma: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given} or None
    return network(sample=x, timestep=1000 * sigma, added_cond_kwargs=added, return_dict=False, **given)[0]


def flux(side: int, text: int, device: torch.device | str = "cpu") -> Call:
    """For `side` x `side` tokens of a picture and `text` of a prompt, whose positions stay on the device."""
    rows, columns = torch.meshgrid(torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    picture = torch.stack([torch.zeros(side**2), rows.flatten(), columns.flatten()], 1).to(device)
    words = torch.zeros(text, 3, device=device)

    def call(network: nn.Module, x: torch.Tensor, sigma: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
        return network(hidden_states=x, timestep=sigma, img_ids=picture, txt_ids=words, return_dict=False, **given)[0]

    return call


def z_image(network: nn.Module, x: torch.Tensor, sigma: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return -torch.stack(network(x=list(x), t=1 - sigma, cap_feats=list(given["cap_feats"]), return_dict=False)[0])


@dataclass(frozen=True)
class Kind:
    """A published model: its name among the tests' architectures, the guidance to learn with, and how many tokens a prompt has."""

    name: str
    cfg: float
    text: int


KINDS = {
    "sd15": Kind("sd1", 3.0, 77),
    "sdxl": Kind("sdxl", 3.0, 77),
    "flux": Kind("flux_dev", 1.0, 512),
    "z_image": Kind("z_image", 3.0, 128),
}


def published(
    kind: str, weights: str, pixels: int, steps: int, device: torch.device | str, tiny: bool = False, prompts: int = 16
) -> RandomModel:
    """A published architecture at its real size, or a tiny one like it.

    Args:
        weights: "bf16", or "fp8": those of blocks are stored as float8_e4m3fn and cast to bf16 where they are used, as ComfyUI does.
    """
    from tests.unit.diffusers_zoo import VARIANTS

    variant, about, side = VARIANTS[KINDS[kind].name], KINDS[kind], pixels // 8
    with torch.device("meta"):
        network = variant.kind(**(variant.small if tiny else variant.real))
    materialize_(network, weights, device)
    config, g = network.config, torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(prompts + 1, *shape, generator=g).bfloat16()  # noqa: E731
    text = 8 if tiny else about.text
    call: Call = unet
    if kind == "flux":
        call, shape = flux(side // 2, text, device), ((side // 2) ** 2, config.in_channels)
        given = {
            "encoder_hidden_states": draw(text, config.joint_attention_dim),
            "pooled_projections": draw(config.pooled_projection_dim),
        }
        given["guidance"] = torch.full((prompts + 1,), 3.5)
    elif kind == "z_image":
        call, shape, given = z_image, (16, 1, side, side), {"cap_feats": draw(text, config.cap_feat_dim)}
    else:
        shape, given = (4, side, side), {"encoder_hidden_states": draw(text, config.cross_attention_dim)}
        if config.addition_embed_type:
            given |= {"text_embeds": draw(1280), "time_ids": torch.full((prompts + 1, 6), float(pixels))}
    return RandomModel(network, call, shape, given, steps, device, torch.bfloat16)


@torch.no_grad()
def materialize_(network: nn.Module, weights: str, device: torch.device | str) -> None:
    """Random weights for a network on the meta device, one at a time, so that no more than the finished network is ever in memory."""
    if left := [name for name, buffer in network.named_buffers() if buffer.is_meta]:
        raise ValueError(f"Expected a network without buffers, as random ones would be wrong; found {', '.join(left)}.")
    generator = torch.Generator(device).manual_seed(0)
    for path, module in network.named_modules():
        small = weights == "fp8" and re.search(r"\.\d+\.", path) and type(module) in _STORED
        for name, empty in module._parameters.items():
            if empty is None:
                continue
            if empty.ndim > 1:
                value = torch.randn(empty.shape, generator=generator, device=device, dtype=torch.bfloat16)
                value *= empty[0].numel() ** -0.5
                value = value.to(torch.float8_e4m3fn) if small else value
            else:
                value = torch.full(empty.shape, float(name == "weight"), device=device, dtype=torch.bfloat16)
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        if small:
            module.__class__ = _STORED[type(module)]


class _Linear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.to(x.dtype), self.bias)


class _Conv2d(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), self.bias)


_STORED: dict[type, type] = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}
