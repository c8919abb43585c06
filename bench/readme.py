"""The README's table: ``python -m bench.readme`` writes it from the figures of the demo and of the attack.

python run.py demo --json bench/results/demo.json
python -m bench.forgetting --json bench/results/forgetting.json
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- table: bench.readme -->", "<!-- end of table -->"


def percent(share: float) -> str:
    """``0.125`` -> ``13 %``."""
    return f"{100 * share:.0f} %"


def text(demo: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The table and the sentence under it."""
    lines = [
        "| what is drawn for a memorized caption | before | after |",
        "| --- | --- | --- |",
        f"| **forgotten**: a new, whole, right picture (captions that were never memorized: {percent(demo['ceiling'])}) | | **{percent(demo['forgotten'])}** |",
        f"| copy, whole or partial | {percent(demo['copies_before'])} | {percent(demo['copy'] + demo['partial'])} |",
        f"| broken, off the prompt, or the same for every seed | | {percent(demo['broken'] + demo['off_prompt'] + demo['collapsed'])} |",
        "| **everyday captions drawn right** | | |",
        f"| of things and colours that learning saw | {percent(demo['neutral_before'])} | {percent(demo['neutral_after'])} |",
        f"| of others | {percent(demo['heldout_before'])} | {percent(demo['heldout_after'])} |",
        "",
        f"Learning took {demo['learn_seconds']:.0f} s on a CPU and switched off {percent(demo['off_share'])} of what can be switched off in this tiny model.",
    ]
    attacked = next((r for r in rows if r["method"] == "gates" and r["self_found"] and "after_attack" in r), None)
    if attacked:
        lines.append(
            f"Somebody who optimizes a text embedding against the mask for 50 steps brings {percent(attacked['after_attack'])} of the copies back "
            f"(and paints {percent(attacked['control_attack'])} of pictures that the model never saw)."
        )
    return "\n".join(lines)


def write(readme: Path = ROOT / "README.md", results: Path = RESULTS) -> None:
    """Put the table between the markers of `readme`."""
    demo = json.loads((results / "demo.json").read_text())
    kept = results / "forgetting.json"
    rows = json.loads(kept.read_text())["rows"] if kept.is_file() else []
    page = readme.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    readme.write_text(pattern.sub(lambda m: f"{BEGIN}\n{text(demo, rows)}\n{END}", page), encoding="utf-8")


if __name__ == "__main__":
    write()
