"""The pack in a real ComfyUI server: listed, explained, and answering as the launcher expects."""

import time

import pytest

from launcher import pack
from launcher.client import succeeded
from launcher.demo import read_workflow
from launcher.errors import ServerError, WorkflowError
from launcher.paths import PACK_NAME, ROOT
from launcher.server import ComfyServer, free_port

NODE_IDS = {
    *("UniForgetDemoModel", "UniForgetLearn", "UniForgetLoadMask", "UniForgetSaveMask"),
    *("UniForgetApply", "UniForgetCombine", "UniForgetCompare", "UniForgetDemoScore", "UniForgetThreshold"),
    *("UniForgetSaveSanitized", "UniForgetCompact", "UniForgetLoadCompact", "UniForgetRecover", "UniForgetReport"),
    *("UniForgetMaskMap", "UniForgetEmbeddedMask"),
    *(
        "UniForgetPreview",
        "UniForgetSweep",
        "UniForgetVariety",
        "UniForgetFind",
        "UniForgetCleanLora",
        "UniForgetAttackCheck",
        "UniForgetGuard",
    ),
    *("UniForgetPictureCheck", "UniForgetPromptCheck"),
}
FILES = {"ckpt_name", "lora_name", "mask_name", "model_name", "image"}
PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 1, "color": 0x336699}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "blue"}},
}


def inputs(info):
    """``(group, name, type, options)`` of each input of a node."""
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            yield group, name, spec[0], (spec[1] if len(spec) > 1 else {})


def test_every_node_is_there_and_comes_from_this_pack(object_info):
    assert set(pack.nodes(object_info)) == NODE_IDS
    for node in NODE_IDS:
        assert object_info[node]["python_module"] == f"custom_nodes.{PACK_NAME}"
        assert object_info[node]["category"] == "UniForget"


@pytest.mark.parametrize("node", sorted(NODE_IDS))
def test_every_node_explains_itself(object_info, node):
    info = object_info[node]
    assert info["display_name"] and info["display_name"] != node
    assert len(info["description"]) > 40
    for _, name, _, options in inputs(info):
        assert len(options.get("tooltip") or "") > 10, f"{node}.{name} has no tooltip"
    assert (ROOT / "web" / "docs" / f"{node}.md").is_file(), f"{node} has no help page"


@pytest.mark.parametrize("node", sorted(NODE_IDS))
def test_every_default_is_allowed_and_every_number_has_a_range(object_info, node):
    for _, name, kind, options in inputs(object_info[node]):
        where = f"{node}.{name}"
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], where
        elif kind == "COMBO" and "default" in options and options["options"]:
            assert options["default"] in options["options"], where


@pytest.mark.parametrize("path", sorted((ROOT / "example_workflows").glob("*.json")), ids=lambda p: p.name)
def test_every_example_workflow_fits_the_nodes_of_today(object_info, as_prompt, path):
    prompt = as_prompt(read_workflow(path))
    for node in prompt.values():
        for group, name, _, options in inputs(object_info[node["class_type"]]):
            where = f"{node['class_type']}.{name}"
            assert group == "optional" or name in node["inputs"], f"{where} is not connected"
            value = node["inputs"].get(name)
            if name in FILES:  # the artist chooses those
                continue
            if isinstance(value, str) and "options" in options:
                assert value in options["options"], where
            elif isinstance(value, (int, float)) and "max" in options:
                assert options["min"] <= value <= options["max"], where


def test_help_pages_and_scripts_are_served(client):
    assert client.request(f"/extensions/{PACK_NAME}/docs/UniForgetLearn.md") == (ROOT / "web/docs/UniForgetLearn.md").read_bytes()
    served = [name for name in client.get("/extensions") if f"/{PACK_NAME}/" in name]
    assert len(served) == len(list((ROOT / "web").rglob("*.js")))


def test_a_prompt_is_queued_followed_and_its_picture_read(client, server):
    events = []
    entry = client.follow(PICTURE, None, lambda kind, data: events.append(kind))
    assert "executing" in events
    [image] = entry["outputs"]["2"]["images"]
    data = client.view(image)
    assert data.startswith(b"\x89PNG")
    assert (server.folders["output"] / image["filename"]).read_bytes() == data


def test_a_refused_prompt_names_the_node_and_the_input(client):
    with pytest.raises(WorkflowError, match=r"EmptyImage \(node 1\).*width"):
        client.run({**PICTURE, "1": {"class_type": "EmptyImage", "inputs": {"height": 16, "batch_size": 1, "color": 0}}})


def test_a_prompt_that_fails_while_running_names_the_node_and_the_reason(client):
    bad = {**PICTURE, "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "../../outside"}}}
    with pytest.raises(WorkflowError, match=r"SaveImage \(node 2\) failed"):
        client.run(bad)


def test_two_prompts_queued_at_once_both_end_well(client):
    def prompt(color):
        return {**PICTURE, "1": {"class_type": "EmptyImage", "inputs": {**PICTURE["1"]["inputs"], "color": color}}}

    ids = [client.queue(prompt(color)) for color in (1, 2)]
    pictures = [client.view(succeeded(client.wait(i))["outputs"]["2"]["images"][0]) for i in ids]
    assert pictures[0] != pictures[1]


def test_a_comfyui_that_ends_at_once_is_reported_with_its_last_words(install, tmp_path):
    server = ComfyServer(install, tmp_path, tmp_path / "log")
    server.port = -1  # ComfyUI cannot listen there
    began = time.monotonic()
    with pytest.raises(ServerError, match=r"(?s)ComfyUI stopped \(exit code .*whole log"):
        server.start(timeout=120)
    assert time.monotonic() - began < 100
    server.stop()


def test_a_server_that_is_gone_is_reported_and_not_waited_for():
    from launcher.client import ComfyClient

    with pytest.raises(ServerError, match="does not answer"):
        ComfyClient(f"http://127.0.0.1:{free_port()}").wait("x")
