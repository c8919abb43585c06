"""Chromium on a real ComfyUI's page, in both of its renderers."""

import io
import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from launcher.paths import PACK_NAME

from .graphs import node_ids

SHOTS = Path(__file__).parent / "screenshots"
ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
)
PATIENCE = 180_000  # ms; a busy machine takes a minute to open the page
RUN_SECONDS = 900
SIZE = {"width": 1400, "height": 900}
# What a new user's page would put over the graph.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.AutoScaleLayout": False}


@pytest.fixture(scope="session")
def browser(chromium):
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        yield started
        started.close()


@pytest.fixture(scope="session", params=["classic", "nodes2"])
def opened(browser, client, request):
    """An :class:`Editor` per renderer. Opening the page is what takes long, so the tests share it and load their own workflow."""
    renderer = request.param
    for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": renderer == "nodes2"}.items():
        client.request(f"/settings/{name}", value)
    context = browser.new_context(viewport=SIZE, has_touch=True)
    context.set_default_timeout(PATIENCE / 3)
    context.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    editor = Editor(context.new_page(), client, renderer)
    editor.open()
    yield editor
    context.close()


@pytest.fixture
def editor(opened, request):
    """The open page, in each renderer. Fails when the page reported an error of our scripts."""
    opened.name = request.node.name
    opened.problems.clear()
    yield opened
    ours = [problem for problem in opened.problems if f"/extensions/{PACK_NAME}/" in problem]
    assert not ours, "\n".join(ours)


class Editor:
    """ComfyUI's page, and the few things that the tests do with it."""

    def __init__(self, page, client, renderer):
        self.page, self.client, self.renderer, self.name = page, client, renderer, renderer
        self.problems = []
        page.on("pageerror", lambda error: self.problems.append(f"{error}\n{error.stack}"))
        page.on("console", self._console)

    def _console(self, message):
        if message.type == "error":
            self.problems.append(f"{message.text} {message.location}")

    def open(self):
        """Opens the page, or reloads it."""
        self.page.goto(self.client.url, wait_until="commit")
        self.page.wait_for_function(
            "window.app?.graph && window.app.canvas && window.app.extensionManager", timeout=PATIENCE, polling=200
        )
        self.page.wait_for_function(
            "window.app.extensions.some((e) => e.name === 'UniForget.Compare')", timeout=PATIENCE, polling=200
        )
        self.page.wait_for_function("!document.querySelector('#splash-loader, .p-blockui-mask')", timeout=PATIENCE, polling=200)
        self.page.wait_for_timeout(500)

    def load(self, workflow, show=None):
        """Loads a workflow and brings node `show` (default: the first Compare node) to the middle of the view at full size."""
        self.page.evaluate("(w) => app.loadGraphData(w)", workflow)
        assert set(node_ids(workflow)) <= set(self.page.evaluate("app.graph.nodes.map((n) => Number(n.id))"))
        self.show(show or next(n["id"] for n in workflow["nodes"] if n["type"] == "UniForgetCompare"))

    def show(self, node):
        self.page.evaluate(
            """(id) => {
                const node = app.graph.getNodeById(id), ds = app.canvas.ds
                ds.scale = 1
                ds.offset = [600 - node.pos[0] - node.size[0] / 2, 440 - node.pos[1] - node.size[1] / 2]
                app.canvas.setDirty(true, true)
            }""",
            node,
        )
        self.page.wait_for_timeout(400)

    def run(self):
        """Queues the workflow and waits until it has ended well."""
        before = set(self.client.get("/history"))
        self.page.evaluate("app.queuePrompt(0, 1)")
        end = time.monotonic() + RUN_SECONDS
        while not (new := set(self.client.get("/history")) - before):
            assert time.monotonic() < end, "the workflow did not end"
            self.page.wait_for_timeout(100)
        entry = self.client.history(*new)
        assert entry["status"]["status_str"] == "success", json.dumps(entry["status"])[:3000]
        return entry

    def compare(self, node):
        """The :class:`Widget` of a Compare node."""
        return Widget(self, node)

    def state(self, node):
        """What the node keeps in the workflow."""
        return self.page.evaluate("(id) => app.graph.getNodeById(id).properties.uniforget_compare", node)

    def saved(self):
        """The workflow as Save would write it."""
        return json.loads(self.page.evaluate("JSON.stringify(app.graph.serialize())"))

    def place(self, node):
        """Where the node is, and where the view is."""
        return self.page.evaluate(
            "(id) => [...app.graph.getNodeById(id).pos, ...app.canvas.ds.offset, app.canvas.ds.scale]", node
        )

    def shot(self, label=""):
        """A screenshot of the page as a PIL image, kept in the ignored folder screenshots/."""
        SHOTS.mkdir(exist_ok=True)
        data = self.page.screenshot()
        (SHOTS / f"{re.sub(r'[^a-z0-9_]+', '_', (self.name + '_' + label).lower()).strip('_')}.png").write_bytes(data)
        return Image.open(io.BytesIO(data)).convert("RGB")


class Widget:
    """The slider in one Compare node, found through the node, so that two of them are told apart."""

    def __init__(self, editor, node):
        self.editor, self.node, self.page = editor, node, editor.page
        marked = self.page.evaluate(
            """(id) => {
                const widget = app.graph.getNodeById(id).widgets.find((w) => w.name === 'compare')
                widget.element.dataset.testNode = id
                return Boolean(widget.element.querySelector('.ufc-frame'))
            }""",
            node,
        )
        assert marked, f"node {node} has no compare widget"
        self.root = self.page.locator(f".uniforget-compare[data-test-node='{node}']")
        self.frame = self.root.locator(".ufc-frame")
        self.slider = self.root.locator("[role=slider]")  # by role only a visible one is found, and only where there is a line

    def wait_shown(self):
        """Waits until both pictures are there and drawn."""
        self.page.wait_for_function(
            """(id) => {
                const root = document.querySelector(`.uniforget-compare[data-test-node='${id}']`)
                const images = [...root.querySelectorAll('.ufc-image')]
                return images.every((i) => i.complete && i.naturalWidth > 0 && !i.classList.contains('ufc-gone'))
            }""",
            arg=self.node,
            timeout=PATIENCE,
            polling=200,
        )
        self.page.wait_for_timeout(200)

    @property
    def value(self):
        return int(self.slider.get_attribute("aria-valuenow"))

    def at(self, x, y=0.75):
        """Screen position of a point of the frame with the pictures, both in [0, 1]."""
        box = self.frame.bounding_box()
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    def drag(self, start, end, y=0.6):
        """Drags with the mouse from one place of the picture to another."""
        self.drag_to((start, y), (end, y))

    def drag_to(self, start, end):
        """Drags with the mouse from one (x, y) of the picture to another."""
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(*middle), steps=4)
        self.page.mouse.move(*self.at(*end), steps=4)
        self.page.mouse.up()
        self.page.wait_for_timeout(150)

    def touch(self, *moves):
        """One or two fingers: each move is a list of their places, (x, y); they are lifted at the end."""
        session = self.page.context.new_cdp_session(self.page)
        for i, places in enumerate([*moves, []]):
            kind = "touchEnd" if not places else "touchMove" if i else "touchStart"
            points = [{"id": n, **dict(zip("xy", self.at(*place), strict=True))} for n, place in enumerate(places)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        session.detach()
        self.page.wait_for_timeout(200)

    def press(self, *keys):
        """Keys, with the focus on the picture."""
        self.frame.focus()
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(150)

    def wheel(self, delta, x=0.5, y=0.6, ctrl=False):
        """Turns the wheel over a place of the picture."""
        self.page.mouse.move(*self.at(x, y))
        if ctrl:
            self.page.keyboard.down("Control")
        self.page.mouse.wheel(0, delta)
        if ctrl:
            self.page.keyboard.up("Control")
        self.page.wait_for_timeout(200)

    def pixels(self, *xs, label=""):
        """Colours at these places of the picture, from left to right, as (r, g, b)."""
        return self.colours(*((x, 0.75) for x in xs), label=label)

    def colours(self, *places, label=""):
        """Colours at these places (x, y) of the picture, as (r, g, b)."""
        image = self.editor.shot(label)
        return [image.getpixel(tuple(round(v) for v in self.at(*place))) for place in places]
