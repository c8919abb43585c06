"""The table and the plot of bench.forgetting, written into a page of docs between two markers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

BEGIN, END = "<!-- table: bench.forgetting -->", "<!-- end of table -->"
GROUP = ("testbed", "method", "preset", "note")
TITLES = {"mmdit": "First testbed: MMDiT (SD3-type)", "unet": "Second testbed: UNet with cross-attention (SD1.5-type)"}
COLUMNS = {
    "forgotten": "**forgotten**",
    "forgotten_reserved": "of reserved captions",
    "ceiling": "ceiling",
    "copy": "copy",
    "partial": "partial",
    "broken": "broken",
    "off_prompt": "off prompt",
    "collapsed": "collapsed",
    "neutral": "neutral right",
    "heldout": "held-out right",
    "after_attack": "copied after attack",
    "control_attack": "never-seen after attack",
    "after_attack_noise": "attack from noise",
    "control_attack_noise": "never-seen, from noise",
    "after_finetune": "after fine-tuning",
    "control_finetune": "never-seen, fine-tuned",
}
WITH_INTERVAL = ("forgotten", "neutral", "heldout", "after_attack", "control_attack")


def grouped(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows that differ in their mask seed only, together, in the order of the first."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[n] for n in GROUP), []).append(row)
    return list(found.values())


def interval(rows: list[dict[str, Any]], name: str) -> tuple[float, float, float] | None:
    """Mean over mask seeds and its 95 % interval: Student's over seeds, Wilson's over samples where there is one seed only."""
    from scipy import stats

    having = [row for row in rows if row.get(name) is not None]
    values = [row[name] for row in having]
    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, *having[0].get(f"{name}_interval", (mean, mean))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def _cell(rows: list[dict[str, Any]], name: str) -> str:
    found = interval(rows, name)
    if found is None:
        return ""
    mean, low, high = found
    return f"{100 * mean:.0f} ({100 * low:.0f}-{100 * high:.0f})" if name in WITH_INTERVAL else f"{100 * mean:.0f}"


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of one testbed, in per cent; columns that no row has are left out."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = ["| model | seeds | off, ffn / norm | " + " | ".join(COLUMNS[n] for n in shown) + " |"]
    lines.append("| " + " | ".join(["---"] * (len(shown) + 3)) + " |")
    for group in grouped(rows):
        off = [interval(group, f"off_{kind}") for kind in ("ffn", "norm")]
        row = group[0]
        name = ", ".join(filter(None, (row["method"], row["preset"], row["note"])))
        cells = [name, str(len(group)), " / ".join("" if v is None else f"{100 * v[0]:.0f}" for v in off)]
        lines.append("| " + " | ".join(cells + [_cell(group, name) for name in shown]) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Forgotten, and copied after the attack, against accuracy on held-out concepts; one panel each, one colour per method."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "uniforget"  # the same figures give the same file
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.6), sharex=True, sharey=True)
    for panel, name, title in zip(
        panels, ("forgotten", "after_attack"), ("forgotten: new, whole and right", "copied after the 50-step attack"), strict=True
    ):
        for i, method in enumerate(methods):
            points = [(interval(g, "heldout"), interval(g, name)) for g in grouped([r for r in rows if r["method"] == method])]
            points = [(x, y) for x, y in points if x and y]
            if points:
                xs, ys = ([100 * p[k][0] for p in points] for k in (0, 1))
                bars = [[100 * max(0.0, way * (p[1][k] - p[1][0])) for p in points] for k, way in ((1, -1), (2, 1))]
                mark = "x" if method.startswith("control") else "o"
                colour = matplotlib.colormaps["tab20"](i % 20)
                panel.errorbar(xs, ys, yerr=bars, fmt=mark, color=colour, elinewidth=0.8, label=method)
        panel.set(title=title, xlabel="right pictures of held-out concepts, %", ylabel="% of samples", ylim=(-3, 103))
        panel.grid(alpha=0.3)
    ceiling = interval(rows, "ceiling")
    if ceiling:
        panels[0].axhline(100 * ceiling[0], linestyle=":", color="grey", label="ceiling: never-seen captions")
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
            analysis = page.with_name(f"{page.stem}_{testbed}_analysis.png")
            shown = [f"![Forgotten against accuracy on held-out concepts]({picture.name})"]
            if analysis.is_file():
                shown.append(f"![Samples' latents before and after, and the density of update magnitudes]({analysis.name})")
            parts.append("\n\n".join([f"### {title}", *shown, table(rows)]))
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{page}: expected the lines {BEGIN} and {END}, between which the table is put; found none. Add them.")
    page.write_text(pattern.sub(lambda m: f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}", text), encoding="utf-8")
