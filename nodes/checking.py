"""What the two checks share: the model after forgetting, conditionings, neutral prompts, and the model's own neutral pictures."""

from weakref import WeakKeyDictionary

import comfy.sample
import comfy.samplers
import comfy.utils
import torch

from ..uniforget import config
from ..uniforget.hosts.comfy.sample import random_state_kept
from ..uniforget.prompts import neutral_prompts
from .apply import forget

# The pictures that a model drew itself, by what they were drawn with. Clones share a model, so its patches are a part of that.
_drawn: WeakKeyDictionary[torch.nn.Module, dict] = WeakKeyDictionary()
MOST_KEPT = 4


def forgotten(model, mask, strength):
    """The model after Apply Memorization Mask; None without a mask."""
    if mask is None:
        return None
    return forget(model, mask, {name: param.default for name, param in config.APPLY.items()} | {"strength": strength})


def neutral(model, count):
    """`count` bundled neutral prompts that fit the model, as varied as so few can be."""
    return getattr(model.model, "neutral_prompts", neutral_prompts)()[:count]


def encoder(clip):
    """``encode(text)`` -> ComfyUI conditioning; the same text is encoded once."""
    kept: dict = {}

    def encode(text):
        if text not in kept:
            kept[text] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return kept[text]

    return encode


def drawn(model, vae, encode, prompts, latent, steps, cfg, seed, report):
    """Pictures (n, height, width, 3) that the model draws for `prompts`, one each, kept for the next run with the same settings.

    Args:
        report: called after each picture.
    """
    options = model.model_options
    plain = not set(options) - {"transformer_options"} and not options.get("transformer_options") and not model.object_patches
    key = (str(model.patches_uuid), tuple(prompts), tuple(latent.shape), steps, cfg, seed)
    kept = _drawn.setdefault(model.model, {})
    if plain and key in kept:
        return kept[key]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    euler, negative, latents = comfy.samplers.sampler_object("euler"), encode(""), []
    for i, prompt in enumerate(prompts):
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed((seed + i) % 2**64))
        with random_state_kept():
            found = comfy.sample.sample_custom(
                model, noise, cfg, euler, sigmas, encode(prompt), negative, latent, disable_pbar=True, seed=seed
            )
        latents.append(found)
        report()
    pictures = vae.decode(torch.cat(latents))
    pictures = pictures.reshape(-1, *pictures.shape[-3:])[..., :3].float().cpu()
    if plain:
        while len(kept) >= MOST_KEPT:
            kept.pop(next(iter(kept)))
        kept[key] = pictures
    return pictures
