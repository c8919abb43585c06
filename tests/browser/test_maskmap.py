"""The map in a real page: its colours, what it says, what clicks write, and what a saved workflow brings back."""

import pytest

from launcher.paths import PACK_NAME
from tests.unit.test_blocks import REFUSED, SELECTIONS
from uniforget.errors import SettingError
from uniforget.model.blocks import block_name, block_of, block_rows, select_blocks
from uniforget.model.detect import family
from uniforget.model.families.schema import KINDS

from . import masks

# of web/maskmap_view.js and nodes/mappicture.py, by hand: shares 0, 1/4, 1/2, 3/4 and 1 of the scale
COLOURS = {0: (0, 32, 77), 0.25: (64, 77, 108), 0.5: (126, 124, 118), 0.75: (188, 175, 111), 1: (255, 234, 70)}


def near(found, wanted, tolerance=4):
    return all(abs(f - w) <= tolerance for f, w in zip(found, wanted, strict=True))


class Map:
    """The panel of one Mask Map node."""

    def __init__(self, editor, node=2):
        self.editor, self.page, self.node = editor, editor.page, node
        marked = self.page.evaluate(
            """(id) => {
                const widget = app.graph.getNodeById(id).widgets.find((w) => w.name === 'map')
                if (widget) widget.element.dataset.testNode = id
                return Boolean(widget)
            }""",
            node,
        )
        assert marked, f"node {node} has no map"
        self.root = self.page.locator(f".uniforget-map[data-test-node='{node}']")
        self.toggles = self.root.locator(".ufm-toggle")

    def cell(self, i):
        return self.root.locator(f"[data-cell='{i}']")

    def centre(self, i):
        box = self.cell(i).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def colours(self, *cells, label=""):
        self.page.mouse.move(5, 450)  # a cell under the mouse has a frame
        self.page.wait_for_timeout(100)
        image = self.editor.shot(label)
        return [image.getpixel(tuple(round(v) for v in self.centre(i))) for i in cells]

    @property
    def status(self):
        return self.root.locator(".ufm-status").inner_text()

    @property
    def blocks(self):
        return self.page.evaluate("(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'blocks').value", self.node)

    @property
    def kept(self):
        return [t.get_attribute("aria-pressed") == "true" for t in self.toggles.all()]

    def write(self, text):
        """As somebody who types into the widget."""
        self.page.evaluate(
            """([id, text]) => {
                const node = app.graph.getNodeById(id), widget = node.widgets.find((w) => w.name === 'blocks')
                widget.value = text
                widget.callback?.(text, app.canvas, node)
            }""",
            [self.node, text],
        )


@pytest.fixture
def shown(editor):
    """``shown(mask)``: runs a workflow with a Mask Map and returns its :class:`Map`."""

    def make(mask, **options):
        editor.load(masks.mapped(mask, **options), show=2)
        editor.run()
        editor.page.locator(".ufm-cell").first.wait_for()
        return Map(editor)

    return make


def test_an_empty_map_says_what_to_do(editor):
    editor.load(masks.mapped(masks.four_blocks()), show=2)
    found = Map(editor)
    assert "Run the workflow" in found.root.inner_text() and not found.toggles.count()
    editor.shot()


def test_colours_and_numbers_are_those_of_the_mask(shown):
    found = shown(masks.four_blocks())
    # cells: of each block the image's and the text's neurons; block 1 has a norm as well. The scale ends at 40 %.
    expected = {0: 0.25, 1: 0, 2: 0.5, 3: 0, 4: 1, 5: 0.75, 6: 0, 7: 1, 8: 0}
    for i, colour in zip(expected, found.colours(*expected, label="map"), strict=True):
        assert near(colour, COLOURS[expected[i]]), f"cell {i}: {colour}"
    assert "40% switched off" in found.root.inner_text() and "Stable Diffusion 3" in found.root.inner_text()
    assert "ffn 12.5%" in found.status and "norm 40.0%" in found.status
    found.page.mouse.move(*found.centre(2))
    assert found.status == "1 ffn image: 200 of 1,000 neurons switched off (20.0%)"
    found.page.mouse.move(*found.centre(4))
    assert found.status == "1 norm image: 240 of 600 channels switched off (40.0%)"
    found.page.mouse.move(5, 450)
    found.toggles.nth(3).focus()
    assert found.status == "3: ffn image 40.0%, ffn text 0.0%"


def test_a_click_leaves_a_block_alone(shown, editor):
    mask = masks.four_blocks()
    found = shown(mask)
    before, place = found.colours(2, 7), editor.place(2)
    found.cell(2).click()
    assert found.blocks == "0, 2-3" and found.kept == [True, False, True, True]
    after = found.colours(2, 7, label="one_off")
    assert after[1] == before[1] and not near(after[0], before[0], 20)
    assert editor.place(2) == place, "a click on the map moved the node or the view"
    entry = editor.run()
    assert mask.select(KINDS, "0, 2-3").digest() in entry["outputs"]["2"]["text"][0]
    found.toggles.nth(1).click()
    assert found.blocks == "" and all(found.kept)
    assert found.colours(2, 7) == before


def test_dragging_and_keys_change_several(shown):
    found = shown(masks.four_blocks())
    mouse = found.page.mouse
    mouse.move(*found.centre(0))
    mouse.down()
    for i in (2, 5):
        mouse.move(*found.centre(i), steps=5)
    mouse.up()
    assert found.blocks == "3"
    found.toggles.nth(3).click()
    assert found.blocks == "3" and "At least one block stays" in found.root.inner_text()
    found.root.get_by_role("button", name="Invert").click()
    assert found.blocks == "0-2"
    found.toggles.nth(0).focus()
    for key in ("ArrowRight", "Space"):
        found.page.keyboard.press(key)
    assert found.blocks == "0, 2"
    found.root.get_by_role("button", name="All (2 of 4)").click()
    assert found.blocks == ""
    found.root.get_by_role("button", name="blocks", exact=True).click()
    assert found.blocks == "" and "At least one block stays" in found.root.inner_text()


def test_groups_and_names_of_a_unet(shown):
    found = shown(masks.unet(), size=(640, 420))
    found.root.get_by_role("button", name="OUT", exact=True).click()
    assert found.blocks == "IN, MID"
    found.root.get_by_role("button", name="Keep block IN4", exact=True).click()
    assert found.blocks == "IN1-2, IN5-8, MID"
    found.page.mouse.move(*found.centre(0))
    assert found.status.startswith("IN1 ffn: 100 of 1,000 neurons")
    found.editor.shot("unet")


def test_what_is_typed_is_shown(shown):
    found = shown(masks.four_blocks())
    found.write("not 2")
    assert found.kept == [True, True, False, True]
    found.write("7-9")
    assert "does not fit this mask" in found.root.inner_text()
    found.toggles.nth(0).click()
    assert found.blocks == "1-3" and "does not fit" not in found.root.inner_text()


def test_a_saved_workflow_brings_the_map_back(shown, editor):
    found = shown(masks.four_blocks())
    found.cell(0).click()
    colours = found.colours(0, 2, 5, 7)
    saved = editor.saved()
    editor.open()
    editor.load(saved, show=2)
    again = Map(editor)
    assert again.blocks == "1-3" and again.kept == [False, True, True, True]
    assert again.colours(0, 2, 5, 7, label="again") == colours


def test_a_huge_mask_in_both_themes(shown, editor):
    found = shown(masks.flux(), size=(760, 420))
    assert found.toggles.count() == 57
    found.root.get_by_role("button", name="DOUBLE", exact=True).click()
    assert found.blocks == "SINGLE"
    dark = found.colours(60, 150, label="dark")
    setting = "(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)"
    try:
        editor.page.evaluate(setting, "light")
        editor.page.wait_for_timeout(600)
        light = found.colours(60, 150, label="light")
    finally:
        editor.page.evaluate(setting, "dark")
    assert near(light[1], dark[1]), "the scale means the same in every theme"
    assert sum(light[0]) > sum(dark[0]) + 150, "what is left alone fades into the page"


HOSTILE = [
    "no object",
    {"columns": ["<img src=x onerror='window.attacked=1'>"], "rows": [["ffn", ""]], "cells": [[0, 0, 1, "ffn", "", 1, 1, 1, 0]]},
    {
        **{"digest": "<b>x</b>", "title": "<script>window.attacked=1</script>", "what": "mask", "top": 1, "blocks": []},
        **{"columns": ["<img src=x onerror='window.attacked=1'>"], "rows": [["ffn", "<b>"]], "off": {"ffn": "1"}, "units": {}},
        "cells": [[0, 0, 1, "ffn", "<b>", 10**12, 1, 1, 0]],
    },
    {
        **{"digest": "<b>x</b>", "title": "<b>bold</b>", "what": "mask", "top": 1, "off": {"all": 1}, "units": {"ffn": "<b>"}},
        **{"columns": ["<i>0</i>"], "rows": [["ffn", "<b>"]], "cells": [[0, 0, 1, "ffn", "<b>", 10, 1, 0.1, 0]]},
        "blocks": [{"label": "<i>", "names": ["<i>"], "numbers": [0], "last": 0, "single": False}],
    },
    {"columns": ["0"] * 100000, "rows": [["ffn", ""]] * 100000, "cells": [], "top": -1},
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_a_hostile_workflow_does_no_harm(editor, case):
    editor.load(masks.mapped(masks.four_blocks(), properties={"uniforget_map": HOSTILE[case]}), show=2)
    found = Map(editor)
    editor.page.wait_for_timeout(300)
    assert editor.page.evaluate("window.attacked") is None
    assert found.root.locator("img, script, i, b b").count() == 0
    assert found.toggles.count() == (1 if case == 3 else 0)
    editor.run()
    editor.page.locator(".ufm-cell").first.wait_for()
    assert found.toggles.count() == 4


def test_the_page_reads_selections_as_the_engine_does(editor):
    read = f"""async ([text, rows]) => {{
        const {{ readBlocks }} = await import('/extensions/{PACK_NAME}/blocks.js')
        const found = readBlocks(text, rows)
        return found && [...found].sort()
    }}"""
    write = f"""async ([kept, rows]) => {{
        const {{ writeBlocks }} = await import('/extensions/{PACK_NAME}/blocks.js')
        return writeBlocks(new Set(kept), rows)
    }}"""
    cases = [(make, text) for make, text, _ in SELECTIONS] + [(make, text) for make, text, *_ in REFUSED]
    accepted = 0
    for make, text in cases:
        mask = make()
        entry = family(mask.info.family)
        rows = [row._asdict() for row in block_rows(entry, mask.gates)]
        try:
            chosen = select_blocks(text, entry, mask.gates)
        except SettingError:
            expected = None
        else:
            expected = sorted({block_name(entry, block_of(entry, name)) for name in chosen})
        assert editor.page.evaluate(read, [text, rows]) == expected, text
        if expected:
            accepted += 1
            written = editor.page.evaluate(write, [expected, rows])
            assert select_blocks(written, entry, mask.gates) == chosen, (text, written)
    assert accepted > 20
