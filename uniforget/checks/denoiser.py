"""What the checks need from a host: noise a clean latent, and predict it back."""

from __future__ import annotations

from typing import Protocol

import torch


class Denoiser(Protocol):
    """A loaded model and the conditions it may be asked with, by number; -1 is the empty prompt. Latents are float32 (n, ...)."""

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """`latents` with standard normal `noise` of the same shape, and the model's sigma (n,) for it.

        Args:
            level: share of noise in the mixture, 0 to 1; 1 is the noise that sampling starts from. Models have steps: the nearest counts.
        """
        ...

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> list[torch.Tensor]:
        """The predicted clean latents (n, ...) of `x` (n, ...) at `sigma` (n,), once for each condition in `which`."""
        ...
