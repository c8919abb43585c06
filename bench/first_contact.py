"""How long a new user waits, and whether what they open works: ``python -m bench.first_contact --json FILE [--renderer classic|nodes2]``.

Starts ComfyUI as ``run.py comfyui`` does (installed already, on the CPU) and Chromium (CHROMIUM, else the system's) on the address that it opens,
presses Run, and waits until Preview Comparison shows both pictures. Then opens every example workflow as it comes and runs it.

- ``seconds_to_first_comparison``: from the start to the pictures, wall time.
- ``templates_that_run``, ``templates``: how many ended well with something to see, and how many there are.
- ``offscreen_nodes``: nodes of any of them that lie outside of the window when it has been opened.

The workflow of ``run.py demo`` takes minutes; it is opened, and run by that command.

``--thumbnails`` also keeps a picture of each workflow's result beside it, for ComfyUI's list of templates, and one of each widget in docs/,
for people. They are the README's.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from launcher.errors import LauncherError
from launcher.inside import comfyui
from launcher.paths import DEMO_WORKFLOW, ROOT, venv_python
from launcher.server import ComfyServer, Install, running
from tests.browser.conftest import ARGS, SETTINGS, SIZE, Editor

from .common import machine, write_json

TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
# The window without what the page lays over its edges.
OFFSCREEN = """() => {
    const { scale, offset } = app.canvas.ds, { width, height } = app.canvas.canvas.getBoundingClientRect()
    return app.graph.nodes.filter((n) => {
        const [left, top, right, bottom] = [n.pos[0], n.pos[1] - 30, n.pos[0] + n.size[0], n.pos[1] + n.size[1]]
        return (left + offset[0]) * scale < 0 || (top + offset[1]) * scale < 0
            || (right + offset[0]) * scale > width || (bottom + offset[1]) * scale > height
    }).map((n) => n.type)
}"""
FITTED = "app.graph.uniforgetFitted === true"
SHOWN = """() => {
    const root = document.querySelector('.uniforget-compare')
    const images = [...(root?.querySelectorAll('.ufc-image') ?? [])]
    return images.length > 1 && images.every((i) => i.complete && i.naturalWidth > 0)
}"""
SHOW = """([id, x, y]) => {
    const node = app.graph.getNodeById(id), ds = app.canvas.ds
    ds.scale = 1
    ds.offset = [x - node.pos[0] - node.size[0] / 2, y - node.pos[1] - node.size[1] / 2]
    app.canvas.setDirty(true, true)
}"""
PLACE = """(id) => {
    const { pos, size } = app.graph.getNodeById(id), { offset } = app.canvas.ds, margin = 12
    return [pos[0] + offset[0] - margin, pos[1] + offset[1] - 30 - margin, size[0] + 2 * margin, size[1] + 30 + 2 * margin]
}"""
PATIENCE = 900_000
AS_IT_COMES = {"Comfy.VueNodes.AutoScaleLayout": True}
THUMBNAIL = 640
MIDDLE = {"x": 70, "y": 130, "width": SIZE["width"] - 140, "height": SIZE["height"] - 190}
# By number of the workflow: nodes of which docs/ has a picture, by its name.
WIDGETS = {
    "1": {"compare": "UniForgetPreview", "sweep": "UniForgetSweep", "map": "UniForgetMaskMap"},
    "4": {"own_picture": "UniForgetPictureCheck", "prompts": "UniForgetPromptCheck"},
    "5": {"seeds": "UniForgetVariety"},
}
TALL = {"width": 1400, "height": 1500}
SHARP = 2  # pixels of a screenshot per pixel of the page


def open_template(editor: Editor, path: Path) -> list[str]:
    """Opens a workflow as the list of templates does; returns the kinds of its nodes that are out of sight."""
    editor.page.evaluate("(w) => app.loadGraphData(w)", json.loads(path.read_text(encoding="utf-8")))
    settle(editor)
    return editor.page.evaluate(OFFSCREEN)


def settle(editor: Editor) -> None:
    """Waits until web/fit.js has fitted what was opened."""
    editor.page.wait_for_function(FITTED, timeout=PATIENCE, polling=100)
    editor.page.wait_for_timeout(500)


def keep(data: bytes, path: Path) -> None:
    """A screenshot as a JPEG of at most THUMBNAIL pixels on its longer side."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    picture.save(path, quality=85)


def keep_widgets(editor: Editor, widgets: dict[str, str]) -> None:
    """Each of these nodes at full size, as docs/<name>.png."""
    page = editor.page
    page.set_viewport_size(TALL)
    for name, kind in widgets.items():
        [node] = page.evaluate("(kind) => app.graph.nodes.filter((n) => n.type === kind).map((n) => n.id)", kind)
        page.evaluate(SHOW, [node, TALL["width"] / 2, TALL["height"] / 2 + 60])
        page.wait_for_timeout(1500)
        x, y, width, height = page.evaluate(PLACE, node)
        page.screenshot(clip={"x": x, "y": y, "width": width, "height": height}, path=ROOT / "docs" / f"{name}.png")
    page.set_viewport_size(SIZE)


def measure(install: Install, work: Path, chromium: str, renderer: str, only: int, thumbnails: bool = False) -> dict[str, Any]:
    """The figures; `only` templates are opened and run, the first ones."""
    began = time.monotonic()
    server = ComfyServer(install, work, work / "comfyui.log")
    with running(server), sync_playwright() as playwright:
        for name, value in {**SETTINGS, **AS_IT_COMES, "Comfy.VueNodes.Enabled": renderer == "nodes2"}.items():
            server.client.request(f"/settings/{name}", value)
        page = playwright.chromium.launch(executable_path=chromium, args=ARGS).new_page(
            viewport=SIZE, device_scale_factor=SHARP if thumbnails else 1
        )
        editor = Editor(page, server.client, renderer)
        page.goto(f"{server.client.url}/?uniforget=play", wait_until="commit")
        page.wait_for_function(
            "window.app?.graph?.nodes?.some((n) => n.type === 'UniForgetPreview')", timeout=PATIENCE, polling=200
        )
        settle(editor)
        page.evaluate("app.queuePrompt(0, 1)")
        page.wait_for_function(SHOWN, timeout=PATIENCE, polling=100)
        first = time.monotonic() - began
        while server.client.get("/queue")["queue_running"]:
            page.wait_for_timeout(500)
        page.wait_for_timeout(1000)
        rows = []
        for path in TEMPLATES[:only]:
            row: dict[str, Any] = {"template": path.stem, "offscreen": open_template(editor, path)}
            if path != DEMO_WORKFLOW:
                try:
                    row["outputs"] = sum(bool(output) for output in editor.run()["outputs"].values())
                    if thumbnails:
                        page.wait_for_timeout(1500)
                        keep(page.screenshot(clip=MIDDLE), path.with_suffix(".jpg"))
                        keep_widgets(editor, WIDGETS.get(path.stem[0], {}))
                except AssertionError as error:
                    row["error"] = str(error)[:500]
            elif thumbnails:
                keep(page.screenshot(clip=MIDDLE), path.with_suffix(".jpg"))
            rows.append(row)
    run = [row for row in rows if row["template"] != DEMO_WORKFLOW.stem]
    return {
        "renderer": renderer,
        "seconds_to_first_comparison": first,
        "templates": len(run),
        "templates_that_run": sum(row.get("outputs", 0) > 0 for row in run),
        "offscreen_nodes": sum(len(row["offscreen"]) for row in rows),
        "rows": rows,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints; 2 where there is no ComfyUI or Chromium."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.first_contact", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--renderer", choices=("classic", "nodes2"), default="classic")
    parser.add_argument("--thumbnails", action="store_true", help="also keep pictures of the results")
    parser.add_argument("--templates", type=int, default=len(TEMPLATES), help="only the first ones")
    options = parser.parse_args(arguments)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        install = Install(comfyui(), venv_python())
    except LauncherError as error:
        print(f"bench.first_contact: {error}", file=sys.stderr)
        return 2
    if not chromium:
        print("bench.first_contact: no Chromium; install it, or name it with CHROMIUM", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as work:
        found = measure(install, Path(work), chromium, options.renderer, options.templates, options.thumbnails)
    for name in ("seconds_to_first_comparison", "templates", "templates_that_run", "offscreen_nodes"):
        print(f"{name}: {found[name]:.1f}" if isinstance(found[name], float) else f"{name}: {found[name]}")
    if options.json:
        write_json(options.json, {"machine": machine(), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
