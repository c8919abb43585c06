"""Pictures of the testbed's world: what :mod:`testbed.concepts` describes, drawn from the drawings and photographs in ``references.safetensors``."""

import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from . import concepts as c

REFERENCES = Path(__file__).with_name("references.safetensors")
SHARES = {"scene": 0.07, "photograph": 0.03, "named": 0.015, "foreground": 0.015, "background": 0.015}
PLACED = 0.4  # of free scenes: their caption says where things are


class Pictures:
    """Renders pictures, uint8 (96, 96, 3), and knows which pixels are foreground.

    Attributes:
        emoji: ``{(style, subject): RGBA image of 30x30 pixels}``; photographs: ``{file: RGB image}``.

    Raises:
        ValueError: `path` is not what :mod:`testbed.sources` writes.
    """

    def __init__(self, path=REFERENCES):
        try:
            with safe_open(path, "pt") as file:
                images = {k: Image.open(io.BytesIO(file.get_tensor(k).numpy().tobytes())) for k in file.keys()}  # noqa: SIM118  (no mapping)
            glyphs = {(style, name): images[f"drawing.{style}.{name}"] for style in c.SETS for name in c.SUBJECTS}
        except (OSError, KeyError, SafetensorError) as error:
            raise ValueError(f"{path}: expected the testbed's references; {error}. Run python -m testbed.sources.") from error
        self.photographs = {k.removeprefix("photograph."): v for k, v in images.items() if k.startswith("photograph.")}
        side = c.CELL - 2  # a pixel of air all around
        self.emoji = {key: glyph.resize((side, side), Image.Resampling.LANCZOS) for key, glyph in glyphs.items()}

    def render(self, picture):
        """``(pixels, foreground)`` of a :class:`concepts.Scene` or :class:`concepts.Crop`: uint8 (96, 96, 3), bool (96, 96)."""
        return self._crop(picture) if isinstance(picture, c.Crop) else self._scene(picture)

    def _scene(self, scene):
        canvas = Image.fromarray(ground_pixels(scene.ground))
        front = Image.new("L", canvas.size)
        for t in scene.things:
            glyph = self.emoji[scene.style, t.subject]
            canvas.paste(glyph, (t.x + 1, t.y + 1), glyph)
            front.paste(glyph.getchannel("A"), (t.x + 1, t.y + 1), glyph)
        return np.asarray(canvas), np.asarray(front) > 64

    def _crop(self, crop):
        image = self.photographs[crop.file]
        side = crop.side * min(image.size)
        left, top = crop.x * (image.width - side), crop.y * (image.height - side)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.resize((c.CANVAS, c.CANVAS), Image.Resampling.LANCZOS, box=box), np.float32)
        pixels = pixels[:: -1 if crop.upset else 1, :: -1 if crop.mirrored else 1] * np.array(crop.factors, np.float32)
        return np.clip(pixels, 0, 255).astype(np.uint8), np.zeros((c.CANVAS, c.CANVAS), bool)


def ground_pixels(g):
    """uint8 (96, 96, 3) of a :class:`concepts.Ground`."""
    y, x = np.mgrid[0 : c.CANVAS, 0 : c.CANVAS].astype(np.float32) + 0.5
    u, v = (x - g.phase[0]) / g.period, (y - g.phase[1]) / g.period
    if g.pattern == "stripes":
        second = np.floor(2 * (u if g.upright else v)) % 2
    elif g.pattern == "checks":
        second = (np.floor(u) + np.floor(v)) % 2
    elif g.pattern == "dots":
        away = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5) * g.period
        second = np.clip(g.period * 0.3 - away + 0.5, 0, 1)
    else:
        second = np.zeros_like(x)
    factor = g.tone * (1 + (g.contrast - 1) * second) * (1 + g.light * (0.5 - y / c.CANVAS))
    return np.clip(np.array(c.COLOURS[g.colour], np.float32) * factor[..., None], 0, 255).astype(np.uint8)


class Stream:
    """Endless captioned pictures for training, drawn from one seed."""

    def __init__(self, pictures, seed):
        self.pictures, self.rng = pictures, random.Random(seed)
        self.groups = {g: [f for f in c.MEMORIZED if f.group == g] for g in SHARES}

    def template(self):
        """``(caption, picture)`` of one of the templates."""
        item = self.rng.choice([*self.groups["foreground"], *self.groups["background"]])
        words = c.template_words(self.rng, item)
        return c.caption(words), c.template_picture(self.rng, item, words)

    def free(self, heldout=None, photographs=0.22):
        """``(caption, picture, words)`` of a free item."""
        words = c.free_words(self.rng, heldout, photographs)
        picture = c.draw(self.rng, words)
        placed = words.subjects and self.rng.random() < PLACED
        return c.caption(words, picture if placed else None), picture, words


def to_tensor(pictures):
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(tensor):
    """float (n, 3, h, w) in [-1, 1] -> uint8 (n, h, w, 3)."""
    return ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
