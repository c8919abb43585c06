"""Every example workflow opens in ComfyUI's page with all of its nodes and links."""

import json

import pytest

from launcher.paths import ROOT

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_whole(editor, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    editor.load(workflow, show=workflow["nodes"][0]["id"])
    page = editor.page
    missing = page.evaluate(
        "app.graph.nodes.filter((n) => n.has_errors || !LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
    )
    assert missing == []
    links = page.evaluate(
        "[...app.graph.links.values()].map((l) => [l.origin_id, l.origin_slot, l.target_id, app.graph.getNodeById(l.target_id).inputs[l.target_slot].name])"
    )
    nodes = {node["id"]: node for node in workflow["nodes"]}
    wanted = [[one[1], one[2], one[3], nodes[one[3]]["inputs"][one[4]]["name"]] for one in workflow["links"]]
    assert sorted(links) == sorted(wanted)
    page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)
    editor.shot("whole")
