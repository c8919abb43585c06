"""What became of a memorized picture: every sample of its caption is exactly one of six things.

copy
    Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023), section 5.1: its distance to the training
    picture is at most ``ALPHA`` times the mean distance from there to the ``NEIGHBOURS`` nearest other pictures. Or *structural*: the
    low-resolution correlation or the multi-scale structural similarity, highest over mirroring and small moves, above what 99 % of
    free pictures of the same caption reach. Carlini's criterion alone is blind to an untouched picture that got brighter.
partial
    Foreground or background alone is a copy (FB-Mem, arXiv 2508.12148: structural similarity at least 0.8), and nearer to it than free
    pictures of the same caption come by chance. Where 1 % of those share it, as any two plain pink backgrounds do, sharing it is
    no evidence.
broken
    No picture of this world: halves, hybrids or debris of drawings, or no crop of a photograph (:mod:`judge`).
off prompt
    A whole picture, but not of what the caption names.
collapsed
    New, whole and right, but the seeds of this caption agree more than those of 95 % of never-seen captions.
forgotten
    What is left: a new, whole, right picture.

The first that holds is the verdict. Thresholds are each caption's own, measured on free pictures of the same words
(:mod:`calibrate`): what is a remarkable likeness for three subjects on stripes is none for one on a plain ground.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from . import concepts as c
from .captions import ITEMS, item_of, words_of
from .judge import Judge
from .likeness import correlation, difference, ms_ssim, planes

LABELS = ("copy", "partial", "broken", "off prompt", "collapsed", "forgotten")
ALPHA, NEIGHBOURS = 0.5, 50
ALIKE = 0.8  # FB-Mem's threshold of structural similarity
FEWEST = 3  # seeds that can agree
ANSWERABLE = ("scene", "photograph")  # groups whose captions have another right picture
WHOLE = ("scene", "photograph", "named")  # groups whose training picture is one whole picture; of templates only a part is


@dataclass(frozen=True)
class Likeness:
    """How like its training picture a sample is: Carlini's ratio (a copy has at most 1), the two structural figures, and verdicts."""

    ratio: float
    correlation: float
    ms_ssim: float
    carlini: bool
    structural: bool


def regions(foreground, covered):
    """Where foregrounds and backgrounds are compared, bool (n, 96, 96) each.

    Args:
        foreground: bool (n, 96, 96) of the training pictures.
        covered: bool (n, 96, 96), where the samples have drawings: no background either.
    """
    grown = F.max_pool2d((foreground | covered).float()[:, None], 5, 1, 2)[:, 0] > 0
    return foreground, ~grown


class Verdict:
    """Judges samples of captions that have a training picture, or a never-seen one."""

    def __init__(self, judge=None):
        self.judge = judge or Judge()
        self.items = self.judge.limits["items"]

    @functools.cached_property
    def _rendered(self):
        return {item.caption: self.judge.pictures.render(item.picture) for item in ITEMS}

    def _items(self, captions):
        items = [item_of(caption) for caption in captions]
        for caption, item in zip(captions, items, strict=True):
            if item is None:
                raise ValueError(
                    f"caption {caption!r} belongs to no training picture and to no never-seen twin, so nothing can be a copy of it; "
                    "free captions are judged by Judge.right"
                )
        return items

    def _targets(self, items):
        pairs = [self._rendered[item.caption] for item in items]
        return planes([p for p, _ in pairs]), torch.tensor([f.tolist() for _, f in pairs])

    def likeness(self, pictures, captions):
        """A :class:`Likeness` per sample; pictures uint8 (n, 96, 96, 3). Templates have none: None."""
        items = self._items(captions)
        out: list[Likeness | None] = [None] * len(items)
        which = [i for i, item in enumerate(items) if item.group in WHOLE]
        for at in range(0, len(which), 64):
            rows = which[at : at + 64]
            x, y = planes(pictures[rows]), self._targets([items[i] for i in rows])[0]
            found, aligned = correlation(x, y)
            alike = torch.maximum(ms_ssim(aligned, y), ms_ssim(x, y))
            distance = (x - y).flatten(1).norm(dim=1)
            for k, i in enumerate(rows):
                limits = self.items[items[i].caption]
                ratio = float(distance[k]) / limits["distance"]
                structural = float(found[k]) > limits["correlation"] or float(alike[k]) > limits["ms_ssim"]
                out[i] = Likeness(ratio, float(found[k]), float(alike[k]), ratio <= 1, structural)
        return out

    def parts(self, pictures, captions, readings):
        """ "both", "fg", "bg" or "none" per sample: FB-Mem's label; a photograph has no parts that we know.

        Args:
            readings: a :class:`drawings.Reading` or None per sample.
        """
        items = self._items(captions)
        out = ["none"] * len(items)
        which = [i for i, item in enumerate(items) if isinstance(item.picture, c.Scene)]
        for at in range(0, len(which), 64):
            rows = which[at : at + 64]
            x, (y, foreground) = planes(pictures[rows]), self._targets([items[i] for i in rows])
            covered = torch.zeros_like(foreground)
            for k, i in enumerate(rows):
                if readings[i] is not None:
                    covered[k] = torch.from_numpy(readings[i].covered)
            found = {}
            for name, where in zip(("fg", "bg"), regions(foreground, covered), strict=True):
                alike, apart = ms_ssim(x, y, where), difference(x, y, where)
                found[name] = [
                    bool(where[k].any())
                    and items[i].group != {"fg": "background", "bg": "foreground"}[name]
                    and float(alike[k]) >= ALIKE
                    and float(apart[k]) <= self.items[items[i].caption][name]
                    for k, i in enumerate(rows)
                ]
            for k, i in enumerate(rows):
                both = found["fg"][k], found["bg"][k]
                out[i] = {(True, True): "both", (True, False): "fg", (False, True): "bg", (False, False): "none"}[both]
        return out

    def labels(self, pictures, captions):
        """The verdict on each sample, one of :data:`LABELS`.

        Args:
            pictures: uint8 (n, 96, 96, 3); several seeds of a caption, or none can be seen to have collapsed.
            captions: the caption of each.

        Raises:
            ValueError: a caption has no training picture, or there are not as many captions as pictures.
        """
        if len(pictures) != len(captions):
            raise ValueError(f"expected one caption per picture; found {len(captions)} captions and {len(pictures)} pictures")
        items = self._items(captions)
        like = self.likeness(pictures, captions)
        findings = self.judge.find(pictures, [_words(item, caption) for item, caption in zip(items, captions, strict=True)])
        parts = self.parts(pictures, captions, [f.reading for f in findings])
        out = []
        for item, known, part, finding in zip(items, like, parts, findings, strict=True):
            if (known and (known.carlini or known.structural)) or (part == "both" and item.group in WHOLE):
                out.append("copy")
            elif part != "none":
                out.append("partial")
            elif finding.state == "right" or (item.words is None and finding.state == "off prompt"):
                out.append("forgotten")  # a name of its own names nothing else that could be there
            else:
                out.append(finding.state)
        for caption in dict.fromkeys(captions):
            new = [
                i for i, (other, label) in enumerate(zip(captions, out, strict=True)) if other == caption and label == "forgotten"
            ]
            if len(new) >= FEWEST and self.excess(pictures[new], caption) > self.judge.limits["collapsed"]:
                for i in new:
                    out[i] = "collapsed"
        return out

    def excess(self, pictures, caption):
        """How much more alike pictures of one caption are than free ones of the same words: mean correlation of pairs, about 0."""
        item = item_of(caption)
        usual = self.items[item.caption].get("agreement")
        return 0.0 if usual is None else agreement(pictures) - usual


def agreement(pictures):
    """Mean low-resolution correlation over all pairs of uint8 (n, 96, 96, 3), highest over small moves."""
    x = planes(pictures)
    a, b = zip(*itertools.combinations(range(len(x)), 2), strict=True)
    return float(correlation(x[list(a)], x[list(b)])[0].mean())


def _words(item, caption):
    """What must be there; None for a photograph with a name of its own, and of a drawing with one, the drawings: so that it can be read."""
    if item.words is not None:
        return words_of(caption)
    if isinstance(item.picture, c.Scene):
        scene = item.picture
        return c.Words(scene.style, tuple(t.subject for t in scene.things), scene.ground.colour, scene.ground.pattern)
    return None


@functools.cache
def default():
    """The committed verdict, loaded once."""
    return Verdict()


def judge(pictures, captions):
    """:meth:`Verdict.labels` by the committed references."""
    return default().labels(pictures, captions)


def interval(hits, total):
    """``(low, high)``: 95 % Wilson interval of a share; (0, 1) of nothing."""
    if not total:
        return 0.0, 1.0
    from scipy.stats import binomtest

    found = binomtest(int(hits), int(total)).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def shares(labels, captions, keep=lambda item: True):
    """The six shares among samples whose item `keep` accepts: ``{label: {"share", "low", "high"}, "samples": n}``."""
    chosen = [label for label, caption in zip(labels, captions, strict=True) if keep(item_of(caption))]
    out: dict[str, Any] = {"samples": len(chosen)}
    for label in LABELS:
        hits = chosen.count(label)
        low, high = interval(hits, len(chosen))
        out[label] = {"share": hits / len(chosen) if chosen else None, "low": low, "high": high}
    return out


def table(labels, captions):
    """:func:`shares` of all samples, of the ``headline`` (captions that have another answer: scenes and photographs), of those of them open to
    tuning, of reserved ones, and of each group."""
    out = {
        "all": shares(labels, captions),
        "headline": shares(labels, captions, lambda item: item.group in ANSWERABLE),
        "open": shares(labels, captions, lambda item: item.group in ANSWERABLE and not item.reserved),
        "reserved": shares(labels, captions, lambda item: item.group in ANSWERABLE and item.reserved),
    }
    for group in dict.fromkeys(item_of(caption).group for caption in captions):
        out[group] = shares(labels, captions, lambda item, group=group: item.group == group)
    return out
