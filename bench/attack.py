"""Attacks the pack as a stranger would, and counts what was not survived.

    python -m bench.attack --json FILE [--share 0.1] [--parts inputs,kills,page] [--seed 0]

Damaged inputs for every reader (:mod:`bench.readers`, :mod:`bench.nodereaders`, made by :mod:`bench.mutate`), commands that are killed
(:mod:`bench.kills`), and hostile text through every node in ComfyUI's page (``tests/browser/test_hostile.py``). The exit code is 0 if all
counts but ``mutated`` and ``kills`` are 0. Without Chromium ``scripts_run`` is null, which is a failure where CI=true. The test suite
does a tenth; all of it takes about a quarter of an hour on an idle core. Parts that are not asked for stay in FILE as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import feed
from .common import machine, write_json

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("inputs", "kills", "page")
BAD = (
    *("foreign_exceptions", "over_budget", "escapes"),
    *("different_after_resume", "half_written", "left_over", "lost"),
    "scripts_run",
)
PAGE = "tests/browser/test_hostile.py"


def inputs(seed: int, share: float, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Damaged inputs for all readers."""
    found = feed.feed(seed, share, folder / "inputs", tell)
    names = {"mutated": "mutated", "foreign": "foreign_exceptions", "budget": "over_budget", "escape": "escapes"}
    details = {name: found[name] for name in ("readers", "seconds", "worst", "faults")}
    return {names[name]: count for name, count in found["counts"].items()} | {"inputs": details}


def kills(seed: int, share: float, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Commands that are killed."""
    from .kills import attack

    found = attack(seed, share, folder / "kills", tell)
    cold = found["counts"].pop("cold_kills")
    return {**found["counts"], "commands": {"kills": found["commands"], "cold": cold, "faults": found["faults"]}}


def page(seed: int, share: float, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Hostile text in ComfyUI's page, in both renderers; every test of it that fails counts."""
    report = folder / "page.xml"
    command = [sys.executable, "-m", "pytest", PAGE, "-q", "-p", "no:cacheprovider", "-n", "0", f"--junitxml={report}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not report.exists():
        raise RuntimeError(f"{PAGE} did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    cases = list(xml.parse(report).iter("testcase"))
    skipped = sum(case.find("skipped") is not None for case in cases)
    failed = [str(case.get("name")) for case in cases if case.find("failure") is not None or case.find("error") is not None]
    tell(f"page: {len(cases)} tests, {len(failed)} failed, {skipped} skipped")
    if not cases:
        raise RuntimeError(f"{PAGE} holds no tests: {done.stdout[-2000:]}")
    ran = None if skipped and not failed else len(failed)
    return {"scripts_run": ran, "page": {"tests": len(cases), "failed": failed, "skipped": skipped}}


def main(arguments: list[str] | None = None) -> int:
    """Runs the attack."""
    parser = argparse.ArgumentParser(prog="python -m bench.attack", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures, after every part")
    parser.add_argument("--share", type=float, default=1.0, help="of all inputs and kills; default %(default)s")
    parser.add_argument("--parts", default=",".join(PARTS), help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1 or not set(options.parts.split(",")) <= set(PARTS):
        parser.error(f"--share: expected more than 0 and at most 1; --parts: some of {', '.join(PARTS)}")
    about = {"share": options.share, "seed": options.seed}
    figures: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    if not about.items() <= figures.items():
        figures = {}
    with tempfile.TemporaryDirectory(prefix="attack") as name:
        for part in options.parts.split(","):
            began = time.monotonic()
            figures |= globals()[part](options.seed, options.share, Path(name), lambda text: print(text, flush=True))
            figures.setdefault("wall_seconds", {})[part] = round(time.monotonic() - began)
            if options.json:
                write_json(options.json, figures | about | {"machine": machine()})
    print({name: value for name, value in figures.items() if not isinstance(value, dict)}, flush=True)
    ci = os.environ.get("CI", "").lower() in ("1", "true")
    return int(any(figures.get(name) for name in BAD) or (ci and figures.get("scripts_run", 0) is None))


if __name__ == "__main__":
    raise SystemExit(main())
