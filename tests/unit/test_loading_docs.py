"""docs/loading.md names tests that exist, and says of every way how it was tested."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "loading.md").read_text(encoding="utf-8")
FOLDER = ROOT / "tests" / "comfyui" / "inside"


def functions():
    """Test functions of each file."""
    files = {p.name: ast.parse(p.read_text(encoding="utf-8")) for p in FOLDER.glob("test_*.py")}
    return {name: {n.name for n in tree.body if isinstance(n, ast.FunctionDef)} for name, tree in files.items()}


def test_every_test_that_is_named_exists():
    known = functions()
    everywhere = set().union(*known.values())
    named = re.findall(r"(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", TEXT)
    named = [(file, function) for file, function in named if file or function]
    assert len(named) > 30
    for file, function in named:
        assert not file or file in known, f"docs/loading.md names {file}"
        assert not function or function in (known[file] if file else everywhere), f"docs/loading.md names {file}::{function}"


def test_every_way_says_how_it_was_tested():
    rows = [line.split("|")[1:-1] for line in TEXT.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 25 and {len(row) for row in rows} == {4}
    for way, works, how, _ in rows:
        untested = "not tested: needs a GPU" in how
        assert untested or "::test_" in how or "`test_" in how, way
        assert bool(works.strip()) != untested, way
