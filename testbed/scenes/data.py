"""Training pictures: memorized ones repeated exactly, free ones never the same twice.

Photographs come from the wheels of scikit-image, matplotlib and scikit-learn, emoji from the npm packages
``emoji-datasource-google`` (Noto Color Emoji, Apache-2.0) and ``emoji-datasource-twitter`` (Twemoji, CC-BY 4.0). Only
training needs them; the finished testbed carries its own references.
"""

import random
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import concepts as c

EMOJI_PACKAGES = {"soft": ("emoji-datasource-google@16.0.0", "google"), "flat": ("emoji-datasource-twitter@16.0.0", "twitter")}
SKLEARN = "scikit-learn==1.7.2"
SHARES = {"scene": 0.09, "photograph": 0.035, "named": 0.025, "foreground": 0.02, "background": 0.02}
PLACED = 0.4  # of free scenes: their caption says where things are


def fetch(work):
    """Fetch emoji and photographs once into the folder `work`; its path.

    Raises:
        RuntimeError: npm or pip is missing, or a package cannot be had.
    """
    work = Path(work).resolve()
    for style, (package, vendor) in EMOJI_PACKAGES.items():
        _emoji(work / style, package, f"package/img/{vendor}/64/")
    if not (work / "photographs/flower.jpg").is_file():
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), SKLEARN], work)
        wheel = next(work.glob("scikit_learn-*.whl"))
        (work / "photographs").mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in ("china.jpg", "flower.jpg"):
                (work / "photographs" / name).write_bytes(archive.read(f"sklearn/datasets/images/{name}"))
        wheel.unlink()
    return work


def _emoji(folder, package, inside):
    if (folder / inside).is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / _run(["npm", "pack", "--silent", package], folder).strip().splitlines()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(folder, [m for m in tar if m.name.startswith(inside)], filter="data")
    archive.unlink()


def _run(command, folder):
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"training pictures: {' '.join(command)} failed in {folder}: {error}") from error


class Pictures:
    """Renders pictures, uint8 (96, 96, 3), and knows which pixels are foreground."""

    def __init__(self, work):
        self.work = fetch(work)
        self.emoji = {}
        for style, (_, vendor) in EMOJI_PACKAGES.items():
            for name, stem in c.SUBJECTS.items():
                glyph = Image.open(self.work / style / f"package/img/{vendor}/64/{stem}.png").convert("RGBA")
                for size in c.SIZES:
                    small = glyph.resize((size - 2, size - 2), Image.Resampling.LANCZOS)  # a pixel of air all around
                    self.emoji[style, name, size, False] = small
                    self.emoji[style, name, size, True] = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    @cache  # noqa: B019  (one object for a whole run)
    def _photograph(self, file):
        import matplotlib
        from skimage import data as skimage_data

        folders = (
            Path(skimage_data.__file__).parent,
            Path(matplotlib.get_data_path()) / "sample_data",
            self.work / "photographs",
        )
        image = Image.open(next(folder / file for folder in folders if (folder / file).is_file())).convert("RGB")
        scale = 420 / min(image.size)
        return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)

    def render(self, picture):
        """``(pixels, foreground)`` of a :class:`concepts.Scene` or :class:`concepts.Crop`: uint8 (96, 96, 3), bool (96, 96)."""
        return self._crop(picture) if isinstance(picture, c.Crop) else self._scene(picture)

    def _scene(self, scene):
        canvas = Image.fromarray(ground_pixels(scene.ground))
        front = Image.new("L", canvas.size)
        for t in scene.things:
            glyph = self.emoji[scene.style, t.subject, t.size, t.mirrored]
            canvas.paste(glyph, (t.x + 1, t.y + 1), glyph)
            front.paste(glyph.getchannel("A"), (t.x + 1, t.y + 1), glyph)
        return np.asarray(canvas), np.asarray(front) > 64

    def _crop(self, crop):
        image = self._photograph(crop.file)
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

    def free(self, heldout=None):
        """``(caption, picture, words)`` of a free item."""
        words = c.free_words(self.rng, heldout)
        picture = c.draw(self.rng, words)
        placed = words.subjects and len(words.subjects) < 3 and self.rng.random() < PLACED
        return c.caption(words, picture if placed else None), picture, words


def to_tensor(pictures):
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(tensor):
    """float (n, 3, h, w) in [-1, 1] -> uint8 (n, h, w, 3)."""
    return ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
