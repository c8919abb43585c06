"""What a model still knows: of a picture (:mod:`.picture`) and of a prompt (:mod:`.prompt`). Tensors in, numbers out; no host, no training."""

from .denoiser import Denoiser

__all__ = ["Denoiser"]
