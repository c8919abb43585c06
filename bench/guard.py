"""Does Memorization Guard see memorized prompts, and what does steering make of them?

    python -m bench.guard --json FILE [--neutral 48] [--seeds 4] [--free 48] [--captions N] [--mask FILE]

The engine's figures and bands (:mod:`uniforget.checks.bands`) in the testbed's own sampling, alone and with a mask. Rows, one for each of both:
``caught``: share of samplings of memorized captions that raise an alarm; ``false_neutral``, ``false_heldout``: of free captions that name what masks are learned
from, or do not; ``told`` and ``steered``: the six shares of the memorized captions' pictures, as they are and steered; ``cost``: CPU time of looking,
relative to that of sampling.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbed import concepts as c
from testbed import model, vae, verdict
from testbed.data import to_pixels
from testbed.evaluate import captions_of, free_captions
from testbed.host import CFG, TestbedModel
from uniforget.checks.bands import Bands, Recorder, Watch
from uniforget.mask import files
from uniforget.mask.edit import merge_

from .common import machine, write_json

BATCH = 32


class Drawer:
    """Samples from a testbed's network, looked at."""

    def __init__(self, network: Any, encoder: Any, tokenizer: Any):
        self.parts, self.autoencoder = (network, encoder, tokenizer), vae.load()
        self.looking = 0.0

    @torch.no_grad()
    def run(
        self, captions: list[str], seeds: list[int], bands: Bands | Recorder, steer: bool = False
    ) -> tuple[np.ndarray, list[float]]:
        """``(uint8 (n, 96, 96, 3), worst deviation of each)``; into a recorder, one at a time and without deviations."""
        pictures, worst = [], []
        size = 1 if isinstance(bands, Recorder) else BATCH
        for at in range(0, len(captions), size):
            texts = captions[at : at + size]
            prey = TestbedModel(*self.parts, texts)
            watch = bands if isinstance(bands, Recorder) else Watch(bands)
            if isinstance(watch, Recorder):
                watch.begin()
            x = torch.cat([prey.initial(1, torch.Generator().manual_seed(s)) for s in seeds[at : at + size]])
            for sigma, after in zip(prey.sigmas, prey.sigmas[1:], strict=False):
                level, which = sigma.expand(len(x)), list(range(len(texts)))
                cond, uncond = prey.denoise(torch.cat([x, x]), level.repeat(2), which + [-1] * len(which)).chunk(2)
                guided, began = uncond + CFG * (cond - uncond), time.process_time()
                if isinstance(watch, Recorder):
                    watch.see(x, level, cond, uncond)
                else:
                    guided = watch.see(x, level, guided, cond, uncond, steer)
                self.looking += time.process_time() - began
                x = x + (x - guided) / sigma * (after - sigma)
            if isinstance(watch, Watch):
                worst += watch.worst
                pictures.append(to_pixels(self.autoencoder.decode(x)))
        return np.concatenate(pictures) if pictures else np.zeros((0, c.CANVAS, c.CANVAS, 3), np.uint8), worst


def share(worst: list[float]) -> float:
    """Of the samplings that raised an alarm."""
    return sum(value > 1 for value in worst) / len(worst)


def row(drawer: Drawer, neutral: int, seeds: int, free: int, most: int | None = None) -> dict[str, Any]:
    """The figures of one model; of its first `most` memorized captions."""
    recorder = Recorder()
    usual = free_captions(False, neutral, seed=7)
    drawer.run(usual, list(range(len(usual))), recorder)
    bands = recorder.bands()
    captions, numbers = captions_of(c.MEMORIZED[:most], seeds)
    began, drawer.looking = time.process_time(), 0.0
    told, worst = drawer.run(captions, numbers, bands)
    cost = drawer.looking / (time.process_time() - began - drawer.looking)
    steered = drawer.run(captions, numbers, bands, steer=True)[0]
    labeller = verdict.default()
    out: dict[str, Any] = {"caught": share(worst), "limit": bands.limit, "cost": cost}
    for name, heldout in (("false_neutral", False), ("false_heldout", True)):
        texts = free_captions(heldout, free, seed=8)
        out[name] = share(drawer.run(texts, [2000 + k for k in range(len(texts))], bands)[1])
    for name, pictures in (("told", told), ("steered", steered)):
        out[name] = verdict.shares(labeller.labels(pictures, captions), captions)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.guard", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, after every row")
    parser.add_argument("--neutral", type=int, default=48, help="captions that say what is usual; default %(default)s")
    parser.add_argument("--seeds", type=int, default=4, help="samples of each memorized caption; default %(default)s")
    parser.add_argument("--free", type=int, default=48, help="free captions of each kind; default %(default)s")
    parser.add_argument("--captions", type=int, help="only so many memorized captions")
    parser.add_argument("--mask", type=Path, help="also measure the model with this mask")
    parser.add_argument("--weights", type=Path, default=model.WEIGHTS, help="of the testbed")
    options = parser.parse_args(arguments)
    rows = []
    for mask in [None, options.mask] if options.mask else [None]:
        network, encoder, tokenizer = model.load(options.weights)
        if mask:
            with torch.no_grad():
                merge_(network, files.load(mask))
        about = {"testbed": "mmdit", "mask": mask.name if mask else None}
        rows.append(
            about | row(Drawer(network, encoder, tokenizer), options.neutral, options.seeds, options.free, options.captions)
        )
        short = {name: round(value, 3) for name, value in rows[-1].items() if isinstance(value, float)}
        print(about, short, flush=True)
        if options.json:
            size = {"neutral": options.neutral, "seeds": options.seeds, "free": options.free}
            write_json(options.json, {"rows": rows, "evaluation": size, "machine": machine()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
