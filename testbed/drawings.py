"""Which scene a picture shows: the inverse of :mod:`testbed.data`.

Scenes are known drawings on known backgrounds, so a picture of one can be explained and drawn again: fit the background, look for
each drawing at every place, paint what was found, and compare. What stays unexplained is debris, a
hybrid or half a subject. The pooled features of a classifier call such pictures right; this does not.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from . import concepts as c
from .data import ground_pixels

SIDE = c.CANVAS
WINDOW = 12  # pixels: side of the squares in which a picture and its explanation are compared
CHROMA = 0.07  # how far the direction of a pixel's colour may be from the background's
LENGTHS = (0.5, 1.55)  # and its length, as a share of the background's
INLIER = 24.0  # grey levels: pixels nearer than this to the fitted background belong to it
SEEN = 0.04  # contrast from which a pattern is one
MOST = 4  # drawings looked for in a picture of which nothing is known
PART = 0.4  # share of a drawing from which it is said to be there, if nobody named it
LENIENT = 0.25  # power of the share in a place's score; 0 would look for gain alone, and find large wrong drawings
COARSE = 2  # pixels that become one in the first search
GROUND = 0.6  # share of a scene's pixels that are background at least: two drawings cover less than the rest


@dataclass(frozen=True)
class Found:
    """One drawing in a picture. ``explained``: the share of its difference from the background that is there, 1 when whole."""

    style: str
    thing: c.Thing
    explained: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: background, drawings, and the explanation painted, uint8 (96, 96, 3).

    ``residual`` is the largest root mean square difference between picture and explanation, both slightly blurred, in any square
    of ``WINDOW`` pixels: grey levels. ``covered`` is where drawings are, bool (96, 96).
    """

    colour: str
    pattern: str
    things: tuple[Found, ...]
    residual: float
    painted: np.ndarray
    covered: np.ndarray


def blur(x, sigma=0.8):
    """Gaussian blur of (n, k, h, w); edges are repeated."""
    k, r = x.shape[1], 2
    kernel = torch.exp(-(torch.arange(-r, r + 1.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(x)
    x = F.pad(x, (r, r, r, r), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 1, -1).expand(k, 1, 1, -1), groups=k)
    return F.conv2d(x, kernel.view(1, 1, -1, 1).expand(k, 1, -1, 1), groups=k)


@functools.cache
def patterns():
    """``(names, maps)``: every pattern that a background can have, the plain one first; maps of the second tone, (k, 96 * 96)."""
    found = {b"": ("", np.zeros(SIDE * SIDE, np.float32))}
    for name, period, x, y, upright in itertools.product(
        c.PATTERNS[1:], (c.TILE,), (0, c.TILE // 2), (0, c.TILE // 2), (False, True)
    ):
        pixels = ground_pixels(c.Ground("grey", name, period, (x, y), 2.0, 0.5, 0.0, upright))[..., 0].astype(np.float32)
        found.setdefault(pixels.tobytes(), (name, ((pixels - 100) / 100).ravel().clip(0, 1)))
    names, maps = zip(*found.values(), strict=True)
    return names, torch.from_numpy(np.stack(maps))


@functools.cache
def _bases():
    """(k, 4, 96 * 96): what a background of each pattern is a sum of: level, light from above, second tone, light on that."""
    maps = patterns()[1]
    light = (0.5 - (torch.arange(SIDE) + 0.5) / SIDE).repeat_interleave(SIDE).expand_as(maps)
    return torch.stack([torch.ones_like(maps), light, maps, light * maps], 1)


def _fit(x, inside):
    """Least squares background of each picture over the pixels `inside`: ``(pattern index (n,), background (n, 3, 96, 96), contrast (n,))``."""
    bases = _bases()
    k = len(bases)
    weight, flat = inside.flatten(1).float(), x.flatten(2)
    pairs = (bases[:, :, None] * bases[:, None]).flatten(0, 2)
    gram = (weight @ pairs.T).view(-1, k, 4, 4) + 1e-3 * torch.eye(4)
    seen = (flat * weight[:, None]).flatten(0, 1) @ bases.flatten(0, 1).T
    seen = seen.view(len(x), 3, k, 4).permute(0, 2, 3, 1)  # (n, k, 4, 3)
    weights = torch.linalg.solve(gram, seen)
    # What the fit leaves: a plain background is a special case of every pattern, so a pattern must explain noticeably more.
    left = (flat.square() * weight[:, None]).sum((1, 2))[:, None] - (weights * seen).sum((2, 3))
    left = left / (3 * weight.sum(1, keepdim=True)).clamp(min=1)
    left[:, 0] -= 2.0
    best = left.argmin(1)
    chosen = weights[torch.arange(len(x)), best]
    ground = torch.einsum("nbc,nbp->ncp", chosen, bases[best]).view_as(x).clamp(0, 255)
    contrast = (chosen[:, 2] / chosen[:, 0].clamp(min=1)).abs().amax(1)
    return best, ground, contrast


def _colours(x):
    """``(colour index (n,), pixels of that colour (n, 96, 96))``: the colour that most pixels are shades of."""
    table = torch.tensor(list(c.COLOURS.values())).float()
    length = x.norm(dim=1)
    unit, directions = x / length.clamp(min=1)[:, None], F.normalize(table)
    share = length[:, None] / table.norm(dim=1).view(1, -1, 1, 1)
    near = (unit[:, None] - directions.view(1, -1, 3, 1, 1)).norm(dim=2) < CHROMA
    near &= (share > LENGTHS[0]) & (share < LENGTHS[1])
    best = near.flatten(2).sum(2).argmax(1)
    return best, near[torch.arange(len(x)), best]


def plausible(pictures):
    """Bool (n,) of uint8 (n, 96, 96, 3): enough of each is one background. What is not need not be searched for drawings."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    if not len(x):
        return torch.zeros(0, dtype=torch.bool)
    _, ground, _ = _fit(x, _colours(x)[1])
    return ((x - ground).abs().amax(1) < INLIER).float().mean((1, 2)) > GROUND


class Drawings:
    """Finds drawings in pictures.

    Args:
        emoji: ``{(style, subject): RGBA image}``, as :class:`data.Pictures` has them.
    """

    def __init__(self, emoji):
        self.keys = sorted(emoji)
        self.rows = {key: i for i, key in enumerate(self.keys)}
        layers = np.zeros((len(self.keys), 4, SIDE, SIDE), np.float32)
        for row, key in zip(layers, self.keys, strict=True):
            rgba = np.asarray(emoji[key], np.float32).transpose(2, 0, 1)
            row[:, 1 : 1 + rgba.shape[1], 1 : 1 + rgba.shape[2]] = rgba
        layers[:, 3] /= 255
        self.layers = torch.from_numpy(layers)  # colour and alpha of each drawing in the upper left corner
        alpha, colours = self.layers[:, 3:], self.layers[:, :3]
        small = blur(F.avg_pool2d(torch.cat([alpha, alpha * colours], 1), COARSE))
        mask = small[:, :1]
        squared = torch.cat([mask.square(), mask * small[:, 1:]], 1)
        self.energy = small[:, 1:].square().sum((1, 2, 3))
        # conjugated: the product with a picture's spectrum is their correlation at every shift
        self.spectra = torch.fft.rfft2(small).conj(), torch.fft.rfft2(squared).conj()
        inside = (torch.arange(SIDE // COARSE) <= (SIDE - c.CELL) // COARSE).expand(len(self.keys), -1)
        self.outside = ~(inside[:, :, None] & inside[:, None])

    def _candidates(self, style, subject):
        return [self.rows[style, subject]]

    def _search(self, x, painted, rows, chunk=1024):
        """The best place of any of the drawings `rows` (m, r) in m pictures: ``(row, y, x)``, each (m,).

        Painting a drawing takes away some of the squared difference between picture and `painted` (its gain) and would take away
        all of the drawing's own difference from `painted`, were it there and whole. The best place has a large gain, and a large
        share: much of the picture is explained, by something that is nearly all there. Both are compared after a slight blur,
        so that what an autoencoder does to leaves and whiskers does not decide.
        """
        x, painted = blur(F.avg_pool2d(x, COARSE)), blur(F.avg_pool2d(painted, COARSE))
        side = SIDE // COARSE
        out = []
        step = max(1, chunk // rows.shape[1])
        for at in range(0, len(x), step):
            a, b, r = x[at : at + step], painted[at : at + step], rows[at : at + step]
            energy = self.energy[r][..., None, None]

            def maps(*planes, own):
                return torch.fft.irfft2((torch.fft.rfft2(torch.cat(planes, 1))[:, None] * own).sum(2), s=(side, side))

            # painting makes b + m (t - b); whole = sum m^2 (t - b)^2, gain = 2 sum m (t - b) (a - b) - whole
            whole = maps(b.square().sum(1, keepdim=True), -2 * b, own=self.spectra[1][r]) + energy
            gain = 2 * maps((b * (b - a)).sum(1, keepdim=True), a - b, own=self.spectra[0][r]) - whole
            share = gain.clamp(min=0) / whole.clamp(min=1)
            score = gain * share**LENIENT
            score, place = score.masked_fill(self.outside[r], -1.0).flatten(1).max(1)
            which, place = place // side**2, place % side**2
            out.append((r[torch.arange(len(r)), which], COARSE * (place // side), COARSE * (place % side)))
        return [torch.cat(part) for part in zip(*out, strict=True)]

    def _place(self, row, y, x):
        """A drawing's colours and alpha at its place, (4, 96, 96)."""
        return torch.roll(self.layers[row], (y, x), (1, 2))

    def _refine(self, picture, painted, row, y, x):
        """The exact place next to a coarse one: ``(explained, y, x, layer)``."""
        best = None
        size = c.CELL
        box = ..., slice(max(0, y - 4), y + size + 4), slice(max(0, x - 4), x + size + 4)
        shown, before = picture[box], painted[box]
        for dy, dx in itertools.product((0, -1, 1), (0, -1, 1)):
            if not (0 <= y + dy <= SIDE - size and 0 <= x + dx <= SIDE - size):
                continue
            layer = self._place(row, y + dy, x + dx)
            made = before + layer[3:][box] * (layer[:3][box] - before)
            apart, whole = blur(torch.stack([shown - made, made - before])).square().mean(1)
            near = whole > 25
            explained = float(1 - apart[near].sum() / whole[near].sum().clamp(min=1))
            if best is None or explained > best[0]:
                best = explained, y + dy, x + dx, layer
        return best

    def read(self, pictures, named):
        """What pictures show.

        Args:
            pictures: uint8 (n, 96, 96, 3).
            named: per picture the drawings to look for, ``[(style, subject), ...]``, each once; None looks for any.

        Returns:
            a list of :class:`Reading`.
        """
        x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
        _, inside = _colours(x)
        for _ in range(2):
            _, ground, _ = _fit(x, inside)
            inside = (x - ground).abs().amax(1) < INLIER
        found: list[list] = [[] for _ in x]
        layers: list[list] = [[] for _ in x]
        painted = ground.clone()
        everything = list(range(len(self.keys)))
        left = [None if names is None else list(names) for names in named]
        for _ in range(MOST):
            # (picture, which of its names or None, drawings to try)
            tries = [(i, None, everything) for i, names in enumerate(left) if names is None]
            tries += [(i, name, self._candidates(*name)) for i, names in enumerate(left) for name in names or ()]
            best: dict = {}
            for size in {len(t[2]) for t in tries}:
                group = [t for t in tries if len(t[2]) == size]
                which = [t[0] for t in group]
                places = self._search(x[which], painted[which], torch.tensor([t[2] for t in group]))
                for (i, name, _), *place in zip(group, *(p.tolist() for p in places), strict=True):
                    found_here = self._refine(x[i], painted[i], *place)
                    if i not in best or found_here[0] > best[i][0][0]:
                        best[i] = found_here, place[0], name
            for i, ((explained, top, across, layer), row, name) in best.items():
                if name is None and explained < PART:
                    left[i] = []
                    continue
                if name is not None:
                    left[i].remove(name)
                style, subject = self.keys[row]
                found[i].append(Found(style, c.Thing(subject, across, top), explained))
                layers[i].append(layer)
                painted[i] = painted[i] + layer[3] * (layer[:3] - painted[i])
        covered = torch.zeros(len(x), SIDE, SIDE)
        for i, own in enumerate(layers):
            for layer in own:
                covered[i] = torch.maximum(covered[i], layer[3])
        near = F.max_pool2d(covered[:, None], 5, 1, 2)[:, 0] > 0.02
        # where drawings are is known now, so all the rest is background, whatever stands there
        pattern, ground, contrast = _fit(x, inside & ~near)
        colour, _ = _colours(torch.where(near[:, None], torch.zeros(()), ground))
        painted = ground
        for i, own in enumerate(layers):
            for layer in own:
                painted[i] = painted[i] + layer[3] * (layer[:3] - painted[i])
        difference = (blur(x) - blur(painted)).square().mean(1, keepdim=True)
        residual = F.avg_pool2d(difference, WINDOW, 2).flatten(1).amax(1).sqrt()
        names = patterns()[0]
        return [
            Reading(
                list(c.COLOURS)[colour[i]],
                names[pattern[i]] if contrast[i] > SEEN else "",
                tuple(found[i]),
                float(residual[i]),
                painted[i].round().byte().permute(1, 2, 0).numpy(),
                (covered[i] > 0.25).numpy(),
            )
            for i in range(len(x))
        ]
