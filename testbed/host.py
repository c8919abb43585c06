"""The testbed as a model that UniForget can learn on, through diffusers (no ComfyUI needed)."""

import torch

from . import model as tb
from .data import to_pixels

STEPS, CFG = 12, 3.0


def sigmas(steps=STEPS, shift=tb.SHIFT):
    """Noise levels 1 ... 0 as ComfyUI's "simple" schedule has them, float32 (steps + 1,)."""
    t = torch.tensor([1000 - int(k * 1000 / steps) for k in range(steps)] + [0]) / 1000
    return shift * t / (1 + (shift - 1) * t)


class TestbedModel:
    """Implements :class:`uniforget.learn.Model` over diffusers' transformer.

    Args:
        prompts: what may be asked for by number; -1 is the empty prompt.
    """

    def __init__(self, transformer, encoder, tokenizer, prompts, steps=STEPS, kinds=("ffn", "norm")):
        from uniforget.hosts.diffusers.apply import find_modules, layers_of

        self.transformer = transformer
        self.family, sites, self.modules = find_modules(transformer)
        self.sites = [s for s in sites if s.kind in kinds]
        self.layers = layers_of(transformer)[1]
        self.sigmas = sigmas(steps)
        self.prompts = len(prompts)
        self.groups = [0] * (len(prompts) + 1)  # all encodings are of one size
        with torch.no_grad():
            self.hidden, self.pooled = tb.encode(encoder, tokenizer, [*prompts, ""])

    def initial(self, count, generator):
        """Noise (count, 3, 64, 64)."""
        return torch.randn(count, 3, tb.CANVAS, tb.CANVAS, generator=generator)

    def denoise(self, x, sigma, which):
        """Predicted pictures (n, 3, 64, 64)."""
        return self.transformer(
            hidden_states=x,
            encoder_hidden_states=self.hidden[which],
            pooled_projections=self.pooled[which],
            timestep=sigma * 1000,
            return_dict=False,
        )[0]


@torch.no_grad()
def sample(model, which, seeds, cfg=CFG, batch=64):
    """Euler samples for prompts `which` of a TestbedModel, one per entry with its own seed: uint8 (n, 64, 64, 3)."""
    from uniforget.learn import euler

    out = []
    for start in range(0, len(which), batch):
        chunk = which[start : start + batch]
        x = torch.cat([model.initial(1, torch.Generator().manual_seed(s)) for s in seeds[start : start + batch]])
        for k in range(len(model.sigmas) - 1):
            x = euler(model, x, k, chunk, cfg)[0]
        out.append(to_pixels(x))
    import numpy as np

    return np.concatenate(out)
