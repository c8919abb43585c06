"""Published models by shape alone: what estimates are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import LearnError
from ...learn.footprint import on_meta


@dataclass(frozen=True)
class Published:
    """A published model: diffusers' class and settings, and what it is called with.

    Attributes:
        cfg: the guidance that it is used with; 1 where guidance is an input or none.
        latent: shape of a latent for a picture's width and height, without the batch.
        call: prediction for a network, latents (n, ...) and n.
    """

    title: str
    kind: str
    config: dict[str, Any]
    cfg: float
    latent: Callable[[int, int], tuple[int, ...]]
    call: Callable[[Any, torch.Tensor], torch.Tensor]

    def build(self) -> nn.Module:
        """The denoiser in bf16 on the meta device.

        Raises:
            LearnError: diffusers is not installed.
        """
        try:
            import diffusers
        except ModuleNotFoundError as error:
            raise LearnError("Estimating needs the package diffusers. Run: pip install diffusers") from error
        with on_meta(torch.bfloat16):
            return getattr(diffusers, self.kind)(**self.config).eval().requires_grad_(False)


def empty(*shape: int) -> torch.Tensor:
    """A bf16 tensor without values."""
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def _unet(network: Any, x: torch.Tensor) -> torch.Tensor:
    n, width = len(x), network.config.cross_attention_dim
    more = {"added_cond_kwargs": {"text_embeds": empty(n, 1280), "time_ids": empty(n, 6)}} if width == 2048 else {}
    return network(sample=x, timestep=empty(n), encoder_hidden_states=empty(n, 77, width), return_dict=False, **more)[0]


def _flux(network: Any, x: torch.Tensor) -> torch.Tensor:
    n, text = len(x), 512
    given = {"encoder_hidden_states": empty(n, text, 4096), "pooled_projections": empty(n, 768), "timestep": empty(n)}
    given |= {"img_ids": empty(x.shape[1], 3), "txt_ids": empty(text, 3), "guidance": empty(n)}
    return network(hidden_states=x, return_dict=False, **given)[0]


def _pixels(channels: int) -> Callable[[int, int], tuple[int, ...]]:
    return lambda width, height: (channels, height // 8, width // 8)


MODELS = {
    "sd1": Published("Stable Diffusion 1.5", "UNet2DConditionModel", {"cross_attention_dim": 768}, 3.0, _pixels(4), _unet),
    "sdxl": Published(
        "SDXL base",
        "UNet2DConditionModel",
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        3.0,
        _pixels(4),
        _unet,
    ),
    "flux": Published(
        "FLUX.1-dev",
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        1.0,
        lambda width, height: (math.ceil(width / 16) * math.ceil(height / 16), 64),
        _flux,
    ),
}
