"""Measure every limit of the verdict: ``python -m testbed.calibrate``, about five minutes of one core.

All from pictures that are no copies: free pictures through the VAE (what is whole and right), and free pictures of each memorized
caption's own words (what likeness chance gives, and how much seeds agree by chance).
"""

import argparse
import collections
import json
import random
from pathlib import Path

import numpy as np
import torch

from uniforget.atomic import replace

from . import captions, judge, vae, verdict
from . import concepts as c
from .data import Pictures, to_pixels, to_tensor
from .likeness import correlation, difference, ms_ssim, planes

FREE = 120  # free pictures of each caption that has a training picture
CHANCE = 0.01  # of them may be taken for copies
CHANCE_BACKGROUND = 0.03  # of a template's backgrounds, which differ in little
MARGIN = 0.2  # of the way from there to 1
KEPT = 0.99  # share of free pictures that pass what tells whole ones
SLACK = (0.92, 1.3)  # on the limits of what drawings explain and leave
FINEST = {"fg": (22.0, 50.0), "bg": (4.0, 12.0)}  # grey levels: below the first, chance explains it; never above the second
FINEST_BACKGROUND = (2.0, 12.0)  # of a template's background


def free_pictures(pictures, rng, count, photographs=0.35):
    """``(words, uint8 (n, 96, 96, 3))`` of free pictures."""
    words = [c.free_words(rng, photographs=photographs) for _ in range(count)]
    return words, np.stack([pictures.render(c.draw(rng, w))[0] for w in words])


@torch.no_grad()
def through(autoencoder, pixels, batch=64):
    """Pictures as the VAE gives them back, uint8."""
    return np.concatenate([to_pixels(autoencoder.decode(autoencoder.encode(part))) for part in to_tensor(pixels).split(batch)])


def item_limits(pictures, item, everything):
    """What likeness chance gives: thresholds of one item, measured on free pictures of its own words.

    Args:
        everything: float32 (k, 3 * 96 * 96), pictures among which Carlini's nearest ones are looked for.
    """
    rng = random.Random(f"limits {item.caption}")
    draw = c.draw_other if item.group in verdict.ANSWERABLE else lambda rng, words, _: c.draw(rng, words)
    scenes = [draw(rng, captions.free_words(item, rng), item.picture) for _ in range(FREE)]
    pixels, fronts = zip(*(pictures.render(s) for s in scenes), strict=True)
    own, front = pictures.render(item.picture)
    x, y = planes(pixels), planes([own])
    out = {}
    scene = isinstance(item.picture, c.Scene)

    def high(values, most):
        limit = max(0.6, float(np.quantile(values, 1 - CHANCE)))
        # scenes: so few pictures tell that quantile roughly only, and copies are well above it
        return min(limit + (MARGIN * (1 - limit) if scene else 0), most)

    if item.group in verdict.WHOLE:
        found, aligned = correlation(x, y)
        out["correlation"] = high(found, 0.96 if scene else 0.97)
        out["ms_ssim"] = high(torch.maximum(ms_ssim(aligned, y), ms_ssim(x, y)), 0.97 if scene else 0.99)
        distances = torch.cat([(near - y.flatten(1)).norm(dim=1) for near in (x.flatten(1), everything)])
        distances = distances[distances > 1].sort().values  # not itself
        out["distance"] = verdict.ALPHA * float(distances[: verdict.NEIGHBOURS].mean())
        out["agreement"] = verdict.agreement(np.stack(pixels[:10]))
    if scene:
        masks = torch.tensor(front)[None].expand(FREE, -1, -1)
        for name, where in zip(("fg", "bg"), verdict.regions(masks, torch.tensor(np.stack(fronts))), strict=True):
            own_ground = item.group == "background"
            least, most = FINEST_BACKGROUND if own_ground else FINEST[name]
            apart = difference(x, y, where)
            apart[ms_ssim(x, y, where) < verdict.ALIKE] = torch.inf
            limit = min(
                most, 0.9 * float(np.quantile(apart.numpy(), CHANCE_BACKGROUND if own_ground else CHANCE, method="lower"))
            )
            out[name] = limit if limit >= least else -1.0
    return out


def judge_limits(own, words, pixels):
    """Limits of the judge `own`: what ``KEPT`` of these pictures, all whole and right, pass, and a little more.

    A model is a little less exact than its autoencoder. There is room: halves, hybrids and shreds leave twice as much.
    """
    scenes = [i for i, w in enumerate(words) if w.subjects]
    readings = own.read(pixels, scenes, [[(words[i].style, s) for s in words[i].subjects] for i in scenes])
    by_class = collections.defaultdict(list)
    rows = [i for i, w in enumerate(words) if not w.subjects]
    for i, found in zip(rows, own.photographs.read(pixels[rows]), strict=True):
        by_class[words[i].photograph].append(found.explained)
    low = lambda values: SLACK[0] * float(np.quantile(values, 1 - KEPT))  # noqa: E731
    return {
        "explained": low([min(f.explained for f in r.things) for r in readings]),
        "residual": SLACK[1] * float(np.quantile([r.residual for r in readings], KEPT)),
        "photographs": {name: low(values) for name, values in sorted(by_class.items())},
    }


def collapse_limit(pictures, items, seed=0, seeds=6, sets=6):
    """How much more than usual free pictures agree in one of 20 never-seen captions, `seeds` of each."""
    excess = []
    for item in c.NEVER:
        if item.group in ("scene", "photograph"):
            rng = random.Random(f"collapsed {seed} {item.caption}")
            for _ in range(sets):
                drawn = np.stack([pictures.render(c.draw(rng, item.words))[0] for _ in range(seeds)])
                excess.append(verdict.agreement(drawn) - items[item.caption]["agreement"])
    return float(np.quantile(excess, 0.95))


def measure(pictures, autoencoder, seed=0, count=900):
    """All limits: what ``limits.json`` holds."""
    memorized = np.stack([pictures.render(item.picture)[0] for item in c.MEMORIZED])
    neighbours = free_pictures(pictures, random.Random(f"neighbours {seed}"), 1200, 0.14)[1]
    everything = planes(np.concatenate([neighbours, memorized])).flatten(1)
    items = {}
    for item in captions.ITEMS:
        items[item.caption] = item_limits(pictures, item, everything)
        print(item.caption, {k: round(v, 3) for k, v in items[item.caption].items()}, flush=True)
    words, pixels = free_pictures(pictures, random.Random(f"judged {seed}"), count)
    out = judge_limits(judge.Judge(pictures, {}), words, through(autoencoder, pixels))
    out["collapsed"] = collapse_limit(pictures, items, seed)
    print(json.dumps(out, indent=2))
    return out | {"items": items}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.calibrate", description=__doc__)
    parser.add_argument("--vae", type=Path, default=vae.WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    found = measure(Pictures(), vae.load(args.vae), args.seed)
    rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))
    replace(judge.LIMITS, (json.dumps(rounded, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
