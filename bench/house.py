"""How large the house is: ``python -m bench.house --json FILE``.

``test_seconds`` is what the last whole run of ``python run.py test`` took; null before there was one.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Written at the end of a run of everything.
SECONDS = Path(".cache", "test_seconds.json")
_MASK_KINDS = re.compile(r"\b(GateMask|SubspaceMask)\b")
_ASK = re.compile(r"isinstance\((?:[^()]|\([^()]*\))*\)")


def measure(root: Path = ROOT) -> dict[str, Any]:
    """Lines, modules and words of the repository at `root`.

    Returns:
        engine_lines, engine_modules: of ``uniforget/`` and below; root_modules: directly in it.
        isinstance_mask: places in the engine and the nodes that ask which kind a mask is.
        test_lines: of ``tests/``; doc_words: of ``docs/``.
        test_seconds: of the last whole run of the tests.
    """
    engine = sorted((root / "uniforget").rglob("*.py"))
    asked = [*engine, *(root / "nodes").rglob("*.py")]
    pages = (root / "docs").rglob("*.md")
    return {
        "engine_lines": sum(map(_lines, engine)),
        "engine_modules": len(engine),
        "root_modules": len(list((root / "uniforget").glob("*.py"))),
        "isinstance_mask": sum(bool(_MASK_KINDS.search(ask)) for path in asked for ask in _ASK.findall(_text(path))),
        "test_lines": sum(map(_lines, (root / "tests").rglob("*.py"))),
        "doc_words": sum(len(_text(path).split()) for path in pages),
        "test_seconds": json.loads(_text(root / SECONDS))["seconds"] if (root / SECONDS).is_file() else None,
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _lines(path: Path) -> int:
    return len(_text(path).splitlines())


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    found = measure()
    text = json.dumps(found, indent=2)
    if path := parser.parse_args(arguments).json:
        path.write_text(f"{text}\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
