"""How much script an interaction with Compare takes in the page, with pictures of 2048 x 2048, in both renderers.

    python -m bench.page --json FILE [--pictures 2048]

Starts ComfyUI (COMFYUI_PATH, else the one that run.py fetched) and Chromium (CHROMIUM, else the system's), loads the example
workflow with four pairs of pictures in its Compare node, and works on it with mouse, wheel and keys while the browser's
performance trace is on. Nothing is simulated within the page.

**An interaction** begins with the input event that is dispatched to the page (``pointermove``, ``wheel``, ``keydown``, ``click``; for
flicker: the timer) and lasts until the next one. Two figures each, from the main thread of the page:

- ``own_ms``: all calls into this project's files, with whatever they call in turn and the layouts they force, until the next
  interaction: also what they left to a timer, such as letting ComfyUI notice the change.
- ``script_ms``: all script, the host's too (its own listeners, its drawing of the canvas in the next animation frame, garbage collection),
  from the event to the frame that shows its effect.

Both are wall time; ``own_cpu_ms`` is the time in which the processor really worked on ``own_ms``, without what other programs took
meanwhile. Decoding and painting pictures happen on other threads and are no script. The rows "ComfyUI alone" are the same inputs on an
empty place of the canvas: what the host does without us.
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from launcher.errors import LauncherError
from launcher.inside import comfyui
from launcher.paths import PACK_NAME, ROOT, venv_python
from launcher.server import ComfyServer, Install, running
from tests.browser.conftest import ARGS, SETTINGS, SIZE, Editor

from .common import machine, write_json

OWN = re.compile(rf"/extensions/{PACK_NAME}/")
SCRIPT = {
    "EventDispatch",
    "FunctionCall",
    "FireAnimationFrame",
    "TimerFire",
    "FireIdleCallback",
    "RunMicrotasks",
    "EvaluateScript",
}
SCRIPT |= {"MinorGC", "MajorGC", "v8.callFunction"}
CATEGORIES = ["devtools.timeline", "v8.execute", "__metadata"]
EMPTY_PLACE = """() => {
    for (let y = 200; y < innerHeight - 100; y += 20)
        for (let x = 200; x < innerWidth - 200; x += 20) {
            const around = [[x, y], [x + 60, y + 60], [x - 60, y - 60], [x + 60, y - 60], [x - 60, y + 60]]
            const node = ([a, b]) => app.graph.getNodeOnPos(...app.canvas.convertEventToCanvasOffset({ clientX: a, clientY: b }))
            if (!around.some(node)) return [x, y]
        }
}"""
PAIRS = 4
PAUSE = 60  # ms between two inputs: a few frames
SETTLE = 600


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; its exit code: 0 measured, 2 it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", required=True, help="where the figures go")
    parser.add_argument("--pictures", type=int, default=2048, help="their width and height (default %(default)s)")
    options = parser.parse_args(arguments)
    try:
        figures = measure(options.pictures)
    except LauncherError as error:
        print(error, file=sys.stderr)
        return 2
    write_json(options.json, figures)
    print(table(figures["rows"]))
    return 0


def measure(size: int) -> dict[str, Any]:
    """All figures, as in docs/bench.md.

    Raises:
        LauncherError: ComfyUI could not be started.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = ComfyServer(Install(comfyui(), venv_python()), Path(folder), Path(folder, "comfyui.log"))
        with running(server):
            workflow, node = workflow_with_pictures(server.folders["output"], size)
            chromium = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=ARGS)
            for renderer in ("classic", "nodes2"):
                for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": renderer == "nodes2"}.items():
                    server.client.request(f"/settings/{name}", value)
                page = chromium.new_context(viewport=SIZE).new_page()
                page.set_default_timeout(180_000)
                editor = Editor(page, server.client, renderer)
                editor.open()
                editor.load(workflow, show=node)
                widget = editor.compare(node)
                widget.wait_shown()
                shown = page.evaluate("[...document.querySelectorAll('.ufc-image')].map((i) => i.naturalWidth)")
                assert size in shown, f"the pictures are not shown: {shown}"
                for name, (kinds, act) in interactions(widget).items():
                    found = costs(traced(chromium, page, act), kinds)
                    rows.append({"renderer": renderer, "interaction": name, **found})
                    print(f"{renderer}, {name}: {found}", flush=True)
                page.context.close()
            version = chromium.version
            chromium.close()
    worst = {name: max(row[name] for row in rows) for name in ("own_ms_max", "own_cpu_ms_max")}
    return {"rows": rows, "pictures": size, **worst, "chromium": version, "machine": machine()}


def workflow_with_pictures(folder: Path, size: int) -> tuple[dict[str, Any], int]:
    """The example workflow and its first Compare node, which shows PAIRS pairs that lie in the output folder `folder`."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    names: dict[str, list[dict[str, str]]] = {"a": [], "b": []}
    for i in range(PAIRS):
        clouds = np.stack([np.sin((3 + c + i) * x + (5 - c) * y * (i + 1)) for c in range(3)], -1) * 100 + 128
        for side, noise in (("a", 4), ("b", 8)):
            picture = np.clip(clouds + random.normal(0, noise, clouds.shape), 0, 255).astype(np.uint8)
            name = f"page_{side}_{i}.png"
            Image.fromarray(picture).save(folder / name, compress_level=1)
            names[side].append({"filename": name, "subfolder": "", "type": "output"})
    workflow = json.loads((ROOT / "example_workflows" / "6 Together with a LoRA.json").read_text(encoding="utf-8"))
    node = next(n for n in workflow["nodes"] if n["type"] == "UniForgetCompare")
    node["properties"]["uniforget_compare"] = names
    return workflow, node["id"]


def interactions(widget) -> dict[str, tuple[set[str], Callable[[], None]]]:
    """By name: the input events that count as one interaction each, and what to do."""
    page = widget.page
    mouse, keys = page.mouse, page.keyboard
    pause = lambda: page.wait_for_timeout(PAUSE)  # noqa: E731

    def drag(places):
        mouse.move(*widget.at(*places[0]))
        mouse.down()
        for place in places[1:]:
            mouse.move(*widget.at(*place))
            pause()
        mouse.up()

    def wheel(*deltas):
        mouse.move(*widget.at(0.4, 0.6))
        keys.down("Control")
        for delta in deltas:
            mouse.wheel(0, delta)
            pause()
        keys.up("Control")

    def press(*pressed):
        for key in pressed:
            keys.press(key)
            pause()

    def click(*buttons):
        for box in [button.bounding_box() for button in buttons]:
            mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.wait_for_timeout(SETTLE)

    def elsewhere(moves=0, clicks=0):
        x, y = page.evaluate(EMPTY_PLACE)
        for i in range(moves):
            mouse.move(x + 20 * np.cos(i / 4), y + 20 * np.sin(i / 4))
            pause()
        for _ in range(clicks):
            mouse.click(x, y)
            page.wait_for_timeout(SETTLE)

    line = [(0.5 + 0.4 * np.sin(i / 4), 0.6) for i in range(40)]
    modes = widget.root.locator(".ufc-group [data-mode]").all()
    thumbs = widget.root.locator(".ufc-thumb").all()
    return {
        "drag the slider": ({"pointermove"}, lambda: drag(line)),
        "move the slider by key": ({"keydown"}, lambda: press(*["ArrowLeft", "ArrowRight"] * 10)),
        "zoom by wheel": ({"wheel"}, lambda: wheel(*[-100] * 12, *[100] * 6)),
        "pan": ({"pointermove"}, lambda: drag([(0.2 + 0.1 * np.cos(i / 4), 0.4 + 0.1 * np.sin(i / 4)) for i in range(40)])),
        "zoom by key": ({"keydown"}, lambda: press("0", *"+" * 8, *"-" * 8)),
        "switch the mode": ({"click"}, lambda: click(*modes[1:], *modes)),
        "another pair": ({"click"}, lambda: click(*thumbs[1:], *thumbs)),
        "flicker": (set(), lambda: (click(modes[2]), page.wait_for_timeout(5000), click(modes[0]))),
        "ComfyUI alone: move": ({"pointermove"}, lambda: elsewhere(moves=40)),
        "ComfyUI alone: click": ({"click"}, lambda: elsewhere(clicks=8)),
        "ComfyUI alone: key": ({"keydown"}, lambda: press(*["ArrowLeft"] * 10)),
    }


def traced(browser, page, act: Callable[[], Any]) -> list[dict[str, Any]]:
    """What the browser's trace says about the page's main thread while ``act`` runs and a moment longer."""
    page.wait_for_timeout(SETTLE)
    browser.start_tracing(page=page, categories=CATEGORIES)
    try:
        act()
        page.wait_for_timeout(SETTLE)
    finally:
        events = json.loads(browser.stop_tracing())["traceEvents"]
    mains = {(e["pid"], e["tid"]) for e in events if e.get("args", {}).get("name") == "CrRendererMain"}
    count = {main: sum((e["pid"], e["tid"]) == main and e["name"] == "FunctionCall" for e in events) for main in mains}
    busiest = max(mains, key=lambda main: count[main])
    return sorted((e for e in events if (e["pid"], e["tid"]) == busiest and "ts" in e), key=lambda e: e["ts"])


def costs(events: list[dict[str, Any]], kinds: set[str]) -> dict[str, Any]:
    """Milliseconds of script per interaction; `kinds` are the input events that begin one, none for the timer of flicker."""
    whole = [e for e in events if e.get("ph") == "X"]
    own = outermost(e for e in whole if e["name"] == "FunctionCall" and OWN.search(_data(e).get("url", "")))
    script = outermost(e for e in whole if e["name"] in SCRIPT)
    frames = [e["ts"] for e in events if e["name"] == "Commit"]
    if kinds:
        starts = [e["ts"] for e in whole if e["name"] == "EventDispatch" and _data(e).get("type") in kinds]
    else:
        timers = [(e["ts"], e["ts"] + e["dur"]) for e in whole if e["name"] == "TimerFire"]
        starts = [start for start, end in timers if any(start <= e["ts"] < end for e in own)]
    if not starts:
        raise LauncherError(f"The browser's trace has none of {', '.join(kinds) or 'our timers'}: nothing could be measured.")
    found: dict[str, list[float]] = {"own_ms": [], "own_cpu_ms": [], "script_ms": []}
    for start, end in zip(starts, [*starts[1:], events[-1]["ts"] + 1], strict=True):
        frame = min((f for f in frames if f > start), default=end)
        ours = [e for e in own if start <= e["ts"] < end]
        found["own_ms"].append(sum(e["dur"] for e in ours) / 1000)
        found["own_cpu_ms"].append(sum(e["tdur"] for e in ours) / 1000)
        found["script_ms"].append(sum(e["dur"] for e in script if start <= e["ts"] < min(frame, end)) / 1000)
    figures: dict[str, float] = {
        f"{k}_{name}": round(of(v), 2) for k, v in found.items() for name, of in (("median", median), ("max", max))
    }
    return {"count": len(starts), **figures}


def _data(event: dict[str, Any]) -> dict[str, Any]:
    return event.get("args", {}).get("data") or {}


def outermost(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not within another of them, in order of time."""
    kept: list[dict[str, Any]] = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        if not kept or event["ts"] >= kept[-1]["ts"] + kept[-1]["dur"]:
            kept.append(event)
    return kept


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, as in docs/bench.md."""
    lines = [
        "| renderer | interaction | times | own script, median (max) | own script, processor, max | all script to the next frame, median |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        own = f"{r['own_ms_median']:.1f} ms ({r['own_ms_max']:.1f}) | {r['own_cpu_ms_max']:.1f} ms"
        lines.append(f"| {r['renderer']} | {r['interaction']} | {r['count']} | {own} | {r['script_ms_median']:.1f} ms |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
