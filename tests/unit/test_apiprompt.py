"""Reading prompts of ComfyUI's API, which come from strangers."""

import json
import math

import pytest

from uniforget.report.graph import LINES, LONGEST, in_order, in_words, made_by, settings_of, source, strengths, workflow_text

PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"name": "a.safetensors"}},
    "2": {"class_type": "UniForgetApply", "inputs": {"model": ["1", 0], "strength": 0.5}, "_meta": {"title": "Forget"}},
    "3": {"class_type": "LoraLoader", "inputs": {"model": ["2", 0], "strength": 0.9}},
    "4": {"class_type": "UniForgetApply", "inputs": {"model": ["3", 0], "strength": 1}},
    "5": {"class_type": "UniForgetReport", "inputs": {"model": ["4", 0], "original": ["1", 0], "title": "t"}},
    "6": {"class_type": "UniForgetApply", "inputs": {"strength": 0.1}},
}


def test_only_what_the_node_depends_on_counts():
    assert in_order(PROMPT, "5") == ["1", "2", "3", "4"]
    assert strengths(PROMPT, ["5"]) == [1.0, 0.5]


def test_settings_are_in_the_order_of_their_work_and_links_are_none():
    assert settings_of(PROMPT, "5") == [
        ("Loader", [("name", "a.safetensors")]),
        ("Forget (UniForgetApply)", [("strength", "0.5")]),
        ("LoraLoader", [("strength", "0.9")]),
        ("UniForgetApply", [("strength", "1")]),
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"5": None},
        {"5": {"inputs": None}},
        {"5": {"inputs": {"a": ["5", 0], "b": ["7", 0], "c": [{}, 0], "d": [1]}}},
        {"5": {"inputs": {"a": ["6", 0]}}, "6": "text"},
        {"5": {"inputs": {"a": ["6", 0]}}, "6": {"class_type": 3, "inputs": {"b": ["5", 0]}, "_meta": "x"}},
    ],
)
def test_nonsense_and_circles_end(prompt):
    assert strengths(prompt, ["5"]) == made_by(prompt, ["5"]) == []
    assert all(rows for _, rows in settings_of(prompt, "5"))


@pytest.mark.parametrize("value", [10**400, math.nan, -math.inf, True, None])
def test_a_strength_that_is_no_number_is_not_known(value):
    prompt = {"5": {"class_type": "UniForgetApply", "inputs": {"strength": value}}}
    assert strengths(prompt, ["5"]) == []
    assert made_by(prompt, ["5"]) is not None and settings_of(prompt, "5") == []


def test_a_very_long_chain_is_followed():
    prompt = {str(i): {"class_type": "N", "inputs": {"x": [str(i - 1), 0]}} for i in range(1, 5000)}
    assert in_order(prompt, "4999") == [str(i) for i in range(1, 4999)]


def test_the_workflow_is_the_editors_or_the_prompt():
    assert json.loads(workflow_text({"workflow": {"nodes": ["ä"]}}, PROMPT)) == {"nodes": ["ä"]}
    assert json.loads(workflow_text(None, {i: {**node, "is_changed": ["x"]} for i, node in PROMPT.items()})) == PROMPT
    assert workflow_text({"workflow": None}, {}) == ""


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def sampled(strength_value=0.8):
    """A prompt with one masked and one unmasked picture of the same settings."""
    settings = {"seed": 7, "steps": 12, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="a\nmodel.safetensors"),
        "2": node("CLIPTextEncode", text="a secret", clip=["1", 1]),
        "3": node("UniForgetLoadMask", mask_name="demo"),
        "4": node("UniForgetApply", model=["1", 0], mask=["3", 0], strength=strength_value),
        "5": node("KSampler", model=["1", 0], positive=["2", 0], latent_image=["9", 0], **settings),
        "6": node("KSampler", model=["4", 0], positive=["2", 0], latent_image=["9", 0], **settings),
        "7": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "8": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "9": node("EmptyLatentImage", width=64, height=32, batch_size=["10", 0]),
        "10": node("PrimitiveInt", value=2),
        "11": node("UniForgetCompare", original=["7", 0], forgotten=["8", 0]),
    }


def test_the_settings_of_everything_upstream_and_no_prompt_text():
    prompt = sampled()
    sampler = "KSampler: seed 7, steps 12, cfg 3.5, sampler_name euler, scheduler simple, denoise 1.0"
    loader, latent = "CheckpointLoaderSimple: ckpt_name a model.safetensors", "EmptyLatentImage: width 64, height 32"
    assert made_by(prompt, source(prompt, "11", "original")) == [sampler, loader, latent]
    forgotten = made_by(prompt, source(prompt, "11", "forgotten"))
    assert forgotten == [sampler, loader, "UniForgetApply: strength 0.8", latent, "UniForgetLoadMask: mask_name demo"]


def test_the_strength_at_which_pictures_forgot():
    prompt = sampled()
    assert strengths(prompt, source(prompt, "11", "original")) == []
    assert strengths(prompt, source(prompt, "11", "forgotten")) == [0.8]
    prompt["12"] = node("UniForgetApply", model=["4", 0], mask=["3", 0], strength=1)
    prompt["6"]["inputs"]["model"] = ["12", 0]
    assert strengths(prompt, ["8"]) == [1.0, 0.8]
    assert in_words([1.0, 0.8]) == "1, 0.8"


def test_a_mask_learned_on_a_masked_model_was_not_applied_twice():
    prompt = sampled()
    prompt["12"] = node("UniForgetApply", model=["1", 0], mask=["13", 0], strength=0.25)
    prompt["3"] = node("UniForgetLearn", model=["12", 0], seed=1)
    assert strengths(prompt, ["8"]) == [0.8]


@pytest.mark.parametrize("value", [["10", 0], [1, 2, 3], "0.8", None, True, float("nan")])
def test_a_strength_that_is_not_in_the_prompt_is_not_made_up(value):
    assert strengths(sampled(value), ["8"]) == []


def test_circles_missing_nodes_and_long_values_do_no_harm():
    prompt = {
        "1": node("A", x=["2", 0], y=["99", 0], seed=1, ckpt_name="x" * 500),
        "2": node("B", x=["1", 0], strength=[], cfg={"a": 1}),
        "3": {"class_type": "C"},
    }
    assert made_by(prompt, ["1", "3", "77"]) == [f"A: ckpt_name {'x' * (LONGEST - 3)}..., seed 1"]
    assert source(prompt, "1", "y") == source(prompt, "77", "x") == []
    chain = {str(i): node("N", x=[str(i + 1), 0], seed=i) for i in range(5000)}
    assert len(made_by(chain, ["0"])) == LINES
