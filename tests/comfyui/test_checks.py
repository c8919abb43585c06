"""Own-Picture Check and Prompt Check through ComfyUI's HTTP API."""

import pytest

from launcher.errors import WorkflowError


@pytest.fixture
def pictures(graph):
    def make(**inputs):
        small = {"width": 96, "height": 96, "noises": 3, "baseline": 4, "sampling_steps": 2}
        return {
            "1": graph("UniForgetDemoModel"),
            "2": graph("EmptyImage", width=80, height=96, batch_size=2, color=0x336699),
            "3": graph(
                "UniForgetPictureCheck", model=["1", 0], clip=["1", 1], vae=["1", 2], images=["2", 0], **{**small, **inputs}
            ),
        }

    return make


@pytest.fixture
def prompts(graph):
    def make(text, **inputs):
        small = {"width": 96, "height": 96, "neutral": 8, "seeds": 2}
        return {
            "1": graph("UniForgetDemoModel"),
            "2": graph("UniForgetPromptCheck", model=["1", 0], clip=["1", 1], prompts=text, **{**small, **inputs}),
        }

    return make


def test_a_plain_picture_is_not_called_known(client, pictures):
    shown = client.run(pictures())["outputs"]["3"]
    lines = shown["text"][0].splitlines()
    assert len(lines) == 2 and not any(line.startswith("Yes, the model knows") for line in lines)
    assert "images" not in shown, "the chart is an output; the node says it in words"


def test_prompts_come_back_as_rows_in_their_order(client, prompts):
    shown = client.run(
        prompts("flat frog and cactus on grey checks\n\n# a remark\nsoft cat on blue\nflat frog and cactus on grey checks")
    )["outputs"]["2"]
    assert [row["prompt"] for row in shown["uniforget_prompts"]] == ["flat frog and cactus on grey checks", "soft cat on blue"]
    assert set(shown["uniforget_prompts"][0]) == {"prompt", "score", "pull", "percentile", "agreement", "verdict"}
    assert shown["text"][0].startswith("2 prompts: ")


def test_what_is_wrong_names_the_node(client, pictures, prompts):
    with pytest.raises(WorkflowError, match=r"(?s)UniForgetPictureCheck \(node 3\) failed.*96 x 96 pictures only"):
        client.run(pictures(width=512))
    with pytest.raises(WorkflowError, match=r"(?s)UniForgetPictureCheck \(node 3\) failed.*one line for each of the 2 pictures"):
        client.run(pictures(caption="a\nb\nc"))
    with pytest.raises(WorkflowError, match=r"(?s)UniForgetPromptCheck \(node 2\) failed.*found 0.*into 'prompts'"):
        client.run(prompts(" \n# nothing"))
    with pytest.raises(WorkflowError, match=r"UniForgetPromptCheck.*seeds"):
        client.run(prompts("soft cat on blue", seeds=0))
