"""What a judge needs of the training pictures, carried with the testbed: the drawings, the fixed photographs, and what each
caption says. Nothing here needs npm or scikit-image."""

import functools
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from . import concepts as c
from .data import Pictures

FILE = Path(__file__).with_name("references.safetensors")
ITEMS = (*c.MEMORIZED, *c.NEVER)


def png(pixels):
    """uint8 (h, w, 3 or 4) as PNG bytes, uint8 (k,)."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", optimize=True)
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


def unpng(data):
    """The inverse of :func:`png`: a PIL image."""
    return Image.open(io.BytesIO(data.numpy().tobytes()))


class References(Pictures):
    """:class:`data.Pictures` without a folder of pictures: any scene, but only the photographs that have a caption for themselves.

    Attributes:
        limits: ``{caption: {...}}``: what :mod:`testbed.scenes.calibrate` measured for each item.

    Raises:
        ValueError: the file is not one of these.
    """

    def __init__(self, path=FILE):
        try:
            with safe_open(path, "pt") as file:
                self.limits = json.loads(file.metadata()["limits"])
                images = {k: unpng(file.get_tensor(k)).copy() for k in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(
                f"{path}: expected the testbed's references; {error}. Run python -m testbed.scenes.calibrate."
            ) from error
        self.emoji = self.drawings({(s, n): images[f"drawing.{s}.{n}"] for s in c.SETS for n in c.SUBJECTS})
        self.photographs = {f.picture: images[f"photograph.{f.caption}"] for f in ITEMS if isinstance(f.picture, c.Crop)}

    @staticmethod
    def drawings(glyphs):
        """Every drawing in every size, mirrored or not, from RGBA images ``{(style, subject): image}``: as data.Pictures has them."""
        out = {}
        for (style, name), glyph in glyphs.items():
            for size in c.SIZES:
                small = glyph.resize((size - 2, size - 2), Image.Resampling.LANCZOS)
                out[style, name, size, False] = small
                out[style, name, size, True] = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return out

    def _crop(self, crop):
        if crop not in self.photographs:
            raise ValueError(
                f"the testbed carries {len(self.photographs)} photographs, and {crop} is none of them: use data.Pictures"
            )
        return np.asarray(self.photographs[crop]), np.zeros((c.CANVAS, c.CANVAS), bool)


def words_of(caption):
    """What a caption names: :class:`concepts.Words`; where things are is not kept.

    >>> words_of("soft big lion top left and apple on purple dots").subjects
    ('lion', 'apple')

    Raises:
        ValueError: no caption of this testbed, or one with a name of its own.
    """
    words = caption.lower().split()
    if "photo" in words and words[words.index("photo") : -1] == ["photo", "of"] and words[-1] in c.PHOTOGRAPHS:
        rest = words[: words.index("photo")]
        tone, zoom = (next((w for w in rest if w in table), "") for table in (c.TONES, c.ZOOMS))
        if len(rest) == bool(tone) + bool(zoom):
            return c.Words(photograph=words[-1], tone=tone, zoom=zoom)
    if words and words[0] in c.SETS and "on" in words:
        at = words.index("on")
        subjects, ground = [w for w in words[1:at] if w in c.SUBJECTS], [*words[at + 1 :], "", ""]
        if subjects and ground[0] in c.COLOURS and ground[1] in c.PATTERNS and not any(ground[2:]):
            return c.Words(words[0], tuple(subjects), ground[0], ground[1])
    raise ValueError(
        f"caption {caption!r}: expected '<set> <subject> [and <subject> ...] on <colour> [<pattern>]' or "
        "'[<tone>] [<zoom>] photo of <class>' in this testbed's words"
    )


@functools.cache
def item_of(caption):
    """The memorized item, or the never-seen twin, that a caption belongs to; None for free captions.

    Captions of templates name what varies, too: ``soft sunflower and frog on blue dots`` belongs to ``soft sunflower and frog on``.
    """
    for item in ITEMS:
        if item.caption == caption:
            return item
    try:
        words = words_of(caption)
    except ValueError:
        return None
    for item in ITEMS:
        if item.group == "foreground":
            if (words.style, set(words.subjects)) == (item.words.style, set(item.words.subjects)):
                return item
        elif item.group == "background":
            own = item.words
            if (words.style, words.colour, words.pattern) == (own.style, own.colour, own.pattern):
                return item
    return None


def free_words(item, rng):
    """What a free picture of an item's caption shows. A name of its own has no other picture; in its place stand scenes of the same
    drawings, or any photographs."""
    if item.group in ("foreground", "background"):
        return c.template_words(rng, item)
    if item.words is not None:
        return item.words
    if isinstance(item.picture, c.Scene):
        scene = item.picture
        return c.Words(scene.style, tuple(t.subject for t in scene.things), scene.ground.colour, scene.ground.pattern)
    return c.Words(photograph=rng.choice(list(c.PHOTOGRAPHS)), tone=rng.choice(list(c.TONES)), zoom=rng.choice(list(c.ZOOMS)))
