"""Reading prompts of ComfyUI's API, which come from strangers."""

import json

import pytest

from uniforget.apiprompt import settings_of, strengths_of, upstream, workflow_text

PROMPT = {
    "1": {"class_type": "Loader", "inputs": {"name": "a.safetensors"}},
    "2": {"class_type": "UniForgetApply", "inputs": {"model": ["1", 0], "strength": 0.5}, "_meta": {"title": "Forget"}},
    "3": {"class_type": "LoraLoader", "inputs": {"model": ["2", 0], "strength": 0.9}},
    "4": {"class_type": "UniForgetApply", "inputs": {"model": ["3", 0], "strength": 1}},
    "5": {"class_type": "UniForgetReport", "inputs": {"model": ["4", 0], "original": ["1", 0], "title": "t"}},
    "6": {"class_type": "UniForgetApply", "inputs": {"strength": 0.1}},
}


def test_only_what_the_node_depends_on_counts():
    assert upstream(PROMPT, "5") == ["1", "2", "3", "4"]
    assert strengths_of(PROMPT, "5") == [0.5, 1.0]


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
    assert strengths_of(prompt, "5") == []
    assert all(rows for _, rows in settings_of(prompt, "5"))


def test_a_very_long_chain_is_followed():
    prompt = {str(i): {"class_type": "N", "inputs": {"x": [str(i - 1), 0]}} for i in range(1, 5000)}
    assert upstream(prompt, "4999") == [str(i) for i in range(1, 4999)]


@pytest.mark.parametrize("strength", [True, "1", float("nan"), None, [1, 2, 3]])
def test_a_strength_that_is_no_number_is_none(strength):
    prompt = {"1": {"class_type": "UniForgetApply", "inputs": {"strength": strength}}, "2": {"inputs": {"model": ["1", 0]}}}
    assert strengths_of(prompt, "2") == []


def test_the_workflow_is_the_editors_or_the_prompt():
    assert json.loads(workflow_text({"workflow": {"nodes": ["ä"]}}, PROMPT)) == {"nodes": ["ä"]}
    assert json.loads(workflow_text(None, {i: {**node, "is_changed": ["x"]} for i, node in PROMPT.items()})) == PROMPT
    assert workflow_text({"workflow": None}, {}) == ""
