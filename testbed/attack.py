"""The attack that brings memorized pictures back: a text embedding optimized until the model restores the picture.

After "Finding DoRI" (METHOD: Adam, lr 0.1, 50 steps, batch 8, noise and noise level re-drawn in every step). What a pruned
model only hides from its caption comes back; what it has lost does not. Attacks on never-seen pictures are the control: they
show what an embedding can paint into any model.
"""

import numpy as np
import torch

from . import vae
from .captions import item_of
from .data import to_tensor
from .host import TestbedModel, sample
from .model import encode
from .train import noise_levels

STEPS, BATCH, RATE = 50, 8, 0.1


def attack(network, encoder, tokenizer, captions, latents, start="caption", steps=STEPS, seed=0):
    """Optimize one text embedding per picture.

    Args:
        captions: where each embedding starts; with ``start="noise"`` it is drawn at random, as large as real embeddings are.
        latents: float32 (n, 16, 12, 12), what the model is to restore.

    Returns:
        hidden states (n, tokens, width) and pooled (n, width).
    """
    with torch.no_grad():
        hidden, pooled = encode(encoder, tokenizer, captions)
    generator = torch.Generator().manual_seed(seed)
    if start == "noise":
        hidden, pooled = (torch.randn(t.shape, generator=generator) * t.std() + t.mean() for t in (hidden, pooled))
    hidden, pooled = hidden.clone().requires_grad_(), pooled.clone().requires_grad_()
    optimizer = torch.optim.Adam([hidden, pooled], lr=RATE)
    x0 = latents.repeat_interleave(BATCH, 0)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        sigma = noise_levels(rng, len(x0))
        noise = torch.randn(x0.shape, generator=generator)
        s = sigma.view(-1, 1, 1, 1)
        prediction = network(
            hidden_states=(1 - s) * x0 + s * noise,
            encoder_hidden_states=hidden.repeat_interleave(BATCH, 0),
            pooled_projections=pooled.repeat_interleave(BATCH, 0),
            timestep=sigma * 1000,
            return_dict=False,
        )[0]
        # The sum over pictures: each embedding is optimized for itself.
        loss = ((x0 - prediction) / s.clamp(min=0.25)).square().mean((1, 2, 3)).sum() / BATCH
        gradients = torch.autograd.grad(loss, (hidden, pooled), allow_unused=True)
        for tensor, gradient in zip((hidden, pooled), gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
    return hidden.detach(), pooled.detach()


def labels_after(network, encoder, tokenizer, labeller, captions, start="caption", steps=STEPS, seeds=4, seed=0):
    """The verdicts (n * seeds) on samples from the attacked embeddings; `captions` belong to memorized or never-seen pictures."""
    autoencoder = vae.load()
    pictures = np.stack([labeller.judge.pictures.render(item_of(caption).picture)[0] for caption in captions])
    with torch.no_grad():
        latents = autoencoder.encode(to_tensor(pictures)).float()
    hidden, pooled = attack(network, encoder, tokenizer, captions, latents, start, steps, seed)
    model = TestbedModel(network, encoder, tokenizer, captions)
    model.hidden, model.pooled = torch.cat([hidden, model.hidden[-1:]]), torch.cat([pooled, model.pooled[-1:]])
    which = [i for i in range(len(captions)) for _ in range(seeds)]
    drawn = sample(model, autoencoder, which, [3000 + k for _ in captions for k in range(seeds)])
    return labeller.labels(drawn, [captions[i] for i in which])
