"""Does forgetting go together with other unlearning, and with itself? On the second testbed, a UNet with cross-attention.

    python -m bench.stacking --json FILE [--only TEXT]

``orthogonal``: one concept (an emoji) is unlearned by name, by concept ablation (a LoRA after "Ablating Concepts", arXiv 2303.13516) and by a closed form edit
of keys and values (after UCE, arXiv 2308.14761), each alone, with UniForget's gates, and gates alone. ``target``: share of pictures of that emoji that are right;
``neighbours``: of the others; ``copies``: share of samples from memorized captions that are copies.

``continual``: five requests one after the other. Each learns a mask on another fifth of the neutral prompts, joins it to those before
(union), and trains a recovery LoRA on the same fifth. ``copies``, ``neutral`` and ``heldout`` after each, without and with the LoRA.

Rows that FILE has are not measured again. Models run in bfloat16 (autocast).
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from testbed import concepts, evaluate
from testbed import model as testbed
from testbed.host import TestbedModel
from uniforget.config import PRESETS, RECOVER
from uniforget.hosts.diffusers.apply import lora_
from uniforget.learn import learn
from uniforget.learn.recover import Lora, recover
from uniforget.mask import files
from uniforget.mask.combine import combine
from uniforget.mask.info import GateMask, MaskInfo

from .common import machine, write_json
from .forgetting import SECOND, Bed, drawing

TARGET, ANCHOR = "cat", "dog"
PRESET = "medium"
REQUESTS, UPDATES = 5, 150
EMOJI_SEEDS = 4


def pairs(bed: Bed) -> list[tuple[str, str]]:
    """Captions of the target, and the same of the anchor."""
    looks = [(size, place) for size in concepts.SIZES for place in concepts.PLACES]
    backgrounds = [b for b in concepts.neutral_concepts(False)[1] if concepts.visible(TARGET, b) and concepts.visible(ANCHOR, b)]
    return [
        tuple(concepts.emoji_caption(name, b, *looks[i % len(looks)]) for name in (TARGET, ANCHOR))
        for i, b in enumerate(backgrounds * 3)
    ]  # type: ignore[misc]


class Swapped(TestbedModel):
    """Shows the student the target's captions where the teacher saw the anchor's."""

    def __init__(self, bed: Bed, wanted: list[tuple[str, str]]):
        super().__init__(bed.network, bed.encoder, bed.tokenizer, [b for _, b in wanted])
        self.anchors = self.hidden, self.pooled
        with torch.no_grad():
            self.targets = testbed.encode(bed.encoder, bed.tokenizer, [*(a for a, _ in wanted), ""])

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> torch.Tensor:
        # Teachers are recorded without gradients.
        self.hidden, self.pooled = self.targets if torch.is_grad_enabled() else self.anchors
        return super().denoise(x, sigma, which)


def ablation(bed: Bed) -> Lora:
    """A LoRA that draws the anchor where the target is asked for, and everything else as before."""
    others = [p for p in bed.prompts if TARGET not in p.split()]
    wanted = pairs(bed)
    model = Swapped(bed, wanted + [(p, p) for p in others[:: max(1, len(others) // (2 * len(wanted)))]])
    ones = GateMask(
        {s.name: torch.ones(s.units) for s in model.sites},
        {s.name: s.kind for s in model.sites},
        MaskInfo(family=model.family.name, base=""),
    )
    with drawing():
        return recover(model, ones, bed.settings(0, learning_rate=RECOVER["learning_rate"].default, cfg=1.0), 16)


@torch.no_grad()
def closed_form(bed: Bed, network: Any, keep: float = 0.1) -> None:
    """Keys and values of the target's text become those of the anchor's; those of other prompts stay, in the sense of least squares."""

    encode = lambda texts: testbed.encode(bed.encoder, bed.tokenizer, texts)[0].flatten(0, 1).double()  # noqa: E731
    wanted = pairs(bed)
    others = encode([p for p in bed.prompts if TARGET not in p.split()])
    target, anchor = encode([a for a, _ in wanted]), encode([b for _, b in wanted])
    preserved = keep * len(target) / len(others) * others.T @ others
    # What no prompt here uses stays as it is.
    preserved += 1e-3 * (target.T @ target).diagonal().mean() * torch.eye(preserved.shape[0], dtype=preserved.dtype)
    square = target.T @ target + preserved
    for name, module in network.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            weight = module.weight.double()
            module.weight.copy_(torch.linalg.solve(square, (weight @ (anchor.T @ target + preserved)).T).T)


def concept_figures(bed: Bed, network: Any) -> dict[str, float]:
    """Right pictures of the target and of the other emoji, and copies."""
    sample = evaluate.sampler(network, bed.encoder, bed.tokenizer)
    backgrounds = [b for b in concepts.neutral_concepts(False)[1] if concepts.visible(TARGET, b)]
    out = {}
    asked = {
        "target": [(concepts.emoji_caption(TARGET, b), TARGET, b) for b in backgrounds],
        "neighbours": [item for item in bed.items["neutral"] if item[1] != TARGET],
    }
    with drawing():
        for name, items in asked.items():
            each = [item for item in items for _ in range(EMOJI_SEEDS if name == "target" else 2)]
            pictures = sample([i[0] for i in each], [5000 + k for k in range(len(each))])
            out[name] = float(bed.judge.right(pictures, [i[1] for i in each], [i[2] for i in each]).float().mean())
        captions = [m for m in concepts.MEMORIZED for _ in range(8)]
        out["copies"] = float(
            bed.judge.copies(sample(captions, [1000 + i % 8 for i in range(len(captions))]), captions).float().mean()
        )
    return out


def orthogonal(bed: Bed) -> dict[str, Callable[[], dict[str, float]]]:
    """Rows by name, measured when they are called."""

    def gates() -> GateMask:
        return bed.learned(f"gates {PRESET} stepwise", 0, preset=PRESET, objective="stepwise")  # type: ignore[return-value]

    def row(with_gates: bool, edit: Callable[[Any], None]) -> Callable[[], dict[str, float]]:
        def measure() -> dict[str, float]:
            network = bed.edited(gates()) if with_gates else copy.deepcopy(bed.network)
            edit(network)
            return concept_figures(bed, network)

        return measure

    lora = lambda network: lora_(network, bed.once("ablation", lambda: ablation(bed)))  # noqa: E731
    edits: dict[str, Callable[[Any], None]] = {
        "": lambda network: None,
        "concept ablation": lora,
        "closed form": lambda network: closed_form(bed, network),
    }
    return {
        " + ".join(filter(None, ("UniForget" if masked else "", name))) or "original": row(masked, edit)
        for name, edit in edits.items()
        for masked in (False, True)
    }


def continual(bed: Bed, done: Callable[[str, dict[str, Any]], None], have: set[str]) -> None:
    """Five requests, each of which goes on from the one before."""
    whole: GateMask | None = None
    for request in range(REQUESTS):
        prompts = bed.prompts[request::REQUESTS]
        path = bed.work / f"continual-{request}.safetensors"

        if path.exists():
            mask = files.load(path)
        else:
            info = MaskInfo(family="sd1", base="", beta=PRESETS[PRESET], preset=PRESET, targets=("ffn", "norm"), seed=request)
            with drawing():
                mask = learn(bed.model(prompts=prompts), bed.settings(request, beta=PRESETS[PRESET], steps=UPDATES), info).mask
            path.parent.mkdir(parents=True, exist_ok=True)
            files.save(mask, path)
        assert isinstance(mask, GateMask)
        whole = mask if whole is None else combine(whole, mask, "union")
        for recovered in (False, True):
            name = f"request {request + 1}{', recovered' if recovered else ''}"
            if name in have:
                continue
            network = bed.edited(whole)
            if recovered:
                with drawing():
                    settings = bed.settings(request, steps=UPDATES, learning_rate=RECOVER["learning_rate"].default)
                    lora_(network, recover(bed.model(prompts=prompts), whole, settings, RECOVER["rank"].default))
            with drawing():
                found = bed.measure(network, 4)
            done(name, {"off": whole.off_share(), **{n: found[n] for n in ("copies", "neutral", "heldout")}})


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.stacking", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--json", type=Path, metavar="FILE", required=True, help="where rows are kept; those it has are not measured again"
    )
    parser.add_argument("--only", choices=("orthogonal", "continual"), help="one of the two tables")
    parser.add_argument("--work", type=Path, default=Path(".cache/forgetting"), help="where learned masks are kept")
    options = parser.parse_args(arguments)
    bed = Bed("unet", SECOND, options.work)

    def rows() -> list[dict[str, Any]]:
        return json.loads(options.json.read_text())["rows"] if options.json.exists() else []

    def done(table: str, name: str, figures: dict[str, Any]) -> None:
        write_json(options.json, {"rows": [*rows(), {"table": table, "name": name, **figures}], "machine": machine()})
        print(table, name, "  ".join(f"{n} {v:.1%}" for n, v in figures.items()), flush=True)

    have = {(row["table"], row["name"]) for row in rows()}
    if options.only != "continual":
        for name, measure in orthogonal(bed).items():
            if ("orthogonal", name) not in have:
                done("orthogonal", name, measure())
    if options.only != "orthogonal":
        continual(bed, lambda name, found: done("continual", name, found), {n for t, n in have if t == "continual"})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
