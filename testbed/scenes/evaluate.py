"""What a testbed still copies and what it can do: the yardstick of every figure about it.

``python -m testbed.scenes.evaluate --json FILE`` measures the committed models as they are: six shares (:mod:`verdict`) of the
memorized captions and of their never-seen twins, reserved ones apart, and how often free captions are answered rightly.
"""

import argparse
import json
import os
import random
from pathlib import Path

import numpy as np

from . import concepts as c
from . import model, unet, verdict
from .host import sampler
from .references import words_of

SEEDS = 6  # samples of each memorized and each never-seen caption
FREE, FREE_SEEDS = 96, 2  # free captions and samples of each


def captions_of(items, seeds):
    """``(captions, seeds)`` to sample. A template's caption names what varies, another one for every seed."""
    captions, numbers = [], []
    for item in items:
        rng = random.Random(f"captions {item.caption}")
        for k in range(seeds):
            template = item.group in ("foreground", "background")
            captions.append(c.caption(c.template_words(rng, item)) if template else item.caption)
            numbers.append(1000 + k)
    return captions, numbers


def free_captions(heldout, count=FREE, seed=1):
    """Distinct free captions that only name concepts held out of learning, or none of these; places are in two of five."""
    rng = random.Random(f"free {heldout} {seed}")
    found: dict = {}
    while len(found) < count:
        words = c.free_words(rng, heldout)
        placed = words.subjects and len(words.subjects) < 3 and rng.random() < 0.4
        found[c.caption(words, c.draw(rng, words) if placed else None)] = words
    return list(found)


def copies(labeller, pictures, captions):
    """``(Carlini's share, structural share)`` among samples whose training picture is one whole picture."""
    known = [k for k in labeller.likeness(pictures, captions) if k]
    return float(np.mean([k.carlini for k in known])), float(np.mean([k.structural for k in known]))


def evaluate(sample, seeds=SEEDS, free=FREE, free_seeds=FREE_SEEDS, labeller=None, progress=print):
    """Measure a model.

    Args:
        sample: ``sample(captions, seeds) -> uint8 (n, 96, 96, 3)``, one picture per pair.
        seeds: per memorized and per never-seen caption; `free_seeds` per free caption.
        labeller: a :class:`verdict.Verdict`; the committed one if left out.

    Returns:
        dict: ``copies`` (Carlini) and ``structural_copies`` of the memorized captions, ``right`` and ``heldout`` of free captions with
        their intervals, ``never_seen_forgotten``, and ``memorized`` and ``never_seen`` with all six shares by group.
    """
    labeller = labeller or verdict.default()
    out = {}
    for name, items in (("memorized", c.MEMORIZED), ("never_seen", c.NEVER)):
        captions, numbers = captions_of(items, seeds)
        pictures = sample(captions, numbers)
        progress(f"{name}: {len(captions)} samples")
        out[name] = verdict.table(labeller.labels(pictures, captions), captions)
        if name == "memorized":
            out["copies"], out["structural_copies"] = copies(labeller, pictures, captions)
    # a caption with a name of its own, or of a template, has no new and right answer: the ceiling is what scenes and photographs give
    groups = [out["never_seen"][g] for g in ("scene", "photograph")]
    hits, total = sum(g["forgotten"]["share"] * g["samples"] for g in groups), sum(g["samples"] for g in groups)
    out["never_seen_forgotten"] = hits / total
    out["never_seen_forgotten_interval"] = verdict.interval(round(hits), total)
    for name, heldout in (("right", False), ("heldout", True)):
        captions = [text for text in free_captions(heldout, free) for _ in range(free_seeds)]
        pictures = sample(captions, [2000 + k for k in range(len(captions))])
        right = labeller.judge.right(pictures, [words_of(text) for text in captions])
        progress(f"{name}: {len(captions)} samples")
        out[name] = float(right.float().mean())
        out[f"{name}_interval"] = verdict.interval(int(right.sum()), len(right))
    return out


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.scenes.evaluate", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--model", choices=("mmdit", "unet"), action="append", help="left out: every one that is there")
    parser.add_argument("--weights", type=Path, help="another file for the model")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--free", type=int, default=FREE, help="free captions, of each kind")
    args = parser.parse_args(argv)
    modules = {"mmdit": model, "unet": unet}
    wanted = args.model or [name for name, module in modules.items() if module.WEIGHTS.is_file()]
    if not wanted:
        parser.error(
            f"no trained testbed in {model.WEIGHTS.parent}: train one (python -m testbed.scenes.train) or name --model and --weights"
        )
    rows = []
    for name in wanted:
        path = args.weights or modules[name].WEIGHTS
        found = evaluate(sampler(*modules[name].load(path)), args.seeds, args.free)
        rows.append({"testbed": name, "bytes": path.stat().st_size} | found)
        short = {k: round(v, 3) for k, v in rows[-1].items() if isinstance(v, float)}
        print(name, json.dumps(short))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.json.with_name(f"{args.json.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(args.json)


if __name__ == "__main__":
    main()
