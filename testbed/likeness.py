"""How much of one picture is in another: what a copy shares with its original, whole or in parts, as the engine measures it. Pictures are
planes, float32 (n, 3, 96, 96) in [0, 255]."""

import numpy as np
import torch

try:  # in ComfyUI the engine is a part of the pack
    from ..uniforget.checks.likeness import correlation, ms_ssim
except ImportError:
    from uniforget.checks.likeness import correlation, ms_ssim  # type: ignore[no-redef]

__all__ = ["correlation", "difference", "ms_ssim", "planes"]


def planes(pictures):
    """uint8 (n, 96, 96, 3) -> float32 (n, 3, 96, 96)."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()


def difference(x, y, where):
    """Root mean square difference, grey levels, over the pixels that `where` (n, 96, 96) weighs: (n,)."""
    where = where.to(x)
    return ((x - y).square().mean(1) * where).sum((1, 2)).div(where.sum((1, 2)).clamp(min=1e-6)).sqrt()
