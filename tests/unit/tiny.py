"""A tiny random SD3 on the CPU, as a model that masks can be learned on."""

import torch
from diffusers import SD3Transformer2DModel

from uniforget.hosts.diffusers.apply import find_modules
from uniforget.mask.info import GateMask, MaskInfo


def tiny_transformer(seed=0):
    """hidden 128, 2 blocks (the second's context stream is the short one), 16x16 pixels, fp32."""
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        sample_size=16, patch_size=4, in_channels=3, out_channels=3, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        caption_projection_dim=128, joint_attention_dim=32, pooled_projection_dim=32, pos_embed_max_size=4, qk_norm="rms_norm",
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.08) if parameter.ndim > 1 else parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


class TinyModel:
    """Implements uniforget.learn.Model over a tiny transformer."""

    def __init__(self, kinds=("ffn", "norm"), prompts=6, steps=3, seed=0):
        self.transformer = tiny_transformer(seed)
        self.family, sites, self.modules = find_modules(self.transformer)
        self.sites = [s for s in sites if s.kind in kinds]
        self.sigmas = torch.linspace(1, 0, steps + 1)
        self.prompts = prompts
        self.groups = [0] * (prompts + 1)
        generator = torch.Generator().manual_seed(1)
        self.hidden = torch.randn(prompts + 1, 5, 32, generator=generator)
        self.pooled = torch.randn(prompts + 1, 32, generator=generator)

    def initial(self, count, generator):
        return torch.randn(count, 3, 16, 16, generator=generator)

    def denoise(self, x, sigma, which):
        velocity = self.transformer(
            hidden_states=x,
            encoder_hidden_states=self.hidden[which],
            pooled_projections=self.pooled[which],
            timestep=sigma * 1000,
            return_dict=False,
        )[0]
        return x - velocity * sigma.view(-1, 1, 1, 1)


def info(**changes):
    return MaskInfo(**{"family": "sd3", "base": "", "method": "test", "beta": 1.0, "preset": "custom", **changes})


def random_mask(model, seed=0, hard=True):
    generator = torch.Generator().manual_seed(seed)
    gates = {}
    for site in model.sites:
        values = torch.rand(site.units, generator=generator)
        gates[site.name] = (values > 0.4).float() if hard else values
    return GateMask(gates, {s.name: s.kind for s in model.sites}, info())
