"""The command line, as a user runs it."""

import io
import json
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import typer

from uniforget import config, load
from uniforget.cli.app import app, main
from uniforget.model.families import FAMILIES
from uniforget.prompts import read_prompts

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "uniforget", *arguments], cwd=ROOT, capture_output=True, text=True)


def here(*arguments):
    """The same without a new process, which has to import everything first."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["uniforget", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def test_families_as_json():
    done = here("families", "--json")
    assert done.returncode == 0, done.stderr
    entries = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert list(entries) == [family.name for family in FAMILIES]
    assert all(set(entry["kinds"]) == {"ffn", "norm", "attn"} for entry in entries.values())
    assert all(entry["variants"] and "comfyui" in entry["hosts"] for entry in entries.values())
    assert {name for name, entry in entries.items() if "diffusers" not in entry["hosts"]} == {
        "chroma_radiance",
        "lens",
        "omnigen2",
    }
    variants = [variant for entry in entries.values() for variant in entry["variants"]]
    assert len(variants) >= 40 and all(variant["tested"] for variant in variants)
    assert len({variant["name"] for variant in variants}) == len({variant["title"] for variant in variants}) == len(variants)
    sd1 = entries["sd1"]["variants"][0]
    # 16 transformer blocks: neurons are four times, norm channels three times the widths 320, 640 and 1280 of its blocks
    width = 5 * 320 + 5 * 640 + 6 * 1280
    assert sd1["ffn"] == {"sites": 16, "gates": 4 * width} and sd1["norm"] == {"sites": 48, "gates": 3 * width}
    assert sd1["attn"] == {"sites": 32, "gates": 32 * 8} and "gradients" in sd1["tested"]


def test_families_as_a_table():
    done = here("families")
    assert done.returncode == 0 and "FLUX.1 dev" in done.stdout and "933,888" in done.stdout.replace("\n", "")


def test_version_and_wrong_usage():
    assert json.loads(here("version", "--json").stdout)["version"]
    wrong = here("familys")
    assert wrong.returncode == 2 and "familys" in wrong.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SD1.5-type pipeline as a diffusers folder."""
    from tests.unit.tiny_pipelines import pipeline

    path = tmp_path_factory.mktemp("model") / "tiny"
    pipeline("sd1").save_pretrained(path)
    return path


def test_help_and_version_do_not_wait_for_torch():
    script = (
        "import sys; from typer.testing import CliRunner; from uniforget.cli.app import app\n"
        "out = [CliRunner().invoke(app, words).output for words in (['--help'], ['version'], ['learn', '--help'], ['families'])]\n"
        "assert all(out) and 'torch' not in sys.modules, [m for m in sys.modules if 'torch' in m][:3]"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_setting_is_an_option():
    """With its default and its help, from the one table."""
    commands = typer.main.get_command(app).commands
    for name, table in (
        ("learn", config.LEARN),
        ("recover", config.RECOVER),
        ("apply", config.APPLY),
        ("combine", config.COMBINE),
    ):
        options = {option.name: option for option in commands[name].params}
        for setting, param in table.items():
            if setting != "prompts":  # which come from a file
                assert options[setting].default == param.default and options[setting].help.startswith(param.tooltip)


def learning(folder, output, *more):
    prompts = output.parent / "prompts.txt"
    prompts.write_text("a cat on a chair\na red house\na bowl of fruit\nan empty street\n", encoding="utf-8")
    return (
        "learn", str(folder), "-o", str(output), "--prompts", str(prompts), "--dtype", "fp32", "--steps", "4", "--batch", "4",
        "--sampling-steps", "2", "--width", "64", "--height", "64", "--learning-rate", "3", "--preset", "custom", "--beta", "50", *more,
    )  # fmt: skip


def test_learn_saves_a_mask_that_names_where_it_came_from(folder, tmp_path):
    done = here(*learning(folder, tmp_path / "mask.safetensors", "--json", "--curve", str(tmp_path / "curve.csv")))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    mask = load(tmp_path / "mask.safetensors")
    assert told["digest"] == mask.digest() and mask.info.family == "sd1" and mask.info.base_name == "tiny"
    assert 0 < mask.off_share() < 1 and mask.info.prompts_hash
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 5
    assert not list(tmp_path.glob(".uniforget-unfinished/*"))


def test_find_writes_what_learn_reads(folder, tmp_path):
    pool, neutral, found = (tmp_path / name for name in ("pool.txt", "neutral.txt", "found.jsonl"))
    pool.write_text("a cat on a chair\nthe old lighthouse at night\na red house\n", encoding="utf-8")
    neutral.write_text("".join(f"a bowl with {i} fruits\n" for i in range(20)), encoding="utf-8")
    size = ("--dtype", "fp32", "--sampling-steps", "1", "--width", "64", "--height", "64")
    asked = ("find", str(folder), "--pool", str(pool), "--prompts", str(neutral), "-o", str(found), *size, "--json")
    done = here(*asked)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["asked"] == 3 and {one["prompt"] for one in told["memorized"]} <= set(pool.read_text().splitlines())
    prompts = read_prompts(found)
    assert prompts[:20] == neutral.read_text().splitlines()
    assert len(prompts) == 20 + sum(one["answers"] > 0 for one in told["memorized"])
    again = here(*asked)
    assert again.returncode == 1 and "exists already" in again.stderr
    assert here(*asked, "--overwrite").returncode == 0
    pool.write_text('{"prompt": "mine"}\n', encoding="utf-8")
    mine = here(
        "find", str(folder), "--pool", str(neutral), "-o", str(pool.rename(tmp_path / "mine.jsonl")), *size, "--overwrite"
    )
    assert mine.returncode == 1 and "not overwritten" in mine.stderr


def test_learning_from_found_prompts_says_so_in_the_mask(folder, tmp_path):
    arguments = learning(folder, tmp_path / "mask.safetensors")
    (tmp_path / "prompts.txt").write_text(
        '{"prompt": "a cat on a chair"}\n{"prompt": "a red house", "answers": ["red a house", "a red red house"]}\n',
        encoding="utf-8",
    )
    done = here(*arguments)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "mask.safetensors").info.extra["self_found"] == "1"


def test_a_dry_run_says_what_learning_takes_and_saves_nothing(folder, tmp_path):
    done = here(*learning(folder, tmp_path / "mask.safetensors", "--dry-run", "--json"))
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)
    assert cost["seconds"] > 0 and cost["update"] > 0 and cost["peak"] > 1 << 20 and cost["device"] == "cpu"
    assert not (tmp_path / "mask.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.txt"]


def test_accelerate_launch_gives_the_same_mask(folder, tmp_path):
    """Two processes, as ``accelerate launch`` starts them."""
    one = here(*learning(folder, tmp_path / "one.safetensors", "--seed", "3"))
    assert one.returncode == 0, one.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "uniforget", *learning(folder, tmp_path / "two.safetensors", "--seed", "3")]
    children = [
        subprocess.Popen(
            arguments, cwd=ROOT, env={**environment, "RANK": r, "LOCAL_RANK": r}, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for r in "01"
    ]
    for child in children:
        _, errors = child.communicate(timeout=180)
        assert child.returncode == 0, errors.decode()
    first, second = load(tmp_path / "one.safetensors"), load(tmp_path / "two.safetensors")
    flipped = sum((second.gates[n] != g).sum().item() for n, g in first.gates.items())
    assert flipped <= 2 and first.gates.keys() == second.gates.keys()


def test_wrong_inputs_are_one_line_and_exit_code_1(folder, tmp_path):
    for arguments, words in (
        (learning(tmp_path / "nowhere", tmp_path / "m.safetensors"), "nowhere"),
        (learning(folder, tmp_path / "m.bin"), ".safetensors"),
        (learning(folder, tmp_path / "m.safetensors", "--targets", "heads"), "'heads'"),
    ):
        done = here(*arguments)
        assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_all_outputs_are_looked_at_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    """Where they cannot be written, or what writes them is not there."""
    monkeypatch.setattr("uniforget.hosts.diffusers.load.load_pipeline", mock.Mock(side_effect=AssertionError("loaded")))
    (tmp_path / "file").write_text("")
    for there, option, words in (
        (True, ("--curve", tmp_path / "no" / "c.csv"), "its folder does not exist"),
        (True, ("--curve", tmp_path / "prompts.txt"), "which is read"),
        (True, ("--tensorboard", tmp_path / "file"), "expected a folder"),
        (True, ("--tensorboard", tmp_path / "file" / "tb"), "cannot be made"),
        (False, ("--tensorboard", tmp_path / "no" / "tb"), "tensorboard is not installed"),
    ):
        with mock.patch("importlib.util.find_spec", lambda name, there=there: there or name != "tensorboard" or None):
            done = here(*learning(folder, tmp_path / "m.safetensors", *map(str, option)))
        assert done.returncode == 1 and words in done.stderr, done.stderr
