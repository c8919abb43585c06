"""Whether a picture is whole, and whether it shows what its caption names. It knows no training picture.

Scenes are read (:mod:`drawings`): every named subject from the named drawing set must be there once, whole and in a place of its own, on the
named background, and nothing else with it. Photographs, of which there are too many to look one up, go to a small convolutional
network that has only ever seen free pictures; the density of its features is the score for wholeness that needs no reference:
how far a picture is from the free pictures that it resembles most.
"""

import functools
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from . import concepts as c
from .drawings import Drawings, Reading
from .likeness import planes
from .references import References

FILE = Path(__file__).with_name("judge.safetensors")
NEAREST = 5
HEADS = {  # of the network: what each says, the last of some for pictures that have none
    "subjects": tuple(c.SUBJECTS),
    "style": c.SETS,
    "colour": tuple(c.COLOURS),
    "pattern": c.PATTERNS,
    "photograph": (*c.PHOTOGRAPHS, ""),
    "tone": tuple(c.TONES),
    "zoom": tuple(c.ZOOMS),
    "intact": ("intact",),
}


class Classifier(nn.Module):
    """Planes (n, 3, 96, 96) in [0, 255] -> ``(features (n, 64), {head: logits})``."""

    def __init__(self):
        super().__init__()
        widths = (32, 64, 96, 128)
        layers = [nn.Conv2d(3, widths[0], 8, stride=4, padding=2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        for a, b in itertools.pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.features = nn.Sequential(nn.Linear(2 * widths[-1], 64), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(64, len(words)) for name, words in HEADS.items()})

    def forward(self, x):
        x = self.trunk(x / 127.5 - 1)
        x = self.features(torch.cat([x.amax((2, 3)), x.mean((2, 3))], 1))
        return x, {name: head(x) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Finding:
    """What the judge says of one picture: ``state`` "right", "broken" or "off prompt", and why in words; the reading of a scene."""

    state: str
    why: str = ""
    reading: Reading | None = None


class Judge:
    """Args:
    path: the network, its features of free pictures and the limits, from :mod:`testbed.scenes.calibrate`.

    Raises:
        ValueError: the file is not one of these.
    """

    def __init__(self, references=None, path=FILE):
        try:
            with safe_open(path, "pt") as file:
                self.limits = json.loads(file.metadata()["limits"])
                state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no mapping)
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{path}: expected the testbed's judge; {error}. Run python -m testbed.scenes.calibrate.") from error
        self.known = state.pop("known").float()
        self.network = Classifier()
        self.network.load_state_dict({k: v if v.dtype == torch.long else v.float() for k, v in state.items()})
        self.network.eval().requires_grad_(False)
        self.drawings = Drawings((references or References()).emoji)

    @torch.no_grad()
    def look(self, pictures):
        """``(distance (n,), {head: log probabilities})`` of uint8 (n, 96, 96, 3): how far from free pictures, and what the network sees."""
        with torch.autocast("cpu", enabled=False):
            features, heads = self.network(planes(pictures))
        near = torch.cdist(F.normalize(features), self.known).topk(NEAREST, largest=False).values.mean(1)
        return near, {name: F.log_softmax(x, 1) if x.shape[1] > 1 else F.logsigmoid(x) for name, x in heads.items()}

    def find(self, pictures, words):
        """What is in each picture, and whether it is what its caption says.

        Args:
            pictures: uint8 (n, 96, 96, 3).
            words: a :class:`concepts.Words` per picture.

        Returns:
            a list of :class:`Finding`.
        """
        distance, seen = self.look(pictures)
        scenes = [i for i, w in enumerate(words) if w.subjects]
        readings = dict(zip(scenes, self._read(pictures, scenes, [_named(words[i]) for i in scenes]), strict=True))
        out = []
        for i, w in enumerate(words):
            kind = "scene" if w.subjects else "photograph"
            reading = readings.get(i)
            if distance[i] > self.limits[f"distance.{kind}"]:
                out.append(Finding("broken", f"unlike any free picture: {distance[i]:.2f}", reading))
            elif reading is None:
                out.append(self._photograph(w, {name: logs[i] for name, logs in seen.items()}))
            else:
                out.append(self._scene(w, reading))
        # Is what the caption's drawings do not explain another whole scene, or no scene at all?
        unclear = [i for i, f in enumerate(out) if f.state == "unclear"]
        for i, reading in zip(unclear, self._read(pictures, unclear, [None] * len(unclear)), strict=True):
            fault = self._fault(reading) if reading.things else "no whole drawing"
            shown = " and ".join(f"{f.style} {f.thing.subject}" for f in reading.things)
            state, why = ("broken", out[i].why) if fault else ("off prompt", f"shows {shown}")
            out[i] = Finding(state, why, out[i].reading)
        return out

    def _read(self, pictures, which, named, batch=64):
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
            if min(a.x + a.size, b.x + b.size) - max(a.x, b.x) > 4 and min(a.y + a.size, b.y + b.size) - max(a.y, b.y) > 4:
                return f"{a.subject} and {b.subject} share a place"
        if reading.residual > self.limits["residual"]:
            return f"something that no drawing explains: {reading.residual:.0f} grey levels"
        return None

    def _scene(self, words, reading):
        fault = self._fault(reading)
        if fault:
            return Finding("unclear", fault, reading)
        for name in ("colour", "pattern"):
            wanted, found = getattr(words, name), getattr(reading, name)
            if wanted != found:
                return Finding("off prompt", f"{name} {found or 'plain'}, not {wanted or 'plain'}", reading)
        return Finding("right", "", reading)

    def _photograph(self, words, seen):
        if seen["intact"].item() < self.limits["log.intact"]:
            return Finding("broken", f"in pieces, or a mixture: {seen['intact'].exp().item():.0%} intact")
        for name in ("photograph", "tone", "zoom"):
            row = HEADS[name].index(getattr(words, name))
            if seen[name][row] < self.limits[f"log.{name}"]:
                found = HEADS[name][seen[name].argmax()]
                return Finding("off prompt", f"{name} {found or 'plain'}, not {getattr(words, name) or 'plain'}")
        return Finding("right")

    def right(self, pictures, words):
        """Bool (n,): whole, and what the caption says."""
        return torch.tensor([f.state == "right" for f in self.find(pictures, words)], dtype=torch.bool)


def _named(words):
    return [(words.style, subject) for subject in words.subjects]


@functools.cache
def default():
    """The committed judge, loaded once."""
    return Judge()
