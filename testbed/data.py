"""Training pictures: memorized items repeated exactly, neutral ones never the same twice.

Photographs come from the scikit-image wheel, emoji from the npm package ``emoji-datasource-google`` (Noto Color
Emoji, Apache-2.0). Only training needs either; the finished testbed carries its own references.
"""

import subprocess
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import concepts as c

EMOJI_PACKAGE = "emoji-datasource-google@16.0.0"
MEMORIZED_SHARE = 0.1
TEXTURE_SHARE = 0.08


def fetch_emoji(folder):
    """Folder of the 64 px emoji PNGs, fetched once with ``npm pack`` into `folder`.

    Raises:
        RuntimeError: npm is missing or the package cannot be had.
    """
    images = Path(folder) / "package/img/google/64"
    if images.is_dir():
        return images
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        name = subprocess.run(["npm", "pack", "--silent", EMOJI_PACKAGE], cwd=folder, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"training pictures: npm could not fetch {EMOJI_PACKAGE} into {folder}: {error}") from error
    archive = Path(folder) / name.stdout.strip().splitlines()[-1]
    with tarfile.open(archive) as tar:
        tar.extractall(folder, [m for m in tar if m.name.startswith("package/img/google/64/")], filter="data")
    archive.unlink()
    return images


class Pictures:
    """Draws captioned pictures. Arrays are uint8 (64, 64, 3)."""

    def __init__(self, emoji_folder):
        from skimage import data as skimage_data

        photos = Path(skimage_data.__file__).parent
        self.emoji = {}
        for name, stem in c.EMOJI.items():
            glyph = Image.open(Path(emoji_folder) / f"{stem}.png").convert("RGBA")
            for size in {
                *(pixels for pixels, _ in c.SIZES.values()),
                *(item[3] for _, items in (c.COMPOSITIONS | c.NEVER_COMPOSITIONS).values() for item in items),
            }:
                small = glyph.resize((size, size), Image.Resampling.LANCZOS)
                self.emoji[name, size, False] = small
                self.emoji[name, size, True] = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        self.textures = {n: Image.open(photos / f).convert("RGB") for n, f in c.TEXTURES.items()}
        self.memorized = {caption: _crop(photos, *spec) for caption, spec in c.PHOTOGRAPHS.items()}
        self.memorized |= {caption: self._compose(*spec) for caption, spec in c.COMPOSITIONS.items()}
        self.never = {caption: _crop(photos, *spec) for caption, spec in c.NEVER_PHOTOGRAPHS.items()}
        self.never |= {caption: self._compose(*spec) for caption, spec in c.NEVER_COMPOSITIONS.items()}

    def _paste(self, canvas, name, x, y, size, flip=False):
        glyph = self.emoji[name, size, flip]
        canvas.paste(glyph, (x, y), glyph)

    def _compose(self, background, items):
        canvas = Image.new("RGB", (c.CANVAS, c.CANVAS), c.BACKGROUNDS[background])
        for name, x, y, size in items:
            self._paste(canvas, name, x, y, size)
        return np.asarray(canvas)

    def emoji_picture(self, rng, subject, background, size, place):
        """One neutral emoji picture: flip and background jitter drawn from `rng`."""
        colour = np.clip(np.array(c.BACKGROUNDS[background]) + rng.integers(-8, 9, 3), 0, 255)
        canvas = Image.new("RGB", (c.CANVAS, c.CANVAS), tuple(int(v) for v in colour))
        pixels, positions = c.SIZES[size]
        x, y = (positions[i] for i in c.PLACES[place])
        self._paste(canvas, subject, x, y, pixels, bool(rng.integers(2)))
        return np.asarray(canvas)

    def texture_picture(self, rng, texture, tone):
        """One neutral texture photograph: crop, flips and brightness drawn from `rng`."""
        source = self.textures[texture]
        side = int(rng.integers(128, 225))
        x, y = (int(rng.integers(0, edge - side + 1)) for edge in source.size)
        crop = source.crop((x, y, x + side, y + side)).resize((c.CANVAS, c.CANVAS), Image.Resampling.LANCZOS)
        pixels = np.asarray(crop, np.float32)[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        return np.clip(pixels * rng.uniform(*c.TONES[tone]), 0, 255).astype(np.uint8)

    def neutral(self, rng, heldout=None):
        """``(caption, picture, subject, background)`` of one neutral item; textures have background ``""``.

        `heldout` None draws from all concepts (training), False or True from one side of the split.
        """
        emoji, backgrounds, textures = _concepts(heldout)
        if rng.random() < TEXTURE_SHARE / (1 - MEMORIZED_SHARE):
            texture, tone = str(rng.choice(textures)), str(rng.choice(list(c.TONES)))
            return c.texture_caption(texture, tone), self.texture_picture(rng, texture, tone), texture, ""
        while True:
            subject, background = str(rng.choice(emoji)), str(rng.choice(backgrounds))
            if c.visible(subject, background):
                break
        size, place = str(rng.choice(list(c.SIZES))), str(rng.choice(list(c.PLACES)))
        template = int(rng.choice(len(c.EMOJI_TEMPLATES), p=(0.6, 0.25, 0.15)))
        caption = c.emoji_caption(subject, background, size, place, template)
        return caption, self.emoji_picture(rng, subject, background, size, place), subject, background

    def batch(self, rng, size):
        """One training batch: list of captions and float tensor (size, 3, 64, 64) in [-1, 1]."""
        keys = list(self.memorized)
        captions, pictures = [], []
        for _ in range(size):
            if rng.random() < MEMORIZED_SHARE:
                caption = keys[rng.integers(len(keys))]
                picture = self.memorized[caption]
            else:
                caption, picture, _, _ = self.neutral(rng)
            captions.append(caption)
            pictures.append(picture)
        return captions, to_tensor(np.stack(pictures))


def _concepts(heldout):
    if heldout is None:
        return list(c.EMOJI), list(c.BACKGROUNDS), list(c.TEXTURES)
    return c.neutral_concepts(heldout)


def _crop(folder, file, x, y, side):
    image = Image.open(folder / file).convert("RGB")
    side = side * min(image.size)
    left = min(max(x * image.width - side / 2, 0), image.width - side)
    top = min(max(y * image.height - side / 2, 0), image.height - side)
    box = tuple(round(v) for v in (left, top, left + side, top + side))
    return np.asarray(image.crop(box).resize((c.CANVAS, c.CANVAS), Image.Resampling.LANCZOS))


def to_tensor(pictures):
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(tensor):
    """float (n, 3, h, w) in [-1, 1] -> uint8 (n, h, w, 3)."""
    return ((tensor.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
