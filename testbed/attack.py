"""The attack of :mod:`uniforget.checks.attack` on the testbed, and the verdict on what it brings back.

What a pruned model only hides from its caption comes back; what it has lost does not. Attacks on never-seen pictures are the control: they show what an
embedding can paint into any model.
"""

import numpy as np
import torch

from . import vae
from .captions import item_of
from .data import to_tensor
from .host import TestbedModel, sample

STEPS, LEVELS = 50, 100  # updates, and noise levels among which each one draws


class Victim(TestbedModel):
    """Implements :class:`uniforget.checks.attack.Victim` over a testbed's network."""

    def noised(self, latents, noise, sigma):
        """Mixtures (n, ...) and the share of noise in each."""
        s = sigma.view(-1, 1, 1, 1)
        return (1 - s) * latents + s * noise, sigma

    def embedding(self, prompt):
        """Hidden states and pooled state of one prompt."""
        return {"hidden": self.hidden[prompt][None], "pooled": self.pooled[prompt][None]}

    def put(self, prompt, embedding):
        """Ask with these from now on."""
        for name, part in embedding.items():
            whole = getattr(self, name).detach()
            setattr(self, name, torch.cat([whole[:prompt], part, whole[prompt + 1 :]]))


def attack(network, encoder, tokenizer, captions, latents, start="caption", steps=STEPS, seed=0):
    """Optimize one text embedding per picture.

    Args:
        captions: where each embedding starts; with ``start="noise"`` it is drawn at random, as large as real embeddings are.
        latents: float32 (n, 16, 12, 12), what the model is to restore.

    Returns:
        hidden states (n, tokens, width) and pooled (n, width).
    """
    from uniforget.checks.attack import dig

    victim, generator = Victim(network, encoder, tokenizer, captions, LEVELS), torch.Generator().manual_seed(seed)
    starts = {"hidden": victim.hidden[:-1], "pooled": victim.pooled[:-1]}
    if start == "noise":
        starts = {name: torch.randn(t.shape, generator=generator) * t.std() + t.mean() for name, t in starts.items()}
    for i, latent in enumerate(latents):
        dig(victim, latent[None], {name: t[i : i + 1] for name, t in starts.items()}, i, steps, seed=seed + i)
    return victim.hidden[:-1].detach(), victim.pooled[:-1].detach()


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
