"""How much faster models get when what a mask switches off is cut out.

    python -m bench.compact --json FILE [--quick] [--smallest]

Two stacks of blocks with the shapes of SDXL (its transformer blocks at 1280 channels on 32 x 32 latents, 77 text tokens) and FLUX.1 (double and single
blocks, 3072 wide, 512 x 512 pictures with 128 text tokens), random weights in fp32, through diffusers. ``speedup``: median processor time of a forward pass
whole over cut, in turns. ``size_ratio``: weights of the stack after over before; ``arithmetic_ratio``: what the numbers of neurons and heads say.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel

from uniforget.hosts.diffusers.apply import find_modules
from uniforget.hosts.diffusers.compact import compact_
from uniforget.mask.info import GateMask, MaskInfo

from .common import machine, seconds, write_json

# Shares of neurons and of heads that are off.
CASES = ((0.0, 0.0), (0.25, 0.0), (0.45, 0.0), (0.7, 0.0), (0.9, 0.0), (0.0, 0.25), (0.45, 0.25))


def sdxl(heads: int = 20) -> tuple[Any, Callable[[Any], None]]:
    """A UNet with a single level of SDXL's size: two resnets and transformers of four blocks on the way down, the same back up."""
    config = {
        "block_out_channels": (64 * heads,), "down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",),
        "mid_block_type": "UNetMidBlock2DCrossAttn", "layers_per_block": 1, "transformer_layers_per_block": 4, "attention_head_dim": heads,
        "cross_attention_dim": 2048, "use_linear_projection": True, "sample_size": 32,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    x, text = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 2048)
    more = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.zeros(1, 6)}
    return UNet2DConditionModel(**config), lambda m: m(x, torch.tensor([500]), text, added_cond_kwargs=more, return_dict=False)


def flux(heads: int = 24) -> tuple[Any, Callable[[Any], None]]:
    """One double and two single blocks of FLUX.1, of 512 x 512 pixels."""
    model = FluxTransformer2DModel(num_layers=1, num_single_layers=2, num_attention_heads=heads, guidance_embeds=True)
    x, text = torch.randn(1, 1024, 64), torch.randn(1, 128, 4096)
    given = {"encoder_hidden_states": text, "pooled_projections": torch.randn(1, 768), "timestep": torch.tensor([0.5])}
    given |= {"img_ids": torch.zeros(1024, 3), "txt_ids": torch.zeros(128, 3), "guidance": torch.tensor([3.5])}
    return model, lambda m: m(hidden_states=x, return_dict=False, **given)


SHAPES: dict[str, Callable[..., tuple[Any, Callable[[Any], None]]]] = {"SDXL": sdxl, "FLUX.1": flux}


def mask(model: Any, ffn_off: float, attn_off: float) -> GateMask:
    """Random gates with these shares off in every site."""
    family, sites, _ = find_modules(model)
    generator, gates = torch.Generator().manual_seed(0), {}
    for site in sites:
        share = {"ffn": ffn_off, "attn": attn_off}.get(site.kind, 0.0)
        gates[site.name] = torch.ones(site.units)
        gates[site.name][torch.randperm(site.units, generator=generator)[: round(share * site.units)]] = 0
    return GateMask(gates, {s.name: s.kind for s in sites}, MaskInfo(family=family.name, base=""))


@torch.no_grad()
def measure(shape: str, ffn_off: float, attn_off: float, repeats: int, **size: int) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    whole, run = SHAPES[shape](**size)
    whole.eval().requires_grad_(False)
    small = copy.deepcopy(whole)
    plan = compact_(small, mask(whole, ffn_off, attn_off), 64)
    times: dict[str, list[float]] = {"whole": [], "small": []}
    for turn in range(repeats + 1):
        for name, model in (("whole", whole), ("small", small)):
            found = seconds(lambda model=model: run(model))
            if turn:  # the first warms up
                times[name].append(found)
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    before, after = plan.saved()
    return {
        "shape": shape,
        "ffn_off": ffn_off,
        "attn_off": attn_off,
        "speedup": statistics.median(times["whole"]) / statistics.median(times["small"]),
        "seconds": {name: statistics.median(found) for name, found in times.items()},
        "size_ratio": count(small) / count(whole),
        "arithmetic_ratio": 1 - (before - after) / count(whole),
        "left_whole": {kind: len(names) for kind, names in plan.whole.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.compact", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--quick", action="store_true", help="only 45 % of the neurons off, two repeats")
    parser.add_argument("--smallest", action="store_true", help="the same on two heads, and once: to see that it runs")
    options = parser.parse_args(arguments)
    cases, repeats = ([(0.45, 0.0)], 2) if options.quick or options.smallest else (CASES, 3)
    size = {"heads": 2} if options.smallest else {}
    rows = []
    for shape in SHAPES:
        for ffn_off, attn_off in cases:
            rows.append(measure(shape, ffn_off, attn_off, 1 if options.smallest else repeats, **size))
            row = rows[-1]
            print(
                f"{shape}: {ffn_off:.0%} of neurons, {attn_off:.0%} of heads off: {row['speedup']:.2f}x, {row['size_ratio']:.0%} of the size",
                flush=True,
            )
            write_json(options.json, {"rows": rows, "machine": machine()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
