"""Masks that travel in workflows, in a real page: embedded by a menu, shown, run, saved as a file, and carried by a picture."""

import base64
import os
import shutil
from pathlib import Path

import pytest
import torch

from uniforget.mask import file as maskfile
from uniforget.mask import subspacefile
from uniforget.mask import text as masktext
from uniforget.mask.info import MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask

from . import masks

TEXT = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'mask_text').value"


@pytest.fixture(scope="module")
def folder(client):
    """A folder of our own in the server's models/uniforget/ (which may be a user's); its name starts the names of masks."""
    root = Path(client.get("/internal/folder_paths")["uniforget"][0])
    made = root / f"uniforget_embed_{os.getpid()}"
    made.mkdir(parents=True)
    maskfile.save(masks.four_blocks(), made / "four.safetensors")
    yield made
    shutil.rmtree(made)


class Panel:
    """What one Embedded Mask node shows."""

    def __init__(self, editor, node=1):
        self.editor, self.page, self.node = editor, editor.page, node
        self.page.evaluate(
            "(id) => { app.graph.getNodeById(id).widgets.find((w) => w.name === 'embedded').element.dataset.testNode = id }", node
        )
        self.root = self.page.locator(f".uniforget-embed[data-test-node='{node}']")
        self.area = self.root.locator("textarea")

    def wait(self, state):
        self.page.locator(f".uniforget-embed[data-test-node='{self.node}'][data-state='{state}']").wait_for()
        return self.root.locator(".ufe-state").inner_text() + "\n" + self.root.locator(".ufe-off").inner_text()

    @property
    def text(self):
        return self.page.evaluate(TEXT, self.node)


def choose(editor, node, label):
    """The node's menu entry; with Nodes 2.0 the button over the selected node."""
    page = editor.page
    if editor.renderer == "classic":
        x, y = page.evaluate(
            """(id) => {
                const node = app.graph.getNodeById(id)
                const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 15])
                const box = app.canvas.canvas.getBoundingClientRect()
                return [x + box.left, y + box.top]
            }""",
            node,
        )
        page.mouse.click(x, y, button="right")
        entry = page.locator(".litemenu-entry", has_text=label)
        entry.wait_for()
        editor.shot("menu")
        entry.click()
    else:
        page.evaluate("(id) => app.canvas.selectNode(app.graph.getNodeById(id))", node)
        icon = {"Embed mask in workflow": "pi-paperclip", "Save mask as file": "pi-save"}[label]
        button = page.locator(f".selection-toolbox button:has(.{icon})")
        button.wait_for()
        editor.shot("toolbox")
        button.click()


def toast(editor):
    """The newest message in the corner; it is closed."""
    message = editor.page.locator(".p-toast-message").last
    message.wait_for()
    text = message.inner_text()
    editor.page.evaluate("app.extensionManager.toast.removeAll?.()")
    editor.page.locator(".p-toast-message").first.wait_for(state="detached")
    return text


def test_load_is_embedded_and_makes_the_same_mask(editor, folder):
    mask = masks.four_blocks()
    editor.load(masks.loaded(f"{folder.name}/four.safetensors"), show=1)
    first = editor.run()["outputs"]["2"]["text"][0]
    assert mask.digest() in first
    choose(editor, 1, "Embed mask in workflow")
    editor.page.wait_for_function("app.graph.nodes.some((n) => n.type === 'UniForgetEmbeddedMask')")
    assert "The mask is in the workflow now" in toast(editor)
    made = editor.page.evaluate("Number(app.graph.nodes.find((n) => n.type === 'UniForgetEmbeddedMask').id)")
    assert editor.page.evaluate(TEXT, made) == masktext.to_text(mask)
    origin = editor.page.evaluate("app.graph.getNodeById(2).getInputNode(0).id")
    assert int(origin) == made and editor.page.evaluate("app.graph.getNodeById(1).outputs[0].links?.length ?? 0") == 0
    editor.show(made)
    words = Panel(editor, made).wait("good")
    assert mask.digest() in words and "ffn 12.5%" in words and "Small SD3" in words
    editor.shot("embedded")
    entry = editor.run()
    assert mask.digest() in entry["outputs"][str(made)]["text"][0]
    assert entry["outputs"]["2"]["text"][0] == first
    # the saved workflow needs no file
    saved = editor.saved()
    saved["nodes"] = [n for n in saved["nodes"] if n["id"] != 1]
    editor.load(saved, show=made)
    assert editor.run()["outputs"]["2"]["text"][0] == first


def test_the_panel_hides_the_long_text_and_shows_what_it_is(editor):
    mask = masks.unet()
    editor.load(masks.mapped(mask), show=1)
    panel = Panel(editor)
    words = panel.wait("good")
    assert "Stable Diffusion 1.x mask" in words and mask.digest() in words and f"{len(masktext.to_text(mask))} bytes" in words
    assert panel.area.input_value() == masktext.to_text(mask)
    assert panel.area.bounding_box()["height"] < 150
    # the node's own widget, which would show all of it, is not there, and leaves no room free
    place = (
        "(() => { const n = app.graph.getNodeById(1); return app.canvas.ds.convertOffsetToCanvas([n.pos[0], n.pos[1]])[1] })()"
    )
    top = editor.page.evaluate(place) + editor.page.evaluate("app.canvas.canvas.getBoundingClientRect().top")
    assert panel.root.bounding_box()["y"] - top < 160  # the node's line of text is above
    assert editor.page.locator("textarea:visible").count() == 1
    editor.shot("dark")
    setting = "(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)"
    try:
        editor.page.evaluate(setting, "light")
        editor.page.wait_for_timeout(600)
        editor.shot("light")
    finally:
        editor.page.evaluate(setting, "dark")


def test_a_pasted_text_is_checked_and_kept(editor):
    text = masktext.to_text(masks.four_blocks())
    editor.load(masks.mapped(""), show=1)
    panel = Panel(editor)
    panel.wait("empty")
    assert panel.root.get_by_role("button", name="Save as file").is_disabled()
    panel.area.fill(text[:-4])
    assert "cut off" in panel.wait("bad")
    assert panel.root.get_by_role("button", name="Save as file").is_disabled()
    editor.shot("cut")
    panel.area.fill("<img src=x onerror='window.attacked=1'>")
    editor.page.get_by_text("expected text that starts with").wait_for()
    assert panel.root.locator("img").count() == 0 and editor.page.evaluate("window.attacked") is None
    panel.area.fill(text)
    assert masks.four_blocks().digest() in panel.wait("good")
    assert panel.text == text
    # keys in the text are the text's
    panel.area.press("End")
    panel.area.press("Backspace")
    assert editor.page.evaluate("Boolean(app.graph.getNodeById(1))")
    assert "cut off" in panel.wait("bad")
    saved = editor.saved()
    assert next(n for n in saved["nodes"] if n["id"] == 1)["widgets_values"] == [text[:-1]]


@pytest.mark.parametrize("way", ["button", "menu"])
def test_it_is_saved_as_a_file_that_loads(editor, folder, way):
    mask = masks.four_blocks()
    editor.load(masks.mapped(mask), show=1)
    panel = Panel(editor)
    panel.wait("good")
    name = f"{folder.name}/{editor.renderer}_{way}"
    for number in (1, 2):
        if way == "button":
            panel.root.get_by_role("button", name="Save as file").click()
        else:
            choose(editor, 1, "Save mask as file")
        question = editor.page.get_by_role("dialog")
        question.get_by_role("textbox").fill(name)
        question.get_by_role("button", name="Confirm").click()
        assert f"Saved as {name}_0000{number}.safetensors" in toast(editor)
        path = folder / f"{editor.renderer}_{way}_0000{number}.safetensors"
        assert path.read_bytes() == (folder / "four.safetensors").read_bytes()
    panel.root.get_by_role("button", name="Save as file").click()
    question.get_by_role("textbox").fill("../outside")
    question.get_by_role("button", name="Confirm").click()
    assert "expected a plain name inside" in toast(editor)


def test_what_cannot_be_embedded_is_said(editor, folder):
    basis = Basis(torch.eye(4), torch.tensor([0.7, 0.2, 0.1, 0.0]))
    layer = "joint_blocks.0.x_block.mlp.fc1"
    subspace = SubspaceMask(
        {layer: basis}, {layer: layer}, {layer: "ffn"}, 0.05, MaskInfo("sd3", "", method="subspace", version="1")
    )
    subspacefile.save(subspace, folder / "subspace.safetensors")
    for name, words in (
        (f"{folder.name}/subspace.safetensors", "needs a mask of gates; found a subspace"),
        ("gone.safetensors", "There is no mask"),
    ):
        editor.load(masks.loaded(name), show=1)
        choose(editor, 1, "Embed mask in workflow")
        assert words in toast(editor)
        assert editor.page.evaluate("app.graph.nodes.length") == 2


def test_a_picture_carries_the_mask(editor):
    mask = masks.four_blocks()
    made = masks.mapped(mask)
    made["nodes"].append(masks.node(3, "SaveImage", ["uniforget/carrier"], [("images", "IMAGE", 2)], pos=(460, 500)))
    made["nodes"][1]["outputs"][2]["links"] = [2]
    made["links"].append([2, 2, 2, 3, 0, "IMAGE"])
    made["last_node_id"], made["last_link_id"] = 3, 2
    editor.load(made, show=1)
    [picture] = editor.run()["outputs"]["3"]["images"]
    data = base64.b64encode(editor.client.view(picture)).decode()
    editor.page.evaluate("app.graph.clear()")
    assert editor.page.evaluate("app.graph.nodes.length") == 0
    editor.page.evaluate(
        """async (data) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0))
            await app.handleFile(new File([bytes], 'carrier.png', { type: 'image/png' }))
        }""",
        data,
    )
    editor.page.wait_for_function("app.graph.nodes.length === 3")
    editor.show(1)
    panel = Panel(editor)
    assert mask.digest() in panel.wait("good")
    assert panel.text == masktext.to_text(mask)
    # Another theme: what did not change since the first run would not run again.
    editor.page.evaluate("app.graph.getNodeById(2).widgets.find((w) => w.name === 'theme').value = 'light'")
    assert mask.digest() in editor.run()["outputs"]["2"]["text"][0]
    editor.shot("restored")
