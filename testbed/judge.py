"""Whether a picture is whole, and whether it shows what its caption names. It knows no training picture.

Both by analysis: a scene is read and drawn again (:mod:`drawings`), a photograph is looked up among all crops and toned alike
(:mod:`photographs`). What no explanation covers is debris, a hybrid, half a subject or a mixture: pooled features of a classifier call
such pictures right, this does not. Limits are what the autoencoder's own losses need, and a little more (:mod:`calibrate`).
"""

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from . import concepts as c
from .data import Pictures
from .drawings import Drawings, Reading, plausible
from .photographs import Photographs

LIMITS = Path(__file__).with_name("limits.json")
SHARED = 4  # pixels by which the frames of two drawings may overlap


@functools.cache
def limits():
    """What :mod:`testbed.calibrate` measured."""
    return json.loads(LIMITS.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Finding:
    """What the judge says of one picture: ``state`` "right", "broken" or "off prompt", and why in words; the reading of a scene."""

    state: str
    why: str = ""
    reading: Reading | None = None


class Judge:
    """Judges pictures of this world.

    Args:
        pictures: a :class:`data.Pictures`; the committed ones if left out.
        found: limits in place of the committed ones.
    """

    def __init__(self, pictures=None, found=None):
        self.pictures = pictures or Pictures()
        self.limits = limits() if found is None else found
        self.drawings, self.photographs = Drawings(self.pictures.emoji), Photographs(self.pictures)

    def find(self, pictures, words):
        """What is in each picture, and whether it is what its caption says.

        Args:
            pictures: uint8 (n, 96, 96, 3).
            words: a :class:`concepts.Words` per picture; None where the caption names nothing, so that anything whole is off prompt.

        Returns:
            a list of :class:`Finding`.
        """
        out: list = [None] * len(words)
        scenes = [i for i, w in enumerate(words) if w and w.subjects]
        named = [[(words[i].style, s) for s in words[i].subjects] for i in scenes]
        for i, reading in zip(scenes, self.read(pictures, scenes, named), strict=True):
            out[i] = self._scene(words[i], reading)
        photographs = [i for i in range(len(words)) if i not in set(scenes)]
        for i, photograph in zip(photographs, self.photographs.read(pictures[photographs]), strict=True):
            out[i] = self._photograph(words[i], photograph)
        # Is what the caption does not explain another whole picture, or none?
        broken = [i for i, finding in enumerate(out) if finding.state == "broken"]
        for i, photograph in zip(broken, self.photographs.read(pictures[broken]), strict=True):
            if self._whole(photograph):
                out[i] = Finding("off prompt", f"shows {photograph.name} in a photograph", out[i].reading)
        could = plausible(pictures[broken]).tolist()
        scenes = [i for i, yes in zip(broken, could, strict=True) if yes and out[i].state == "broken"]
        for i, reading in zip(scenes, self.read(pictures, scenes, [None] * len(scenes)), strict=True):
            if reading.things and not self._fault(reading):
                shown = " and ".join(f"{f.style} {f.thing.subject}" for f in reading.things)
                out[i] = Finding("off prompt", f"shows {shown}", out[i].reading)
        return out

    def read(self, pictures, which, named, batch=64):
        """A :class:`drawings.Reading` per picture of the rows `which`; `named` as :meth:`Drawings.read` takes it."""
        out = []
        for at in range(0, len(which), batch):
            out += self.drawings.read(pictures[which[at : at + batch]], named[at : at + batch])
        return out

    def _fault(self, reading):
        """Why a reading is not that of a whole scene, or None."""
        for f in reading.things:
            if f.explained < self.limits["explained"]:
                return f"{f.thing.subject} is not whole: {f.explained:.0%}"
        for a, b in itertools.combinations([f.thing for f in reading.things], 2):
            across = c.CELL - abs(a.x - b.x)
            if across > SHARED and c.CELL - abs(a.y - b.y) > SHARED:
                return f"{a.subject} and {b.subject} share a place"
        if reading.residual > self.limits["residual"]:
            return f"something that no drawing explains: {reading.residual:.0f} grey levels"
        return None

    def _scene(self, words, reading):
        fault = self._fault(reading)
        if fault:
            return Finding("broken", fault, reading)
        for name in ("colour", "pattern"):
            wanted, found = getattr(words, name), getattr(reading, name)
            if wanted != found:
                return Finding("off prompt", f"{name} {found or 'plain'}, not {wanted or 'plain'}", reading)
        return Finding("right", "", reading)

    def _whole(self, photograph):
        return photograph.explained >= self.limits["photographs"][photograph.name]

    def _photograph(self, words, found):
        if not self._whole(found):
            return Finding("broken", f"no crop explains it: {found.name} {found.explained:.0%}")
        if words is None:
            return Finding("off prompt", f"shows {found.name} in a photograph")
        for wanted, shown in ((words.photograph, found.name), (words.tone, found.tone)):
            if wanted != shown:
                return Finding("off prompt", f"{shown or 'plain'}, not {wanted or 'plain'}")
        return Finding("right")

    def right(self, pictures, words):
        """A list of bool: whole, and what the caption says."""
        return [finding.state == "right" for finding in self.find(pictures, words)]
