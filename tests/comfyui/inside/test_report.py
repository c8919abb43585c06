"""The report node in real ComfyUI: what it finds out by itself, and where it writes."""

import html
import json
import re
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from uniforget_pack.nodes import report as node
from uniforget_pack.nodes.demo import BUNDLED
from uniforget_pack.nodes.report import Report
from uniforget_pack.testbed import model as tb
from uniforget_pack.uniforget.hosts.comfy import apply_mask


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def prompt_of(strength=0.5):
    """The demo model, Apply, pictures, and the report as node 9."""
    return {
        "1": {"class_type": "UniForgetDemoModel", "inputs": {"checkpoint": BUNDLED}},
        "2": {
            "class_type": "UniForgetApply",
            "inputs": {"model": ["1", 0], "strength": strength},
            "_meta": {"title": "Forget <b>"},
        },
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": 7, "cfg": 3.0}},
        "9": {"class_type": "UniForgetReport", "inputs": {"model": ["1", 0], "forgotten": ["3", 0]}},
    }


def make(monkeypatch, model, mask, prompt=None, workflow=None, count=2, **values):
    """``(path, text of the file, what the node shows)``"""
    hidden = SimpleNamespace(unique_id=None, prompt=prompt or {}, extra_pnginfo={"workflow": workflow} if workflow else None)
    hidden.unique_id = "9" if prompt else None
    monkeypatch.setattr(Report, "hidden", hidden, raising=False)
    monkeypatch.setattr(node, "show", lambda cls, text: node.io and SimpleNamespace(as_dict=lambda: {"text": (text,)}))
    defaults = {
        "title": "For a client",
        "notes": "",
        "filename_prefix": "uniforget/report",
        "include_workflow": True,
        "hash_model": True,
    }
    pictures = torch.rand(2, count, 24, 32, 3, generator=torch.Generator().manual_seed(3))
    given = {"original": pictures[0], "forgotten": pictures[1]}
    out = Report.execute(model=model, mask=mask, **{**given, **defaults, **values})
    return Path(out.args[0]), Path(out.args[0]).read_text(encoding="utf-8"), out.ui


def test_it_says_what_was_done(demo, output, monkeypatch):
    mask = demo.mask()
    forgotten = apply_mask(demo.model, mask, 0.8)
    workflow = {"nodes": [{"id": 1, "type": "x</pre><script>"}], "links": []}
    path, text, shown = make(monkeypatch, forgotten, mask, prompt_of(), workflow)
    assert path == output / "uniforget" / "report_00001.html"
    assert shown["uniforget_report"] == [{"filename": "report_00001.html", "subfolder": "uniforget", "type": "output"}]
    assert "at strength 0.8" in text  # what the model says, not what the workflow says
    assert mask.digest() in text and node.file_hash(tb.WEIGHTS) in text
    assert text.count("data:image/png;base64,") == 5  # and the map
    assert html.escape("Forget <b> (UniForgetApply)") in text and "<b>(" not in text
    [coded] = re.findall(r'href="data:application/json;base64,([^"]+)"', text)
    import base64

    assert json.loads(base64.b64decode(coded)) == workflow
    assert "Careful" not in text
