"""A tenth of ``python -m bench.attack``: every reader, every command and every kind of kill. The page has its own test in tests/browser."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import load, save

from bench import attack, feed, kills, mutate
from launcher import inside
from launcher.errors import LauncherError

SEED = 1  # of its own: what is committed is of seed 0


def comfyui():
    try:
        return inside.comfyui()
    except LauncherError:
        return None


def attacked(tmp_path, part):
    """A tenth of a part of it, in which nothing may be found."""
    code = attack.main(["--json", str(tmp_path / "x.json"), "--share", "0.1", "--parts", part, "--seed", str(SEED)])
    found = json.loads((tmp_path / "x.json").read_text())
    bad = {name: found[name] for name in attack.BAD if found.get(name)}
    assert not bad, (bad, found.get("inputs", found.get("commands"))["faults"])
    assert code == 0
    return found


@pytest.mark.skipif(not comfyui(), reason="its readers are ComfyUI's nodes as well: python run.py test fetches ComfyUI")
def test_damaged_inputs_for_every_reader_do_no_harm(tmp_path):
    found = attacked(tmp_path, "inputs")
    assert found["mutated"] > 2500
    # What takes everything, or gets nothing, would not be attacked.
    outcomes = found["inputs"]["readers"]
    assert {"mask file", "mask text", "subspace file", "compact file", "model folder", "request", "node name"} <= outcomes.keys()
    assert not [name for name in outcomes if sum(outcomes[name].values()) < 10]
    assert sum(bool(counts.keys() - {"read"}) for counts in outcomes.values()) > 15


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_commands_lose_nothing(tmp_path):
    found = attacked(tmp_path, "kills")
    assert found["commands"]["kills"].keys() == kills.COMMANDS.keys()
    assert found["kills"] > len(kills.COMMANDS) / 2


def test_damage_is_the_same_for_the_same_seed_and_gets_past_the_form():
    whole = save({"a": torch.arange(6.0), "b": torch.zeros(2, 2)}, {"note": json.dumps({"x": [1, 2]})})
    made = [mutate.container(random.Random(i), whole) for i in range(300)]
    assert made == [mutate.container(random.Random(i), whole) for i in range(300)]
    assert sum(one != whole for one in made) > 290

    def reads(content):
        try:
            return bool(load(content))
        except Exception:
            return False

    assert 50 < sum(map(reads, made)) < 250


def test_json_can_hold_what_no_writer_writes():
    found = {mutate.dump(mutate.tree(random.Random(i), {"a": 1, "b": {"c": "x"}}), i % 2 == 0) for i in range(2000)}
    for what in ('"a": 1, "a"', "NaN", "Infinity", "\\ud800", "[[[[[[", "9" * 4000, "null", "onerror"):
        assert any(what in text for text in found), what


def test_a_reader_that_fails_takes_too_much_or_leaves_its_folder_is_counted(tmp_path):
    """The counting itself: a process is fed by readers that misbehave."""
    counts = feed.feed(0, 1.0, tmp_path / "feed", lambda text: None, ["tests.unit.misbehaving"])["counts"]
    assert counts == {"mutated": 5, "foreign": 1, "budget": 2, "escape": 1}
