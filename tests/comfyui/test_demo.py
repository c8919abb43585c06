"""The demo workflow and learning through ComfyUI's HTTP API: run, cancelled, and queued twice."""

import time

import pytest

from launcher.client import succeeded
from launcher.demo import read_workflow
from launcher.errors import LauncherError
from launcher.paths import DEMO_WORKFLOW
from launcher.verdict import SCORE_KEY, check_figures

QUICK = {
    "UniForgetFind": {"sampling_steps": 1, "pool": "soft cat on blue"},
    "UniForgetLearn": {"steps": 3, "batch": 4, "sampling_steps": 2, "prompts": "soft cat on blue\nphoto of coffee"},
    "UniForgetDemoScore": {"seeds": 1, "captions": 7, "neutral": 4},
    "UniForgetPreview": {"steps": 2},
}


@pytest.fixture
def prompt(as_prompt):
    """The demo workflow, made quick."""
    out = as_prompt(read_workflow(DEMO_WORKFLOW))
    for node in out.values():
        node["inputs"].update(QUICK.get(node["class_type"], {}))
    return out


def only(prompt, kind):
    """Id of the one node of a kind."""
    [found] = [i for i, node in prompt.items() if node["class_type"] == kind]
    return found


def test_the_demo_workflow_runs_through_the_api(client, prompt):
    entry = client.run(prompt)
    figures = check_figures(entry["outputs"][only(prompt, "UniForgetDemoScore")][SCORE_KEY][0])
    assert figures["copies_before"] > 0.9 and figures["seeds"] == 1
    compares = [i for i, node in prompt.items() if node["class_type"] == "UniForgetPreview"]
    assert len(compares) == 2
    for i in compares:
        shown = entry["outputs"][i]
        assert len(shown["a_images"]) == len(shown["b_images"]) == 4
        assert client.view(shown["a_images"][0]).startswith(b"\x89PNG")


def test_cancel_in_the_middle_of_learning_and_run_again(client, prompt):
    learn = only(prompt, "UniForgetLearn")
    prompt[learn]["inputs"].update(steps=20000, seed=77)
    queued = client.queue(prompt)
    deadline = time.monotonic() + 60
    while not any(item[1] == queued for item in client.get("/queue")["queue_running"]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(4)
    client.interrupt()
    began = time.monotonic()
    entry = client.wait(queued)
    assert time.monotonic() - began < 15, "cancelling takes at once, not after learning"
    assert entry["status"]["status_str"] == "error"
    assert any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"])
    assert not any(kind == "execution_error" for kind, _ in entry["status"]["messages"])
    prompt[learn]["inputs"].update(steps=3)
    client.run(prompt)


def test_two_learning_prompts_queued_at_once(client, prompt):
    learn, save = only(prompt, "UniForgetLearn"), only(prompt, "UniForgetSaveMask")
    texts = []
    ids = []
    for seed in (5, 6):
        prompt[learn]["inputs"].update(seed=seed, learning_rate=3.0, beta=100.0, preset="custom")
        ids.append(client.queue(prompt))
    for queued in ids:
        texts.append(succeeded(client.wait(queued))["outputs"][save]["text"][0])
    assert "seed 5" in texts[0] and "seed 6" in texts[1] and texts[0] != texts[1]


def test_an_unknown_word_is_named_with_its_node(client, prompt):
    text = next(i for i, n in prompt.items() if n["class_type"] == "CLIPTextEncode" and n["inputs"]["text"])
    prompt[text]["inputs"]["text"] = "photo of an elephant"
    with pytest.raises(LauncherError, match=r"(?s)CLIPTextEncode \(node \d+\) failed.*elephant"):
        client.run(prompt)
