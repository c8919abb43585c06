"""The benchmarks of Clean LoRA and of Memorization Guard, at their smallest size."""

import json

import pytest
import torch

from bench import docs, guard, loras
from testbed.verdict import LABELS


def test_clean_lora_beside_its_control(tmp_path):
    small = ["--pictures=2", "--updates=2", "--seeds=1", "--free=1", "--keep=0.5"]
    assert loras.main([*small, "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    rows = found["rows"]
    assert "| 2 | scaled | 0.5 |" in docs.loras(found) and found["machine"]["date"]
    assert [row["method"] for row in rows] == ["none", "spectral", "scaled"]
    for row in rows:
        assert row["testbed"] == "mmdit" and row["pictures"] == row["shares"]["samples"] == 2 and 0 <= row["ceiling"] <= 1
        assert sum(row["shares"][label]["share"] for label in LABELS) == pytest.approx(1)
        assert row["never_seen"]["samples"] == 10 and 0 <= row["trigger_works"] <= 1
    assert 0 < rows[1]["removed"] < 1 and 0.5 <= rows[1]["left"] < 1 and rows[1]["seconds"] > 0
    assert rows[2]["left"] == rows[1]["left"], "the control has the same energy"


def test_a_lora_comes_back_from_its_file_and_changes_the_network_only_inside(tmp_path):
    bed = loras.Bed()
    item = loras.training_set(1)[0]
    factors = {
        path: (torch.ones(2, bed.modules[path].weight.shape[1]), torch.ones(bed.modules[path].weight.shape[0], 2))
        for path in bed.paths[:3]
    }
    loras.save(factors, tmp_path / "lora.safetensors")
    found = loras.load(tmp_path / "lora.safetensors")
    assert found.keys() == factors.keys() and all(torch.equal(a, b) for k in found for a, b in zip(found[k], factors[k]))
    draw = lambda: bed.draw([item[0].caption], [1])  # noqa: E731
    before = draw()
    with bed.with_lora(found):
        assert (draw() != before).any()
    assert (draw() == before).all()
    with pytest.raises(ValueError, match="pictures: expected 1 to 12"):
        loras.training_set(13)


def test_the_guard(tmp_path):
    small = ["--neutral=8", "--seeds=1", "--free=2", "--captions=3"]
    assert guard.main([*small, "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    [row] = found["rows"]
    assert "| no mask |" in docs.guard(found) and found["machine"]["date"]
    assert row["testbed"] == "mmdit" and row["mask"] is None and row["limit"] >= 1 and row["cost"] > 0
    assert all(0 <= row[name] <= 1 for name in ("caught", "false_neutral", "false_heldout"))
    assert row["told"]["samples"] == row["steered"]["samples"] == 3
