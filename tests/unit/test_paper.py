"""docs/paper.md: its settings are the paper's, and its commands run, on a small random FLUX."""

import json
import re
import shlex

import pytest

from bench import paper
from tests.unit.test_cli import ROOT, here
from tests.unit.tiny_pipelines import pipeline
from uniforget.mask import files

PAPER = {"weak": 1.0, "medium": 2.0, "strong": 5.0}


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "schnell"
    pipeline("flux_schnell").save_pretrained(path)
    return path


@pytest.mark.parametrize("preset", PAPER)
def test_the_commands_run(flux, tmp_path, preset):
    settings = ROOT / "docs" / "paper" / f"flux_schnell_{preset}.json"
    said = json.loads(settings.read_text())
    assert (said["steps"], said["batch"], said["learning_rate"], said["sampling_steps"]) == (2000, 20, 0.5, 4)
    prompts, mask = tmp_path / "prompts.txt", tmp_path / "mask.safetensors"
    prompts.write_text("a cat on a chair\na red house\n", encoding="utf-8")
    small = ("--prompts", str(prompts), "--steps", "3", "--batch", "2", "--width", "64", "--height", "64", "--dtype", "fp32")
    done = here("learn", str(flux), "-o", str(mask), "--settings", str(settings), *small)
    assert done.returncode == 0, done.stderr
    info = files.load(mask).info
    assert (info.beta, info.preset, info.method, info.targets) == (PAPER[preset], preset, "trajectory", ("ffn", "norm"))
    assert info.steps == 3, "an option that is given counts more than the file"
    if preset != "medium":
        return
    assert here("inspect", str(mask)).returncode == 0
    applied = here("apply", str(flux), str(mask), "-o", str(tmp_path / "clean"))
    assert applied.returncode == 0, applied.stderr
    lora = ("recover", str(flux), str(mask), "-o", str(tmp_path / "lora.safetensors"), "--sampling-steps", "4", "--cfg", "1")
    recovered = here(*lora, *small, "--rank", "2")
    assert recovered.returncode == 0, recovered.stderr


def test_the_page_names_files_and_options_that_exist():
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for preset in PAPER:
        assert (ROOT / "docs" / "paper" / f"flux_schnell_{preset}.json").exists()
    for command, options in re.findall(r"python -m uniforget (\w+) (.*)", page):
        shown = here(command, "--help").stdout
        for option in re.findall(r"--[a-z-]+", options.partition("#")[0]):
            assert option in shown, (command, option)


def test_the_command_for_tables_is_one():
    page = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    [command] = re.findall(r"python -m bench\.paper ((?:.*\\\n)*.*)", page)
    options = paper.parser().parse_args(shlex.split(command.replace("\\\n", " ")))
    assert len(options.mask) == 3 and json.loads(options.call) and options.ask.name == "llava-1.5-7b-hf"
    for option in re.findall(r"`(--[a-z-]+)`", page.partition("## Tables")[2]):
        assert option in paper.parser().format_help(), option


def test_wrong_settings_are_told(flux, tmp_path):
    file = tmp_path / "s.json"
    for text, words in (
        ("{", "expected a JSON file"),
        ('{"stepz": 3}', "'stepz'"),
        ('{"steps": -1}', "steps"),
        ("[1]", "expected an object"),
    ):
        file.write_text(text)
        done = here("learn", str(flux), "-o", str(tmp_path / "m.safetensors"), "--settings", str(file))
        assert done.returncode == 1 and words in done.stderr, done.stderr
