"""How long sanitizing a checkpoint takes against copying it, and how much memory.

    python -m bench.sanitize --json FILE [--gigabytes 8] [--folder FOLDER] [--repeats 3] [--smallest]

The file has an SDXL UNet's weights in fp16 under the names of a full checkpoint, and other tensors up to the size asked for; numbers are
random. ``ratio_to_copy``: median time of sanitizing over that of copying the file, in turns, each written through to the disk.
``extra_bytes``: memory in use at the peak beyond what was in use before, less the largest tensor. ``touched``: share of the bytes that
the mask acts on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniforget.checkpoint import safefile
from uniforget.checkpoint.fileplan import Use, plan
from uniforget.checkpoint.safefile import Entry, Header
from uniforget.checkpoint.sanitize import sanitize
from uniforget.cli.files import uses_of
from uniforget.mask import files
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.model.sites import find_sites

from .common import machine, resident, write_json

PREFIX = "model.diffusion_model."


def shapes(width: int = 320) -> dict[str, tuple[int, ...]]:
    """Weights of SDXL's UNet, `width` channels wide at its widest pictures."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        network = UNet2DConditionModel(
            block_out_channels=(width, 2 * width, 4 * width), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(width // 64, width // 32, width // 16),
            transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    return {name: tuple(p.shape) for name, p in network.named_parameters()}


def checkpoint(path: Path, size: int, unet: dict[str, tuple[int, ...]]) -> None:
    """A file of about `size` bytes."""
    wanted = {PREFIX + name: shape for name, shape in unet.items()}
    filler = (4096, 4096)
    left = size - sum(2 * int(np.prod(s)) for s in wanted.values())
    wanted |= {f"conditioner.embedders.{i}.weight": filler for i in range(max(0, left // (2 * filler[0] * filler[1])))}
    entries, at = {}, 0
    for name, shape in wanted.items():
        end = at + 2 * int(np.prod(shape))
        entries[name] = Entry(name, "F16", shape, at, end)
        at = end
    numbers = (0.05 * torch.randn(16 << 20, generator=torch.Generator().manual_seed(0))).half().numpy().tobytes()
    with open(path, "wb") as file:
        file.write(safefile.header_bytes(Header(path, entries, {}, 0), {"modelspec.title": "random"}))
        while at > 0:
            at -= file.write(memoryview(numbers)[: min(at, len(numbers))])


def mask(unet: dict[str, tuple[int, ...]]) -> GateMask:
    """Random gates for neurons and norm channels, 45 % off."""
    family, sites = find_sites(unet, ("ffn", "norm"))
    generator = torch.Generator().manual_seed(1)
    gates = {s.name: (torch.rand(s.units, generator=generator) > 0.45).float() for s in sites}
    return GateMask(gates, {s.name: s.kind for s in sites}, MaskInfo(family=family.name, base=""))


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())


def _time(run: Any, target: Path) -> float:
    began = time.perf_counter()
    run()
    seconds = time.perf_counter() - began
    # At once, so that three such files need not share the memory that the system caches files in.
    target.unlink()
    return seconds


def measure(folder: Path, size: int, repeats: int, width: int = 320) -> dict[str, Any]:
    """The figures, of a file made in `folder` and deleted afterwards."""
    unet = shapes(width)
    source, copied, target = (folder / f"{name}.safetensors" for name in ("source", "copied", "sanitized"))
    checkpoint(source, size, unet)
    header, use = safefile.read_header(source), Use(mask(unet), 0.8)
    saved = folder / "mask.safetensors"
    files.save(use.learned, saved)
    steps = plan(unet, [use])
    touched = sum(header.entries[PREFIX + n].end - header.entries[PREFIX + n].start for n in steps)
    largest = max(e.end - e.start for e in header.entries.values())
    copies, ours = [], []
    for _ in range(repeats):
        copies.append(_time(lambda: _copy(source, copied), copied))
        ours.append(_time(lambda: sanitize(source, target, uses_of([saved], 0.8, 0.0)), target))
    memory = resident(lambda: sanitize(source, target, [use]))
    return {
        "file_bytes": source.stat().st_size,
        "touched": touched / header.size,
        "copy_seconds": copies,
        "sanitize_seconds": ours,
        "ratio_to_copy": statistics.median(ours) / statistics.median(copies),
        "largest_tensor_bytes": largest,
        "extra_bytes": None if memory is None else max(0, memory - largest),
        "machine": machine(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.sanitize", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument(
        "--gigabytes", type=float, default=8.0, help="size of the file; three times as much is needed on the disk"
    )
    parser.add_argument("--folder", type=Path, help="where files are put; left out: the system's folder for temporary files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--smallest", action="store_true", help="a fifth of the UNet's width, and one repeat: to see that it runs"
    )
    options = parser.parse_args(arguments)
    width = 320
    if options.smallest:
        options.gigabytes, options.repeats, width = 0.1, 1, 64
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), int(options.gigabytes * 1e9), options.repeats, width)
    write_json(options.json, found)
    extra = "unknown" if found["extra_bytes"] is None else f"{found['extra_bytes'] / 1e6:.0f} MB"
    print(f"ratio_to_copy {found['ratio_to_copy']:.2f}, memory beyond the largest tensor {extra}, {found['touched']:.0%} touched")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
