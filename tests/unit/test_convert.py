"""Workflow -> prompt, against object_info entries as ComfyUI 0.3.75 gives them."""

import pytest

from launcher.convert import to_prompt
from launcher.errors import WorkflowError

INFO = {
    "Load": {"input": {"required": {"name": [["a.safetensors", "b.safetensors"], {}]}}, "input_order": {"required": ["name"]}},
    "Text": {
        "input": {"required": {"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}},
        "input_order": {"required": ["text", "clip"]},
        "display_name": "Encode Text",
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
                "cfg": ["FLOAT", {"default": 8.0}],
                "sampler": ["COMBO", {"options": ["euler", "heun"]}],
            },
            "optional": {"positive": ["CONDITIONING"], "tiled": ["BOOLEAN", {"default": False}]},
        },
        "input_order": {"required": ["model", "seed", "steps", "cfg", "sampler"], "optional": ["positive", "tiled"]},
    },
    "Pass": {"input": {"required": {"model": ["MODEL"], "amount": ["FLOAT", {"default": 1.0}]}}},
    "Number": {"input": {"required": {"value": ["INT", {"forceInput": True}], "other": ["INT", {"default": 3}]}}},
    "Image": {
        "input": {"required": {"image": [["x.png"], {"image_upload": True}], "alpha": ["BOOLEAN", {}]}},
    },
}


def node(number, kind, values=(), inputs=(), **more):
    slots = [{"name": name, "type": type_, "link": link} for name, type_, link in inputs]
    return {"id": number, "type": kind, "widgets_values": list(values), "inputs": slots, "mode": 0, **more}


def convert(*nodes, links=(), **more):
    return to_prompt({"nodes": list(nodes), "links": list(links), **more}, INFO)


def sampler(model=None, **more):
    return node(2, "Sample", [7, "randomize", 12, 3, "heun", True], [("model", "MODEL", model)], **more)


def test_widgets_take_their_values_in_order_and_the_control_after_a_seed_is_left_out():
    prompt = convert(node(1, "Load", ["b.safetensors"]), sampler(5), links=[[5, 1, 0, 2, 0, "MODEL"]])
    assert prompt["1"] == {"class_type": "Load", "inputs": {"name": "b.safetensors"}, "_meta": {"title": "Load"}}
    assert prompt["2"]["inputs"] == {"model": ["1", 0], "seed": 7, "steps": 12, "cfg": 3, "sampler": "heun", "tiled": True}


def test_a_seed_saved_without_its_control_shifts_nothing():
    prompt = convert(node(2, "Sample", [7, 12, 3.5, "euler", False]))
    assert prompt["2"]["inputs"] == {"seed": 7, "steps": 12, "cfg": 3.5, "sampler": "euler", "tiled": False}


def test_links_saved_as_objects():
    link = {"id": 5, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "MODEL"}
    assert convert(node(1, "Load", ["b"]), sampler(5), links=[link])["2"]["inputs"]["model"] == ["1", 0]


def test_a_widget_turned_into_an_input_keeps_its_place_and_takes_the_link():
    node_2 = node(2, "Sample", [7, "fixed", 12, 3, "euler", False], [("steps", "INT", 9)])
    prompt = convert(node(1, "Number", [4]), node_2, links=[[9, 1, 0, 2, 0, "INT"]])
    assert prompt["2"]["inputs"]["steps"] == ["1", 0]
    assert prompt["2"]["inputs"]["cfg"] == 3
    assert prompt["1"]["inputs"] == {"other": 4}, "a forced input has no widget"


def test_a_primitive_becomes_its_value():
    node_2 = node(2, "Sample", [7, "fixed", 12, 3, "euler", False], [("steps", "INT", 9)])
    prompt = convert(node(1, "PrimitiveNode", [33, "fixed"]), node_2, links=[[9, 1, 0, 2, 0, "INT"]])
    assert prompt["2"]["inputs"]["steps"] == 33
    assert list(prompt) == ["2"]


def test_reroutes_are_followed_and_notes_dropped():
    nodes = [
        node(1, "Load", ["b"]),
        node(3, "Reroute", [], [("", "*", 5)]),
        sampler(6),
        node(4, "Note", ["hi"]),
        node(5, "MarkdownNote"),
    ]
    prompt = convert(*nodes, links=[[5, 1, 0, 3, 0, "MODEL"], [6, 3, 0, 2, 0, "MODEL"]])
    assert sorted(prompt) == ["1", "2"]
    assert prompt["2"]["inputs"]["model"] == ["1", 0]


def test_a_bypassed_node_hands_its_input_through():
    nodes = [node(1, "Load", ["b"]), node(3, "Pass", [1.0], [("model", "MODEL", 5)], mode=4), sampler(6)]
    prompt = convert(*nodes, links=[[5, 1, 0, 3, 0, "MODEL"], [6, 3, 0, 2, 0, "MODEL"]])
    assert sorted(prompt) == ["1", "2"]
    assert prompt["2"]["inputs"]["model"] == ["1", 0]


def test_a_muted_node_takes_its_links_along():
    prompt = convert(node(1, "Load", ["b"], mode=2), sampler(5), links=[[5, 1, 0, 2, 0, "MODEL"]])
    assert sorted(prompt) == ["2"]
    assert "model" not in prompt["2"]["inputs"]


def test_values_that_were_not_saved_are_the_defaults():
    assert convert(node(2, "Sample", [7, "fixed"]))["2"]["inputs"] == {
        **{"seed": 7, "steps": 20, "cfg": 8.0, "sampler": "euler", "tiled": False}
    }
    with pytest.raises(WorkflowError, match=r"Node 2 \(Text\) has no saved value for 'text'"):
        convert(node(2, "Text"))


def test_the_upload_button_has_no_value_of_its_own():
    assert convert(node(1, "Image", ["x.png", "image", True]))["1"]["inputs"] == {"image": "x.png", "alpha": True}


def test_values_saved_by_name():
    named = {**node(1, "Load"), "widgets_values": {"name": "b", "preview": 1}}
    assert convert(named)["1"]["inputs"] == {"name": "b"}


def test_a_list_is_wrapped_so_that_it_is_not_read_as_a_link():
    assert convert(node(1, "Load", [["1", 0]]))["1"]["inputs"] == {"name": {"__value__": ["1", 0]}}


def test_titles_are_what_the_user_sees():
    prompt = convert(node(1, "Text", ["cat"]), node(2, "Text", ["dog"], title="Negative"))
    assert [prompt[i]["_meta"]["title"] for i in "12"] == ["Encode Text", "Negative"]


@pytest.mark.parametrize(
    "values", [["x", "fixed", 12, 3, "euler", False], [7, "fixed", 12, 3, "euler", 1], [True, "fixed", 12, 3, "euler", True]]
)
def test_values_of_another_version_of_the_node_are_refused(values):
    with pytest.raises(WorkflowError, match=r"Node 2 \(Sample\): the saved value of '(seed|tiled)' should be"):
        convert(node(2, "Sample", values))


def test_unknown_nodes_and_subgraphs_are_named():
    with pytest.raises(WorkflowError, match="does not have the nodes Other, Thing"):
        convert(node(1, "Thing"), node(2, "Other"))
    with pytest.raises(WorkflowError, match=r"Node 1 \(abc\) is a subgraph"):
        convert(node(1, "abc"), definitions={"subgraphs": [{"id": "abc"}]})
    with pytest.raises(WorkflowError, match="not a ComfyUI workflow"):
        to_prompt([], INFO)


def test_a_prompt_is_returned_as_it_is():
    prompt = {"1": {"class_type": "Load", "inputs": {"name": "b"}}}
    assert to_prompt(prompt, INFO) is prompt
