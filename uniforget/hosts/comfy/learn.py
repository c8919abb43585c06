"""ComfyUI: learn inside its sampling machinery, where a model is loaded, patched and on its device.

Works on 0.3.75 and later. Nothing here touches a model in place except :func:`_thaw`, which swaps inference tensors for
ordinary ones of the same values so that gradients can pass through.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import comfy.latent_formats
import comfy.model_management
import comfy.quant_ops
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import nn

from ...config import Settings
from ...errors import SettingError
from ...learn.found import lesson
from ...learn.inplace import OutOfPlace
from ...learn.model import by_group, fetch, grouped
from ...learn.spill import Spill
from ...model.layers import find_layers
from ...model.names import modules_of, weights_of
from ...model.sites import Site

T = TypeVar("T")
# What text encoders make of a prompt, as ComfyUI's models are handed it: tokens, and a vector that stands for all of it.
_TEXT = ("c_crossattn", "y")

# Pixels per latent, where ComfyUI before 0.4 has not written it down.
_SHRINK = {comfy.latent_formats.ChromaRadiance: 1, comfy.latent_formats.HunyuanImage21: 32}


@dataclass(frozen=True)
class Lesson:
    """What to learn on.

    Attributes:
        positive: one conditioning per prompt; ``negative``: one conditioning; ``pairs``: see :func:`uniforget.learn.found.lesson`.
        latent: empty latent (1, ...) of the picture size.
        sigmas: the sampling steps, descending to 0.
    """

    positive: list
    negative: Any
    latent: torch.Tensor
    sigmas: torch.Tensor
    pairs: Sequence[tuple[int, int]] = ()


def prepare(patcher, clip, prompts: list[str], settings: Settings, folder: Path) -> Lesson:
    """Encode the prompts and the empty one; encodings that are too many for memory go to `folder`.

    Prompts are encoded one at a time: they run through the text encoder once, and ComfyUI schedules each by itself.
    """
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    store = Spill(folder)
    negative = encode("")
    texts, pairs = lesson(prompts)
    positive = [store.keep(encode(text)) for text in texts]
    latent = empty_latent(patcher, settings.width, settings.height)
    # Only what is learned on stays on the device.
    comfy.model_management.unload_all_models()
    sampling = patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", settings.sampling_steps)
    return Lesson(positive, negative, latent, sigmas, pairs)


def empty_latent(patcher, width: int, height: int) -> torch.Tensor:
    """Empty latent (1, channels, h, w) that the model takes for pictures of this size.

    Raises:
        SettingError: it takes no pictures of this size.
    """
    canvas = getattr(patcher.model, "canvas", None)
    if canvas and (width, height) != (canvas, canvas):
        raise SettingError(
            f"width and height: this model draws {canvas} x {canvas} pictures only; found {width} x {height}. Set both to {canvas}."
        )
    form = patcher.get_model_object("latent_format")
    shrink = getattr(form, "spacial_downscale_ratio", None) or _SHRINK.get(type(form), 8)
    if width % shrink or height % shrink:
        raise SettingError(f"width and height: expected multiples of {shrink} for this model; found {width} x {height}.")
    latent = torch.zeros(1, form.latent_channels, height // shrink, width // shrink)
    return comfy.sample.fix_empty_latent_channels(patcher, latent)


def _thaw(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Replace inference-mode parameters and buffers by ordinary copies, one module at a time so that memory stays flat.

    ComfyUI loads models under ``torch.inference_mode()``; autograd refuses such tensors, and only replacing them helps.

    Returns:
        those replaced whose tensors are of a class of their own, for :func:`_refreeze`.
    """
    own = []
    with torch.inference_mode(False):
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None and parameter.is_inference():
                    if type(parameter.data) is not torch.Tensor:
                        own.append((part, name))
                    part._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = buffer.clone()
    return own


def _refreeze(thawed: Iterable[tuple[nn.Module, str]]) -> None:
    """Turn weights that :func:`_thaw` named back into inference tensors, as ComfyUI loaded them.

    ComfyUI lists a model's weights under ``torch.inference_mode()``, where ordinary tensors of classes of their own (mixed fp8)
    cannot be detached.
    """
    with torch.inference_mode():
        for part, name in thawed:
            part._parameters[name] = nn.Parameter(part.get_parameter(name).clone(), requires_grad=False)


def _thawed(value):
    """Clone inference tensors inside a condition's value (tensor, list of tensors or anything else)."""
    if torch.is_tensor(value):
        return value.clone() if value.is_inference() else value
    if isinstance(value, list):
        return [_thawed(v) for v in value]
    return value


class _Plain:
    """comfy-kitchen with the plain code of its operations on positions: the fused ones pass no gradients on."""

    def __init__(self, kitchen: Any):
        self._kitchen = kitchen
        self._rope = importlib.import_module("comfy_kitchen.backends.eager.rope")

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._rope, name, None) if "rope" in name else None
        return getattr(self._kitchen, name) if found is None else found


@contextmanager
def plain_kitchen() -> Iterator[None]:
    """Within it, models compute with nothing of comfy-kitchen that has no gradient; versions without it stay as they are."""
    kitchen = getattr(comfy.quant_ops, "ck", None)
    if kitchen is None:
        yield
        return
    comfy.quant_ops.ck = _Plain(kitchen)
    try:
        yield
    finally:
        comfy.quant_ops.ck = kitchen


@contextmanager
def differentiable() -> Iterator[OutOfPlace]:
    """Within it, ComfyUI's models can be differentiated with respect to gates and latents."""
    management = comfy.model_management
    # Newer versions pick differentiable code paths by this flag.
    had = getattr(management, "in_training", None)
    if had is not None:
        management.in_training = True
    try:
        with plain_kitchen(), OutOfPlace() as mode:
            yield mode
    finally:
        if had is not None:
            management.in_training = had


class _Loaded:
    """A loaded ComfyUI model as :class:`uniforget.learn.Model`."""

    def __init__(self, guider, sites: list[Site], sigmas: torch.Tensor, latent: torch.Tensor, lesson: Lesson, model_options):
        self.model = guider.inner_model
        self.sites = sites
        self.layers = find_layers({n: tuple(p.shape) for n, p in weights_of(self.model.diffusion_model).items()})[1]
        self.modules = modules_of(self.model.diffusion_model)
        self.sigmas = sigmas.detach().clone().float()
        self.prompts, self.pairs = len(lesson.positive), lesson.pairs
        self.latent = latent[:1].detach().clone()
        self.options = dict(model_options.get("transformer_options", {}))
        positive = [self._conditions(c) for c in guider.conds["positive"]]
        self.conditions = [*positive, self._conditions(guider.conds["negative"][0])]
        self.groups: Sequence[int] = grouped(
            self.conditions, lambda a, b: a.keys() == b.keys() and all(v.can_concat(b[n]) for n, v in a.items())
        )

    @staticmethod
    def _conditions(cond):
        out = {}
        for name, value in cond["model_conds"].items():
            out[name] = value.process_cond(batch_size=1, area=None)
            out[name].cond = _thawed(out[name].cond)
        return out

    def initial(self, count: int, generator: torch.Generator) -> torch.Tensor:
        shape = (count, *self.latent.shape[1:])
        noise = fetch(torch.randn(shape, generator=generator), self.sigmas.device)
        latent = self.latent.expand(shape)
        return self.model.model_sampling.noise_scaling(self.sigmas[0], noise, latent, True)

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return by_group(self.groups, self._denoise, x, sigma, which)

    def _denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        first, *others = (self.conditions[i] for i in which)
        inputs = {name: value.concat([o[name] for o in others]) for name, value in first.items()}
        options = {**self.options, "cond_or_uncond": [int(i == -1) for i in which], "sigmas": sigma[:1]}
        with differentiable() as mode:
            return mode.current(self.model.apply_model(x, sigma, **inputs, transformer_options=options))

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`uniforget.checks.attack.Victim`."""
        mix = self.model.model_sampling.noise_scaling
        x = torch.cat([mix(s, n[None], x0[None], False) for s, n, x0 in zip(sigma, noise, latents, strict=True)])
        one, none = torch.ones(1, device=x.device), torch.zeros(1, device=x.device)
        parts = [(mix(s, one, none, False).abs(), mix(s, none, one, False).abs()) for s in sigma]
        return x, torch.cat([of_noise / (of_noise + of_picture) for of_noise, of_picture in parts])

    def embedding(self, prompt: int) -> dict[str, torch.Tensor]:
        """See :class:`uniforget.checks.attack.Victim`."""
        return {name: self.conditions[prompt][name].cond for name in _TEXT if name in self.conditions[prompt]}

    def put(self, prompt: int, embedding: dict[str, torch.Tensor]) -> None:
        """See :class:`uniforget.checks.attack.Victim`."""
        for name, value in embedding.items():
            self.conditions[prompt][name].cond = value


class _LearnSampler(comfy.samplers.Sampler):
    """Runs learning where ComfyUI runs sampling: the model is loaded, patched and on its device."""

    def __init__(self, run: Callable):
        self.run = run
        self.result = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        with torch.inference_mode(False), torch.enable_grad():
            own = _thaw(model_wrap.inner_model)
            try:
                self.result = self.run(model_wrap, sigmas, latent_image.clone(), extra_args["model_options"])
            finally:
                _refreeze(own)
        return latent_image


def loaded(patcher, sites: list[Site], lesson: Lesson, batch: int, run: Callable[[_Loaded], T]) -> T:
    """What `run` makes of the model as :class:`uniforget.learn.Model`: loaded, patched and on its device, with gradients allowed.

    ComfyUI's interrupt passes through unchanged.

    Args:
        sites: where gates may sit, from :func:`.apply.sites_of`.
    """

    def inside(guider, sigmas, latent, model_options):
        return run(_Loaded(guider, sites, sigmas, latent, lesson, model_options))

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds([entry for conditioning in lesson.positive for entry in conditioning[:1]], lesson.negative)
    sampler = _LearnSampler(inside)
    noise = torch.zeros_like(latent := lesson.latent)
    guider.sample(noise.expand(batch, *noise.shape[1:]), latent.expand(batch, *latent.shape[1:]), sampler, lesson.sigmas)
    assert sampler.result is not None
    return sampler.result
