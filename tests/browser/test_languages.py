"""The nodes speak the language of ComfyUI's page."""

import json
import re

import pytest

from launcher.locales import FOLDER, read

from .conftest import PATIENCE, SIZE, Editor


@pytest.fixture(params=["ja", "zh", "de"])
def page(request, browser, client):
    """``(editor, texts, language)`` of a page in that language. ComfyUI's settings do not offer German, but a German browser chooses it."""
    client.request("/settings/Comfy.Locale", request.param)
    context = browser.new_context(viewport=SIZE, locale=request.param)
    context.set_default_timeout(PATIENCE / 3)
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    try:
        editor = Editor(context.new_page(), client, "")
        editor.open()
        yield editor, read(request.param), request.param
    finally:
        context.close()
        client.request("/settings/Comfy.Locale", "en")


def test_a_node_is_called_as_its_translation_says(page):
    editor, texts, language = page
    said = editor.page.evaluate(
        """() => {
            const node = LiteGraph.createNode('UniForgetLearn')
            app.graph.add(node)
            app.graph.add(LiteGraph.createNode('UniForgetMaskMap'))
            return {
                title: node.title,
                tooltip: node.constructor.nodeData.input.required.steps[1].tooltip,
                inputs: node.inputs.map((i) => [i.name, i.label ?? i.localized_name ?? i.name]),
                outputs: node.outputs.map((o) => o.label ?? o.localized_name ?? o.name),
                widgets: node.widgets.map((w) => [w.name, w.label ?? w.name])
            }
        }"""
    )
    wanted = texts["UniForgetLearn"]
    editor.name = "language"
    editor.shot(wanted["display_name"])
    assert said["title"] == wanted["display_name"]
    assert said["tooltip"] == wanted["inputs"]["steps"]["tooltip"]
    labels = {**dict(said["inputs"]), **dict(said["widgets"])}
    for name in ("model", "steps", "learning_rate", "preset"):
        assert labels[name] == wanted["inputs"][name]["name"]
    assert said["outputs"] == [wanted["outputs"][str(i)]["name"] for i in range(3)]
    editor.page.wait_for_timeout(1000)
    panel = editor.page.evaluate("document.querySelector('.uniforget-map .ufm-empty').textContent")
    with open(FOLDER / language / "main.json", encoding="utf-8") as file:
        assert panel == json.load(file)["uniforget"]["Run the workflow: the map of the mask appears here."]
