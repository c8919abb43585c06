"""The table and the plot of bench.forgetting, written into a page of docs between two markers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

BEGIN, END = "<!-- table: bench.forgetting -->", "<!-- end of table -->"
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}
GROUP = ("testbed", "method", "objective", "preset", "strength", "note", "needs_targets")
TITLES = {"mmdit": "First testbed: MMDiT (SD3-type)", "unet": "Second testbed: UNet with cross-attention (SD1.5-type)"}
COLUMNS = {
    "copies": "copies",
    "copies_indomain": "of these in domain",
    "neutral": "neutral",
    "heldout": "held-out",
    "neutral_similarity": "likeness",
    "diversity": "diversity",
    "copies_after_attack": "copies after attack",
    "copies_after_attack_noise": "attack from noise",
    "control_after_attack": "never-seen after attack",
    "copies_after_500": "500 steps",
    "control_after_500": "never-seen, 500 steps",
    "copies_after_finetune": "after fine-tuning",
    "copies_indirect": "indirect prompts",
}
WITH_INTERVAL = ("copies", "neutral", "heldout", "copies_after_attack", "control_after_attack")


def grouped(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows that differ in their mask seed only, together, in the order of the first."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[n] for n in GROUP), []).append(row)
    return list(found.values())


def interval(rows: list[dict[str, Any]], name: str) -> tuple[float, float, float] | None:
    """Mean over mask seeds and its 95 % interval: Student's over seeds, Wilson's over samples where there is one seed only."""
    values = [row[name] for row in rows if row.get(name) is not None]
    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) > 1:
        half = STUDENT[min(len(values) - 1, 4)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return mean, max(0.0, mean - half), min(1.0, mean + half)
    low, high = next(row for row in rows if row.get(name) is not None).get(f"{name}_interval", (mean, mean))
    return mean, low, high


def _cell(rows: list[dict[str, Any]], name: str) -> str:
    found = interval(rows, name)
    if found is None:
        return ""
    mean, low, high = found
    if name in ("neutral_similarity", "diversity"):
        return f"{mean:.2f}"
    return f"{100 * mean:.1f} ({100 * low:.0f}-{100 * high:.0f})" if name in WITH_INTERVAL else f"{100 * mean:.1f}"


def _name(row: dict[str, Any]) -> str:
    parts = [row["method"], row["objective"] if row["objective"] not in ("", row["method"]) else "", row["preset"]]
    parts += [f"strength {row['strength']:g}" if row["strength"] != 1 else "", row["note"]]
    return ", ".join(filter(None, parts)) + (" **(needs targets)**" if row["needs_targets"] else "")


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of one testbed; columns that no row has are left out."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = ["| model | seeds | off, ffn / norm / attn | " + " | ".join(COLUMNS[n] for n in shown) + " |"]
    lines.append("| " + " | ".join(["---"] * (len(shown) + 3)) + " |")
    for group in grouped(rows):
        off = " / ".join(
            "" if (v := interval(group, f"off_{kind}")) is None else f"{100 * v[0]:.0f}" for kind in ("ffn", "norm", "attn")
        )
        cells = [_name(group[0]), str(len(group)), off, *(_cell(group, name) for name in shown)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Copies, and copies after the attack, against accuracy on held-out concepts; one panel each, one colour per method."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "uniforget"  # the same figures give the same file
    colours = matplotlib.colormaps["tab20"]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharex=True, sharey=True)
    for panel, name, title in zip(
        panels, ("copies", "copies_after_attack"), ("copies", "copies after the 50-step attack"), strict=True
    ):
        for i, method in enumerate(methods):
            points = [(interval(g, "heldout"), interval(g, name)) for g in grouped([r for r in rows if r["method"] == method])]
            points = [(x, y) for x, y in points if x and y]
            if not points:
                continue
            ours = not method.startswith("control")
            xs, ys = ([100 * p[k][0] for p in points] for k in (0, 1))
            bars = [[100 * max(0.0, way * (p[1][k] - p[1][0])) for p in points] for k, way in ((1, -1), (2, 1))]
            panel.errorbar(
                xs, ys, yerr=bars, fmt="o" if ours else "x", markersize=7 if ours else 6, color=colours(i % 20), alpha=0.85,
                elinewidth=0.8, label=method,
            )  # fmt: skip
        panel.set(title=title, xlabel="right pictures of held-out concepts, %", ylabel=f"{title}, %", ylim=(-3, 103))
        panel.grid(alpha=0.3)
    handles = {label: h for panel in panels for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    figure.tight_layout(rect=(0, 0, 0.79, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def write(found: dict[str, Any], page: Path) -> None:
    """Put table and plot of each testbed between the markers of `page`; the plots stand beside it."""
    parts = []
    for testbed, title in TITLES.items():
        rows = [row for row in found["rows"] if row["testbed"] == testbed]
        if rows:
            picture = page.with_name(f"{page.stem}_{testbed}.svg")
            plot(rows, picture)
            parts.append(f"### {title}\n\n![Copies against accuracy on held-out concepts]({picture.name})\n\n{table(rows)}")
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page}: expected the lines {BEGIN} and {END}, between which the table is put; found none. Add them.")
    page.write_text(pattern.sub(lambda m: f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}", text), encoding="utf-8")
