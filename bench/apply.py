"""How long applying a mask to a full-size FLUX.1 takes and what memory it needs, beside ComfyUI's own LoRA loader.

    python -m bench.apply --json FILE [--repeats N]

COMFYUI_PATH names the ComfyUI, else it is the one that run.py fetched. Runs on the CPU and needs about 2 GB of memory.

**The model** is ComfyUI's own FLUX.1-dev class at its real size (19 double and 38 single blocks, 3072 wide, bf16), with every
parameter a view of one single value: it has the names, shapes and dtype of 11.9 billion weights and holds none. The mask has
gates for ffn and norm, a third of them off; it patches 152 matrices (``{img,txt}_mlp.2``, ``{img,txt}_mod.lin``, ``linear2``,
``modulation.lin``: 6.4 billion weights) and the 76 biases of the modulations. The LoRA (rank 16, bf16) patches exactly those,
the biases by ``diff_b``.

**Timed** in processor seconds, for the mask and for the LoRA alike, with both in memory (files are not read):

1. attach: what the node does. For the mask: find the sites of a model never seen before, compare the mask with them, make the
   patches, hand them over, check that all were taken, and compare the model's fingerprint. For the LoRA:
   ``comfy.sd.load_lora_for_models``. A mask at another strength finds the sites known: ``attach_seconds_warm``.
2. patch: ``ModelPatcher.patch_weight_to_device`` for every patched weight, which is what loading a model calls: copy to fp32,
   patch, round to bf16, put it in. Right before each call the weight is replaced by a real one of its shape with random values,
   and right after it the result is dropped, outside of the clock. The mask and the LoRA take turns weight by weight, and who
   goes first alternates, so that both see the same machine.

A repeat is the sum over all weights; ``ratio_to_lora`` is the median of the mask's sums (attach and patch, sites not known)
over the median of the LoRA's.

**Memory** is what torch's CPU allocator gave out. ComfyUI's way of patching needs, for whatever patch, an fp32 copy of the
weight and then the rounded result beside it: that is ``core_temp_bytes``, measured with a patch that does nothing, three times
the layer in bf16, and no node can avoid it. It also keeps the original of each patched weight to restore it from
(``core_backup_bytes``; on a GPU those are the copies that lie in main memory anyway). So ``extra_bytes`` is what the mask
itself costs: all that attaching holds at its peak (the factors of all weights), plus the most that patching one weight allocates
beside the copy it is given, added up although they need not fall together. ``lora_extra_bytes`` is the same for the LoRA,
whose matrices were loaded from a file and count as held. ``peak_bytes`` and ``lora_peak_bytes`` are the whole peaks, core's
copies included, of patching the largest weight, without what is held; ``*_resident_bytes`` the same as the system sees it.
``largest_layer_bytes`` is the largest patched weight in bf16, the smaller of the two dtypes it is held in.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from launcher import inside
from launcher.errors import LauncherError
from launcher.paths import CACHE

from .common import write_json

REPEATS = 5


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; its exit code: 0 measured, 2 it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m bench.apply", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="how often everything is measured (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: expected 1 or more")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks about devices
    try:
        inside.load(CACHE / "inside")
    except LauncherError as error:
        print(f"bench.apply: {error}", file=sys.stderr)
        return 2
    from .patching import FLUX_DEV, measure

    figures = measure(FLUX_DEV, options.repeats, say=lambda text: print(text, flush=True))
    print(report(figures))
    if options.json:
        write_json(options.json, figures)
    return 0


def report(f: dict[str, Any]) -> str:
    """The figures for people."""
    mb = lambda n: "?" if n is None else f"{n / 1e6:,.1f} MB"  # noqa: E731
    rows = [
        ("", "mask", "LoRA"),
        ("attach, s", f"{f['attach_seconds']:.3f}", f"{f['lora_attach_seconds']:.3f}"),
        ("  at another strength, s", f"{f['attach_seconds_warm']:.3f}", ""),
        ("patch, s", f"{f['patch_seconds']:.2f}", f"{f['lora_patch_seconds']:.2f}"),
        ("together, s", f"{f['seconds']:.2f}", f"{f['lora_seconds']:.2f}"),
        ("held and temporary memory", mb(f["extra_bytes"]), mb(f["lora_extra_bytes"])),
        ("peak with core's copies", mb(f["peak_bytes"]), mb(f["lora_peak_bytes"])),
        ("  as the system sees it", mb(f["resident_bytes"]), mb(f["lora_resident_bytes"])),
    ]
    return "\n".join(
        [
            f"{f['patched_keys']} weights patched ({f['patched_values'] / 1e9:.2f} billion values), {f['repeats']} repeats",
            *(f"{name:<28}{mask:>12}{lora:>12}" for name, mask, lora in rows),
            f"ratio_to_lora {f['ratio_to_lora']:.3f}   extra_bytes {mb(f['extra_bytes'])}   "
            f"largest_layer_bytes {mb(f['largest_layer_bytes'])}   core_temp_bytes {mb(f['core_temp_bytes'])}",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
