"""The Compare node's slider in a real page: what is drawn, what moves, what is kept."""

import pytest
from PIL import Image

from .graphs import AMBER, BLUE, GREEN, RED, Graph, near, two_colours


def assert_split(widget, at, left=BLUE, right=AMBER, label=""):
    """Left of `at` the original's colour, right of it the forgotten one's."""
    found = widget.pixels(0.08, at - 0.06, at + 0.06, 0.92, label=label)
    for colour, wanted in zip(found, [left, left, right, right], strict=True):
        assert near(colour, wanted), f"slider at {at}: found {found}, expected {left} then {right}"


def test_an_empty_node_says_what_to_do(editor):
    workflow, node = two_colours()
    editor.load(workflow)
    widget = editor.compare(node)
    assert "Run the workflow" in widget.root.inner_text()
    assert not widget.slider.is_visible()
    editor.shot()


def test_dragging_shows_more_of_one_side(editor):
    workflow, node = two_colours()
    editor.load(workflow)
    editor.run()
    widget = editor.compare(node)
    widget.wait_shown()
    assert widget.value == 50
    assert_split(widget, 0.5, label="start")
    before = editor.place(node)
    widget.drag(0.5, 0.25)
    assert abs(widget.value - 25) <= 1
    assert_split(widget, 0.25, label="left")
    widget.drag(0.25, 0.8)
    assert_split(widget, 0.8, label="right")
    assert editor.place(node) == before, "dragging the slider moved the node or the view"
    widget.drag(0.8, 1.4)
    assert widget.value == 100
    assert near(widget.pixels(0.9)[0], BLUE)
    faded = [widget.root.locator(f".ufc-label-{side}.ufc-faded").count() for side in "ab"]
    assert faded == [0, 1], "a label without its picture must not be seen"
    page = editor.page
    page.mouse.dblclick(*widget.at(0.3))
    assert widget.value == 50


def test_the_slider_works_by_keyboard_and_by_touch(editor):
    workflow, node = two_colours()
    editor.load(workflow)
    editor.run()
    widget = editor.compare(node)
    widget.wait_shown()
    before = editor.place(node)
    widget.slider.focus()
    for key, value in [
        ("ArrowLeft", 49),
        ("Shift+ArrowRight", 59),
        ("ArrowDown", 58),
        ("Home", 0),
        ("ArrowRight", 1),
        ("End", 100),
    ]:
        editor.page.keyboard.press(key)
        assert widget.value == value, key
    assert "original" in widget.slider.get_attribute("aria-label")
    widget.touch([(0.7, 0.6)], [(0.5, 0.6)], [(0.3, 0.6)])
    assert abs(widget.value - 30) <= 1
    assert_split(widget, 0.3)
    assert editor.place(node) == before


def test_a_saved_workflow_shows_its_pictures_again(editor):
    workflow, node = two_colours(labels=("original", "strength 0.8"))
    editor.load(workflow)
    editor.run()
    editor.compare(node).wait_shown()
    editor.compare(node).drag(0.5, 0.3)
    saved = editor.saved()
    assert {picture["type"] for side in "ab" for picture in editor.state(node)[side]} == {"output"}
    editor.open()
    editor.load(saved)
    widget = editor.compare(node)
    widget.wait_shown()
    assert abs(widget.value - 30) <= 1
    assert_split(widget, 0.3)
    assert "strength 0.8" in widget.root.inner_text()


def test_a_reload_of_the_page_alone_shows_them_too(editor):
    workflow, node = two_colours()
    editor.load(workflow)
    editor.run()
    editor.compare(node).wait_shown()
    editor.compare(node).drag(0.5, 0.7)
    editor.page.wait_for_timeout(1500)
    editor.open()
    editor.page.wait_for_function("(id) => app.graph.getNodeById(id)?.type === 'UniForgetCompare'", arg=node)
    editor.show(node)
    widget = editor.compare(node)
    widget.wait_shown()
    assert_split(widget, 0.7)


def test_a_batch_is_looked_through_pair_by_pair(editor):
    graph = Graph()
    node = graph.compare(graph.batch(BLUE, GREEN, RED), graph.batch(AMBER, RED, BLUE))
    editor.load(graph.workflow())
    entry = editor.run()
    output = entry["outputs"][str(node)]
    assert [len(output[name]) for name in ("a_images", "b_images", "comparison")] == [3, 3, 1]
    widget = editor.compare(node)
    widget.wait_shown()
    assert_split(widget, 0.5, BLUE, AMBER, label="first")
    widget.root.get_by_role("button", name="Next pair").click()
    widget.wait_shown()
    assert_split(widget, 0.5, GREEN, RED, label="second")
    widget.root.get_by_role("button", name="Pair 3 of 3").click()
    widget.wait_shown()
    assert_split(widget, 0.5, RED, BLUE, label="third")
    assert "3 / 3" in widget.root.inner_text()
    assert editor.state(node)["index"] == 2
    widget.slider.focus()
    for key, left, right in [(",", GREEN, RED), ("PageUp", BLUE, AMBER), ("PageDown", GREEN, RED), (".", RED, BLUE)]:
        editor.page.keyboard.press(key)
        widget.wait_shown()
        assert_split(widget, 0.5, left, right)


def test_one_original_is_compared_with_each_of_a_batch(editor):
    graph = Graph()
    node = graph.compare(graph.plain(BLUE), graph.batch(AMBER, RED))
    editor.load(graph.workflow())
    editor.run()
    widget = editor.compare(node)
    widget.wait_shown()
    widget.root.get_by_role("button", name="Next pair").click()
    widget.wait_shown()
    assert_split(widget, 0.5, BLUE, RED)


def test_two_compare_nodes_do_not_share_anything(editor):
    graph = Graph()
    blue, amber, green = graph.plain(BLUE), graph.plain(AMBER), graph.plain(GREEN)
    first = graph.compare(blue, amber, pos=(700, 0))
    second = graph.compare(green, blue, pos=(1160, 0))
    editor.load(graph.workflow())
    editor.page.evaluate("app.canvas.ds.offset[0] -= 120; app.canvas.setDirty(true, true)")
    editor.run()
    a, b = editor.compare(first), editor.compare(second)
    a.wait_shown()
    b.wait_shown()
    a.drag(0.5, 0.2)
    assert (abs(a.value - 20) <= 1, b.value) == (True, 50)
    assert_split(a, 0.2, BLUE, AMBER, label="first")
    assert_split(b, 0.5, GREEN, BLUE)
    a_files = {picture["filename"] for picture in editor.state(first)["a"]}
    assert not a_files & {picture["filename"] for picture in editor.state(second)["a"]}


def test_pictures_of_other_sizes_are_fitted_and_the_node_says_so(editor):
    graph = Graph()
    node = graph.compare(graph.plain(BLUE, (128, 64)), graph.plain(AMBER, (64, 64)))
    editor.load(graph.workflow())
    editor.run()
    widget = editor.compare(node)
    widget.wait_shown()
    assert "128x64" in widget.root.inner_text()
    middle, edge = widget.pixels(0.7, 0.95)
    assert near(middle, AMBER)
    assert max(edge) < 40, "the smaller picture must not be stretched"
    box = widget.slider.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(2, abs=0.05)
    assert "ufc-crisp" in widget.root.locator(".ufc-image").first.get_attribute("class")


def test_the_side_by_side_picture_is_saved_with_the_workflow(editor):
    workflow, node = two_colours()
    editor.load(workflow)
    (sheet,) = editor.run()["outputs"][str(node)]["comparison"]
    data = editor.client.view(sheet)
    path = editor_file(editor, data)
    with Image.open(path) as image:
        assert image.text["workflow"] and image.text["prompt"]
        width, height = image.size
        assert image.getpixel((width // 4, height // 2)) == BLUE
        assert image.getpixel((3 * width // 4, height // 2)) == AMBER


def test_without_saving_nothing_lands_in_the_output_folder(editor, server):
    workflow, node = two_colours(save=False)
    editor.load(workflow)
    before = sorted(server.folders["output"].rglob("*.png"))
    output = editor.run()["outputs"][str(node)]
    assert sorted(server.folders["output"].rglob("*.png")) == before
    assert output["a_images"][0]["type"] == "temp" and "comparison" not in output
    widget = editor.compare(node)
    widget.wait_shown()
    assert_split(widget, 0.5)


def test_missing_files_are_named(editor):
    lost = {"filename": "gone_00001_.png", "subfolder": "uniforget", "type": "output"}
    workflow, node = two_colours(properties={"uniforget_compare": {"a": [lost], "b": [lost]}})
    editor.load(workflow)
    widget = editor.compare(node)
    widget.root.get_by_text("uniforget/gone_00001_.png").first.wait_for()
    assert "Run the workflow" in widget.root.inner_text()
    editor.shot("lost")
    editor.run()
    widget.wait_shown()
    assert_split(widget, 0.5)


WHOLE = {"scale": 1, "x": 0.5, "y": 0.5}
HOSTILE = [
    "no object",
    {"a": "x", "b": {"length": 3}, "labels": 7, "position": "wide", "index": -4, "notes": {}},
    {"a": [None, 3, [], {"filename": 9}, {"filename": ""}], "b": [{}], "position": None, "index": 1e308},
    {
        "a": [{"filename": "x.png&type=input", "subfolder": "../../..", "type": "javascript:alert(1)"}],
        "b": [{"filename": "<img src=x onerror='window.attacked=1'>", "subfolder": '"><script>window.attacked=1</script>'}],
        "labels": ["<b>bold</b><img src=x onerror='window.attacked=1'>", "forgotten" * 500],
        "notes": ["<script>window.attacked=1</script>"],
        "position": -5,
        "index": 99,
        "mode": "constructor",
        "gain": 1e9,
        "zoom": {"scale": "3", "x": {}, "y": -1e308},
        "wheel": "yes",
        "settings": [["<script>window.attacked=1</script>", {}], {"length": 1e9}],
    },
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_a_hostile_workflow_does_no_harm(editor, case):
    workflow, node = two_colours(properties={"uniforget_compare": HOSTILE[case]})
    asked = []
    editor.page.on("request", lambda request: asked.append(request.url))
    editor.load(workflow)
    editor.page.wait_for_timeout(500)
    assert editor.page.evaluate("window.attacked") is None
    widget = editor.compare(node)
    assert widget.root.locator("script, b").count() == 0
    assert widget.root.locator("img.ufc-image").count() == 2
    assert 0 <= widget.value <= 100
    state = editor.state(node)
    assert (state["mode"], state["gain"], state["zoom"], state["wheel"]) == ("horizontal", 4, WHOLE, False)
    pictures = [url for url in asked if "rand=" in url and "filename=" in url]
    assert all(url.startswith(f"{editor.client.url}/api/view?filename=") for url in pictures)
    editor.run()
    widget.wait_shown()
    assert near(widget.pixels(0.97)[0], AMBER) or widget.value == 100


def test_a_copied_node_keeps_its_own_slider(editor):
    workflow, node = two_colours()
    editor.load(workflow)
    editor.run()
    editor.compare(node).wait_shown()
    copy = editor.page.evaluate(
        """(id) => {
            const copy = app.graph.getNodeById(id).clone()
            copy.pos = [700, 700]
            app.graph.add(copy)
            return copy.id
        }""",
        node,
    )
    editor.show(copy)
    widget = editor.compare(copy)
    widget.wait_shown()
    widget.drag(0.5, 0.3)
    assert editor.state(node)["position"] == 0.5
    assert editor.state(copy)["position"] == pytest.approx(0.3, abs=0.02)


def editor_file(editor, data):
    """`data` as a file in the folder of the screenshots."""
    from .conftest import SHOTS

    SHOTS.mkdir(exist_ok=True)
    path = SHOTS / f"{editor.name.replace('[', '_').replace(']', '')}_sheet.png"
    path.write_bytes(data)
    return path
