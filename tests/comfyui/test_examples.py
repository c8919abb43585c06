"""The example workflows, run in a real ComfyUI: on the demo model in place of a checkpoint, and cut short."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launcher.demo import nodes_of, read_workflow
from launcher.paths import ROOT
from testbed.model import WEIGHTS
from uniforget.mask import file as maskfile
from uniforget.mask.info import GateMask, MaskInfo

FOLDER = ROOT / "example_workflows"
EXAMPLES = sorted(path for path in FOLDER.glob("*.json") if path.stem != "forget_demo")  # which tests/browser runs
KNOWN, EVERYDAY = "portrait of eileen", "soft cat top left on blue"
FC2 = "joint_blocks.1.x_block.mlp.fc2"
# What makes a run short, by input; what a workflow does not have is left out.
QUICK = {
    "steps": 2,
    "batch": 2,
    "sampling_steps": 2,
    "seeds": 1,
    "noises": 3,
    "baseline": 4,
    "neutral": 8,
    "width": 96,
    "height": 96,
}
TEXTS = {"text": KNOWN, "prompts": f"{KNOWN}\n{EVERYDAY}"}
# What each workflow is for: the node, and what it has to leave behind.
RESULTS = {
    "learn_a_mask": [("UniForgetPreview", "comparison"), ("UniForgetMaskMap", "uniforget_map"), ("PreviewImage", "images")],
    "compare_strengths": [("UniForgetSweep", "sheet"), ("SaveImage", "images")],
    "sanitize_and_save": [("UniForgetSaveSanitized", "text")],
    "check_my_picture": [("UniForgetPictureCheck", "images"), ("UniForgetPromptCheck", "uniforget_prompts")],
    "with_a_lora": [("UniForgetCompare", "comparison")],
    "report_for_a_client": [("UniForgetReport", "uniforget_report")],
}


@pytest.fixture(scope="module")
def files(client, server):
    """What an artist would have: input -> name of a mask, a LoRA, a checkpoint and a picture in ComfyUI's folders."""
    own = f"uniforget_tests_{os.getpid()}"
    folders = {name: Path(paths[0], own) for name, paths in client.get("/internal/folder_paths").items() if paths}
    kinds = {"mask_name": "uniforget", "lora_name": "loras", "model_name": "checkpoints"}
    names = {}
    for field, kind in kinds.items():
        folders[kind].mkdir(parents=True)
        names[field] = f"{own}/some.safetensors"
    maskfile.save(
        GateMask({FC2: (torch.arange(1024) % 3 != 0).float()}, {FC2: "ffn"}, MaskInfo("sd3", "")),
        folders["uniforget"] / "some.safetensors",
    )
    key = f"diffusion_model.{FC2}"
    lora = {f"{key}.lora_up.weight": 0.01 * torch.ones(256, 2), f"{key}.lora_down.weight": 0.01 * torch.ones(2, 1024)}
    save_file(lora, folders["loras"] / "some.safetensors")
    shutil.copy(WEIGHTS, folders["checkpoints"] / "some.safetensors")
    names["model_name"] = f"checkpoints/{names['model_name']}"
    picture = server.folders["output"].parent / "input" / f"{own}.jpg"
    picture.parent.mkdir(exist_ok=True)
    shutil.copy(FOLDER / "forget_demo.jpg", picture)
    names["image"] = picture.name
    yield names
    picture.unlink()
    for kind in kinds.values():
        shutil.rmtree(folders[kind])


def on_the_demo_model(prompt, names):
    """The prompt with the demo model for the checkpoint, files that are there, and as little work as tells something."""
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "CheckpointLoaderSimple":
            node["class_type"], node["inputs"] = "UniForgetDemoModel", {"checkpoint": "bundled demo model"}
        elif node["class_type"] == "EmptyLatentImage":
            node["class_type"] = "EmptySD3LatentImage"
        inputs |= {name: value for name, value in {**QUICK, **names}.items() if name in inputs}
        inputs |= {name: value for name, value in TEXTS.items() if inputs.get(name)}
        if node["class_type"] == "UniForgetSaveMask":  # into the folder that goes when the tests are done
            inputs["filename_prefix"] = names["mask_name"].replace("some.safetensors", "learned")
    return prompt


def test_each_example_has_a_result_to_look_for():
    assert {path.stem for path in EXAMPLES} == set(RESULTS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(client, as_prompt, files, path):
    prompt = on_the_demo_model(as_prompt(read_workflow(path)), files)
    outputs = client.run(prompt)["outputs"]
    for kind, key in RESULTS[path.stem]:
        [node] = nodes_of(prompt, kind)
        assert outputs[node].get(key), f"{kind} left {list(outputs[node])}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_an_example_has_a_picture_of_its_result(path):
    from PIL import Image

    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.is_file() and thumbnail.stat().st_size < 200_000
    with Image.open(thumbnail) as image:
        assert min(image.size) > 150


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_what_to_do(path):
    workflow = read_workflow(path)
    [note] = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert note["widgets_values"][0].startswith("## ") and "1. " in note["widgets_values"][0]
    boxes = [group["bounding"] for group in workflow["groups"]]
    assert len(boxes) >= 3
    for node in workflow["nodes"]:
        if node is not note:
            x, y = node["pos"]
            w, h = node["size"]
            inside = [b for b in boxes if b[0] <= x and b[1] <= y and x + w <= b[0] + b[2] and y + h <= b[1] + b[3]]
            assert inside, f"{node['type']} lies in no group"
