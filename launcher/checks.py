"""``run.py test``: lint, format, types, then the tests."""

import os
import subprocess
from pathlib import Path

from . import pack
from .paths import PACK_NAME, PACK_PARENT, ROOT
from .server import Install
from .setup import say

TYPED = ("uniforget", "nodes", "testbed")


def check(install: Install, pytest_arguments: list[str]) -> int:
    """Runs all checks, also after one has failed; 0 when all passed. Arguments for pytest leave the other checks out."""
    python = str(install.python)
    failed = []
    if not pytest_arguments:
        for name, arguments, folder in linters():
            say(name)
            if subprocess.call([python, "-m", *arguments], cwd=folder):
                failed.append(name)
    # the second has ComfyUI's modules in its own process, where they own names such as ``nodes``
    runs = [pytest_arguments] if pytest_arguments else [[], ["tests/comfyui/inside"]]
    for arguments in runs:
        name = " ".join(["pytest", *arguments])
        say(name)
        if subprocess.call([python, "-m", "pytest", *arguments], cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}):
            failed.append(name)
    say(f"Failed: {', '.join(failed)}" if failed else "All checks passed")
    return 1 if failed else 0


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
    ]
