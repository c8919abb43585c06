"""A testbed as a model that UniForget can learn on, through diffusers (no ComfyUI needed)."""

import numpy as np
import torch

from . import model as tb
from . import vae
from .data import to_pixels

STEPS, CFG = 12, 2.0


def sigmas(steps=STEPS, shift=tb.SHIFT):
    """Noise levels 1 ... 0 as ComfyUI's "simple" schedule has them, float32 (steps + 1,)."""
    t = torch.tensor([1000 - int(k * 1000 / steps) for k in range(steps)] + [0]) / 1000
    return shift * t / (1 + (shift - 1) * t)


class TestbedModel:
    """Implements :class:`uniforget.learn.Model` over a testbed's network, in latents.

    Args:
        network, encoder, tokenizer: as :func:`model.load` or :func:`unet.load` give them.
        prompts: what may be asked for by number; -1 is the empty prompt. Some may have answers (:class:`uniforget.prompts.Prompt`).
    """

    def __init__(self, network, encoder, tokenizer, prompts, steps=STEPS, kinds=("ffn", "norm")):
        from uniforget.hosts.diffusers.apply import find_modules, layers_of
        from uniforget.learn.found import lesson

        prompts, self.pairs = lesson(prompts)

        self.network = network
        self.family, sites, self.modules = find_modules(network)
        self.sites = [s for s in sites if s.kind in kinds]
        self.layers = layers_of(network)[1]
        self.sigmas = sigmas(steps)
        self.prompts = len(prompts)
        self.groups = [0] * (len(prompts) + 1)  # all encodings are of one size
        with torch.no_grad():
            self.hidden, self.pooled = tb.encode(encoder, tokenizer, [*prompts, ""])

    def initial(self, count, generator):
        """Noise (count, 16, 12, 12)."""
        return torch.randn(count, vae.CHANNELS, tb.SIDE, tb.SIDE, generator=generator)

    def denoise(self, x, sigma, which):
        """Predicted latents (n, 16, 12, 12)."""
        return self.network(
            hidden_states=x,
            encoder_hidden_states=self.hidden[which],
            pooled_projections=self.pooled[which],
            timestep=sigma * 1000,
            return_dict=False,
        )[0]


@torch.no_grad()
def sample(model, autoencoder, which, seeds, cfg=CFG, batch=64):
    """Euler samples for prompts `which` of a TestbedModel, one per entry with its own seed: uint8 (n, 96, 96, 3)."""
    from uniforget.learn import euler

    out = []
    for start in range(0, len(which), batch):
        chunk = which[start : start + batch]
        x = torch.cat([model.initial(1, torch.Generator().manual_seed(s)) for s in seeds[start : start + batch]])
        for k in range(len(model.sigmas) - 1):
            x = euler(model, x, k, chunk, cfg)[0]
        out.append(to_pixels(autoencoder.decode(x)))
    return np.concatenate(out)


def sampler(network, encoder, tokenizer, autoencoder=None):
    """``sample(captions, seeds) -> uint8 (n, 96, 96, 3)`` over a testbed's network."""
    autoencoder = autoencoder or vae.load()

    def run(captions, seeds):
        unique = list(dict.fromkeys(captions))
        rows = {caption: k for k, caption in enumerate(unique)}
        return sample(TestbedModel(network, encoder, tokenizer, unique), autoencoder, [rows[x] for x in captions], list(seeds))

    return run
