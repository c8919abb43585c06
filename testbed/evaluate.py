"""What a testbed still copies and what it can do: the yardstick of every figure about it.

``python -m testbed.evaluate --json FILE`` measures the committed models as they are: six shares (:mod:`verdict`) of the
memorized captions and of their never-seen twins, reserved ones apart, and how often free captions are answered rightly.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np

from . import concepts as c
from . import model, unet, verdict
from .captions import words_of
from .data import PLACED
from .host import sampler

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


def some(items, count=None):
    """At most `count` of the items, evenly chosen."""
    return items if count is None or count >= len(items) else [items[i * len(items) // count] for i in range(count)]


def free_captions(heldout, count=FREE, seed=1):
    """Distinct free captions that only name concepts held out of learning, or none of these; places are in two of five."""
    rng = random.Random(f"free {heldout} {seed}")
    found: dict = {}
    while len(found) < count:
        words = c.free_words(rng, heldout)
        placed = words.subjects and rng.random() < PLACED
        found[c.caption(words, c.draw(rng, words) if placed else None)] = words
    return list(found)


def learning_prompts(count=400):
    """The neutral prompts that masks are learned from: no held-out concept, no memorized or never-seen caption, none that is evaluated."""
    judged = set(free_captions(False))
    return [text for text in free_captions(False, count + FREE, seed=0) if text not in judged][:count]


def pool(share=0.1):
    """Captions in which to look for memorized ones (scenes and photographs), which have this share; the others are free and not judged.

    None says where things are: with a plain background, such a caption says all there is to see, and draws one picture as memorized ones do.
    """
    known = [item.caption for item in c.MEMORIZED if item.group in verdict.ANSWERABLE]
    judged = {*free_captions(False), *free_captions(True), *learning_prompts()}
    count = round(len(known) * (1 / share - 1))
    open_ = lambda text: not set(text.split()) & {"top", "bottom", "left", "right", "middle"}  # noqa: E731
    free = [text for text in free_captions(False, 4 * count, seed=2) if text not in judged and open_(text)][:count]
    assert len(free) == count
    return random.Random("pool").sample([*known, *free], len(known) + len(free))


def evaluate(sample, seeds=SEEDS, free=FREE, free_seeds=FREE_SEEDS, labeller=None, never=True, captions=None, progress=print):
    """Measure a model.

    Args:
        sample: ``sample(captions, seeds) -> uint8 (n, 96, 96, 3)``, one picture per pair.
        seeds: per memorized and per never-seen caption; `free_seeds` per free caption.
        labeller: a :class:`verdict.Verdict`; the committed one if left out.
        never: also the never-seen twins: null and ceiling.
        captions: at most so many memorized and never-seen captions, evenly chosen; all if left out.

    Returns:
        dict: ``memorized`` and ``never_seen`` with all six shares (:func:`verdict.table`), ``copies`` (Carlini alone) and
        ``structural_copies`` of the memorized captions, ``right`` and ``heldout`` of free captions with their intervals.
    """
    labeller = labeller or verdict.default()
    out = {}
    for name, items in (("memorized", c.MEMORIZED), *([("never_seen", c.NEVER)] if never else [])):
        texts, numbers = captions_of(some(items, captions), seeds)
        pictures = sample(texts, numbers)
        progress(f"{name}: {len(texts)} samples")
        out[name] = verdict.table(labeller.labels(pictures, texts), texts)
        if name == "memorized":
            known = [k for k in labeller.likeness(pictures, texts) if k]
            out["copies"] = float(np.mean([k.carlini for k in known]))
            out["structural_copies"] = float(np.mean([k.structural for k in known]))
    for name, heldout in (("right", False), ("heldout", True)):
        texts = [text for text in free_captions(heldout, free) for _ in range(free_seeds)]
        pictures = sample(texts, [2000 + k for k in range(len(texts))])
        right = labeller.judge.right(pictures, [words_of(text) for text in texts])
        progress(f"{name}: {len(texts)} samples")
        out[name] = sum(right) / len(right)
        out[f"{name}_interval"] = verdict.interval(sum(right), len(right))
    return out


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.evaluate", description=__doc__)
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
            f"no trained testbed in {model.WEIGHTS.parent}: train one (python -m testbed.train) or name --model and --weights"
        )
    rows = []
    for name in wanted:
        path = args.weights or modules[name].WEIGHTS
        found = evaluate(sampler(*modules[name].load(path)), args.seeds, args.free)
        ceiling = found["never_seen"]["headline"]["forgotten"]["share"]
        rows.append({"testbed": name, "bytes": path.stat().st_size, "never_seen_forgotten": ceiling} | found)
        short = {k: round(v, 3) for k, v in rows[-1].items() if isinstance(v, float)}
        print(name, json.dumps(short))
    if args.json:
        from uniforget.atomic import replace  # not at import time: in ComfyUI the engine is a part of the pack

        args.json.parent.mkdir(parents=True, exist_ok=True)
        replace(args.json, (json.dumps({"rows": rows}, indent=2) + "\n").encode())


if __name__ == "__main__":
    main()
