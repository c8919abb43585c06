"""What nodes that draw pictures themselves have in common: the stock KSampler's inputs, and decoding."""

import comfy.samplers
import torch
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.errors import SettingError
from ..uniforget.hosts.comfy.sample import Drawing
from .inputs import to_input

CHOICES = {
    "sampler_name": (comfy.samplers.KSampler.SAMPLERS, "euler", "The way from noise to picture. Use what you generate with."),
    "scheduler": (
        comfy.samplers.KSampler.SCHEDULERS,
        "simple",
        "How the noise is taken away over the steps. Use what you generate with.",
    ),
}
NAMES = (*config.SAMPLING, *CHOICES)


def sampler_inputs():
    """The stock KSampler's widgets, in its order."""
    combos = [io.Combo.Input(name, options=list(o), default=default, tooltip=tip) for name, (o, default, tip) in CHOICES.items()]
    seed, steps, cfg, denoise = (to_input(param) for param in config.SAMPLING.values())
    return [seed, steps, cfg, *combos, denoise]


def drawing(values):
    """A :class:`Drawing` of a node's values.

    Raises:
        SettingError: one is out of its range.
    """
    checked = {name: param.check(values[name]) for name, param in config.SAMPLING.items()}
    for name, (options, _, _) in CHOICES.items():
        if values[name] not in options:
            raise SettingError(
                f"Setting {name!r}: expected one of {', '.join(options)}; found {values[name]!r}. Choose one from the list."
            )
    return Drawing(**checked, **{name: values[name] for name in CHOICES})


def strengths(values):
    """The settings of :data:`config.APPLY` among a node's values."""
    return {name: values[name] for name in config.APPLY}


def nothing(conditioning):
    """`conditioning` with all values 0, as the stock ConditioningZeroOut makes it: what "no prompt" is to most models."""
    out = []
    for values, extra in conditioning:
        pooled = extra.get("pooled_output")
        out.append(
            [torch.zeros_like(values), {**extra, **({} if pooled is None else {"pooled_output": torch.zeros_like(pooled)})}]
        )
    return out


def decode(vae, samples):
    """Pictures (n, height, width, channels) of latents, as the stock VAE Decode makes them; the frames of videos one by one."""
    images = vae.decode(samples.unbind()[0] if samples.is_nested else samples)
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images
