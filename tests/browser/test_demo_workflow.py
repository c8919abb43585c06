"""The example workflow in the page, from loading to the slider. Learning is cut short: that it forgets is tested elsewhere."""

import json

import pytest

from launcher.paths import DEMO_WORKFLOW

# widget values that make it quick, by node type; the editor still sends the whole workflow
QUICK = {
    "UniForgetFind": {"sampling_steps": 1, "pool": "soft cat on blue"},
    "UniForgetLearn": {"steps": 2, "batch": 2, "sampling_steps": 2, "prompts": "soft cat on blue\nphoto of coffee"},
    "UniForgetDemoScore": {"seeds": 1, "captions": 7, "neutral": 4},
    "UniForgetPreview": {"steps": 4},
}


@pytest.fixture
def workflow():
    if not DEMO_WORKFLOW.is_file():
        pytest.fail(f"{DEMO_WORKFLOW} is missing: it is part of this project")
    return json.loads(DEMO_WORKFLOW.read_text(encoding="utf-8"))


def test_the_demo_workflow_runs_in_the_page(editor, workflow):
    editor.load(workflow, next(n["id"] for n in workflow["nodes"] if n["type"] == "UniForgetPreview"))
    missing = editor.page.evaluate(
        "app.graph.nodes.filter((n) => n.has_errors || !LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
    )
    assert missing == []
    editor.page.evaluate(
        """(quick) => {
            for (const node of app.graph.nodes) {
                for (const [name, value] of Object.entries(quick[node.type] ?? {})) {
                    const widget = node.widgets.find((w) => w.name === name)
                    if (!widget) throw new Error(`${node.type} has no widget ${name}`)
                    widget.value = value
                }
            }
        }""",
        QUICK,
    )
    entry = editor.run()
    for node in [n["id"] for n in workflow["nodes"] if n["type"] == "UniForgetPreview"]:
        assert entry["outputs"][str(node)]["comparison"]
        editor.show(node)
        widget = editor.compare(node)
        widget.wait_shown()
        widget.drag(0.5, 0.9)
        mostly_original = editor.shot(f"{node}_original")
        assert abs(widget.value - 90) <= 1
        widget.drag(0.9, 0.1)
        mostly_forgotten = editor.shot(f"{node}_forgotten")
        where = tuple(round(v) for v in (*widget.at(0.15, 0.2), *widget.at(0.8, 0.9)))
        assert mostly_original.crop(where).tobytes() != mostly_forgotten.crop(where).tobytes()
        assert len(mostly_forgotten.crop(where).getcolors(10**6)) > 50, "a plain area where a picture should be"
    editor.page.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    editor.page.wait_for_timeout(1000)
    editor.shot("whole")
