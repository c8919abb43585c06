"""What Compare says and saves, in a real server: labels, settings, one picture of both sides with the workflow in it."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from launcher.client import succeeded
from nodes.sidebyside import side_by_side

TEXT = "soft cat top left on blue"
SAMPLER = {"seed": 3, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
LEARN = {"preset": "strong", "steps": 1, "batch": 2, "sampling_steps": 2, "objective": "scores", "width": 96, "height": 96}
LEARN["prompts"] = "soft cat on blue\nphoto of coffee"


@pytest.fixture(scope="module")
def prompt(object_info):
    """The demo model's picture, before and after a mask at strength 0.75."""

    def node(kind, **inputs):
        specs = {**object_info[kind]["input"]["required"], **object_info[kind]["input"].get("optional", {})}
        defaults = {n: s[1]["default"] for n, s in specs.items() if len(s) > 1 and "default" in s[1]}
        return {"class_type": kind, "inputs": {**defaults, **inputs}}

    def sampled(model):
        return node("KSampler", model=model, positive=["2", 0], negative=["3", 0], latent_image=["4", 0], **SAMPLER)

    return {
        "1": node("UniForgetDemoModel"),
        "2": node("CLIPTextEncode", text=TEXT, clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptySD3LatentImage", width=96, height=96, batch_size=1),
        "5": node("UniForgetLearn", model=["1", 0], clip=["1", 1], **LEARN),
        "6": node("UniForgetApply", model=["1", 0], mask=["5", 0], strength=0.75),
        "7": sampled(["1", 0]),
        "8": sampled(["6", 0]),
        "9": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "10": node("VAEDecode", samples=["8", 0], vae=["1", 2]),
        "11": node("UniForgetCompare", original=["9", 0], forgotten=["10", 0], filename_prefix="compared/test"),
    }


def picture(client, where):
    return Image.open(io.BytesIO(client.view(where)))


def test_the_strength_is_the_label_and_everything_is_in_one_picture(client, prompt):
    workflow = {"nodes": [{"id": 11, "note": "as it was on screen"}]}
    shown = succeeded(client.wait(client.queue(prompt, workflow)))["outputs"]["11"]
    assert shown["labels"] == ["original", "strength 0.75"]
    before, after = shown["settings"]
    sampler = "KSampler: seed 3, steps 2, cfg 3.0, sampler_name euler, scheduler simple, denoise 1.0"
    assert sampler in before and sampler in after
    assert not any("UniForgetApply" in line for line in before)
    assert any(line.startswith("UniForgetApply: strength 0.75") for line in after)
    assert not any(TEXT in line for line in before + after)

    sheet = picture(client, shown["comparison"][0])
    assert json.loads(sheet.text["workflow"]) == workflow
    assert json.loads(sheet.text["prompt"])["6"]["inputs"]["strength"] == 0.75
    sides = [picture(client, shown[key][0]).convert("RGB") for key in ("a_images", "b_images")]
    pair = tuple(torch.from_numpy((np.asarray(side, dtype=np.float32) + 0.5) / 255) for side in sides)
    labelled = side_by_side([pair], ("original", "strength 0.75"))
    assert np.array_equal(np.asarray(sheet.convert("RGB")), np.asarray(labelled))
    assert not np.array_equal(np.asarray(labelled), np.asarray(side_by_side([pair], ("original", "forgotten"))))


def test_own_labels_stay(client, prompt):
    inputs = {**prompt["11"]["inputs"], "save": False, "label_original": "", "label_forgotten": " gone "}
    shown = client.run({**prompt, "11": {**prompt["11"], "inputs": inputs}})["outputs"]["11"]
    assert shown["labels"] == ["original", "gone"]
    assert shown["a_images"][0]["type"] == "temp" and "comparison" not in shown
