"""Does it forget, at what price, and does it stay forgotten? On the testbeds, beside everything it should be compared with.

    python -m bench.forgetting --json FILE [--quick] [--testbed mmdit|unet|both] [--only TEXT] [--docs bench/results/forgetting.md]

Every row is one edited model. It is written as soon as it is measured, and rows that FILE has are not measured again: a run that was
stopped goes on, and `--only` adds some rows. Masks are kept in `.cache/forgetting`.

Columns: ``copies`` (share of samples from memorized captions that are copies, Carlini's criterion), ``copies_indomain``,
``copies_outdomain``; ``neutral`` and ``heldout`` (share of right pictures, concepts that masks were and were not learned from);
``neutral_similarity`` (correlation with the original's pictures from the same noise), ``diversity`` (distance between two samples of
one neutral prompt, over the original's); ``copies_after_attack`` (text embeddings optimized for 50 steps from the memorized
caption), ``copies_after_attack_noise`` (from noise), ``control_after_attack`` (the same attack for never-seen pictures),
``copies_after_500`` (of every third picture); ``copies_after_finetune`` (100 steps on the original's own neutral pictures); ``copies_indirect`` (partial,
shuffled and incomplete captions). ``off_*``: share of gates, or of directions, switched off (of both together: the gates). Empty: not measured for this row.
``samples``: sampling seeds per memorized caption. Models run in bfloat16 (autocast), as on a GPU, which halves the time.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbed import attack as attacks
from testbed import concepts, evaluate
from testbed import model as mmdit
from testbed.host import TestbedModel
from testbed.judge import Judge
from uniforget.checks.similarity import correlation
from uniforget.config import LEARN, PRESETS
from uniforget.hosts.diffusers.apply import fold_, project_
from uniforget.learn import Settings, learn
from uniforget.mask import files
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import SubspaceMask

from .common import machine, write_json
from .finetune import finetuned

KINDS = ("ffn", "norm")
STRENGTHS = (0.25, 0.5, 0.75)
# With gates of this preset, a subspace learned on top gives up less than it would alone.
TOGETHER = 0.002


@dataclass
class Size:
    """How much is measured: sampling seeds per memorized caption at most, neutral prompts and seeds for each, attacked captions."""

    seeds: int = 16
    neutral: int = 96
    neutral_seeds: int = 2
    attacked: int = 22
    steps: int = 400
    prompts: int = 0


SECOND = Size(seeds=8, neutral=64, neutral_seeds=2, attacked=11)
QUICK = Size(seeds=4, neutral=48, neutral_seeds=2, attacked=6, steps=120, prompts=96)


@dataclass
class Row:
    """One edited model: what stands in the table, how it is made, and what is measured beside the basics."""

    method: str
    build: Callable[[Bed], tuple[Any, Any]]
    objective: str = ""
    preset: str = ""
    strength: float = 1.0
    mask_seed: int = 0
    needs_targets: bool = False
    note: str = ""
    attack: str = ""
    samples: int = 16

    def key(self, testbed: str) -> dict[str, Any]:
        """What tells the row from all others."""
        named = {n: getattr(self, n) for n in ("method", "objective", "preset", "strength", "mask_seed", "needs_targets", "note")}
        return {"testbed": testbed} | named


class Bed:
    """A testbed with everything that rows share: the original and its pictures, learned masks, the judge."""

    def __init__(self, name: str, size: Size, work: Path):
        if name == "unet":
            from testbed import unet

            loaded = unet.load()
        else:
            loaded = mmdit.load()
        self.name, self.size, self.work, self.judge = name, size, work, Judge()
        self.network, self.encoder, self.tokenizer = loaded
        self.prompts = evaluate.learning_prompts()[:: len(evaluate.learning_prompts()) // size.prompts if size.prompts else 1]
        self.items = {n: evaluate.neutral_prompts(n == "heldout", size.neutral) for n in ("neutral", "heldout")}
        self.cache: dict[str, Any] = {}
        with drawing():
            self.original = self.pictures(self.network, 1)

    def model(self, network: Any = None, prompts: list[str] | None = None, kinds: tuple[str, ...] = KINDS) -> TestbedModel:
        """A network as learning sees it."""
        network = network or self.network
        return TestbedModel(
            network, self.encoder, self.tokenizer, prompts or self.prompts, steps=LEARN["sampling_steps"].default, kinds=kinds
        )

    def settings(self, seed: int, **changes: Any) -> Settings:
        """What the demo learns with."""
        return Settings(**{"batch": 24, "seed": seed, "steps": self.size.steps} | changes)

    def learned(
        self, name: str, seed: int, kinds: tuple[str, ...] = KINDS, stream: str = "", base: Any = None, **changes: Any
    ) -> GateMask | SubspaceMask:
        """A mask or subspace learned as the product learns it, kept on the disk under `name`."""
        path = self.work / f"{self.name}-{self.size.steps}-{name.replace(' ', '_')}-{seed}.safetensors"
        if path.exists():
            return files.load(path)
        model = self.model(base, kinds=kinds)
        if stream:
            model.sites = [s for s in model.sites if stream in s.name]
        preset = changes.pop("preset", "custom")
        beta = changes.pop("beta", PRESETS.get(preset, 0.0))
        info = MaskInfo(family=model.family.name, base="", beta=beta, preset=preset, targets=kinds, seed=seed)
        with drawing():
            found = learn(model, self.settings(seed, beta=beta, **changes), info).mask
        path.parent.mkdir(parents=True, exist_ok=True)
        files.save(found, path)
        return found

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()`, kept for the other rows."""
        if name not in self.cache:
            self.cache[name] = make()
        return self.cache[name]

    def edited(self, edit: Any, strength: float = 1.0, base: Any = None) -> Any:
        """A copy of the network with a mask or subspace folded in."""
        out = copy.deepcopy(base or self.network)
        (project_ if isinstance(edit, SubspaceMask) else fold_)(out, edit, strength)
        return out

    def pictures(self, network: Any, seeds: int) -> dict[str, np.ndarray]:
        """Samples of memorized captions and of both kinds of neutral prompts, always from the same noise."""
        sample, size = evaluate.sampler(network, self.encoder, self.tokenizer), self.size
        captions = [m for m in concepts.MEMORIZED for _ in range(seeds)]
        out = {"memorized": sample(captions, [1000 + i % seeds for i in range(len(captions))])}
        for name, items in self.items.items():
            each = [item[0] for item in items for _ in range(size.neutral_seeds)]
            out[name] = sample(each, [2000 + k for k in range(len(each))])
        return out

    def measure(self, network: Any, samples: int) -> dict[str, Any]:
        """The columns that every row has, with `samples` sampling seeds per memorized caption."""
        size = self.size
        seeds = min(samples, size.seeds)
        found = self.pictures(network, seeds)
        captions = [m for m in concepts.MEMORIZED for _ in range(seeds)]
        copied = self.judge.copies(found["memorized"], captions).numpy()
        inside = np.array([caption in concepts.COMPOSITIONS for caption in captions])
        reserved = np.array([caption in concepts.RESERVED for caption in captions])
        out: dict[str, Any] = {
            "samples": seeds,
            "copies": float(copied.mean()),
            "copies_interval": evaluate.wilson(copied.sum(), len(copied)),
            "copies_indomain": float(copied[inside].mean()),
            "copies_outdomain": float(copied[~inside].mean()),
            "copies_reserved": float(copied[reserved].mean()),
        }
        for name, items in self.items.items():
            each = [item for item in items for _ in range(size.neutral_seeds)]
            right = self.judge.right(found[name], [i[1] for i in each], [i[2] for i in each]).numpy()
            out |= {name: float(right.mean()), f"{name}_interval": evaluate.wilson(right.sum(), len(right))}
        out["neutral_similarity"] = float(correlation(found["neutral"], self.original["neutral"]).mean())
        out["diversity"] = _spread(found["neutral"], size.neutral_seeds) / _spread(self.original["neutral"], size.neutral_seeds)
        return out

    def attacked(self, network: Any, which: str) -> dict[str, float]:
        """The columns that need optimizing: `which` holds some of "a" (caption), "n" (noise), "c" (control), "l" (long), "f", "i"."""
        size, out = self.size, {}
        memorized = list(concepts.MEMORIZED)[:: max(1, len(concepts.MEMORIZED) // size.attacked)][: size.attacked]
        never = list(concepts.NEVER)[: max(2, size.attacked // 2)]
        plans = {
            "a": ("copies_after_attack", memorized, {}),
            "n": ("copies_after_attack_noise", memorized, {"start": "noise"}),
            "c": ("control_after_attack", never, {}),
            "l": ("copies_after_500", memorized[::3], {"steps": 500}),
            "k": ("control_after_500", never[::2], {"steps": 500}),
        }
        for letter, (name, captions, more) in plans.items():
            if letter in which:
                copied = attacks.copies_after(network, self.encoder, self.tokenizer, self.judge, captions, **more)
                out[name] = float(copied.float().mean())
                out[f"{name}_interval"] = evaluate.wilson(int(copied.sum()), len(copied))
        if "f" in which:
            tuned = finetuned(network, self)
            sample = evaluate.sampler(tuned, self.encoder, self.tokenizer)
            captions = [m for m in concepts.MEMORIZED for _ in range(4)]
            pictures = sample(captions, [1000 + i % 4 for i in range(len(captions))])
            out["copies_after_finetune"] = float(self.judge.copies(pictures, captions).float().mean())
        if "i" in which:
            pairs = [(m, text) for m in concepts.MEMORIZED for text in concepts.indirect(m)]
            sample = evaluate.sampler(network, self.encoder, self.tokenizer)
            pictures = sample([text for _, text in pairs for _ in range(4)], [4000 + k % 4 for k in range(4 * len(pairs))])
            copied = self.judge.copies(pictures, [m for m, _ in pairs for _ in range(4)])
            out["copies_indirect"] = float(copied.float().mean())
        return out


def _spread(pictures: np.ndarray, seeds: int) -> float:
    """Mean distance (root mean square) between the first two samples of each prompt."""
    grouped = pictures.reshape(-1, seeds, pictures[0].size).astype(np.float64)
    return float(np.sqrt(((grouped[:, 0] - grouped[:, 1]) ** 2).mean(1)).mean())


def off_shares(edit: Any) -> dict[str, float | None]:
    """Share switched off of each kind; None where a kind is not touched."""
    found = edit.sparsity() if edit is not None else {}
    return {f"off_{kind}": found.get(kind) for kind in ("ffn", "norm", "attn")}


def drawing() -> Any:
    """What models run in: bfloat16, as on a GPU."""
    return torch.autocast("cpu", torch.bfloat16)


def run(bed: Bed, rows: list[Row], file: Path, only: str) -> None:
    """Measure what `file` lacks; several runs may share it."""
    for row in rows:
        key = row.key(bed.name)
        words = " ".join(str(v) for v in key.values())
        if only not in words:
            continue
        found = _kept(file, key)[1]
        have = set(found.get("measured", ""))
        if found and set(row.attack) <= have:
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, edit = row.build(bed)
            with drawing():
                figures = {} if found else key | off_shares(edit) | bed.measure(network, row.samples)
                figures |= bed.attacked(network, "".join(letter for letter in row.attack if letter not in have))
        rows_now, found = _kept(file, key)
        if not found:
            rows_now.append(found)
        found |= figures
        found["measured"] = "".join(sorted(have | set(row.attack)))
        write_json(file, {"rows": rows_now, "machine": machine()})
        show = {n: f"{v:.1%}" for n, v in found.items() if isinstance(v, float) and n not in ("strength",)}
        print(words, "|", "  ".join(f"{n} {v}" for n, v in show.items()), flush=True)


def _kept(file: Path, key: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of `file`, and that of `key`: empty if it is not there."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    return rows, next((r for r in rows if all(r.get(n) == v for n, v in key.items())), {})


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    from .forgetting_rows import full, quick

    parser = argparse.ArgumentParser(prog="python -m bench.forgetting", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--json", type=Path, metavar="FILE", required=True, help="where rows are kept; those it has are not measured again"
    )
    parser.add_argument("--quick", action="store_true", help="few rows, few samples")
    parser.add_argument("--testbed", choices=("mmdit", "unet", "both"), default="both")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose description holds this")
    parser.add_argument("--work", type=Path, default=Path(".cache/forgetting"), help="where learned masks are kept")
    parser.add_argument("--docs", type=Path, help="write the table and the plot of FILE there; nothing is measured")
    options = parser.parse_args(arguments)
    if options.docs:
        from .forgetting_docs import write

        write(json.loads(options.json.read_text()), options.docs)
        return 0
    for name in ("mmdit", "unet") if options.testbed == "both" else (options.testbed,):
        if options.quick and name == "unet":
            continue
        bed = Bed(name, QUICK if options.quick else {"mmdit": Size(), "unet": SECOND}[name], options.work)
        run(bed, quick() if options.quick else full(name), options.json, options.only)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
