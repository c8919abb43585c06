"""LoRAs that copy, and what Clean LoRA makes of them.

    python -m bench.loras --json FILE [--pictures 4,8,12] [--keep 0.7,0.5,0.3] [--seeds 4] [--free 24]

The testbed's answer to what users do: a LoRA is trained on a few flat drawings, whose captions say ``zorbo`` where they would say ``flat``, until it
draws those pictures themselves. So the trigger word means a style that it can be asked for with any subject. The pictures are those of
never-seen captions: what the model draws for these without the LoRA is the ``ceiling``.

Rows, one before cleaning (method "none") and two for each `--keep`: "spectral" is Clean LoRA, and "scaled" its control, the whole LoRA at a lower
strength that has the same energy. The six shares of the captions of the training pictures, of as many
never-seen captions under the same trigger word (``never_seen``), ``trigger_works``: the share of free captions with the trigger word that are answered by a
whole picture of all that they name, in the trigger's style; ``style``: by pictures whose drawings are all of that style; ``seconds``: of CPU time that cleaning took.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from testbed import concepts as c
from testbed import model, vae, verdict
from testbed.captions import words_of
from testbed.data import to_tensor
from testbed.host import sampler
from testbed.train import noise_levels
from uniforget.checkpoint.cleanlora import clean
from uniforget.hosts.diffusers.apply import layers_of

from .common import machine, write_json

TRIGGER, STYLE = "zorbo", "flat"
PICTURES = (4, 8, 12)  # the never-seen captions have twelve scenes of one drawing set
RANK, RATE, BATCH = 8, 2e-3, 16
CHUNK, MOST = 100, 1200  # updates between two looks, and the most
ENOUGH = 0.9  # share of copies at which training ends
KEEP = (0.7, 0.5, 0.3)


def triggered(caption: str) -> str:
    """The same caption with the trigger word in place of the style."""
    return f"{TRIGGER} {caption.partition(' ')[2]}"


def training_set(count: int) -> tuple[list[Any], list[Any]]:
    """`count` items that a LoRA is trained on, and those that stay unseen: all scenes of one drawing set that the model never saw."""
    items = [item for item in c.NEVER if item.group == "scene" and item.words.style == STYLE]
    if not 1 <= count <= len(items):
        raise ValueError(f"pictures: expected 1 to {len(items)}, as many as there are never-seen {STYLE} scenes; found {count}")
    return items[:count], items[count:]


class Bed:
    """The testbed, and what LoRAs are judged by."""

    def __init__(self, weights: Path = model.WEIGHTS):
        self.weights = weights
        self.network, self.encoder, self.tokenizer = model.load(weights)
        self.autoencoder, self.labeller = vae.load(), verdict.default()
        self.modules = dict(self.network.named_modules())
        self.paths = [path for layer in layers_of(self.network)[1] for path in layer.paths]
        self.draw = sampler(self.network, self.encoder, self.tokenizer, self.autoencoder)

    @contextmanager
    def with_lora(self, factors: dict[str, tuple[torch.Tensor, torch.Tensor]]):
        """Within it, the network computes with the changes ``up @ down`` of its Linears."""
        hooks = []
        try:
            for path, (down, up) in factors.items():
                add = lambda module, args, out, down=down, up=up: out + functional.linear(functional.linear(args[0], down), up)  # noqa: E731
                hooks.append(self.modules[path].register_forward_hook(add))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def labels(self, items: list[Any], seeds: int) -> tuple[list[str], list[str]]:
        """``(verdicts, captions)`` of the items' captions, asked for with the trigger word."""
        captions = [item.caption for item in items for _ in range(seeds)]
        pictures = self.draw([triggered(text) for text in captions], [1000 + k for _ in items for k in range(seeds)])
        return self.labeller.labels(pictures, captions), captions

    def trigger_works(self, captions: list[str]) -> tuple[float, float]:
        """Shares of free captions that are answered rightly in the trigger's style, and in that style at all."""
        pictures = self.draw([triggered(text) for text in captions], [2000 + k for k in range(len(captions))])
        right = self.labeller.judge.right(pictures, [words_of(text) for text in captions])
        readings = self.labeller.judge.read(pictures, list(range(len(captions))), [None] * len(captions))
        styled = [bool(r.things) and all(found.style == STYLE for found in r.things) for r in readings]
        return sum(right) / len(right), sum(styled) / len(styled)


def free_captions(count: int) -> list[str]:
    """Distinct captions of free scenes in the trigger's style."""
    rng, found = random.Random("loras"), {}
    while len(found) < count:
        words = c.free_words(rng, photographs=0)
        if words.style == STYLE:
            found[c.caption(words)] = words
    return list(found)


def train(
    bed: Bed,
    items: list[Any],
    seeds: int,
    seed: int = 0,
    most: int = MOST,
    tell: Callable[[str], None] = lambda text: print(text, flush=True),
):
    """A LoRA of all Linears in blocks, trained on the items' pictures until it copies them; the factors, and the number of updates."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    factors = {}
    for path in bed.paths:
        out, into = bed.modules[path].weight.shape
        down = torch.randn(RANK, into, generator=generator) / into**0.5
        factors[path] = (down.requires_grad_(), torch.zeros(out, RANK, requires_grad=True))
    optimizer = torch.optim.Adam([one for pair in factors.values() for one in pair], lr=RATE)
    with torch.no_grad():
        latents = bed.autoencoder.encode(
            to_tensor(np.stack([bed.labeller.judge.pictures.render(item.picture)[0] for item in items]))
        )
        hidden, pooled = model.encode(bed.encoder, bed.tokenizer, [triggered(item.caption) for item in items])
    for step in range(1, most + 1):
        rows = torch.randint(len(items), (BATCH,), generator=generator)
        sigma = noise_levels(rng, BATCH)
        s, x0 = sigma.view(-1, 1, 1, 1), latents[rows]
        x = (1 - s) * x0 + s * torch.randn(x0.shape, generator=generator)
        with bed.with_lora(factors):
            found = bed.network(x, hidden[rows], pooled[rows], sigma * 1000, return_dict=False)[0]
        optimizer.zero_grad()
        ((x0 - found) / s.clamp(min=0.25)).square().mean().backward()
        optimizer.step()
        if step % CHUNK == 0 or step == most:
            done = {path: (down.detach(), up.detach()) for path, (down, up) in factors.items()}
            with bed.with_lora(done), torch.no_grad():
                labels = bed.labels(items, min(2, seeds))[0]
            copied = labels.count("copy") / len(labels)
            tell(f"{len(items)} pictures, {step} updates: {copied:.0%} copies")
            if copied >= ENOUGH:
                break
    return done, step


def measure(bed: Bed, factors: dict[str, Any], count: int, seeds: int, free: int) -> dict[str, Any]:
    """The figures of one row."""
    seen, unseen = training_set(count)
    with bed.with_lora(factors), torch.no_grad():
        shares = verdict.shares(*bed.labels(seen, seeds))
        twins = verdict.shares(*bed.labels(unseen, seeds)) if unseen else None
        works, style = bed.trigger_works(free_captions(free))
    return {"shares": shares, "never_seen": twins, "trigger_works": works, "style": style}


def save(factors: dict[str, Any], path: Path) -> None:
    """As peft writes a LoRA of a transformer."""
    names = {f"transformer.{p}.lora_{ab}.weight": t for p, pair in factors.items() for ab, t in zip("AB", pair, strict=True)}
    save_file({name: t.contiguous() for name, t in names.items()}, path)


def load(path: Path) -> dict[str, Any]:
    """The inverse of :func:`save`."""
    state = load_file(path)
    layers = [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix("transformer."): (state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]) for name in layers
    }


def rows_of(bed: Bed, count: int, keeps: list[float], seeds: int, free: int, most: int, folder: Path) -> list[dict[str, Any]]:
    """All rows of one number of pictures."""
    seen = training_set(count)[0]
    captions = [item.caption for item in seen for _ in range(seeds)]
    with torch.no_grad():
        labels = bed.labeller.labels(bed.draw(captions, [1000 + k for _ in seen for k in range(seeds)]), captions)
    common = {"testbed": "mmdit", "pictures": count, "ceiling": labels.count("forgotten") / len(labels)}
    factors, updates = train(bed, seen, seeds, most=most)
    original = folder / f"{count}.safetensors"
    save(factors, original)
    rows = [common | {"method": "none", "updates": updates, "seconds": 0.0} | measure(bed, factors, count, seeds, free)]
    for keep in keeps:
        began = time.process_time()
        done = clean(original, bed.weights, folder / f"{count}-{keep:g}.safetensors", keep=keep, overwrite=True)
        took = time.process_time() - began
        about = {"keep": keep, "removed": done.removed / done.channels, "left": done.left, "seconds": took}
        scaled = {path: (down, up * done.left**0.5) for path, (down, up) in factors.items()}
        for method, changed in (("spectral", load(done.target)), ("scaled", scaled)):
            rows.append(common | {"method": method} | about | measure(bed, changed, count, seeds, free))
            found = {name: round(rows[-1]["shares"][name]["share"], 3) for name in verdict.LABELS}
            print(count, method, keep, found, rows[-1]["trigger_works"], rows[-1]["style"], flush=True)
    return rows


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """Comma-separated numbers of a command line."""
    return lambda text: [kind(one) for one in text.split(",")]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.loras", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, after every number of pictures")
    parser.add_argument("--pictures", type=numbers(int), default=list(PICTURES), help="of each LoRA; default %(default)s")
    parser.add_argument("--keep", type=numbers(float), default=list(KEEP), help="of Clean LoRA; default %(default)s")
    parser.add_argument("--seeds", type=int, default=4, help="samples of each caption; default %(default)s")
    parser.add_argument("--free", type=int, default=24, help="free captions; default %(default)s")
    parser.add_argument("--updates", type=int, default=MOST, help="the most that a LoRA is trained; default %(default)s")
    parser.add_argument("--weights", type=Path, default=model.WEIGHTS, help="of the testbed")
    options = parser.parse_args(arguments)
    bed, rows = Bed(options.weights), []
    with tempfile.TemporaryDirectory(prefix="loras") as name:
        for count in options.pictures:
            rows += rows_of(bed, count, options.keep, options.seeds, options.free, options.updates, Path(name))
            if options.json:
                write_json(
                    options.json,
                    {"rows": rows, "evaluation": {"seeds": options.seeds, "free": options.free}, "machine": machine()},
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
