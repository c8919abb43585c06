"""The other ways to compare, zooming into both pictures, and what is kept of it."""

import pytest

from .graphs import AMBER, BLUE, GREEN, RED, Graph, near, two_colours

GREY, OTHER_GREY = (100, 100, 100), (104, 100, 92)


def assert_colours(widget, wanted, label=""):
    """`wanted`: colours by place (x, y) of the picture."""
    found = widget.colours(*wanted, label=label)
    for place, colour in zip(wanted, found, strict=True):
        assert near(colour, wanted[place]), f"at {place}: found {colour}, expected {wanted[place]}"


@pytest.fixture
def halves(editor):
    """A Compare node that ran: blue and green halves before, amber and red after."""
    graph = Graph()
    node = graph.compare(graph.halves(BLUE, GREEN), graph.halves(AMBER, RED))
    editor.load(graph.workflow())
    editor.run()
    widget = editor.compare(node)
    widget.wait_shown()
    return widget


def test_each_mode_shows_both_pictures_in_its_way(editor):
    graph = Graph()
    node = graph.compare(graph.batch(BLUE, GREY), graph.batch(AMBER, OTHER_GREY))
    editor.load(graph.workflow())
    editor.run()
    widget = editor.compare(node)
    widget.wait_shown()
    before = editor.place(node)

    widget.root.get_by_role("button", name="Slider, up and down").click()
    assert_colours(widget, {(0.3, 0.3): BLUE, (0.7, 0.3): BLUE, (0.3, 0.7): AMBER, (0.7, 0.7): AMBER})
    widget.drag_to((0.7, 0.5), (0.7, 0.2))
    assert abs(widget.value - 20) <= 1
    assert_colours(widget, {(0.7, 0.14): BLUE, (0.7, 0.26): AMBER, (0.8, 0.9): AMBER}, "vertical")
    widget.press("ArrowDown", "Shift+ArrowDown")
    assert abs(widget.value - 31) <= 1

    widget.press("3", "ArrowRight")
    assert_colours(widget, {(0.1, 0.75): AMBER, (0.9, 0.25): AMBER}, "flicker_after")
    widget.press("ArrowLeft")
    assert_colours(widget, {(0.1, 0.75): BLUE, (0.9, 0.25): BLUE}, "flicker_before")
    widget.press(" ")
    for shown in "101":
        editor.page.wait_for_function("([e, s]) => e.dataset.shown === s", arg=[widget.frame.element_handle(), shown], polling=50)

    widget.press("4")
    widget.root.get_by_label("Amplification").select_option("1")
    assert_colours(widget, {(0.1, 0.75): (192, 64, 160), (0.9, 0.25): (192, 64, 160)}, "difference")
    widget.press("PageDown")
    widget.wait_shown()
    assert_colours(widget, {(0.1, 0.75): (4, 0, 8)})
    widget.root.get_by_label("Amplification").select_option("16")
    assert_colours(widget, {(0.1, 0.75): (64, 0, 128), (0.9, 0.25): (64, 0, 128)}, "amplified")
    assert "difference \u00d7 16" in widget.root.inner_text()

    widget.press("PageUp", "5")
    widget.wait_shown()
    assert_colours(widget, {(0.1, 0.25): BLUE, (0.45, 0.75): BLUE, (0.55, 0.25): AMBER, (0.9, 0.75): AMBER}, "side")
    widget.press("1")
    assert_colours(widget, {(0.1, 0.75): BLUE, (0.5, 0.75): AMBER})
    assert editor.place(node) == before


def test_wide_pictures_are_stacked_in_side_by_side(halves):
    halves.press("5")
    wanted = {(0.2, 0.2): BLUE, (0.8, 0.35): GREEN, (0.2, 0.8): AMBER, (0.8, 0.9): RED}
    assert_colours(halves, wanted, "stacked")


def test_both_pictures_are_zoomed_and_panned_together(editor, halves):
    before = editor.place(halves.node)
    assert_colours(halves, {(0.1, 0.75): BLUE, (0.9, 0.75): RED})
    for _ in range(6):
        halves.wheel(-100, x=0.05, ctrl=True)
    assert editor.state(halves.node)["zoom"]["scale"] > 4
    assert editor.place(halves.node) == before, "zooming the pictures zoomed the canvas, too"
    assert_colours(halves, {(0.1, 0.75): BLUE, (0.9, 0.75): AMBER}, "left")
    for _ in range(5):
        halves.drag(0.8, 0.1)
    assert halves.value == 50, "dragging while zoomed must move the pictures, not the slider"
    assert_colours(halves, {(0.1, 0.75): GREEN, (0.9, 0.75): RED}, "right")
    halves.drag(0.5, 0.8)
    assert abs(halves.value - 80) <= 1, "the line itself must be movable while zoomed"
    assert_colours(halves, {(0.7, 0.75): GREEN, (0.9, 0.75): RED})
    editor.page.mouse.dblclick(*halves.at(0.3))
    assert editor.state(halves.node)["zoom"]["scale"] == 1
    assert_colours(halves, {(0.1, 0.75): BLUE, (0.6, 0.75): GREEN, (0.9, 0.75): RED}, "whole")
    halves.press("5", "+", "+", "+", "+")
    for _ in range(8):
        halves.press("ArrowLeft")
    assert_colours(halves, {(0.1, 0.25): BLUE, (0.9, 0.25): BLUE, (0.1, 0.75): AMBER, (0.9, 0.75): AMBER}, "keys")
    halves.press("0")
    assert editor.state(halves.node)["zoom"] == {"scale": 1, "x": 0.5, "y": 0.5}
    assert editor.place(halves.node) == before


def test_the_wheel_is_the_canvas_unless_asked_for(editor, halves):
    before = editor.place(halves.node)
    halves.wheel(-100)
    assert editor.state(halves.node)["zoom"]["scale"] == 1
    assert editor.place(halves.node) != before, "the wheel over the pictures did not reach the canvas"
    editor.show(halves.node)
    halves.root.get_by_role("button", name="The mouse wheel zooms the pictures").click()
    before = editor.place(halves.node)
    halves.wheel(-100)
    assert editor.state(halves.node)["zoom"]["scale"] > 1
    assert editor.place(halves.node) == before


def test_two_fingers_zoom_and_leave_the_slider(editor, halves):
    before = editor.place(halves.node)
    halves.touch(*([(0.25 - d, 0.5), (0.25 + d, 0.5)] for d in (0.05, 0.1, 0.15, 0.2)))
    zoom = editor.state(halves.node)["zoom"]
    assert zoom["scale"] == pytest.approx(4, rel=0.15)
    assert halves.value == 50
    assert_colours(halves, {(0.1, 0.75): BLUE, (0.9, 0.75): AMBER}, "pinched")
    halves.touch([(0.8, 0.5)], [(0.5, 0.5)], [(0.2, 0.5)])
    assert editor.state(halves.node)["zoom"]["x"] > zoom["x"] + 0.1
    halves.touch(*([(0.5 - d, 0.5), (0.5 + d, 0.5)] for d in (0.3, 0.2, 0.1, 0.02)))
    assert editor.state(halves.node)["zoom"]["scale"] == 1
    assert editor.place(halves.node) == before


def test_mode_and_zoom_come_back_with_a_saved_workflow(editor, halves):
    halves.wheel(-100, x=0.05, ctrl=True)
    halves.wheel(-100, x=0.05, ctrl=True)
    halves.press("4")
    halves.root.get_by_label("Amplification").select_option("2")
    was = editor.state(halves.node)
    saved = editor.saved()
    editor.open()
    editor.load(saved)
    widget = editor.compare(halves.node)
    widget.wait_shown()
    assert editor.state(halves.node) == was
    assert (was["mode"], was["gain"], was["zoom"]["scale"] > 1.5) == ("difference", 2, True)
    # at this zoom the seam is left of the middle no more
    assert_colours(widget, {(0.1, 0.75): (255, 128, 255), (0.6, 0.75): (255, 128, 255)})
    widget.press("3", "ArrowRight")
    assert_colours(widget, {(0.1, 0.75): AMBER, (0.6, 0.75): AMBER})


def test_copy_settings(editor, halves):
    page = editor.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = halves.root.get_by_role("button", name="Copy settings")
    copy.click()
    halves.root.get_by_text("Settings copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    for words in (
        "Compare (UniForget)",
        "original | forgotten",
        "EmptyImage: width 64, height 64, batch_size 1",
        "slider at 50 %",
    ):
        assert words in text
    assert editor.state(halves.node)["a"][0]["filename"] in text
    page.evaluate(
        """() => {
            window.kept = [navigator.clipboard.writeText, document.execCommand]
            navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed'))
            document.execCommand = () => false
        }"""
    )
    try:
        copy.click()
        by_hand = halves.root.get_by_label("Settings, to copy by hand")
        by_hand.wait_for()
        assert by_hand.input_value() == text
        assert page.evaluate("getSelection().toString()") == text
        editor.shot("by_hand")
        halves.frame.focus()
        assert not by_hand.is_visible()
    finally:
        page.evaluate("() => { [navigator.clipboard.writeText, document.execCommand] = window.kept }")


def test_a_very_large_picture(editor):
    graph = Graph()
    node = graph.compare(graph.plain(BLUE, (4096, 4096)), graph.plain(AMBER, (4096, 4096)), save=False)
    editor.load(graph.workflow())
    editor.run()
    widget = editor.compare(node)
    widget.wait_shown()
    widget.drag(0.5, 0.25)
    assert_colours(widget, {(0.19, 0.75): BLUE, (0.31, 0.75): AMBER})
    widget.press(*"+" * 30)
    assert editor.state(node)["zoom"]["scale"] == 32
    assert_colours(widget, {(0.19, 0.75): BLUE, (0.31, 0.75): AMBER})


def test_a_node_deleted_while_it_runs(editor):
    graph = Graph()
    blue, amber = graph.plain(BLUE, (512, 512), 2), graph.plain(AMBER, (512, 512), 2)
    gone = graph.compare(blue, amber, pos=(1160, 0), properties={"uniforget_compare": {"mode": "flicker"}})
    left = graph.compare(amber, blue, pos=(700, 0))
    editor.load(graph.workflow(), show=left)
    editor.page.evaluate(
        """(id) => {
            window.removed = false
            const remove = ({ detail }) => {
                if (String(detail) !== String(id)) return
                app.api.removeEventListener('executing', remove)
                app.graph.remove(app.graph.getNodeById(id))
                window.removed = true
            }
            app.api.addEventListener('executing', remove)
        }""",
        gone,
    )
    output = editor.run()["outputs"]
    assert editor.page.evaluate("window.removed") and len(output[str(gone)]["a_images"]) == 2
    widget = editor.compare(left)
    widget.wait_shown()
    assert_colours(widget, {(0.2, 0.75): AMBER, (0.8, 0.75): BLUE})
    assert editor.page.locator(".uniforget-compare").count() == 1


def test_the_buttons_can_be_read_in_light_and_dark(editor):
    workflow, node = two_colours()
    for palette in ("light", "dark"):
        editor.page.evaluate("(p) => app.extensionManager.setting.set('Comfy.ColorPalette', p)", palette)
        editor.load(workflow)
        editor.run()
        widget = editor.compare(node)
        widget.wait_shown()
        editor.shot(palette)
        colours = widget.root.locator(".ufc-level").evaluate(
            """(button) => {
                const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
                const rgb = (colour) => {
                    canvas.fillStyle = colour
                    canvas.fillRect(0, 0, 1, 1)
                    return [...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)]
                }
                return [rgb(getComputedStyle(button).color), rgb(getComputedStyle(button.parentElement).backgroundColor)]
            }"""
        )
        assert contrast(*colours) >= 4.5, f"{palette}: {colours}"


def contrast(one, other):
    """WCAG's contrast of two colours: 4.5 and more can be read."""

    def luminance(colour):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
