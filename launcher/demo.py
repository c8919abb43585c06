"""``run.py demo``: queue the example workflow, show progress, judge the figures, keep the picture."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from . import verdict
from .client import ComfyClient
from .convert import to_prompt
from .errors import LauncherError, WorkflowError
from .paths import CACHE, DEMO_WORKFLOW, LOG, OUTPUT
from .server import ComfyServer, Install, running
from .setup import say

LEARN_NODE, SCORE_NODE = "UniForgetLearn", "UniForgetDemoScore"
PICTURE = OUTPUT / "forget_demo.png"
SILENCE = 8.0  # seconds without a line of progress


def demo(install: Install, port: int | None, preset: str | None, json_file: Path | None) -> int:
    """Runs the demo; 0 when the model really forgot, 1 when it did not."""
    began = time.monotonic()
    workflow = read_workflow(DEMO_WORKFLOW)
    server = ComfyServer(install, CACHE / "demo", LOG, port)
    say(f"Starting ComfyUI from {install.folder} on port {server.port}, headless, on the CPU")
    with running(server):
        client = server.client
        prompt = to_prompt(workflow, client.object_info())
        if preset:
            set_preset(prompt, preset, client.object_info())
        say(f"Queueing {DEMO_WORKFLOW.name}, {time.monotonic() - began:.0f} s after the start; Ctrl-C stops")
        entry = client.follow(prompt, workflow, Progress(prompt))
        figures = score(entry, prompt)
        picture = keep_picture(client, entry, prompt)
    print(f"\n{verdict.table(figures)}\n")
    say(f"Picture: {picture}" if picture else "The score node saved no picture.")
    if json_file:
        write_json(json_file, figures)
        say(f"Figures: {json_file}")
    reasons = verdict.reasons_against(figures)
    say("The model really forgot." if not reasons else "The model did not really forget: " + "; ".join(reasons) + ".")
    return 1 if reasons else 0


def read_workflow(path: Path) -> dict[str, Any]:
    """A workflow file.

    Raises:
        WorkflowError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkflowError(f"The workflow {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise WorkflowError(f"The workflow {path} is not JSON: {error}.") from None


def set_preset(prompt: dict[str, Any], preset: str, object_info: dict[str, Any]) -> None:
    """Sets the preset of the learning node in a prompt.

    Raises:
        WorkflowError: no such node or preset.
    """
    learners = nodes_of(prompt, LEARN_NODE)
    if not learners:
        raise WorkflowError(f"--preset: the workflow has no {LEARN_NODE} node to set it on.")
    kind, *options = object_info[LEARN_NODE]["input"]["required"]["preset"]
    choices = kind if isinstance(kind, list) else options[0]["options"]
    if preset not in choices:
        raise WorkflowError(f"--preset {preset}: choose one of {', '.join(choices)}.")
    for node_id in learners:
        prompt[node_id]["inputs"]["preset"] = preset


def nodes_of(prompt: dict[str, Any], kind: str) -> list[str]:
    """Ids of the nodes of one type."""
    return [node_id for node_id, node in prompt.items() if node["class_type"] == kind]


def score(entry: dict[str, Any], prompt: dict[str, Any]) -> dict[str, Any]:
    """Figures that the score node left in a history entry.

    Raises:
        LauncherError: the score node is not in the workflow, did not run, or reported something else.
    """
    scorers = nodes_of(prompt, SCORE_NODE)
    if not scorers:
        raise LauncherError(f"The workflow has no {SCORE_NODE} node, so nothing was measured.")
    reports = [entry["outputs"].get(node_id, {}).get(verdict.SCORE_KEY) for node_id in scorers]
    reports = [report for report in reports if report]
    if not reports:
        raise LauncherError(f"{SCORE_NODE} did not run or reported nothing, so nobody knows whether the model forgot. See {LOG}.")
    return verdict.check_figures(reports[0][0])


def keep_picture(client: ComfyClient, entry: dict[str, Any], prompt: dict[str, Any]) -> Path | None:
    """Copies the score node's picture to ``output/``; its new path, None when there is none."""
    images = [image for node_id in nodes_of(prompt, SCORE_NODE) for image in entry["outputs"].get(node_id, {}).get("images", [])]
    if not images:
        return None
    OUTPUT.mkdir(exist_ok=True)
    temporary = PICTURE.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(client.view(images[0]))
    os.replace(temporary, PICTURE)
    return PICTURE


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Writes the figures in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class Progress:
    """Prints which node runs and how far it is: one line that changes in a terminal, a line every tenth, and every 8 s, elsewhere."""

    def __init__(self, prompt: dict[str, Any], out: Any = None):
        self.titles = {
            node_id: node["_meta"]["title"] if "_meta" in node else node["class_type"] for node_id, node in prompt.items()
        }
        self.out = out or sys.stdout
        self.node = ""
        self.began = self.said = 0.0
        self.tenth = -1

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        """Takes one message of ComfyUI's websocket."""
        if kind == "executing" and data.get("node"):
            self._enter(str(data["node"]))
        elif kind == "progress" and data.get("max"):
            if data.get("node") and str(data["node"]) != self.node:
                self._enter(str(data["node"]))
            self._show(data["value"], data["max"])
        elif kind in ("execution_success", "execution_error", "execution_interrupted"):
            self._end_line()

    def _enter(self, node: str) -> None:
        self._end_line()
        self.node, self.tenth = node, -1
        self.began = self.said = time.monotonic()
        self._write(f"  {self.titles.get(node, node)}", stay=True)

    def _show(self, value: float, total: float) -> None:
        text = f"  {self.titles.get(self.node, self.node)}: {value:.0f}/{total:.0f} ({time.monotonic() - self.began:.0f} s)"
        tenth = int(10 * value / total)
        if self.out.isatty():
            self._write(text, stay=True)
        elif tenth > self.tenth or time.monotonic() - self.said >= SILENCE:
            self.tenth, self.said = tenth, time.monotonic()
            self._write(text, stay=False)

    def _write(self, text: str, stay: bool) -> None:
        if self.out.isatty():
            self.out.write("\r\x1b[K" + text)
        elif not stay or self.tenth < 0:
            self.out.write(text + "\n")
        self.out.flush()

    def _end_line(self) -> None:
        if self.node and self.out.isatty():
            self.out.write("\n")
            self.out.flush()
