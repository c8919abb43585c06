"""Strength Sweep's grid in a real page: what is drawn, what a click sets, what is kept."""

import io
import re

import pytest
from PIL import Image

from .conftest import PATIENCE
from .drawing import COPIED, PROMPT, Drawing


class Grid:
    """The grid in one Strength Sweep node."""

    def __init__(self, editor, node):
        self.editor, self.node, self.page = editor, node, editor.page
        self.page.evaluate(
            """(id) => {
                const node = app.graph.getNodeById(id), ds = app.canvas.ds
                node.widgets.find((w) => w.name === 'sweep').element.dataset.testNode = id
                ds.scale = 0.9
                ds.offset = [500 - node.pos[0], 960 - node.pos[1] - node.size[1]]
                app.canvas.setDirty(true, true)
            }""",
            node,
        )
        self.page.wait_for_timeout(400)
        self.root = self.page.locator(f".uniforget-sweep[data-test-node='{node}']")
        self.cells = self.root.locator(".ufs-cell")

    def wait_shown(self, count):
        self.page.wait_for_function(
            """([id, count]) => {
                const root = document.querySelector(`.uniforget-sweep[data-test-node='${id}']`)
                const images = [...root.querySelectorAll('.ufs-image')]
                images.forEach((i) => { i.loading = 'eager' })
                return images.length === count && images.every((i) => i.complete && i.naturalWidth > 0)
            }""",
            arg=[self.node, count],
            timeout=PATIENCE,
            polling=200,
        )
        self.page.wait_for_timeout(200)

    @property
    def message(self):
        return self.root.locator(".ufs-message").inner_text()

    @property
    def pressed(self):
        return [i for i in range(self.cells.count()) if self.cells.nth(i).get_attribute("aria-pressed") == "true"]

    def state(self):
        return self.page.evaluate("(id) => app.graph.getNodeById(id).properties.uniforget_sweep", self.node)


def strength(editor, node):
    return editor.page.evaluate("(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'strength').value", node)


@pytest.fixture
def swept(editor):
    """A run sweep with an Apply node of the same mask, one of another, and a Preview Comparison."""
    graph = Drawing()
    sweep, apply = graph.sweep(), graph.apply()
    other = graph.apply(
        mask=(graph.put("UniForgetThreshold", [0.01], {"subspace": graph.mask}, ["UNIFORGET_MASK"], (0, -400)), 0), mode=2
    )
    through = graph.put("Reroute", [], {"": graph.mask}, ["*"], (-350, -100), (75, 26))
    rerouted = graph.apply(mask=(through, 0), pos=(-350, -400))
    editor.load(graph.workflow(), sweep)
    output = editor.run()["outputs"][str(sweep)]
    grid = Grid(editor, sweep)
    grid.wait_shown(6)
    return grid, output, apply, other, rerouted


def test_an_empty_grid_says_what_to_do(editor):
    graph = Drawing()
    node = graph.sweep()
    editor.load(graph.workflow(), node)
    grid = Grid(editor, node)
    assert "Run the workflow" in grid.message
    editor.shot()


def test_every_cell_shows_its_picture_and_likeness(swept):
    grid, output, *_ = swept
    [made] = output["sweep"]
    assert made["strengths"] == [0, 0.5, 1] and [row["prompt"] for row in made["rows"]] == [PROMPT, COPIED]
    text = grid.root.inner_text()
    assert PROMPT in text and COPIED in text and "seed 5" in text and "original" in text
    assert [made["cells"][i]["similarity"] for i in (0, 3)] == [1, 1]
    assert made["cells"][5]["similarity"] < 0.9
    assert [grid.cells.nth(i).locator(".ufs-value").inner_text() for i in range(6)] == [
        "original" if i in (0, 3) else c["word"] for i, c in enumerate(made["cells"])
    ]
    assert f"alike {made['cells'][5]['similarity']:.2f}" in grid.cells.nth(5).get_attribute("aria-label")
    for i in (0, 2, 3, 5):
        saved = Image.open(io.BytesIO(grid.editor.client.view(made["cells"][i]))).convert("RGB")
        grid.cells.nth(i).scroll_into_view_if_needed()
        shot = grid.editor.shot("grid")
        box = grid.cells.nth(i).locator(".ufs-image").bounding_box()
        for x, y in ((0.3, 0.3), (0.8, 0.8), (0.2, 0.7)):
            drawn = shot.getpixel((round(box["x"] + box["width"] * x), round(box["y"] + box["height"] * y)))
            around = [
                saved.getpixel((round(saved.width * x) + dx, round(saved.height * y) + dy))
                for dx in (-1, 0, 1)
                for dy in (-1, 0, 1)
            ]
            low, high = ([side(c[k] for c in around) - sign * 12 for k in range(3)] for side, sign in ((min, 1), (max, -1)))
            assert all(a <= v <= b for a, v, b in zip(low, drawn, high)), f"cell {i} at {x}, {y}: {drawn} is none of {around}"


def test_a_click_sets_the_strength_of_the_nodes_with_the_same_mask(swept):
    grid, _, apply, other, rerouted = swept
    editor = grid.editor
    before = editor.place(grid.node)
    grid.cells.nth(1).click()
    assert [strength(editor, node) for node in (apply, rerouted, other)] == [0.5, 0.5, 1]
    assert grid.pressed == [1] and "Strength 0.5 set in" in grid.message and f"({apply})" in grid.message
    assert "ufs-chosen" in grid.root.locator(".ufs-head").nth(1).get_attribute("class")
    assert editor.place(grid.node) == before, "clicking moved the node or the view"
    editor.shot("clicked")
    box = grid.cells.nth(1).bounding_box()
    edge = editor.shot("edge").getpixel((round(box["x"] + 1), round(box["y"] + box["height"] / 2)))
    assert edge[0] > 200 and edge[2] < 120, f"the chosen cell is not marked: {edge}"
    told = editor.page.evaluate(
        "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'text').element.textContent", apply
    )
    assert "Strength 0.5 is set. Run the workflow" in told, "what Apply says is not of the last run"
    prompt = editor.page.evaluate("app.graphToPrompt().then((p) => p.output)")
    assert prompt[str(apply)]["inputs"]["strength"] == 0.5
    grid.cells.nth(1).focus()
    editor.page.keyboard.press("ArrowRight")
    editor.page.keyboard.press("ArrowDown")
    editor.page.keyboard.press("Enter")
    assert grid.pressed == [5] and strength(editor, apply) == 1


def test_a_node_with_a_strength_from_elsewhere_or_of_another_kind_is_named(swept):
    grid, _, apply, *_ = swept
    grid.page.evaluate("(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'strength_ffn').value = 0.3 }", apply)
    grid.cells.nth(2).click()
    assert "Not as in the grid: strength_ffn" in grid.message
    grid.page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id), number = LiteGraph.createNode('PrimitiveFloat')
            app.graph.add(number)
            number.connect(0, node, node.inputs.findIndex((i) => i.name === 'strength'))
        }""",
        apply,
    )
    grid.cells.nth(1).click()
    assert f"({apply}) takes its strength from another node" in grid.message and strength(grid.editor, apply) == 1


def test_the_button_finds_the_strength_and_then_sets_it(swept):
    grid, _, apply, *_ = swept
    button = grid.root.locator(".ufs-find")
    assert button.inner_text() == "Find my strength"
    found = {**grid.state(), "found": 0.5}
    grid.page.evaluate("([id, found]) => app.graph.getNodeById(id).onExecuted({ sweep: [found] })", [grid.node, found])
    assert button.inner_text() == "Use 0.5" and "Gone from strength 0.5 on" in grid.message
    button.click()
    assert strength(grid.editor, apply) == 0.5 and grid.pressed == [1]


def test_another_run_keeps_the_choice(swept):
    grid, _, apply, *_ = swept
    grid.cells.nth(4).click()
    grid.page.evaluate(
        "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'strengths').value = '0.5' }", grid.node
    )
    grid.editor.run()
    grid.wait_shown(4)
    assert grid.pressed == [3] and strength(grid.editor, apply) == 0.5


def test_without_a_node_to_set_it_says_what_to_do(editor):
    graph = Drawing()
    node = graph.sweep(prompts=PROMPT, strengths="1")
    editor.load(graph.workflow(), node)
    editor.run()
    grid = Grid(editor, node)
    grid.wait_shown(2)
    grid.cells.nth(1).click()
    assert "No node applies this mask yet" in grid.message and grid.pressed == []
    editor.page.evaluate(
        "(id) => { const n = app.graph.getNodeById(id); n.disconnectInput(n.inputs.findIndex((i) => i.name === 'mask')) }", node
    )
    grid.cells.nth(1).click()
    assert "Connect a mask" in grid.message


def test_a_saved_workflow_shows_the_grid_and_the_choice_again(swept):
    grid, _, apply, *_ = swept
    grid.cells.nth(4).click()
    saved = grid.editor.saved()
    grid.editor.open()
    grid.editor.load(saved, grid.node)
    again = Grid(grid.editor, grid.node)
    again.wait_shown(6)
    assert again.pressed == [4] and strength(grid.editor, apply) == 0.5
    assert PROMPT in again.root.inner_text()


def test_two_sweeps_do_not_share_anything(editor):
    graph = Drawing()
    first = graph.sweep(strengths="0.25", prompts=PROMPT, pos=(0, 0))
    second = graph.sweep(strengths="0.75, 1", prompts=COPIED, seeds=2, pos=(520, 0))
    apply, preview = graph.apply(), graph.preview(pos=(1040, 0))
    editor.load(graph.workflow(), first)
    editor.run()
    a, b = Grid(editor, first), Grid(editor, second)
    a.wait_shown(2)
    b.wait_shown(6)
    b.cells.nth(4).click()
    assert (a.pressed, b.pressed, strength(editor, apply), strength(editor, preview)) == ([], [4], 0.75, 0.75)
    assert {c["filename"] for c in a.state()["cells"]}.isdisjoint(c["filename"] for c in b.state()["cells"])
    assert "mean" in b.root.inner_text()
    editor.shot("two")


def test_a_wide_grid_scrolls_and_the_view_stays(editor):
    graph = Drawing()
    node = graph.sweep(strengths="0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1", prompts=PROMPT)
    editor.load(graph.workflow(), node)
    editor.run()
    grid = Grid(editor, node)
    grid.wait_shown(11)
    before = editor.place(node)
    box = grid.root.locator(".ufs-scroll").bounding_box()
    editor.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    editor.page.mouse.wheel(300, 0)
    editor.page.wait_for_timeout(300)
    assert grid.root.locator(".ufs-scroll").evaluate("(e) => e.scrollLeft") > 50
    assert editor.place(node) == before
    title, scroll = (grid.root.locator(name).first.bounding_box() for name in (".ufs-prompt", ".ufs-scroll"))
    assert scroll["x"] <= title["x"] < scroll["x"] + 40, "the prompt stays in sight"
    editor.shot()


LOST = {"filename": "gone_00001_.png", "subfolder": "uniforget", "type": "output", "similarity": 0.5}
HOSTILE = [
    "no object",
    {"strengths": "x", "rows": {"length": 3}, "cells": 7, "chosen": "wide", "notes": {}, "kinds": []},
    {"strengths": [1], "rows": [{"prompt": "p"}], "cells": [LOST, LOST], "chosen": 1e308},
    {
        "strengths": [0, {"valueOf": 1}],
        "rows": [{"prompt": "<img src=x onerror='window.attacked=1'>", "seed": "<script>window.attacked=1</script>"}],
        "cells": [
            {"filename": "x.png&type=input", "subfolder": "../../..", "type": "javascript:alert(1)", "similarity": 9},
            {"filename": "<img src=x onerror='window.attacked=1'>", "subfolder": '"><script>window.attacked=1</script>'},
        ],
        "notes": ["<script>window.attacked=1</script>"],
        "chosen": -5,
    },
]


@pytest.mark.parametrize("case", range(len(HOSTILE)))
def test_a_hostile_workflow_does_no_harm(editor, case):
    graph = Drawing()
    node = graph.sweep(properties={"uniforget_sweep": HOSTILE[case]})
    asked = []
    editor.page.on("request", lambda request: asked.append(request.url))
    editor.load(graph.workflow(), node)
    grid = Grid(editor, node)
    editor.page.wait_for_timeout(300)
    assert editor.page.evaluate("window.attacked") is None
    assert grid.root.locator("script").count() == 0
    assert grid.cells.count() in (0, 2) and grid.pressed == []
    pictures = [url for url in asked if "rand=" in url and "filename=" in url]
    assert all(url.startswith(f"{editor.client.url}/api/view?filename=") for url in pictures)


def test_missing_files_are_named(editor):
    graph = Drawing()
    state = {"strengths": [0, 1], "rows": [{"prompt": PROMPT, "seed": "5"}], "cells": [LOST, LOST]}
    node = graph.sweep(properties={"uniforget_sweep": state})
    editor.load(graph.workflow(), node)
    grid = Grid(editor, node)
    grid.root.locator(".ufs-missing").nth(1).wait_for()
    assert "not there any more" in grid.message
    editor.shot()


def test_words_on_the_nodes_own_ground_can_be_read_in_light_and_dark(editor):
    graph = Drawing()
    node = graph.sweep()
    palette = "(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
    try:
        for name, dark_words in (("light", True), ("dark", False)):
            editor.page.evaluate(palette, name)
            editor.load(graph.workflow(), node)
            colour = Grid(editor, node).root.locator(".ufs-message").evaluate("(e) => getComputedStyle(e).color")
            words = [int(v) for v in re.findall(r"\d+", colour)[:3]]
            assert (max(words) < 110) if dark_words else (min(words) > 180), f"{name}: {colour}"
            editor.shot(name)
    finally:
        editor.page.evaluate(palette, "dark")
