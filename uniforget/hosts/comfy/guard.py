"""ComfyUI: look at a sampling while it runs, with any sampler, and tell, draw again or steer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from ...checks.bands import Bands, Recorder, Watch
from .sample import random_state_kept

KEY = "uniforget_guard"
NOISE = 4  # where a sampler's arguments have the noise
_SEED_STEP = 0x9E3779B97F4A7C15  # other noises are far from those of neighbouring seeds


@dataclass(frozen=True)
class Told:
    """What came of one sampling.

    Attributes:
        worst: the largest deviation of each picture, relative to what is usual: above 1 is an alarm. Of the first try.
        action: "tells", "redraws" or "steers".
        tries: how often it was drawn; ``still``: pictures that were not usual in the last try either.
    """

    worst: Sequence[float]
    action: str
    tries: int
    still: int

    @property
    def alarms(self) -> int:
        """Pictures that were not usual."""
        return sum(value > 1 for value in self.worst)


class _Again(Exception):
    """Sampling stops here, to begin again with other noise."""


class _Guard:
    """State of one guarded model; samplings of it run one after the other."""

    def __init__(self, bands: Bands, action: str, tries: int, tell: Callable[[Told], None]):
        self.bands, self.action, self.most, self.tell = bands, action, tries, tell
        self.watch: Watch | None = None
        self.last = True

    def after_cfg(self, args: dict[str, Any]) -> torch.Tensor:
        """ComfyUI's hook behind guidance."""
        if self.watch is None:
            return args["denoised"]
        uncond = args["uncond_denoised"] if args["uncond"] is not None else None
        found = self.watch.see(
            args["input"], args["sigma"], args["denoised"], args["cond_denoised"], uncond, steer=self.action == "steers"
        )
        if self.action == "redraws" and self.watch.alarms and not self.last:
            raise _Again
        return found

    def around(self, executor: Callable, *args: Any) -> torch.Tensor:
        """ComfyUI's wrapper of a sampler."""
        first: Watch | None = None
        most = self.most if self.action == "redraws" else 1
        for number in range(1, most + 1):
            self.watch, self.last = Watch(self.bands), number == most
            first = first or self.watch
            try:
                out = executor(*args)
            except _Again:
                args = (*args[:NOISE], _other_noise(args[NOISE], args[2].get("seed") or 0, number), *args[NOISE + 1 :])
                continue
            finally:
                watch, self.watch = self.watch, None
            self.tell(Told(tuple(first.worst), self.action, number, len(watch.alarms)))
            return out
        raise AssertionError("the last try cannot ask for another")


def _other_noise(noise: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """Noise like `noise`, the same for the same seed; the random state is left alone."""
    generator = torch.Generator().manual_seed((seed + number * _SEED_STEP) % 2**63)
    return torch.randn(noise.shape, generator=generator).to(noise)


def guarded(patcher, bands: Bands, action: str, tries: int, tell: Callable[[Told], None]):
    """A clone of the ModelPatcher whose samplings are looked at; pictures without an alarm stay bit for bit what they were.

    Args:
        action: "tells": nothing but `tell`; "redraws": with other noise, up to `tries` times in all; "steers": the figures are brought back into
            their bands.
        tell: is told what came of each sampling.
    """
    clone, guard = patcher.clone(), _Guard(bands, action, tries, tell)
    clone.set_model_sampler_post_cfg_function(guard.after_cfg)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, guard.around)
    return clone


def measured(
    patcher,
    positives: Sequence[list],
    negative: list,
    latent: torch.Tensor,
    steps: int,
    cfg: float,
    seed: int,
    report: Callable[[], None] = lambda: None,
) -> Bands:
    """Bands of a model, from samplings of neutral prompts, one noise each. The random state is left as it was.

    Args:
        positives: conditionings of the prompts; at least :data:`uniforget.checks.bands.FEWEST`.
        latent: empty latent (1, ...) of the size to draw at.
        report: called after each sampling.
    """
    recorder, clone = Recorder(), patcher.clone()

    def note(args: dict[str, Any]) -> torch.Tensor:
        recorder.see(
            args["input"], args["sigma"], args["cond_denoised"], args["uncond_denoised"] if args["uncond"] is not None else None
        )
        return args["denoised"]

    clone.set_model_sampler_post_cfg_function(note)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", steps)
    # what is looked at is the first half only
    sigmas, sampler = sigmas[: len(sigmas) // 2 + 1], comfy.samplers.sampler_object("euler")
    for i, positive in enumerate(positives):
        recorder.begin()
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed((seed + i) % 2**63))
        with random_state_kept():
            comfy.sample.sample_custom(
                clone, noise, cfg, sampler, sigmas, positive, negative, latent, disable_pbar=True, seed=seed
            )
        report()
    return recorder.bands()
