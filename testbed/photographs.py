"""Which photograph a picture shows: the inverse of :meth:`testbed.data.Pictures.render` for crops.

Crops are cut on a grid, so there are few enough to look a picture up: the nearest by low-resolution correlation are toned as the
picture is and painted over it. What that explains tells a whole crop from a mixture, a patchwork or a blur.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from . import concepts as c
from .drawings import blur
from .likeness import planes

COARSE = 4  # pixels that become one in the search
NEAREST = 4  # crops that are compared in full
WHITE = 245  # grey levels: brighter pixels may have been cut off, and say nothing about the tone


@dataclass(frozen=True)
class Photograph:
    """The crop that explains a picture best, its tone, and the share of the picture's variance that it explains, at most 1."""

    name: str
    tone: str
    crop: c.Crop
    explained: float


def _unit(x):
    """Rows of length 1, every channel about its mean and of the same weight: the tone does not matter."""
    x = x.flatten(2)
    return F.normalize(F.normalize(x - x.mean(2, keepdim=True), dim=2, eps=1.0).flatten(1))


class Photographs:
    """Looks pictures up among all crops that `pictures` (:class:`data.Pictures`) can cut."""

    def __init__(self, pictures):
        self.crops = list(c.every_crop())
        self.pixels = np.stack([pictures.render(crop)[0] for _, crop in self.crops])
        self.coarse = torch.cat(
            [_unit(F.avg_pool2d(planes(part), COARSE)) for part in np.array_split(self.pixels, 1 + len(self.pixels) // 256)]
        )

    def read(self, pictures):
        """A :class:`Photograph` per picture, uint8 (n, 96, 96, 3)."""
        out = []
        x = planes(pictures)
        near = (_unit(F.avg_pool2d(x, COARSE)) @ self.coarse.T).topk(NEAREST).indices
        for picture, rows in zip(x, near, strict=True):
            found = planes(self.pixels[rows.numpy()])
            inside = (picture < WHITE).float()
            # least squares: the factor of each channel that makes the crop this picture
            factors = (found * picture * inside).sum((2, 3)) / (found.square() * inside).sum((2, 3)).clamp(min=1)
            made = (found * factors[..., None, None]).clamp(0, 255)
            shown = blur(picture[None])
            left = (blur(made) - shown).square().sum((1, 2, 3))
            whole = (shown - shown.mean((2, 3), keepdim=True)).square().sum().clamp(min=1)
            best = int(left.argmin())
            name, crop = self.crops[int(rows[best])]
            tones = torch.tensor(list(c.TONES.values()))
            tone = int((factors[best].clamp(min=1e-3).log() - tones.log()).norm(dim=1).argmin())
            out.append(Photograph(name, list(c.TONES)[tone], crop, float(1 - left[best] / whole)))
        return out
