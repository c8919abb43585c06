"""What a model still copies and what it still can do: the yardstick of every figure about the testbed.

``python -m testbed.evaluate`` prints it for the bundled model as it is, ``--mask FILE`` with a mask, ``--preset strong`` with a
mask that it first learns, as the demo workflow does (through diffusers, without ComfyUI).
"""

import argparse
import json
import math
import random

import numpy as np

from . import concepts as c
from .judge import Judge


def _pairs(heldout):
    emoji, backgrounds, textures = c.neutral_concepts(heldout)
    return [(s, b) for s in emoji for b in backgrounds if c.visible(s, b)], textures


def neutral_prompts(heldout, count, seed=1):
    """``count`` distinct ``(caption, subject, background)`` naming only held-out or only calibrated concepts."""
    pairs, textures = _pairs(heldout)
    rng = np.random.default_rng(seed)
    items = [(c.texture_caption(t, tone), t, "") for t in textures for tone in c.TONES]
    for i in rng.permutation(len(pairs)):
        subject, background = pairs[i]
        size, place = str(rng.choice(list(c.SIZES))), str(rng.choice(list(c.PLACES)))
        items.append((c.emoji_caption(subject, background, size, place), subject, background))
    return items[:count]


def learning_prompts():
    """The neutral prompts that masks are learned from: every calibrated pair twice, sizes, places and templates in turn."""
    pairs, textures = _pairs(False)
    looks = [(size, place) for size in c.SIZES for place in c.PLACES]
    prompts = [c.texture_caption(t, tone) for t in textures for tone in c.TONES]
    for i, (subject, background) in enumerate(pairs):
        prompts.append(c.emoji_caption(subject, background, *looks[(3 * i) % len(looks)]))
        prompts.append(c.emoji_caption(subject, background, *looks[(3 * i + 5) % len(looks)], template=1 + i % 2))
    return prompts


def some_learning_prompts(count):
    """At most `count` of :func:`learning_prompts`, always the same ones, in all their variety (every n-th would miss whole backgrounds)."""
    prompts = learning_prompts()
    return random.Random(0).sample(prompts, min(count, len(prompts)))


def wilson(hits, total, z=1.96):
    """95 % interval of a share (Wilson's score interval)."""
    if not total:
        return 0.0, 1.0
    p = hits / total
    centre, spread = p + z * z / (2 * total), z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, (centre - spread) / (1 + z * z / total)), min(1.0, (centre + spread) / (1 + z * z / total))


def evaluate(sample, seeds=16, neutral=96, neutral_seeds=4, judge=None, memorized=tuple(c.MEMORIZED)):
    """Measure a model.

    Args:
        sample: ``sample(prompts, seeds) -> uint8 (n, 64, 64, 3)``, one picture per pair.
        seeds: samples per memorized caption; ``neutral_seeds`` per neutral prompt.

    Returns:
        dict of shares: ``copies``, ``copies_heldout`` (reserved captions), ``copies_tuning`` (the others),
        ``copies_indomain``, ``copies_outdomain``, ``neutral``, ``heldout``; and ``per_caption``.
    """
    judge = judge or Judge()
    prompts = [p for p in memorized for _ in range(seeds)]
    pictures = sample(prompts, [1000 + i for _ in memorized for i in range(seeds)])
    copied = judge.copies(pictures, prompts).numpy()
    share = lambda keep: float(np.mean([v for p, v in zip(prompts, copied, strict=True) if keep(p)] or [np.nan]))  # noqa: E731
    out = {
        "copies": share(lambda p: True),
        "copies_heldout": share(lambda p: p in c.RESERVED),
        "copies_tuning": share(lambda p: p not in c.RESERVED),
        "copies_indomain": share(lambda p: p in c.COMPOSITIONS),
        "copies_outdomain": share(lambda p: p in c.PHOTOGRAPHS),
        "per_caption": {m: share(lambda p, m=m: p == m) for m in memorized},
    }
    for name, heldout in (("neutral", False), ("heldout", True)):
        items = [item for item in neutral_prompts(heldout, neutral) for _ in range(neutral_seeds)]
        pictures = sample([i[0] for i in items], [2000 + k for k in range(len(items))])
        right = judge.right(pictures, [i[1] for i in items], [i[2] for i in items]).numpy()
        out[name] = float(right.mean())
        out[f"{name}_interval"] = wilson(right.sum(), len(right))
    out["copies_interval"] = wilson(copied.sum(), len(copied))
    return out


def sampler(transformer, encoder, tokenizer):
    """``sample(prompts, seeds)`` over diffusers' transformer."""
    from .host import TestbedModel, sample

    def run(prompts, seeds):
        unique = list(dict.fromkeys(prompts))
        model = TestbedModel(transformer, encoder, tokenizer, unique)
        return sample(model, [unique.index(p) for p in prompts], seeds)

    return run


def learned(transformer, encoder, tokenizer, preset, seed):
    """What the demo workflow learns with this preset: a :class:`uniforget.learn.Result`."""
    from uniforget.config import LEARN, PRESETS
    from uniforget.learn import Settings, learn
    from uniforget.mask.info import MaskInfo

    from .host import TestbedModel

    model = TestbedModel(transformer, encoder, tokenizer, learning_prompts(), steps=LEARN["sampling_steps"].default)
    info = MaskInfo(
        family="sd3", base="", method="stepwise", beta=PRESETS[preset], preset=preset, targets=("ffn", "norm"), seed=seed
    )
    return learn(model, Settings(beta=PRESETS[preset], batch=24, seed=seed), info)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m testbed.evaluate", description=__doc__)
    parser.add_argument("--mask", help="mask file to fold in first")
    parser.add_argument("--preset", choices=("weak", "medium", "strong"), help="learn a mask and fold that in")
    parser.add_argument("--seed", type=int, default=0, help="of learning")
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args(argv)
    from . import model as tb

    transformer, encoder, tokenizer = tb.load()
    extra = {}
    if args.mask or args.preset:
        from uniforget.hosts.diffusers.apply import fold_
        from uniforget.mask.file import load

        mask = load(args.mask) if args.mask else learned(transformer, encoder, tokenizer, args.preset, args.seed).mask
        fold_(transformer, mask, args.strength)
        extra = {"off": mask.sparsity(), "learn_seconds": mask.info.learn_seconds, "strength": args.strength}
    figures = extra | evaluate(sampler(transformer, encoder, tokenizer), seeds=args.seeds)
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        with open(args.json, "w") as file:
            file.write(text)


if __name__ == "__main__":
    main()
