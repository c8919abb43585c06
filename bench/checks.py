"""Do the checks find what is memorized? Own-Picture Check and Prompt Check on the testbeds, before and after forgetting.

    python -m bench.checks --json FILE [--quick|--smallest] [--testbed mmdit|unet|both] [--docs docs/checks.md]

The same functions as the nodes', on diffusers' networks. Memorized are the whole pictures and captions that the testbeds learned by heart;
never seen are their twins, made the same way. Everyday prompts name concepts that masks were learned
from ("calibrated") or not ("heldout"), and none of them is in the baseline. The mask is the preset strong at strength 1; it is learned when `.cache/forgetting` has none.

`auc`: share of pairs (memorized, never seen) in which the memorized one scores higher, with a 95 % bootstrap interval over both.
`known`, `false_known`: shares of memorized and of never-seen pictures, or prompts, that get the verdict of being memorized.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from testbed import concepts, evaluate, vae, verdict
from testbed.data import to_tensor
from testbed.host import TestbedModel, sample
from uniforget.checks import picture, prompt, stats
from uniforget.config.checks import PICTURE_CHECK, PROMPT_CHECK

from .common import machine, write_json
from .forgetting import MODULES, Bed
from .sizes import QUICK, SMALLEST, Size

WHOLE = {
    name: [i for i in items if i.group in verdict.WHOLE]
    for name, items in (("memorized", concepts.MEMORIZED), ("never", concepts.NEVER))
}


@dataclass(frozen=True)
class Look:
    """How much is measured: a mask's :class:`~bench.sizes.Size`, memorized and never-seen pictures and captions (None: all), noises of
    Own-Picture Check, everyday prompts of each kind, and noises of Prompt Check."""

    mask: Size
    whole: int | None
    noises: int
    prompts: int
    seeds: tuple[int, ...]


LOOKS = {
    "full": Look(Size(), None, PICTURE_CHECK["noises"].default, 96, (1, PROMPT_CHECK["seeds"].default)),
    "quick": Look(QUICK, None, 3, 24, (1,)),
    "smallest": Look(SMALLEST, 6, 1, 3, (1,)),
}


def whole(look: Look) -> dict[str, list[Any]]:
    """Memorized and never-seen items whose training picture is one whole picture, with photographs among them."""
    return {name: evaluate.some(items, look.whole) for name, items in WHOLE.items()}


class Denoiser:
    """A testbed as :class:`uniforget.checks.Denoiser`; pictures are latents here."""

    def __init__(self, network: Any, bed: Bed, prompts: list[str]):
        self.model = TestbedModel(network, bed.encoder, bed.tokenizer, prompts)

    def noised(self, latents: torch.Tensor, noise: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        return (1 - level) * latents + level * noise, torch.full((len(latents),), float(level))

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, which: list[int]) -> list[torch.Tensor]:
        many = [i for i in which for _ in x]
        found = self.model.denoise(x.repeat(len(which), 1, 1, 1), sigma.repeat(len(which)), many)
        return list(found.float().chunk(len(which)))


def about(memorized: list[float], never: list[float]) -> dict[str, Any]:
    """How well a figure tells the two apart."""
    low, high = stats.auc_interval(memorized, never)
    return {"auc": round(stats.auc(memorized, never), 4), "auc_interval": [round(low, 4), round(high, 4)]}


def pictures(bed: Bed, networks: dict[str, Any], look: Look) -> list[dict[str, Any]]:
    """Rows of Own-Picture Check: without and with captions, before and after."""
    autoencoder = vae.load()
    groups_of = whole(look)
    shown = {name: [bed.labeller.judge.pictures.render(i.picture)[0] for i in items] for name, items in groups_of.items()}
    defaults = {name: param.default for name, param in PICTURE_CHECK.items()}
    prompts = bed.prompts[: defaults["baseline"]]
    model = TestbedModel(networks["before"], bed.encoder, bed.tokenizer, prompts, steps=defaults["sampling_steps"])
    own = list(sample(model, autoencoder, list(range(len(prompts))), list(range(len(prompts))), defaults["cfg"]))
    rows = []
    for caption in (False, True):
        groups = {**shown, "own": own}
        texts = [*(i.caption for items in groups_of.values() for i in items), *prompts]
        everything = np.stack([p for group in groups.values() for p in group])
        which = list(range(len(texts))) if caption else [-1] * len(everything)
        versions = picture.with_copies(torch.from_numpy(everything).float() / 255)
        latents = torch.stack([autoencoder.encode(to_tensor((v * 255).round().byte().numpy())) for v in versions])
        for when, network in networks.items():
            gains = picture.gains(Denoiser(network, bed, texts), latents, latents, which, look.noises)
            parts = dict(zip(groups, gains.split([len(g) for g in groups.values()]), strict=True))
            scores = {name: part.mean(1).tolist() for name, part in parts.items()}
            found = {name: picture.findings(part, parts["own"]) for name, part in parts.items() if name != "own"}
            share = lambda name, verdict, found=found: round(float(np.mean([f.verdict == verdict for f in found[name]])), 4)  # noqa: E731
            photographs = [
                [score for score, item in zip(scores[name], items, strict=True) if isinstance(item.picture, concepts.Crop)]
                for name, items in groups_of.items()
            ]
            rows.append(
                {"testbed": bed.name, "check": "picture", "caption": caption, "when": when}
                | about(scores["memorized"], scores["never"])
                | {
                    "auc_photographs": round(stats.auc(*photographs), 4),
                    "gain": round(float(np.median(scores["memorized"])), 4),
                    "gain_never": round(float(np.median(scores["never"])), 4),
                    "gain_own": round(float(np.median(scores["own"])), 4),
                    "known": share("memorized", "known"),
                    "unclear": share("memorized", "unclear"),
                    "false_known": share("never", "known"),
                    "memorized": len(scores["memorized"]),
                    "never": len(scores["never"]),
                }
            )
    return rows


def prompts(bed: Bed, networks: dict[str, Any], look: Look) -> list[dict[str, Any]]:
    """Rows of Prompt Check: one seed and the default number of seeds, before and after."""
    base = bed.prompts[: PROMPT_CHECK["neutral"].default]
    asked = {"memorized": [item.caption for item in whole(look)["memorized"]]}
    for name, heldout in (("calibrated", False), ("heldout", True)):
        items = evaluate.free_captions(heldout, 192, seed=3)
        asked[name] = [text for text in items if text not in base][: look.prompts]
    texts = [text for group in asked.values() for text in group]
    rows = []
    for seeds in look.seeds:
        for when, network in networks.items():
            denoiser = Denoiser(network, bed, [*texts, *base])
            found = prompt.pulls(denoiser, len(texts), len(base), (16, 12, 12), seeds)
            scores = prompt.scores(found[: len(texts)], found[len(texts) :])
            parts, start = {}, 0
            for name, group in asked.items():
                parts[name] = scores[start : start + len(group)]
                start += len(group)
            usual = parts["calibrated"] + parts["heldout"]
            values = lambda scores, name="beyond": [getattr(s, name) for s in scores]  # noqa: E731
            share = lambda scores, verdict: round(float(np.mean([s.verdict == verdict for s in scores])), 4)  # noqa: E731
            rows.append(
                {"testbed": bed.name, "check": "prompt", "seeds": seeds, "when": when}
                | about(values(parts["memorized"]), values(usual))
                | {
                    f"auc_{name}": round(stats.auc(values(parts["memorized"]), values(parts[name])), 4)
                    for name in list(asked)[1:]
                }
                | {
                    "auc_pull": round(stats.auc(values(parts["memorized"], "pull"), values(usual, "pull")), 4),
                    "auc_agreement": None
                    if seeds == 1
                    else round(stats.auc(values(parts["memorized"], "agreement"), values(usual, "agreement")), 4),
                    "score": round(float(np.median(values(parts["memorized"]))), 4),
                    "known": share(parts["memorized"], "memorized"),
                    "unclear": share(parts["memorized"], "unclear"),
                    "false_known": share(usual, "memorized"),
                    "memorized": len(parts["memorized"]),
                    "never": len(usual),
                }
            )
    return rows


def tables(figures: dict[str, Any]) -> str:
    """The rows as Markdown."""
    percent = lambda v: f"{100 * v:.0f} %"  # noqa: E731
    auc = lambda r: f"{r['auc']:.3f} ({r['auc_interval'][0]:.3f} to {r['auc_interval'][1]:.3f})"  # noqa: E731
    lines = [
        "| Own-Picture Check | | | AUC | AUC, photographs | gain, memorized | never seen | own | known | of never seen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in figures["rows"]:
        if r["check"] == "picture":
            cells = [r["testbed"], "caption" if r["caption"] else "no caption", r["when"], auc(r), f"{r['auc_photographs']:.3f}"]
            cells += [f"{r[k]:.2f}" for k in ("gain", "gain_never", "gain_own")]
            lines.append(f"| {' | '.join([*cells, percent(r['known']), percent(r['false_known'])])} |")
    lines += [
        "",
        "| Prompt Check | | | AUC | calibrated | held out | pull alone | agreement alone | score, memorized | known | of everyday |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in figures["rows"]:
        if r["check"] == "prompt":
            cells = [r["testbed"], f"{r['seeds']} seed{'s' * (r['seeds'] > 1)}", r["when"], auc(r)]
            cells += [f"{r[k]:.3f}" for k in ("auc_calibrated", "auc_heldout", "auc_pull")]
            cells += ["" if r["auc_agreement"] is None else f"{r['auc_agreement']:.3f}", f"{r['score']:.2f}"]
            lines.append(f"| {' | '.join([*cells, percent(r['known']), percent(r['false_known'])])} |")
    return "\n".join(lines)


def write_docs(figures: dict[str, Any], path: Path) -> None:
    """Put the tables between the marks in a page."""
    text = path.read_text(encoding="utf-8")
    start, end = "<!-- bench.checks -->", "<!-- end -->"
    before, rest = text.split(start)
    path.write_text(f"{before}{start}\n\n{tables(figures)}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.checks", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", required=True)
    parser.add_argument("--testbed", choices=("mmdit", "unet", "both"), default="both")
    parser.add_argument(
        "--quick", action="store_true", help="fewer pictures, prompts and noises, and a mask learned for a shorter time"
    )
    parser.add_argument("--smallest", action="store_true", help="as little as can be measured, to see that it runs")
    parser.add_argument("--work", type=Path, default=Path(".cache/forgetting"), help="where learned masks are kept")
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="also put the tables into this page")
    args = parser.parse_args(argv)
    look = LOOKS["smallest" if args.smallest else "quick" if args.quick else "full"]
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {"quick": args.quick, "machine": machine(), "rows": rows}
    for name in ("mmdit", "unet") if args.testbed == "both" else (args.testbed,):
        if not MODULES[name].WEIGHTS.is_file():
            continue
        bed = Bed(name, look.mask, args.work)
        mask = bed.learned("gates strong stepwise", 0, preset="strong", objective="stepwise")
        networks = {"before": bed.network, "after": bed.edited(mask)}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for check in (pictures, prompts):
                rows += check(bed, networks, look)
                write_json(args.json, figures)
    print(json.dumps(figures, indent=2))
    print(tables(figures))
    if args.docs:
        write_docs(figures, args.docs)


if __name__ == "__main__":
    main()
