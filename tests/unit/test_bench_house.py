"""The figures of the house, on a small one."""

import json
import subprocess
import sys

from bench import house


def test_a_small_house(tmp_path):
    for path, text in {
        "uniforget/__init__.py": "a\nb\n",
        "uniforget/mask/gates.py": "if isinstance(x, GateMask | SubspaceMask) or isinstance(y.z(), (int, str)):\n    pass\n",
        "nodes/apply.py": "isinstance(f(x), SubspaceMask)\n",
        "tests/unit/test_a.py": "1\n2\n3\n",
        "docs/page.md": "four words are here\n",
        "README.md": "one\n",
        "web/docs/Node.md": "two words\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    figures = {"engine_lines": 4, "engine_modules": 2, "root_modules": 1, "isinstance_mask": 2, "test_lines": 3, "doc_words": 4}
    assert house.measure(tmp_path) == {**figures, "test_seconds": None}
    (tmp_path / house.SECONDS).parent.mkdir()
    (tmp_path / house.SECONDS).write_text('{"seconds": 12.5}')
    assert house.measure(tmp_path) == {**figures, "test_seconds": 12.5}


def test_this_house(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "bench.house", "--json", tmp_path / "house.json"], capture_output=True, text=True, cwd=house.ROOT
    )
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "house.json").read_text())
    assert found == json.loads(run.stdout) and found["engine_lines"] > 1000 and found["doc_words"] > 1000
