"""Every benchmark can be started, and that of learning runs at its smallest size."""

import importlib
import json
from pathlib import Path

import pytest

from bench import learn

ROOT = Path(__file__).resolve().parents[2]
NEED_COMFYUI = {"apply", "patching", "compact", "checks"}  # tests/comfyui/inside runs these
COMMANDS = [
    path.stem
    for path in sorted((ROOT / "bench").glob("*.py"))
    if "def main(arguments" in path.read_text() and path.stem not in NEED_COMFYUI
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_starts(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"bench.{name}").main(["--help"])
    assert stopped.value.code == 0 and "--json" in capsys.readouterr().out


def test_learning(tmp_path):
    assert learn.main(["--smallest", "--only", "flux", "--repeats", "1", "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    rows = {(row["objective"], row["memory"]): row for row in found["rows"]}
    assert rows.keys() == {("two_backward", ""), *learn.SCHEMES}
    assert all(row["seconds_per_step"] > 0 and row["peak_bytes"] > 0 for row in rows.values())
    for objective in ("trajectory", "stepwise"):
        assert rows[objective, "micro"]["peak_bytes"] < rows[objective, "keep"]["peak_bytes"]
    assert found["ratios"]["flux"]["stepwise_keep_speedup"] > 1
