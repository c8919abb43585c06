"""The example workflows, run in a real ComfyUI as they come."""

import json
import subprocess
import sys

import pytest

from launcher.demo import nodes_of, read_workflow
from launcher.paths import DEMO_WORKFLOW, ROOT
from launcher.templates import MASK, TEMPLATES
from uniforget.checkpoint.fileplan import base_fingerprint
from uniforget.checkpoint.safefile import read_header
from uniforget.mask import file as maskfile

FOLDER = ROOT / "example_workflows"
EXAMPLES = sorted(path for path in FOLDER.glob("*.json") if path != DEMO_WORKFLOW)  # which run.py demo runs
# What each workflow is for: the node, and what it has to leave behind.
RESULTS = {
    "1": [("UniForgetPreview", "a_images"), ("UniForgetSweep", "sweep"), ("UniForgetMaskMap", "uniforget_map")],
    "2": [("UniForgetPreview", "comparison"), ("UniForgetMaskMap", "uniforget_map"), ("UniForgetSaveMask", "text")],
    "3": [("UniForgetSweep", "sheet"), ("SaveImage", "images")],
    "4": [("UniForgetPictureCheck", "text"), ("UniForgetPromptCheck", "uniforget_prompts")],
    "5": [("UniForgetVariety", "uniforget_variety")],
    "6": [("UniForgetCompare", "comparison")],
    "7": [("UniForgetSaveSanitized", "text")],
    "8": [("UniForgetReport", "uniforget_report")],
}


def test_each_example_has_a_result_to_look_for():
    assert {path.stem[0] for path in EXAMPLES} == set(RESULTS)
    assert {path.stem for path in FOLDER.glob("*.json")} == set(TEMPLATES)


def test_the_files_are_those_that_the_command_writes():
    code = "import json; from launcher.templates import written; print('WRITTEN' + json.dumps(written()))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    written = json.loads(out.rpartition("WRITTEN")[2])
    old = [title for title, text in written.items() if (FOLDER / f"{title}.json").read_text(encoding="utf-8") != text]
    assert not old, f"run: python -m launcher.templates ({', '.join(old)})"


def test_the_mask_that_ships_is_one_of_the_demo_model_as_it_is():
    mask = maskfile.load(MASK)
    model = base_fingerprint([read_header(ROOT / "testbed" / "testbed.safetensors")])
    assert mask.info.base == model, "the demo model has changed; run: python -m launcher.templates --mask"
    assert mask.acts() and MASK.stat().st_size < 100_000


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(client, as_prompt, path):
    prompt = as_prompt(read_workflow(path))
    for node in prompt.values():  # into the folder of the tests' own output, or there is nothing to clean up
        if node["class_type"] == "UniForgetSaveMask":
            node["inputs"]["filename_prefix"] = "uniforget_tests_examples"
    outputs = client.run(prompt)["outputs"]
    for kind, key in RESULTS[path.stem[0]]:
        assert any(outputs.get(node, {}).get(key) for node in nodes_of(prompt, kind)), f"{kind} left no {key}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_example_has_a_picture_of_its_result(path):
    from PIL import Image

    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.is_file() and thumbnail.stat().st_size < 200_000
    with Image.open(thumbnail) as image:
        assert min(image.size) > 150


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_example_says_what_to_do(path):
    workflow = read_workflow(path)
    [note] = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert note["widgets_values"][0].startswith("## ") and "1. " in note["widgets_values"][0]
    assert workflow["extra"] == {"uniforget_fit": True}, "web/fit.js fits what is marked so; a stored view would come first"
    boxes = [group["bounding"] for group in workflow["groups"]]
    assert len(boxes) >= 3
    for node in workflow["nodes"]:
        x, y = node["pos"]
        w, h = node["size"]
        inside = [b for b in boxes if b[0] <= x and b[1] <= y and x + w <= b[0] + b[2] and y + h <= b[1] + b[3]]
        assert inside, f"{node['type']} lies in no group"
