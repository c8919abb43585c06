"""``run.py test``: lint, format, types, then the tests."""

import json
import os
import subprocess
import time
from pathlib import Path

from . import pack
from .paths import PACK_NAME, PACK_PARENT, ROOT
from .server import Install
from .setup import say

SECONDS = ROOT / ".cache" / "test_seconds.json"
TYPED = ("uniforget", "nodes", "testbed")


def check(install: Install, pytest_arguments: list[str]) -> int:
    """Runs all checks, also after one has failed; 0 when all passed. Arguments for pytest leave the other checks out."""
    python = str(install.python)
    began = time.monotonic()
    failed = []
    if not pytest_arguments:
        for name, arguments, folder in linters():
            say(name)
            if subprocess.call([python, "-m", *arguments], cwd=folder):
                failed.append(name)
    for arguments in [pytest_arguments] if pytest_arguments else everything():
        name = " ".join(["pytest", *arguments])
        say(name)
        # with several workers, each has one core
        threads = {"OMP_NUM_THREADS": "1"} if "-n" in arguments else {}
        here = {**os.environ, "PYTHONUNBUFFERED": "1", **threads}
        if subprocess.call([python, "-m", "pytest", *arguments], cwd=ROOT, env=here):
            failed.append(name)
    if not pytest_arguments:  # what bench.house says of the last whole run
        SECONDS.parent.mkdir(exist_ok=True)
        SECONDS.write_text(json.dumps({"seconds": round(time.monotonic() - began, 1), "passed": not failed}), encoding="utf-8")
    say(f"Failed: {', '.join(failed)}" if failed else "All checks passed")
    return 1 if failed else 0


def everything() -> list[list[str]]:
    """Arguments of each run of pytest: without ComfyUI, with one server for all, with ComfyUI's modules in the process, with Forge."""
    workers = ["-n", str(min(4, os.cpu_count() or 1))]
    served = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/comfyui/test_*.py"))
    return [["tests/unit", *workers], [*served, "tests/browser"], ["tests/comfyui/inside", *workers], ["tests/forge"]]


def linters() -> list[tuple[str, list[str], Path]]:
    """``(name, module and arguments, folder to run in)`` of each check that is not a test."""
    pack.link()
    # The engine uses imports relative to the pack's root, whatever that folder is called: checked through the link.
    engine = ["mypy", "--config-file", str(ROOT / "pyproject.toml"), *(f"{PACK_NAME}/{part}" for part in TYPED)]
    launcher = ["mypy", "--explicit-package-bases", "run.py", "launcher"]
    return [
        ("ruff check", ["ruff", "check", "."], ROOT),
        ("ruff format --check", ["ruff", "format", "--check", "."], ROOT),
        ("mypy, engine and nodes", engine, PACK_PARENT),
        ("mypy, launcher", launcher, ROOT),
        # what ships; from medium severity: low are asserts and random numbers that guard nothing
        ("bandit", ["bandit", "--quiet", "-ll", "--recursive", "__init__.py", "nodes", "scripts", "testbed", "uniforget"], ROOT),
    ]
