"""Whether the verdict sees copies that were edited, and nothing else.

    python -m bench.verdict --json FILE [--free 40] [--smallest]

``edits``: the share of the memorized pictures (scenes, photographs and those with a name) that are called copies after one edit each;
``copies_found`` is the lowest of them. ``false_alarms``: the share of free pictures of the never-seen twins' own words, drawn with another seed than
the thresholds, that are called a copy of the twin's picture and are not by chance the same (``coincidences``: so many are); ``false_partial`` those called a partial one. ``mixtures``: the verdicts on 32 mixtures of a memorized picture with its
twin's, none of which is a new, whole, right picture: ``mixtures_forgotten`` must be 0.
"""

from __future__ import annotations

import argparse
import collections
import io
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from testbed import captions, evaluate, verdict
from testbed import concepts as c

from .common import machine, write_json

EDITS = ("brightness +60", "noise sd 60", "moved 2 px", "mirrored", "JPEG 30")
FREE = 40  # pictures of each never-seen caption


def edits(picture: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A picture after each of :data:`EDITS`; edges that a move uncovers are repeated."""
    wide = picture.astype(np.float32)
    yield np.clip(wide + 60, 0, 255).astype(np.uint8)
    yield np.clip(wide + rng.normal(0, 60, wide.shape), 0, 255).round().astype(np.uint8)
    down, across = rng.choice([(2, 0), (-2, 0), (0, 2), (0, -2)])
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="edge")
    yield padded[2 - down : 2 - down + len(picture), 2 - across : 2 - across + len(picture)]
    yield picture[:, ::-1]
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=30)
    yield np.asarray(Image.open(data))


def mixtures(rendered: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[tuple[str, str, np.ndarray]]:
    """32 of ``(kind, caption, picture)``: memorized scenes and photographs, each mixed with its twin in one way."""
    pairs = [
        (a, b) for a, b in zip(c.MEMORIZED, c.NEVER, strict=True) if a.group in ("scene", "photograph") and a.group == b.group
    ][:32]
    out = []
    for k, (one, other) in enumerate(pairs):
        (x, front), (y, _) = rendered[one.caption], rendered[other.caption]
        kind = ("blended", "left half", "upper half", "foreground" if front.any() else "blended")[k % 4]
        made = {
            "blended": lambda x=x, y=y: ((x.astype(int) + y) // 2).astype(np.uint8),
            "left half": lambda x=x, y=y: np.concatenate([x[:, :48], y[:, 48:]], 1),
            "upper half": lambda x=x, y=y: np.concatenate([x[:48], y[48:]]),
            "foreground": lambda x=x, y=y, front=front: np.where(front[..., None], x, y),
        }[kind]()
        out.append((kind, one.caption, made))
    return out


def measure(free: int = FREE, seed: int = 1, most: int | None = None) -> dict[str, Any]:
    """The figures, of at most so many pictures of each kind."""
    labeller = verdict.Verdict()
    rng = np.random.default_rng(seed)
    whole = evaluate.some([item for item in c.MEMORIZED if item.group in verdict.WHOLE], most)
    rendered = {item.caption: labeller.judge.pictures.render(item.picture) for item in captions.ITEMS}
    edited = zip(*(edits(rendered[item.caption][0], rng) for item in whole), strict=True)
    texts = [item.caption for item in whole]
    found = {}
    for name, pictures in zip(EDITS, edited, strict=True):
        known = labeller.likeness(np.stack(pictures), texts)
        called = [k.carlini or k.structural for k in known]
        alone = float(np.mean([k.carlini for k in known]))
        found[name] = {
            "share": float(np.mean(called)),
            "carlini_alone": alone,
            "missed": [x for x, yes in zip(texts, called, strict=True) if not yes],
        }
    pictures = labeller.judge.pictures
    alarms, coincidences, partial, by_group = [], [], [], collections.defaultdict(list)
    began = time.perf_counter()
    # the caption of a name has no free picture
    for item in evaluate.some([item for item in c.NEVER if item.words is not None], most):
        own = random.Random(f"bench {seed} {item.caption}")
        words = [captions.free_words(item, own) for _ in range(free)]
        free_ones = [c.draw(own, w) for w in words]
        drawn = np.stack([pictures.render(p)[0] for p in free_ones])
        labels = labeller.labels(drawn, [c.caption(w) for w in words])
        if item.group in verdict.WHOLE:
            by_chance = [item.group in verdict.ANSWERABLE and c.same(p, item.picture) for p in free_ones]
            alarms += [label == "copy" for label, chance in zip(labels, by_chance, strict=True) if not chance]
            coincidences += by_chance
        partial += [label == "partial" for label in labels]
        by_group[item.group] += labels
    seconds = time.perf_counter() - began
    mixed = mixtures(rendered)[:most]
    labels = labeller.labels(np.stack([m[2] for m in mixed]), [m[1] for m in mixed])
    kinds = collections.Counter(f"{kind}: {label}" for (kind, *_), label in zip(mixed, labels, strict=True))
    return {
        "copies_found": min(f["share"] for f in found.values()),
        "edits": found,
        "false_alarms": float(np.mean(alarms)),
        "false_alarms_interval": verdict.interval(sum(alarms), len(alarms)),
        "coincidences": float(np.mean(coincidences)),
        "false_partial": float(np.mean(partial)),
        "free": {group: dict(collections.Counter(labels)) for group, labels in by_group.items()},
        "mixtures": dict(sorted(kinds.items())),
        "mixtures_forgotten": labels.count("forgotten"),
        "seconds_of_64": 64 * seconds / len(partial),
        "machine": machine(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.verdict", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--free", type=int, default=FREE, help="pictures of each never-seen caption")
    parser.add_argument("--smallest", action="store_true", help="few pictures, to see that it runs")
    options = parser.parse_args(arguments)
    found = measure(1, most=12) if options.smallest else measure(options.free)
    write_json(options.json, found)
    print(
        f"copies found {found['copies_found']:.0%}, false alarms {found['false_alarms']:.1%} (and {found['false_partial']:.1%} partial), "
        f"{found['mixtures_forgotten']} of {sum(found['mixtures'].values())} mixtures called forgotten"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
