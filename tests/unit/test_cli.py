"""The command line, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from uniforget.families import FAMILIES

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "uniforget", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_families_as_json():
    done = run("families", "--json")
    assert done.returncode == 0, done.stderr
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert list(entries) == [family.name for family in FAMILIES]
    assert all(set(entry["kinds"]) == {"ffn", "norm", "attn"} for entry in entries.values())
    assert all(entry["variants"] and set(entry["hosts"]) == {"comfyui", "diffusers"} for entry in entries.values())
    sd1 = entries["sd1"]["variants"][0]
    # 16 transformer blocks: neurons are four times, norm channels three times the widths 320, 640 and 1280 of its blocks
    width = 5 * 320 + 5 * 640 + 6 * 1280
    assert sd1["ffn"] == {"sites": 16, "gates": 4 * width} and sd1["norm"] == {"sites": 48, "gates": 3 * width}
    assert sd1["attn"] == {"sites": 32, "gates": 32 * 8} and "gradients" in sd1["tested"]


def test_families_as_a_table():
    done = run("families")
    assert done.returncode == 0 and "FLUX.1 dev" in done.stdout and "933,888" in done.stdout.replace("\n", "")


def test_version_and_wrong_usage():
    assert json.loads(run("version", "--json").stdout)["version"]
    wrong = run("familys")
    assert wrong.returncode == 2 and "familys" in wrong.stderr
