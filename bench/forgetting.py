"""Does it forget, at what price, and does it stay forgotten? On the testbeds, beside everything it should be compared with.

    python -m bench.forgetting --json FILE [--quick|--smallest] [--testbed mmdit|unet|both] [--only TEXT] [--docs bench/results/forgetting.md]

Every row is one edited model. It is written as soon as it is measured, and rows that FILE has are not measured again: a run that was
stopped goes on, and `--only` adds some rows. Masks are kept in `.cache/forgetting`.

Columns: the six shares of what is drawn for memorized captions that have another answer (scenes and photographs; :mod:`testbed.verdict`),
``forgotten`` first, each with its 95 % interval (``_interval``), of the reserved captions ``forgotten_reserved``; ``ceiling`` and ``twins_copied``: what the unedited
model gives for never-seen captions; ``neutral`` and ``heldout``: shares of right pictures for free captions whose concepts masks were, and were not, learned
from; ``after_attack``: copies and partial copies once text embeddings are optimized for 50 steps from the memorized caption, ``after_attack_noise`` from noise,
``after_finetune`` after 100 steps on the original's own neutral pictures; ``control_*`` is the same for never-seen pictures. ``off_*``: share of gates,
or of directions, switched off. Empty: not measured for this row. ``--docs`` also draws the paper's analysis (:mod:`bench.forgetting_analysis`). Models run in bfloat16 (autocast), as on a GPU, which halves the time.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from testbed import attack as attacks
from testbed import concepts, evaluate, unet, verdict
from testbed import model as mmdit
from testbed.host import TestbedModel, sampler
from uniforget.config import LEARN, METHODS, PRESETS, RECOVER
from uniforget.hosts.diffusers.apply import fold_, lora_, project_
from uniforget.learn import Settings, learn
from uniforget.learn.found import find, to_learn
from uniforget.learn.recover import recover
from uniforget.mask import files
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import SubspaceMask

from . import controls
from .common import machine, write_json
from .finetune import finetuned
from .sizes import QUICK, SMALLEST, Size

KINDS = ("ffn", "norm")
# With gates of this preset, a subspace learned on top gives up less than it would alone.
TOGETHER = 0.002
SEEDS = (0, 1, 2)
MODULES = {"mmdit": mmdit, "unet": unet}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {"a": ("attack", {}), "n": ("attack_noise", {"start": "noise"})}


@dataclass
class Row:
    """One edited model: what stands in the table, how it is made, and which attacks it stands (letters of ``ATTACKS``, "f": fine-tuning)."""

    method: str
    build: Callable[[Bed], tuple[Any, Any]]
    preset: str = ""
    mask_seed: int = 0
    needs_targets: bool = False
    self_found: bool = False
    note: str = ""
    attack: str = ""

    def key(self, testbed: str) -> dict[str, Any]:
        """What tells the row from all others."""
        names = ("method", "preset", "mask_seed", "needs_targets", "self_found", "note")
        return {"testbed": testbed} | {name: getattr(self, name) for name in names}


def kept_mask(work: Path, testbed: str, size: Size, name: str, seed: int = 0) -> Path:
    """Where a learned mask is kept."""
    return work / f"{testbed}-{size.steps}-{name.replace(' ', '_')}-{seed}.safetensors"


class Bed:
    """A testbed with everything that rows share: the original, learned masks, the verdict."""

    def __init__(self, name: str, size: Size, work: Path):
        self.name, self.size, self.work, self.labeller = name, size, work, verdict.default()
        self.network, self.encoder, self.tokenizer = MODULES[name].load()
        self.prompts = evaluate.learning_prompts(size.prompts)
        self.cache: dict[str, Any] = {}

    def model(self, network: Any = None, prompts: list[str] | None = None, kinds: tuple[str, ...] = KINDS) -> TestbedModel:
        """A network as learning sees it."""
        steps = LEARN["sampling_steps"].default
        return TestbedModel(network or self.network, self.encoder, self.tokenizer, prompts or self.prompts, steps, kinds)

    def settings(self, seed: int, **changes: Any) -> Settings:
        """What the demo learns with."""
        return Settings(**{"batch": self.size.batch, "seed": seed, "steps": self.size.steps} | changes)

    def learned(
        self, name: str, seed: int, base: Any = None, preset: str = "custom", prompts: list[str] | None = None, **changes: Any
    ) -> GateMask | SubspaceMask:
        """A mask learned as the product learns it, kept on the disk under `name`."""
        path = kept_mask(self.work, self.name, self.size, name, seed)
        if path.exists():
            return files.load(path)
        model, beta = self.model(base, prompts), changes.pop("beta", PRESETS.get(preset, 0.0))
        info = MaskInfo(family=model.family.name, base="", beta=beta, preset=preset, targets=KINDS, seed=seed)
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
        """A copy of the network with a mask folded in."""
        out = copy.deepcopy(base or self.network)
        (project_ if isinstance(edit, SubspaceMask) else fold_)(out, edit, strength)
        return out

    def measure(self, network: Any) -> dict[str, Any]:
        """The columns that every row has."""
        sample, size = sampler(network, self.encoder, self.tokenizer), self.size
        settings: dict[str, Any] = {"labeller": self.labeller, "progress": lambda text: None}
        if "twins" not in self.cache:
            with drawing():
                twins = evaluate.evaluate(
                    sampler(self.network, self.encoder, self.tokenizer), size.seeds, 1, 1, captions=size.captions, **settings
                )["never_seen"]["headline"]  # fmt: skip
            self.cache["twins"] = twins
        twins = self.cache["twins"]
        found = evaluate.evaluate(sample, size.seeds, size.free, size.free_seeds, never=False, captions=size.captions, **settings)
        shares = found["memorized"]["headline"]
        out: dict[str, Any] = {"samples": shares["samples"]}
        for label in verdict.LABELS[::-1]:
            name = label.replace(" ", "_")
            out |= {name: shares[label]["share"], f"{name}_interval": [shares[label]["low"], shares[label]["high"]]}
        return out | {
            "forgotten_reserved": found["memorized"]["reserved"]["forgotten"]["share"],
            "ceiling": twins["forgotten"]["share"],
            "ceiling_interval": [twins["forgotten"]["low"], twins["forgotten"]["high"]],
            "twins_copied": twins["copy"]["share"] + twins["partial"]["share"],
            "carlini": found["copies"],
            "named_copied": found["memorized"]["named"]["copy"]["share"],
            "templates_copied": {g: found["memorized"][g]["partial"]["share"] for g in ("foreground", "background")},
            "neutral": found["right"],
            "neutral_interval": found["right_interval"],
            "heldout": found["heldout"],
            "heldout_interval": found["heldout_interval"],
        }

    def attacked(self, network: Any, which: str) -> dict[str, Any]:
        """The columns that need optimizing."""
        out: dict[str, Any] = {}
        answerable = lambda items: [i.caption for i in items if i.group in verdict.ANSWERABLE]  # noqa: E731
        step = max(1, len(answerable(concepts.MEMORIZED)) // self.size.attacked)
        groups = {"after": answerable(concepts.MEMORIZED)[::step], "control": answerable(concepts.NEVER)[::step]}
        for letter, (name, more) in ATTACKS.items():
            for group, captions in groups.items():
                if letter in which:
                    given = {"steps": self.size.attack_steps, **more}
                    labels = attacks.labels_after(network, self.encoder, self.tokenizer, self.labeller, captions, **given)
                    out |= _copied(f"{group}_{name}", labels)
        if "f" in which:
            sample = sampler(finetuned(network, self, self.size.tuning_steps), self.encoder, self.tokenizer)
            for group, captions in groups.items():
                each = [caption for caption in captions for _ in range(4)]
                labels = self.labeller.labels(sample(each, [1000 + i % 4 for i in range(len(each))]), each)
                out |= _copied(f"{group}_finetune", labels)
        return out


def _copied(name: str, labels: list[str]) -> dict[str, Any]:
    hits = sum(label in ("copy", "partial") for label in labels)
    return {name: hits / len(labels), f"{name}_interval": list(verdict.interval(hits, len(labels)))}


def off_shares(edit: Any) -> dict[str, float | None]:
    """Share switched off of each kind; None where a kind is not touched."""
    found = edit.sparsity() if edit is not None else {}
    return {f"off_{kind}": found.get(kind) for kind in ("ffn", "norm", "attn")}


def drawing() -> Any:
    """What models run in: bfloat16, as on a GPU."""
    return torch.autocast("cpu", torch.bfloat16)


def original(attack: str = "anf") -> Row:
    """The model as it is."""
    return Row("original", lambda bed: (bed.network, None), attack=attack)


def gates_of(bed: Bed, preset: str, seed: int = 0, objective: str = "stepwise") -> GateMask:
    """The learned gates of a preset."""
    return bed.learned(f"gates {preset} {objective}", seed, preset=preset, objective=objective)  # type: ignore[return-value]


def space_of(bed: Bed, threshold: float, seed: int = 0, base: Any = None, name: str = "subspace") -> SubspaceMask:
    """The learned subspace at a threshold."""
    return bed.learned(name, seed, base, "strong", objective="subspace").at(threshold)  # type: ignore[union-attr]


def gates(preset: str, seed: int = 0, objective: str = "stepwise", attack: str = "") -> Row:
    """The paper's method: gates on neurons and norm channels."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask = gates_of(bed, preset, seed, objective)
        return bed.edited(mask), mask

    return Row("gates", build, preset, seed, note="" if objective == "stepwise" else objective, attack=attack)


def subspace(preset: str, seed: int = 0, attack: str = "") -> Row:
    """Subspace forgetting alone."""

    def build(bed: Bed) -> tuple[Any, Any]:
        found = space_of(bed, METHODS["subspace"].amount(preset), seed)
        return bed.edited(found), found

    return Row("subspace", build, preset, seed, attack=attack)


def both(preset: str, seed: int = 0, attack: str = "") -> Row:
    """Gates, then a subspace that was learned on the model with these gates."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask = gates_of(bed, preset, seed)
        base = bed.edited(mask)
        return bed.edited(space_of(bed, TOGETHER, seed, base, f"subspace on gates {preset}"), base=base), mask

    return Row("gates + subspace", build, preset, seed, attack=attack)


def recovered(preset: str, seed: int = 0, attack: str = "") -> Row:
    """Gates, then a LoRA that brings quality back from neutral prompts alone."""

    def build(bed: Bed) -> tuple[Any, Any]:
        mask = gates_of(bed, preset, seed)
        with drawing():
            settings = bed.settings(seed, learning_rate=RECOVER["learning_rate"].default)
            lora = recover(bed.model(), mask, settings, RECOVER["rank"].default)
        network = bed.edited(mask)
        lora_(network, lora)
        return network, mask

    return Row("gates + recovery", build, preset, seed, attack=attack)


def found_in(bed: Bed) -> list[str]:
    """Neutral prompts, and the memorized ones that the original itself finds in a pool, with answers; how well it finds them is kept."""

    def look() -> list[str]:
        pool = evaluate.pool()
        ask = lambda texts, run: run(bed.model(prompts=texts))  # noqa: E731
        with drawing():
            found = find(ask, pool, bed.prompts, Settings(batch=64))
        known = {item.caption for item in concepts.MEMORIZED}
        said = [one.prompt in known for one in found if one.memorized]
        hidden = sum(text in known for text in pool)
        bed.cache["finding"] = {"found_recall": sum(said) / hidden, "found_precision": sum(said) / max(1, len(said))}
        return to_learn(found, bed.prompts)

    return bed.once("found", look)


def self_found(preset: str, rank: int = 0, seed: int = 0, attack: str = "") -> Row:
    """Gates that answer memorized prompts, which the model finds itself, like their rewordings; then a LoRA for the same."""

    def build(bed: Bed) -> tuple[Any, Any]:
        prompts = found_in(bed)
        mask = bed.learned(f"gates {preset} self-found", seed, preset=preset, prompts=prompts)
        network = bed.edited(mask)
        if rank:
            settings = bed.settings(seed, learning_rate=RECOVER["learning_rate"].default)
            with drawing():
                lora = recover(bed.model(prompts=prompts), mask, settings, rank)  # type: ignore[arg-type]
            lora_(network, lora)
        return network, mask

    return Row("gates + recovery" if rank else "gates", build, preset, seed, self_found=True, attack=attack)


def control(name: str, preset: str = "strong", scale: float = 1.0, seed: int = 0) -> Row:
    """Another way of choosing, at the sparsity of each kind that the gates of a preset have (times `scale`)."""

    def build(bed: Bed) -> tuple[Any, Any]:
        model, settings = bed.model(), bed.settings(seed)
        found = bed.once(f"{name} {seed}", lambda: controls.scored(name, model, settings))
        mask = controls.ranked(model, found, controls.shares(gates_of(bed, preset), scale), name, seed)
        return bed.edited(mask), mask

    return Row(f"control: {name}", build, preset, seed, note=f"sparsity x {scale:g}" if scale != 1 else "")


def quick() -> list[Row]:
    """A look in some minutes."""
    return [original("a"), gates("strong", attack="a"), self_found("medium", attack="a"), control("random"), control("Fisher")]


def smallest() -> list[Row]:
    """To see that it runs."""
    return [original("af"), gates("strong")]


def full(testbed: str) -> list[Row]:
    """Everything, the most telling first."""
    rows = [original(), gates("strong", attack="anf"), both("strong", attack="anf"), subspace("strong", attack="a")]
    rows += [self_found("medium", attack="an"), self_found("medium", RECOVER["rank"].default, attack="an")]
    rows += [gates("medium", attack="a"), gates("weak", attack="a"), recovered("strong", attack="a")]
    rows += [control(name) for name in controls.NAMES]
    rows += [control(name, scale=s) for name in ("random", "Fisher") for s in (0.5, 0.75)]
    for seed in SEEDS[1:]:
        rows += [gates("strong", seed, attack="a"), both("strong", seed, attack="a"), subspace("strong", seed, attack="a")]
    return [*rows, gates("strong", objective="trajectory", attack="a"), gates("strong", objective="scores", attack="a")]


def run(bed: Bed, rows: list[Row], file: Path, only: str) -> None:
    """Measure what `file` lacks; several runs may share it."""
    for row in rows:
        key = row.key(bed.name)
        words = " ".join(str(v) for v in key.values())
        found = _kept(file, key)[1]
        have = set(found.get("measured", ""))
        if only not in words or (found and set(row.attack) <= have):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network, edit = row.build(bed)
            with drawing():
                more = bed.cache.get("finding", {}) if row.self_found else {}
                figures = {} if found else key | off_shares(edit) | bed.measure(network) | more
                figures |= bed.attacked(network, "".join(letter for letter in row.attack if letter not in have))
        rows_now, found = _kept(file, key)
        if not found:
            rows_now.append(found)
        found |= figures
        found["measured"] = "".join(sorted(have | set(row.attack)))
        write_json(file, {"rows": rows_now, "machine": machine()})
        print(words, "|", "  ".join(f"{n} {v:.1%}" for n, v in found.items() if isinstance(v, float)), flush=True)


def _kept(file: Path, key: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of `file`, and that of `key`: empty if it is not there."""
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    return rows, next((r for r in rows if all(r.get(n) == v for n, v in key.items())), {})


def beds(which: str) -> list[str]:
    """The testbeds that were asked for and have weights."""
    return [name for name in MODULES if which in (name, "both") and MODULES[name].WEIGHTS.is_file()]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.forgetting", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--json", type=Path, metavar="FILE", required=True, help="where rows are kept; those it has are not measured again"
    )
    parser.add_argument("--quick", action="store_true", help="few rows, few samples")
    parser.add_argument("--smallest", action="store_true", help="as little as can be measured, to see that it runs")
    parser.add_argument("--testbed", choices=("mmdit", "unet", "both"), default="both")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose description holds this")
    parser.add_argument("--work", type=Path, default=Path(".cache/forgetting"), help="where learned masks are kept")
    parser.add_argument("--docs", type=Path, help="write the table and the plot of FILE there; nothing is measured")
    options = parser.parse_args(arguments)
    size = SMALLEST if options.smallest else QUICK if options.quick else Size()
    if options.docs:
        from .forgetting_analysis import analysed
        from .forgetting_docs import write

        for name in beds(options.testbed):
            analysed(name, size, options.work, options.docs)
        write(json.loads(options.json.read_text()), options.docs)
        return 0
    for name in beds(options.testbed):
        rows = smallest() if options.smallest else quick() if options.quick else full(name)
        run(Bed(name, size, options.work), rows, options.json, options.only)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
