"""ComfyUI: what a model predicts for noised latents, through its own sampling machinery and without gradients.

Any model that ComfyUI samples works: the conditions are batched, offloaded and patched by ComfyUI itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import comfy.model_management
import comfy.samplers
import torch

T = TypeVar("T")
STEPS = 1000  # of the schedule in which a noise level is looked for
MOST_AT_ONCE = 16


class Predictor:
    """A loaded ComfyUI model as :class:`uniforget.checks.Denoiser`. Latents are as VAE nodes and samplers hand them around."""

    def __init__(self, guider, model_options: dict[str, Any], device: torch.device, at_once: int):
        self.model, self.conds = guider.inner_model, guider.conds
        self.options, self.device, self.at_once = model_options, device, at_once
        self.sampling = self.model.model_sampling
        self.schedule = comfy.samplers.calculate_sigmas(self.sampling, "simple", STEPS).to(device)[:-1]
        one, none = torch.ones(1, device=device), torch.zeros(1, device=device)
        mixed = [(self._mix(s, none, one).abs(), self._mix(s, one, none).abs()) for s in self.schedule]
        self.levels = torch.cat([noise / (noise + picture) for picture, noise in mixed]).cpu()

    def _mix(self, sigma: torch.Tensor, noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        return self.sampling.noise_scaling(sigma, noise, latents, False)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`uniforget.checks.Denoiser.noised`."""
        sigma = self.schedule[(self.levels - level).abs().argmin()]
        return self._mix(sigma, noise.to(self.device), self.clean(latents)), sigma.expand(len(latents))

    def clean(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the model sees them: what its predictions are to be compared with."""
        empty = not torch.count_nonzero(latents)  # asked where they are: in main memory, a GPU need not be waited for
        latents = latents.to(self.device)
        return latents if empty else self.model.process_latent_in(latents)

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> list[torch.Tensor]:
        """See :meth:`uniforget.checks.Denoiser.predict`."""
        out: list[list[torch.Tensor]] = [[] for _ in which]
        for start in range(0, len(x), self.at_once):
            part, at = x[start : start + self.at_once], sigma[start : start + self.at_once]
            # ComfyUI runs as many conditions at a time as fit the memory
            comfy.model_management.throw_exception_if_processing_interrupted()
            found = comfy.samplers.calc_cond_batch(self.model, [self.conds[str(i)] for i in which], part, at, self.options)
            for into, one in zip(out, found, strict=True):
                into.append(one.float())
        return [torch.cat(parts) for parts in out]


class _PredictSampler(comfy.samplers.Sampler):
    """Runs a check where ComfyUI runs sampling: the model is loaded, patched and on its device."""

    def __init__(self, run: Callable):
        self.run = run
        self.result: Any = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        self.result = self.run(Predictor(model_wrap, extra_args["model_options"], noise.device, len(noise)))
        return noise


def predicting(patcher, conditionings: list, empty, latent: torch.Tensor, run: Callable[[Predictor], T]) -> T:
    """What `run` makes of the model as :class:`uniforget.checks.Denoiser`, loaded, patched and on its device.

    The random state is left as it was; ComfyUI's interrupt passes through unchanged.

    Args:
        conditionings: one ComfyUI conditioning per number, `empty` is number -1.
        latent: empty latent (1, ...) of the size to predict at.
    """
    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_set_conds({"-1": empty, **{str(i): c for i, c in enumerate(conditionings)}})
    sampler = _PredictSampler(run)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", 1)
    many = torch.zeros_like(latent).expand(at_once(patcher, latent), *latent.shape[1:])
    guider.sample(many, many, sampler, sigmas, disable_pbar=True)
    return sampler.result


def at_once(patcher, latent: torch.Tensor) -> int:
    """How many latents of this size are predicted in one go: at most what a third of the device's memory holds beside the model."""
    count, total = MOST_AT_ONCE, comfy.model_management.get_total_memory(patcher.load_device)
    room = (total - patcher.model_size()) / 3
    while count > 1 and patcher.model.memory_required([2 * count, *latent.shape[1:]]) > room:
        count //= 2
    return count
