"""Make what judging needs: ``python -m testbed.scenes.calibrate``, about five minutes of one core.

Trains the judge's network on free pictures only, and measures every threshold on pictures that are no copies: free pictures through the VAE
(what is whole and right), free pictures of each memorized caption's own words (what likeness chance gives), and, once the model
is trained, its own neutral samples (what is broken) and those of never-seen captions (when seeds have collapsed).
"""

import argparse
import itertools
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from . import concepts as c
from . import judge as j
from . import references, vae, verdict
from .data import EMOJI_PACKAGES, Pictures, to_pixels, to_tensor
from .likeness import correlation, difference, ms_ssim, planes

FREE = 120  # free pictures of each caption that has a training picture
CHANCE = 0.01  # of them may be taken for copies
MARGIN = 0.2  # of the way from there to 1
SLACK = (0.92, 1.3)  # on the limits of what drawings explain and leave
FINEST = {"fg": (22.0, 50.0), "bg": (4.0, 12.0)}  # grey levels: below the first, chance explains it; never above the second


def labels(words):
    """Targets of the network's heads: a multi-label row for subjects, else an index, or -100 where there is nothing to say."""
    scene = bool(words.subjects)
    out = {"subjects": torch.tensor([float(s in words.subjects) for s in c.SUBJECTS])}
    for name in ("style", "colour", "pattern"):
        out[name] = torch.tensor(j.HEADS[name].index(getattr(words, name)) if scene else -100)
    out["photograph"] = torch.tensor(j.HEADS["photograph"].index(words.photograph))
    for name in ("tone", "zoom"):
        out[name] = torch.tensor(-100 if scene else j.HEADS[name].index(getattr(words, name)))
    return out


def free_pictures(pictures, rng, count, photographs=0.35):
    """``(words, uint8 (n, 96, 96, 3))`` of free pictures."""
    words = [c.free_words(rng, photographs=photographs) for _ in range(count)]
    return words, np.stack([pictures.render(c.draw(rng, w))[0] for w in words])


def softened(x, generator):
    """What the VAE does to pictures, and more: a blur of any strength, a little noise and another brightness."""
    share = torch.rand(len(x), 1, 1, 1, generator=generator)
    x = x + share * (F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1) - x)
    x = x + 8 * torch.rand(len(x), 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 255)


def spoiled(x, generator):
    """The same pictures, each ruined in one way: halves or blends of two, squares exchanged, smeared, or noise of some scale."""
    other, n = x.roll(1, 0), len(x)
    blend = 0.3 + 0.4 * torch.rand(n, 1, 1, 1, generator=generator)
    size = c.GRID
    squares = F.unfold(x, size, stride=size)
    order = torch.argsort(torch.rand(n, squares.shape[-1], generator=generator) + torch.arange(squares.shape[-1]) * 0.04, 1)
    shuffled = F.fold(squares.gather(2, order[:, None].expand_as(squares)), x.shape[-2:], size, stride=size)
    coarse = F.interpolate(torch.randn(n, 3, 12, 12, generator=generator), size=x.shape[-2:], mode="bilinear")
    smeared = F.interpolate(F.avg_pool2d(x, 8), size=x.shape[-2:], mode="bilinear")
    half = torch.cat([x[..., :48], other[..., 48:]], 3)
    choices = torch.stack([x + blend * (other - x), half, shuffled, x + 45 * coarse, smeared])
    which = torch.randint(len(choices), (n,), generator=generator)
    return choices[which, torch.arange(n)].clamp(0, 255)


def train(pictures, seed=0, pool=9000, epochs=7, batch=64):
    """The network, trained on free pictures only."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    words, pixels = free_pictures(pictures, random.Random(f"judge {seed}"), pool)
    each = [labels(w) for w in words]
    targets = {name: torch.stack([t[name] for t in each]) for name in each[0]}
    network = j.Classifier().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
    steps = epochs * (pool // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    began = time.time()
    for step, rows in zip(range(steps), _batches(pool, batch, generator), strict=False):
        clean = softened(planes(pixels[rows.numpy()]), generator)
        ruined = spoiled(clean[: batch // 4], generator)
        _, seen = network(torch.cat([clean, ruined]))
        intact = torch.cat([torch.ones(len(clean)), torch.zeros(len(ruined))])
        loss = F.binary_cross_entropy_with_logits(seen["intact"][:, 0], intact)
        loss = loss + 4 * F.binary_cross_entropy_with_logits(seen["subjects"][: len(clean)], targets["subjects"][rows])
        for name in ("style", "colour", "pattern", "photograph", "tone", "zoom"):
            loss = loss + 0.5 * F.cross_entropy(seen[name][: len(clean)], targets[name][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"update {step} of {steps}  loss {loss.item():.3f}  {time.time() - began:.0f} s", flush=True)
    return network.eval().requires_grad_(False)


def _batches(count, size, generator):
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].split(size)


@torch.no_grad()
def through(autoencoder, pixels, batch=64):
    """Pictures as the VAE gives them back, uint8."""
    out = []
    for part in to_tensor(pixels).split(batch):
        with torch.autocast("cpu", torch.bfloat16):
            out.append(to_pixels(autoencoder.decode(autoencoder.encode(part)).float()))
    return np.concatenate(out)


def item_limits(pictures, item, everything):
    """What likeness chance gives: thresholds of one item, measured on free pictures of its own words.

    Args:
        everything: float32 (k, 3 * 96 * 96), pictures among which Carlini's nearest ones are looked for.
    """
    rng = random.Random(f"limits {item.caption}")
    scenes = [c.draw(rng, references.free_words(item, rng)) for _ in range(FREE)]
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
            least, most = FINEST[name]
            apart = difference(x, y, where)
            apart[ms_ssim(x, y, where) < verdict.ALIKE] = torch.inf
            limit = min(most, 0.9 * float(np.quantile(apart.numpy(), CHANCE, method="lower")))
            out[name] = limit if limit >= least else -1.0
    return out


def judge_limits(judge, words, pixels, kept=0.99):
    """Thresholds of the judge: what the given share of pictures, all whole and right, passes."""
    distance, seen = judge.look(pixels)
    scenes = [i for i, w in enumerate(words) if w.subjects]
    photographs = [i for i, w in enumerate(words) if not w.subjects]
    out = {}
    for kind, rows in (("scene", scenes), ("photograph", photographs)):
        out[f"distance.{kind}"] = float(distance[rows].quantile(0.95))
    out["log.intact"] = float(seen["intact"][photographs].quantile(1 - kept))
    for name in ("photograph", "tone", "zoom"):
        logs = [seen[name][i][j.HEADS[name].index(getattr(words[i], name))] for i in photographs]
        out[f"log.{name}"] = float(torch.stack(logs).quantile(1 - kept))
    readings = judge._read(pixels, scenes, [j._named(words[i]) for i in scenes])
    # A model is a little less exact than its autoencoder. There is room: halves, hybrids and shreds begin at twice the residual.
    out["explained"] = SLACK[0] * float(np.quantile([min(f.explained for f in r.things) for r in readings], 1 - kept))
    out["residual"] = SLACK[1] * float(np.quantile([r.residual for r in readings], kept))
    return out


def write(tensors, path, metadata):
    """A safetensors file, written to a temporary name and renamed."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def make_references(pictures, path=references.FILE, seed=0):
    """Write drawings, fixed photographs and the limits of every item."""
    memorized = np.stack([pictures.render(item.picture)[0] for item in c.MEMORIZED])
    neighbours = free_pictures(pictures, random.Random(f"neighbours {seed}"), 1200, 0.14)[1]
    everything = planes(np.concatenate([neighbours, memorized])).flatten(1)
    limits = {}
    for item in references.ITEMS:
        limits[item.caption] = item_limits(pictures, item, everything)
        print(item.caption, {k: round(v, 3) for k, v in limits[item.caption].items()}, flush=True)
    tensors = {}
    for (style, (_, vendor)), (name, stem) in itertools.product(EMOJI_PACKAGES.items(), c.SUBJECTS.items()):
        glyph = Image.open(pictures.work / style / f"package/img/{vendor}/64/{stem}.png").convert("RGBA")
        tensors[f"drawing.{style}.{name}"] = references.png(np.asarray(glyph))
    for item in references.ITEMS:
        if isinstance(item.picture, c.Crop):
            tensors[f"photograph.{item.caption}"] = references.png(pictures.render(item.picture)[0])
    write(tensors, path, {"limits": json.dumps(limits)})


def make_judge(pictures, network, autoencoder, path=j.FILE, count=640, known=900, seed=0):
    """Write the network, its features of free pictures, and limits from fresh ones."""
    rng = random.Random(f"judged {seed}")
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    with torch.no_grad():
        pixels = through(autoencoder, free_pictures(pictures, rng, known)[1])
        state["known"] = F.normalize(network(planes(pixels))[0]).half()
    write(state, path, {"limits": "{}"})
    judge = j.Judge(path=path)
    words, pixels = free_pictures(pictures, rng, count)
    limits = judge_limits(judge, words, through(autoencoder, pixels))
    limits["collapsed"] = collapse_limit(pictures, seed)
    write(state, path, {"limits": json.dumps(limits)})
    print({k: round(v, 3) for k, v in limits.items()})


def collapse_limit(pictures, seed=0, seeds=6, sets=6):
    """How much more than usual free pictures agree in one of 20 never-seen captions, `seeds` of each."""
    usual, excess = references.References().limits, []
    for item in c.NEVER:
        if item.group in ("scene", "photograph"):
            rng = random.Random(f"collapsed {seed} {item.caption}")
            for _ in range(sets):
                drawn = np.stack([pictures.render(c.draw(rng, item.words))[0] for _ in range(seeds)])
                excess.append(verdict.agreement(drawn) - usual[item.caption]["agreement"])
    return float(np.quantile(excess, 0.95))


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.scenes.calibrate", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".cache/testbed"))
    parser.add_argument("--vae", type=Path, default=vae.WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    pictures = Pictures(args.work)
    checkpoint = args.work / "judge.pt"
    if checkpoint.exists():
        network = j.Classifier().eval().requires_grad_(False)
        network.load_state_dict(torch.load(checkpoint, weights_only=True))
    else:
        network = train(pictures, args.seed)
        torch.save(network.state_dict(), checkpoint)
    make_references(pictures, seed=args.seed)
    make_judge(pictures, network, vae.load(args.vae), seed=args.seed)


if __name__ == "__main__":
    main()
