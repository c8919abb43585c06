"""Learning on a GPU, at real size: seconds per update, peak memory, waits for the device, and the share of the card's peak.

    python -m bench.gpu --json FILE [--models sd15,sdxl,flux,z_image] [--weights bf16,fp8] [--updates 20] [--batch 16] [--pixels 512]
    python -m bench.gpu --json FILE --tiny

Needs CUDA and diffusers, and no network: the architectures are diffusers' own, their weights random. With ``--tiny`` they are small and
on the CPU, to see that it runs. Each model is a row: it learns ``--updates`` updates with the product's own ``learn`` and its default
settings (*stepwise*, memory "auto", guidance 3, but 1 for FLUX.1), the mask is saved, and merged into the weights.

* ``seconds_per_update``: median over updates in which nothing is counted; ``forward_seconds``: one forward pass of the same batch without a gradient.
* ``updates_per_forward``: their ratio. ``arithmetic_per_forward``: the same of floating point operations, which nothing can beat by much.
* ``share_of_peak``: an update's operations per second, over those of a bf16 matrix product of ``--matrix`` x ``--matrix`` on the same card.
* ``syncs_per_update``: times that the host waited, as ``torch.cuda.set_sync_debug_mode`` tells them; null on the CPU.
* ``peak_bytes``: of learning, weights included; ``weight_bytes``: theirs. ``memory``, ``rows``: what "auto" chose. ``error``: why a model could not be measured.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from uniforget.errors import UniForgetError
from uniforget.hosts.diffusers.apply import fold_
from uniforget.learn import Progress, Session, Settings, guided, learn, memory
from uniforget.learn.methods import describe
from uniforget.mask import files

from .common import Flops, machine, write_json
from .networks import KINDS, published

# Updates in which waits and operations are counted; in neither the gap between gates and mask is measured.
WAITS, FLOPS, LEAST = 3, 4, 10
TINY = {"pixels": 64, "batch": 2, "updates": LEAST, "matrix": 256}


class Watch:
    """Counts in some updates, and notes the seconds of the others."""

    def __init__(self, cuda: bool):
        self.cuda, self.stack = cuda, ExitStack()
        self.seconds: list[float] = []
        self.waits: int | None = None
        self.flops = 0
        self.began, self.teacher = time.perf_counter(), 0.0

    def __call__(self, progress: Progress) -> None:
        """Between two updates; `progress` is of the one that ended."""
        if progress.stage == "teacher":
            self.teacher = time.perf_counter() - self.began
            return
        self.stack.close()
        # The first ones pay for libraries that load and memory that is fetched.
        if progress.step > FLOPS:
            self.seconds.append(progress.seconds)
        if progress.step == WAITS - 1 and self.cuda:
            caught = self.stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            self.stack.callback(self._heard, caught)
        if progress.step == FLOPS - 1:
            counter = self.stack.enter_context(Flops())
            self.stack.callback(lambda: setattr(self, "flops", counter.total))

    def _heard(self, caught: list[warnings.WarningMessage]) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.waits = sum("synchronizing" in str(warning.message) for warning in caught)


def seconds(run: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    """Median wall time of a call, up to when the device is done with it; the first one is not counted."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = []
    for _ in range(repeats + 1):
        wait()
        began = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def peak_flops(size: int, device: torch.device) -> float:
    """Operations per second of a bf16 matrix product of `size` x `size`."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, 10)


def measure(kind: str, weights: str, options: argparse.Namespace, device: torch.device, peak: float) -> dict[str, Any]:
    """The row of one model."""
    cuda = device.type == "cuda"
    steps, prompts = (2, 4) if options.tiny else (8, 16)
    model = published(kind, weights, options.pixels, steps, device, options.tiny, prompts)
    held = sum(p.nbytes for p in model.network.parameters())
    settings = Settings(batch=options.batch, steps=options.updates, cfg=KINDS[kind].cfg, noises=int(options.tiny))
    x, which = model.initial(options.batch, torch.Generator().manual_seed(0)), [i % model.prompts for i in range(options.batch)]
    at = model.sigmas[:1].expand(len(x))
    with torch.no_grad():
        forward = lambda: guided(model, x, at, which, settings.cfg)  # noqa: E731
        with Flops() as counter:
            forward()
        once = seconds(forward, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    watch, chosen, choose = Watch(cuda), [], memory.choose
    info = describe(settings, model.family.name, "", f"random {kind}", ("ffn", "norm"), [])
    with mock.patch.object(memory, "choose", lambda *given: chosen.append(choose(*given)) or chosen[-1]):
        mask = learn(model, settings, info, Session(watch)).mask
    update = statistics.median(watch.seconds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.safetensors")
        began = time.perf_counter()
        files.save(mask, path)
        saved, size = time.perf_counter() - began, path.stat().st_size
    peak_bytes = torch.cuda.max_memory_allocated(device) if cuda else None
    return {
        "memory": chosen[0][0],
        "rows": chosen[0][1],
        "weight_bytes": held,
        "peak_bytes": peak_bytes,
        "teacher_seconds": watch.teacher,
        "forward_seconds": once,
        "seconds_per_update": update,
        "updates_per_forward": update / once,
        "arithmetic_per_forward": watch.flops / counter.total,
        "flops_per_update": watch.flops,
        "share_of_peak": watch.flops / update / peak,
        "syncs_per_update": watch.waits,
        "apply_seconds": seconds(lambda: fold_(model.network, mask, 0.5), device, 1),
        "save_seconds": saved,
        "mask_bytes": size,
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; its exit code: 0 measured, 1 some models could not be, 2 there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="where the figures go, after every row")
    parser.add_argument("--models", default=",".join(KINDS), help="default %(default)s")
    parser.add_argument("--weights", default="bf16,fp8", help="how they are stored; default %(default)s")
    parser.add_argument("--updates", type=int, default=20, help=f"from {LEAST} to 50; default %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="default %(default)s")
    parser.add_argument("--pixels", type=int, default=512, help="width and height of the pictures; default %(default)s")
    parser.add_argument("--matrix", type=int, default=8192, help="of the product that the peak is; default %(default)s")
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU: to see that it runs")
    options = parser.parse_args(arguments)
    if not LEAST <= options.updates <= 50 or not set(options.models.split(",")) <= set(KINDS):
        parser.error(f"expected {LEAST} to 50 updates and models among {', '.join(KINDS)}")
    if options.tiny:
        vars(options).update(TINY)
    elif not torch.cuda.is_available():
        print("bench.gpu: there is no CUDA device. --tiny runs small models on the CPU.", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.tiny else "cuda")
    peak = peak_flops(options.matrix, device)
    rows: list[dict[str, Any]] = []
    for kind in options.models.split(","):
        for weights in options.weights.split(","):
            row = {
                "model": kind,
                "weights": weights,
                "batch": options.batch,
                "pixels": options.pixels,
                "updates": options.updates,
            }
            try:
                row |= measure(kind, weights, options, device, peak)
            except (UniForgetError, torch.OutOfMemoryError) as error:
                row["error"] = str(error).splitlines()[0]
            rows.append(row)
            print(row, flush=True)
            write_json(options.json, {"rows": rows, "tiny": options.tiny, "peak_flops": peak, "machine": machine()})
            gc.collect()
            torch.cuda.empty_cache()
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
