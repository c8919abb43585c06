"""Every example workflow opens in ComfyUI's page with all of its nodes and links, fitted into the window, and runs as it comes."""

import json

import pytest

from bench.first_contact import AS_IT_COMES, open_template
from launcher.paths import DEMO_WORKFLOW, ROOT

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


# Nodes that lie outside of all groups, or over another node, as the page draws them.
ASTRAY = """() => {
    const nodes = app.graph.nodes.map((n) => {
        const shown = document.querySelector(`[data-node-id="${n.id}"]`)?.getBoundingClientRect()
        const { scale, offset } = app.canvas.ds
        const box = shown ? [shown.left / scale - offset[0], shown.top / scale - offset[1], shown.width / scale, shown.height / scale]
            : [n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]
        return { type: n.type, box }
    })
    const within = ([x, y, w, h], g) => x >= g[0] - 2 && y >= g[1] - 2 && x + w <= g[0] + g[2] + 2 && y + h <= g[1] + g[3] + 2
    const over = (a, b) => a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3]
    const groups = app.graph.groups.map((g) => [...g.pos, ...g.size])
    return nodes.filter((n) => !groups.some((g) => within(n.box, g)) || nodes.some((m) => m !== n && over(m.box, n.box))).map((n) => n.type)
}"""


@pytest.fixture(autouse=True)
def as_it_comes(editor):
    """The page's own settings, which other tests change."""
    set_ = "([name, value]) => app.extensionManager.setting.set(name, value)"
    old = {name: editor.page.evaluate("(name) => app.extensionManager.setting.get(name)", name) for name in AS_IT_COMES}
    for name, value in AS_IT_COMES.items():
        editor.page.evaluate(set_, [name, value])
    yield
    for name, value in old.items():
        editor.page.evaluate(set_, [name, value])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_whole_and_runs(editor, path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    page = editor.page
    assert open_template(editor, path) == []
    editor.shot("whole")
    assert page.evaluate(ASTRAY) == []
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
    if path == DEMO_WORKFLOW:
        return  # minutes; test_demo_workflow.py runs it
    sizes = "app.graph.nodes.map((n) => [n.id, n.type, ...n.size.map(Math.round)])"
    before = page.evaluate(sizes)
    outputs = editor.run()["outputs"]
    page.wait_for_timeout(1000)
    editor.shot("run")
    assert any(outputs.values())
    grown = [(old[1], new[3] - old[3]) for old, new in zip(before, page.evaluate(sizes), strict=True) if new[3] > old[3]]
    assert not [one for one in grown if one[0].startswith("UniForget")], "a node of ours has grown"
    assert page.evaluate(ASTRAY) == [], f"grown: {grown}"
    for node in workflow["nodes"]:
        if node["type"] == "UniForgetApply":
            text = page.locator(".uniforget-text").filter(has_text="strength 1")
            assert len(text.first.inner_text().splitlines()) > 1, "line breaks are lost"
