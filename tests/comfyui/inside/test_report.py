"""The report node in real ComfyUI: what it finds out by itself, and where it writes."""

import base64
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import folder_paths
import pytest
import torch
from uniforget_pack.nodes import report as node
from uniforget_pack.nodes.demo import BUNDLED
from uniforget_pack.nodes.report import Report
from uniforget_pack.testbed import model as tb
from uniforget_pack.uniforget.errors import ReportFileError, SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask


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
    hidden = SimpleNamespace(unique_id="9", prompt=prompt or {}, extra_pnginfo={"workflow": workflow} if workflow else None)
    monkeypatch.setattr(Report, "hidden", hidden, raising=False)
    monkeypatch.setattr(node, "show", lambda cls, text: SimpleNamespace(as_dict=lambda: {"text": (text,)}))
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
    assert json.loads(base64.b64decode(coded)) == workflow
    assert "Careful" not in text


@pytest.mark.parametrize("name", ["../outside", "a/../../b", "/etc/x", "C:\\x", "con", "", ".hidden", "a\x00b", "a/../x"])
def test_names_cannot_leave_the_output_folder(demo, output, monkeypatch, name):
    assert "filename_prefix" in Report.validate_inputs(name)
    with pytest.raises(SettingError, match="filename_prefix"):
        make(monkeypatch, demo.model, demo.mask(), filename_prefix=name)
    assert not list(output.rglob("*"))


def test_nothing_is_overwritten(demo, output, monkeypatch):
    (output / "r_00007.HTML").write_text("mine")
    first, _, _ = make(monkeypatch, demo.model, demo.mask(), filename_prefix="r.html", hash_model=False)
    second, _, _ = make(monkeypatch, demo.model, demo.mask(), filename_prefix="r", hash_model=False)
    assert [first.name, second.name] == ["r_00008.html", "r_00009.html"]
    assert (output / "r_00007.HTML").read_text() == "mine"
    assert len(list(output.iterdir())) == 3, "a temporary file was left"


def test_a_full_disk_leaves_nothing(demo, output, monkeypatch):
    def full(path, content, overwrite=True):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node.atomic, "replace", full)
    with pytest.raises(ReportFileError, match="not saved"):
        make(monkeypatch, demo.model, demo.mask())
    assert not list(output.rglob("*.html"))


def test_the_strength_is_the_given_one_then_the_models_then_the_workflows(demo, monkeypatch):
    mask, other = demo.mask(), demo.mask(seed=1)
    applied = apply_mask(demo.model, mask, 0.8)
    assert node.strength_of(applied, mask, 0.25, prompt_of(0.5), "9") == ("0.25", "")
    assert node.strength_of(applied, mask, None, prompt_of(0.5), "9") == ("0.8", "")
    assert node.strength_of(demo.model, mask, None, prompt_of(0.5), "9") == ("0.5", "")
    words, caution = node.strength_of(applied, other, None, prompt_of(0.5), "9")
    assert words == "" and "other masks" in caution


def test_another_model_is_a_caution(demo, monkeypatch):
    mask = demo.mask()
    foreign = replace(mask, info=replace(mask.info, base=base64.b64encode(bytes(range(48))).decode()))
    _, text, _ = make(monkeypatch, demo.model, foreign, hash_model=False)
    assert "learned on another model" in text
    assert "learned on another model" not in make(monkeypatch, demo.model, mask, hash_model=False)[1]


def test_without_the_workflow_no_prompt_is_in_the_file(demo, monkeypatch):
    prompt = prompt_of()
    prompt["3"]["inputs"]["text"] = "a secret prompt"
    _, with_it, _ = make(monkeypatch, demo.model, demo.mask(), prompt, hash_model=False)
    _, without, _ = make(monkeypatch, demo.model, demo.mask(), prompt, hash_model=False, include_workflow=False)
    assert "a secret prompt" in with_it
    assert "a secret prompt" not in without and "application/json" not in without


def test_a_checkpoint_that_the_workflow_invents_is_not_read(demo, monkeypatch):
    prompt = prompt_of()
    prompt["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "../../../etc/passwd"}}
    _, text, _ = make(monkeypatch, demo.model, demo.mask(), prompt)
    assert "SHA-256 of the file" not in text


def test_the_prompt_and_an_everyday_pair_are_on_the_first_page(demo, monkeypatch):
    prompt = prompt_of()
    prompt["4"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "a portrait & a hat"}}
    prompt["3"]["inputs"]["positive"] = ["4", 0]
    prompt["9"]["inputs"]["original"] = ["3", 0]
    everyday = {"everyday_original": torch.zeros(1, 8, 8, 3), "everyday_forgotten": torch.zeros(1, 8, 8, 3)}
    _, text, _ = make(monkeypatch, demo.model, demo.mask(), prompt, hash_model=False, **everyday)
    first = text.split("<h1>Appendix</h1>")[0]
    assert html.escape("a portrait & a hat") in first and "alike 1.00" in first and '<i class="light gone">' in first
    with pytest.raises(SettingError, match="or neither"):
        make(monkeypatch, demo.model, demo.mask(), everyday_original=torch.zeros(1, 8, 8, 3))


@pytest.mark.parametrize("shape", [(0, 8, 8, 3), (8, 8, 3), (1, 0, 8, 3)])
def test_no_pictures_are_refused(demo, monkeypatch, shape):
    with pytest.raises(SettingError, match="at least one picture in 'original'"):
        make(monkeypatch, demo.model, demo.mask(), original=torch.zeros(shape))
