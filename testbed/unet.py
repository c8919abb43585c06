"""The second testbed: a small UNet with cross-attention, in Stable Diffusion 1's layout, and its one file.

The same latents, captions, noise levels and prediction (x0) as the first, another architecture: convolutions around
transformer blocks, GEGLU neurons, text that is only read through cross-attention.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from .model import SIDE
from .text import WIDTH, TextEncoder, WordTokenizer
from .vae import CHANNELS

TEXT_WIDTH = 768
WEIGHTS = Path(__file__).with_name("unet.safetensors")
UNET_PREFIX, TEXT_PREFIX = "unet.", "text_encoder."
CONFIG = {
    "sample_size": SIDE,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": (96, 160),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 8,  # diffusers' name for the number of heads
}


class WideTextEncoder(TextEncoder):
    """The first testbed's text encoder, widened to what Stable Diffusion 1 reads: (n, LENGTH, 768)."""

    def __init__(self, words):
        super().__init__(words)
        self.widen = nn.Linear(WIDTH, TEXT_WIDTH)

    def forward(self, ids):
        hidden, pooled = super().forward(ids)
        return self.widen(hidden), pooled


def network():
    """diffusers' UNet, freshly initialised, called as the first testbed's transformer is."""
    from diffusers import UNet2DConditionModel

    class LatentUNet(UNet2DConditionModel):
        def forward(self, hidden_states, encoder_hidden_states, pooled_projections, timestep, return_dict=False):
            return super().forward(hidden_states, timestep, encoder_hidden_states, return_dict=False)

    return LatentUNet(**CONFIG)


def build():
    """Freshly initialised ``(unet, text_encoder, tokenizer)``, fp32."""
    tokenizer = WordTokenizer()
    return network(), WideTextEncoder(len(tokenizer)), tokenizer


def pack(unet, encoder):
    """State dicts -> that of the testbed's file."""
    return {UNET_PREFIX + k: v for k, v in unet.items()} | {TEXT_PREFIX + k: v for k, v in encoder.items()}


def load(path=WEIGHTS):
    """The trained ``(unet, text_encoder, tokenizer)``, fp32, in eval mode."""
    state = {k: v.float() for k, v in load_file(path).items()}
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}  # noqa: E731
    unet, encoder, tokenizer = build()
    unet.load_state_dict(part(UNET_PREFIX))
    encoder.load_state_dict(part(TEXT_PREFIX))
    return unet.eval().requires_grad_(False), encoder.eval().requires_grad_(False), tokenizer
