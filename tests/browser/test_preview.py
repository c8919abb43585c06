"""Preview Comparison in a real page: one node draws both sides and shows them."""

import pytest

from .drawing import Drawing
from .test_compare import near


@pytest.fixture
def shown(editor):
    """A run Preview Comparison: the editor, the node and its widget."""
    graph = Drawing()
    node = graph.preview()
    editor.load(graph.workflow(), node)
    editor.shot("empty")
    output = editor.run()["outputs"][str(node)]
    look(editor, node)
    return editor, node, output


def look(editor, node):
    """Waits for the pictures of `node`, with its widget in the middle of the view."""
    editor.page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id), ds = app.canvas.ds
            ds.scale = 0.8
            ds.offset = [600 - node.pos[0], 1080 - node.pos[1] - node.size[1]]
            app.canvas.setDirty(true, true)
        }""",
        node,
    )
    editor.page.wait_for_timeout(400)
    editor.compare(node).wait_shown()


def values(editor, node, name):
    return editor.page.evaluate(
        "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value", [node, name]
    )


def test_one_node_draws_both_sides_and_shows_them(shown):
    editor, node, output = shown
    assert output["labels"] == ["original", "strength 1"]
    widget = editor.compare(node)
    widget.drag(0.5, 0.95)
    original = editor.shot("original")
    box = tuple(round(v) for v in (*widget.at(0.1, 0.2), *widget.at(0.85, 0.9)))
    widget.drag(0.95, 0.05)
    forgotten = editor.shot("forgotten")
    assert original.crop(box).tobytes() != forgotten.crop(box).tobytes()
    assert "strength 1" in widget.root.inner_text()
    # what is drawn is what was saved, and the demo model's cat stands on light blue
    blue = original.getpixel(tuple(round(v) for v in widget.at(0.8, 0.85)))
    assert blue[2] > blue[0] + 20, f"expected the prompt's light blue; found {blue}"


def test_another_strength_changes_only_the_forgotten_side(shown):
    editor, node, output = shown
    editor.page.evaluate("(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'strength').value = 0 }", node)
    again = editor.run()["outputs"][str(node)]
    look(editor, node)
    first, second = (editor.client.view(out["a_images"][0]) for out in (output, again))
    pixels = [editor.client.view(again[side][0]) for side in ("a_images", "b_images")]
    assert image(first) == image(second), "the original is the same"
    assert image(pixels[0]) == image(pixels[1]), "at strength 0 both sides are"
    widget = editor.compare(node)
    assert "unchanged" in widget.root.inner_text()
    widget.drag(0.5, 0.2)
    left = editor.shot("zero").getpixel(tuple(round(v) for v in widget.at(0.7, 0.8)))
    widget.drag(0.2, 0.9)
    assert near(editor.shot("zero_original").getpixel(tuple(round(v) for v in widget.at(0.7, 0.8))), left)


def test_new_nodes_keep_their_seed_and_saved_ones_theirs(editor):
    graph = Drawing()
    node = graph.preview(sampler=[7, "increment", 4, 3.0, "euler", "simple", 1.0])
    editor.load(graph.workflow(), node)
    assert values(editor, node, "control_after_generate") == "increment"
    for kind in ("UniForgetPreview", "UniForgetSweep"):
        new = editor.page.evaluate(
            "(kind) => { const node = LiteGraph.createNode(kind); app.graph.add(node); return node.id }", kind
        )
        assert values(editor, new, "control_after_generate") == "fixed"


def test_a_saved_workflow_shows_its_pictures_again(shown):
    editor, node, _ = shown
    saved = editor.saved()
    editor.open()
    editor.load(saved, node)
    look(editor, node)
    assert "strength 1" in editor.compare(node).root.inner_text()


def image(data):
    """Pixels of a PNG."""
    import io

    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()
