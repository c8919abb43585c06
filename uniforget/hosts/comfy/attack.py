"""ComfyUI: attack a model, inside its sampling machinery, with a picture and its control."""

from __future__ import annotations

from collections.abc import Callable

import comfy.samplers
import torch

from ...checks import attack as check
from ...errors import LearnError
from .learn import Lesson, loaded


def attacked(
    patcher,
    start: list,
    empty: list,
    latents: torch.Tensor,
    sampling_steps: int,
    tries: int,
    cfg: float,
    steps: int,
    seed: int,
    report: Callable[[int, int], None],
    tell: Callable[[check.Cost], None],
) -> torch.Tensor:
    """What a model draws after it was attacked: latents (2, tries, ...) as VAE nodes take them.

    Args:
        start: conditioning that both attacks begin with; ``empty``: of the empty prompt.
        latents: (2, ...), the picture and the control, as VAE nodes give them.
        report, tell: see :func:`uniforget.checks.attack.attack`.

    Raises:
        LearnError: the model is not asked by text, or its memory does not suffice.
    """
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", sampling_steps)

    def run(model) -> torch.Tensor:
        if not model.embedding(0):
            raise LearnError("This model is not asked by text, so there is nothing that an attack could change.")
        own = model.model
        targets = own.process_latent_in(latents.clone().to(model.sigmas.device))
        found = check.attack(model, targets, tries, cfg, steps, seed, report, tell, list(own.diffusion_model.parameters()))
        return torch.stack([own.process_latent_out(one).cpu() for one in found])

    lesson = Lesson([start], empty, torch.zeros_like(latents[:1]), sigmas)
    return loaded(patcher, [], lesson, check.BATCH, run)
