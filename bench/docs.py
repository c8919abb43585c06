"""Writes docs/bench.md from the figures that are committed: ``python -m bench.docs``.

Nothing in that page is written by hand: what a benchmark measures stands here, its figures come from ``bench/results/NAME.json``, and with
them when and on which machine they were made. A benchmark without such a file says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "bench.md"
HEAD = """# Benchmarks

How fast, and at what cost. Figures depend on the machine: they are measured, and never tested. Each benchmark is a module of `bench/`, whose head says what
exactly it measures, and writes JSON. `python -m bench.docs` writes this page from the JSON files in `bench/results`.

Whether it forgets, and what that costs a model: [forgetting.md](forgetting.md). Whether the checks find what is memorized: [checks.md](checks.md).
"""
NONE = "Not measured with this version, or its figures were not kept: run it."
MIB, MB = 2**20, 10**6


@dataclass(frozen=True)
class Section:
    """One benchmark: heading, module, what follows ``--json FILE``, what it is about, its figures as Markdown, and what to say without any."""

    title: str
    module: str
    options: str
    about: str
    table: Callable[[dict[str, Any]], str]
    none: str = NONE

    def text(self, results: Path) -> str:
        """As it stands in the page."""
        file = results / f"{self.module}.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        figures = f"{self.table(found)}\n\n{where(found['machine'])}" if found else self.none
        return f"## {self.title}\n\n`python -m bench.{self.module} --json FILE{self.options}`\n\n{self.about}\n\n{figures}\n"


def where(machine: dict[str, Any]) -> str:
    """When and on which machine, as a sentence."""
    date = machine.get("date", "on a day that was not noted")
    gpu = f"{machine['gpu']} ({machine['gpu_bytes'] / 2**30:.0f} GiB), " if machine.get("gpu") else ""
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}, load {machine['load']}"
    return f"Measured {date}: {gpu}{machine['cpu']} ({cores}), Python {machine['python']}, torch {machine['torch']}."


def rows(names: str, lines: list[list[str]]) -> str:
    """A Markdown table; `names` are the heads, separated by |."""
    heads = [name.strip() for name in names.split("|")]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *lines])


def learning(found: dict[str, Any]) -> str:
    """The table of bench.learn."""
    lines = []
    for row in found["rows"]:
        scheme, base = f"{row['objective']} {row['memory']}".strip(), row["objective"] == "two_backward"
        ratios = found["ratios"][row["family"]]
        name = scheme.replace(" ", "_")
        times = "1" if base else f"{ratios[f'{name}_speedup']:.2f}"
        memory = "1" if base else f"{ratios[f'{name}_bytes']:.2f}"
        passes = [f"{row['updates_per_forward']:.2f}", f"{row['arithmetic_per_forward']:.2f}"]
        seconds, peak = f"{row['seconds_per_step']:.2f} s", f"{row['peak_bytes'] / MIB:.0f} MiB"
        lines.append([row["family"], scheme, seconds, peak, times, memory, *passes])
    names = "model | scheme | an update | peak | times as fast | of its memory | forward passes for each in it | by arithmetic"
    first = found["rows"][0]
    size = f"Batch {first['batch']}, {first['steps']} sampling steps, width and height times {found['scale']:g}; median of {found['repeats']} updates."
    extra = [
        f"{family}: micro-batches {r['trajectory_micro_over_block_speedup']:.2f} times as fast as *block*, at "
        f"{r['trajectory_micro_over_block_bytes']:.2f} of its peak; stepwise {r['stepwise_over_trajectory']:.1f} times as fast as trajectory."
        for family, r in found["ratios"].items()
    ]
    return "\n\n".join([size, rows(names, lines), " ".join(extra)])


def gpu(found: dict[str, Any]) -> str:
    """The table of bench.gpu."""
    lines = []
    for row in found["rows"]:
        if "error" in row:
            lines.append([row["model"], row["weights"], row["error"], *[""] * 7])
            continue
        lines.append(
            [
                *(row["model"], row["weights"], f"{row['seconds_per_update']:.2f} s"),
                f"{row['updates_per_forward']:.2f} ({row['arithmetic_per_forward']:.2f})",
                f"{row['share_of_peak']:.0%}",
                "?" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.1f} GiB",
                f"{row['memory']}, {row['rows']}",
                "?" if row["syncs_per_update"] is None else str(row["syncs_per_update"]),
                *(f"{row['apply_seconds']:.2f} s", f"{row['save_seconds']:.2f} s"),
            ]
        )
    names = "model | weights | an update | forward passes (by arithmetic) | of peak | memory | mode, rows | waits | apply | save"
    return rows(names, lines)


def compact(found: dict[str, Any]) -> str:
    """The table of bench.compact."""
    lines = [
        [
            *(r["shape"], f"{r['ffn_off']:.0%}", f"{r['attn_off']:.0%}", f"{r['speedup']:.2f}x"),
            *(f"{r['size_ratio']:.1%}", f"{r['arithmetic_ratio']:.1%}"),
        ]
        for r in found["rows"]
    ]
    return rows("blocks | neurons off | heads off | speed | size | size by arithmetic", lines)


def apply(found: dict[str, Any]) -> str:
    """The table of bench.apply."""
    pair = lambda name, form: [form(found[name]), form(found[f"lora_{name}"])]  # noqa: E731
    s, mb = (lambda v: f"{v:.3f} s"), (lambda v: f"{v / MB:.1f} MB")
    lines = [
        ["attach", *pair("attach_seconds", s)],
        ["patch", *pair("patch_seconds", s)],
        [f"together: **{found['ratio_to_lora']:.2f}** of the LoRA", *pair("seconds", s)],
        ["memory on top of ComfyUI's own copies", *pair("extra_bytes", mb)],
        ["peak of the largest weight, ComfyUI's copies included", *pair("peak_bytes", mb)],
    ]
    said = f"{found['patched_keys']} weights, {found['patched_values'] / 1e9:.2f} billion values, ComfyUI {found['comfyui']}."
    return f"{rows(' | mask | LoRA', lines)}\n\n{said}"


def sanitize(found: dict[str, Any]) -> str:
    """The sentence of bench.sanitize."""
    extra = "unknown" if found["extra_bytes"] is None else f"{found['extra_bytes'] / MB:.0f} MB"
    return (
        f"{found['file_bytes'] / 1e9:.1f} GB, of which the mask acts on {found['touched']:.0%}: **{found['ratio_to_copy']:.2f}** times as long "
        f"as copying it; memory beyond the largest tensor {extra}."
    )


def page(found: dict[str, Any]) -> str:
    """The table of bench.page."""
    lines = [
        [
            *(r["renderer"], r["interaction"], f"{r['own_ms_median']:.1f} ms ({r['own_ms_max']:.1f})"),
            *(f"{r['own_cpu_ms_max']:.1f} ms", f"{r['script_ms_median']:.1f} ms"),
        ]
        for r in found["rows"]
    ]
    return rows(
        "renderer | interaction | our script, median (most) | processor, most | all script to the next frame, median", lines
    )


def attack(found: dict[str, Any]) -> str:
    """The table of bench.attack."""
    return rows("what | how many", [[f"`{n}`", str(v)] for n, v in found.items() if isinstance(v, int | None) and n != "seed"])


def verdict(found: dict[str, Any]) -> str:
    """The sentence of bench.verdict."""
    return (
        f"Copies found after an edit, at least {found['copies_found']:.0%}; free pictures called a copy {found['false_alarms']:.1%}, a partial "
        f"one {found['false_partial']:.1%}; mixtures called forgotten {found['mixtures_forgotten']} of 32."
    )


def loras(found: dict[str, Any]) -> str:
    """Clean LoRA beside its control."""
    lines = []
    for row in found["rows"]:
        shares = [f"{row['shares'][name]['share']:.0%}" for name in ("copy", "partial", "forgotten")]
        about = [str(row["pictures"]), row["method"], f"{row['keep']:g}" if "keep" in row else ""]
        lines.append(
            [*about, *shares, *(f"{row[name]:.0%}" for name in ("ceiling", "trigger_works", "style")), f"{row['seconds']:.1f}"]
        )
    return rows("pictures | method | keep | copies | partial | forgotten | ceiling | trigger works | style | seconds", lines)


def guard(found: dict[str, Any]) -> str:
    """Memorization Guard, alone and with a mask."""
    lines = []
    for row in found["rows"]:
        shares = [f"{row[name]:.0%}" for name in ("caught", "false_neutral", "false_heldout")]
        copies = [f"{row[name][label]['share']:.0%}" for name in ("told", "steered") for label in ("copy", "forgotten")]
        lines.append([row["mask"] or "no mask", *shares, *copies, f"{row['cost']:.1%}"])
    return rows(
        "model | caught | false, neutral | false, held out | copies | forgotten | copies, steered | forgotten, steered | cost",
        lines,
    )


SECTIONS = [
    Section(
        "Learning", "learn", "",
        "One update of every objective and memory mode, on narrow models of SDXL's and FLUX's shape, in processor seconds of one thread. `two_backward` "
        "is a plain scheme with two backward passes per sampling step, `ecodiff` the same with EcoDiff's attention, which is computed twice; the ratios are to `two_backward`.",
        learning,
    ),
    Section(
        "On a GPU", "gpu", "",
        "Random SD 1.5, SDXL, FLUX.1 and Z-Image at their real size, in bf16 and fp8: 20 updates with the product's own `learn`, then the mask is saved "
        "and merged. `--tiny` runs small ones on the CPU, as the tests do.",
        gpu, "**No GPU could be had to run it on.** What is said of GPUs in this project was read from the code, not measured.",
    ),
    Section(
        "Applying a mask to FLUX.1", "apply", " [--repeats 5]",
        "A mask and a LoRA (rank 16) on the same weights of a FLUX.1-dev at its real size in bf16, through ComfyUI's own `ModelPatcher`, in turns, on the CPU.",
        apply,
    ),
    Section(
        "Sanitizing a file", "sanitize", " [--gigabytes 8] [--folder FOLDER]",
        "Copies and sanitizes the same checkpoint of SDXL in fp16 in turns, each written through to the disk.", sanitize,
    ),
    Section(
        "Compact models", "compact", " [--quick]",
        "Blocks of SDXL's and FLUX.1's size in fp32 on the CPU, whole and with what a random mask switches off cut out. The rows without anything off say "
        "what noise is. Heads alone do not pay; FFNs do, most where they are most of the work: small pictures, large blocks.", compact,
    ),
    Section(
        "The page: Compare's script", "page", " [--pictures 2048]",
        "The example workflow in a real ComfyUI and Chromium, with pictures of 2048 x 2048 in its Compare node, worked on with mouse, wheel and keys.", page,
    ),
    Section("The verdict", "verdict", "", "Whether copies are still found after an edit, and what is called one that is none.", verdict),
    Section(
        "Clean LoRA", "loras", " [--pictures 4,8,12] [--keep 0.7,0.5,0.3]",
        "LoRAs trained on flat drawings of the testbed until they copy them; cleaned; and, as the control, the whole LoRA at a lower strength that has the "
        "same energy (`scaled`): cleaning must be better than that.", loras,
    ),
    Section(
        "Memorization Guard", "guard", " [--mask FILE]",
        "Memorized captions that raise an alarm, everyday ones that do, and what the verdict says of pictures as they are and steered.", guard,
    ),
    Section(
        "Attacks", "attack", " [--share 0.1] [--parts inputs,kills,page]",
        "Attacks the pack as a stranger would: damaged inputs for every reader, commands that are killed, hostile text through every node. "
        "All counts but `mutated` and `kills` must be 0.", attack,
    ),
]  # fmt: skip


def text(results: Path = RESULTS) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section.text(results) for section in SECTIONS)])


def main() -> int:
    """Writes the page."""
    PAGE.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
