"""The Report node in a real page, and the file it writes in a browser that has no network."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from uniforget.mask import file as maskfile
from uniforget.mask.info import GateMask, MaskInfo

from .conftest import SHOTS

PROMPT = "portrait of eileen"


@pytest.fixture(scope="module")
def mask_name(client):
    """A mask that fits the demo model, in the server's folder."""
    root = Path(client.get("/internal/folder_paths")["uniforget"][0])
    folder = root / f"uniforget_tests_report_{os.getpid()}"
    folder.mkdir(parents=True)
    blocks = {f"joint_blocks.{i}.x_block.mlp.fc2": (torch.arange(1024) % (i + 2) != 0).float() for i in range(3)}
    info = MaskInfo(
        "sd3", "", "<b>demo</b>", "stepwise", 5.0, "strong", ("ffn",), seed=3, steps=400, learn_seconds=131, version="0.1.0"
    )
    maskfile.save(GateMask(blocks, dict.fromkeys(blocks, "ffn"), info), folder / "some.safetensors")
    yield f"{folder.name}/some.safetensors"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def prompt(mask_name):
    """Two pictures before and after, and their report (node 10), for the API."""

    def sampled(model):
        values = {"seed": 7, "steps": 4, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        links = {"model": [model, 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}
        return {"class_type": "KSampler", "inputs": {**values, **links}}

    def text(words):
        return {"class_type": "CLIPTextEncode", "inputs": {"text": words, "clip": ["1", 1]}}

    apply = {
        "model": ["1", 0],
        "mask": ["2", 0],
        "strength": 0.8,
        "strength_ffn": 1.0,
        "strength_norm": 1.0,
        "strength_attn": 1.0,
    }
    report = {
        **{"model": ["3", 0], "mask": ["2", 0], "original": ["8", 0], "forgotten": ["9", 0], "notes": "First line.\n<script>"},
        **{"title": 'Client & Co. <img src=x onerror="alert(1)">', "filename_prefix": "tests/report"},
        **{"include_workflow": True, "hash_model": True},
    }
    return {
        "1": {"class_type": "UniForgetDemoModel", "inputs": {"checkpoint": "bundled demo model"}},
        "2": {"class_type": "UniForgetLoadMask", "inputs": {"mask_name": mask_name}},
        "3": {"class_type": "UniForgetApply", "inputs": apply},
        "4": text(PROMPT),
        "5": text(""),
        "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 2}},
        "7": {"class_type": "KSampler", **{"inputs": sampled("1")["inputs"]}},
        "11": sampled("3"),
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "VAEDecode", "inputs": {"samples": ["11", 0], "vae": ["1", 2]}},
        "10": {"class_type": "UniForgetReport", "inputs": report},
    }


@pytest.fixture(scope="module")
def written(client, server, prompt):
    """Path of a report that the server wrote."""
    [saved] = client.run(prompt)["outputs"]["10"]["uniforget_report"]
    path = server.folders["output"] / saved["subfolder"] / saved["filename"]
    assert saved["type"] == "output" and re.fullmatch(r"report_\d{5}\.html", path.name)
    return path


@pytest.fixture
def alone(browser):
    """A page that notes whatever it asks for beside files, and may not have it."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, accept_downloads=True)
    asked = []
    context.route(re.compile(r"^(?!file:|data:)"), lambda route: (asked.append(route.request.url), route.abort()))
    page = context.new_page()
    page.problems, page.asked, page.dialogs = [], asked, []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_file_is_whole_without_a_network(alone, written, scheme):
    alone.emulate_media(color_scheme=scheme)
    alone.goto(written.as_uri())
    SHOTS.mkdir(exist_ok=True)
    alone.screenshot(path=SHOTS / f"report_{scheme}.png", full_page=True)
    assert alone.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert alone.evaluate("document.images.length") >= 4
    assert alone.asked == [] and alone.dialogs == [] and alone.problems == []
    assert alone.title() == 'Client & Co. <img src=x onerror="alert(1)">'
    text = alone.locator("body").inner_text()
    assert "<b>demo</b>" in text and "at strength 0.8" in text and PROMPT in text
    assert alone.locator("script").count() == 0
    paper = alone.evaluate("getComputedStyle(document.body).backgroundColor")
    level = sum(int(v) for v in re.findall(r"\d+", paper)[:3]) / 3
    assert level > 200 if scheme == "light" else level < 60
    overflow = alone.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0, "the page is wider than the window"


def test_it_fits_a_telephone_and_prints(alone, written):
    alone.set_viewport_size({"width": 390, "height": 800})
    alone.goto(written.as_uri())
    assert alone.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    alone.screenshot(path=SHOTS / "report_telephone.png")
    assert alone.pdf(path=SHOTS / "report.pdf").startswith(b"%PDF")


def test_the_workflow_can_be_saved_from_it(alone, written, prompt, tmp_path):
    alone.goto(written.as_uri())
    with alone.expect_download() as download:
        alone.get_by_text("Save the workflow").click()
    assert download.value.suggested_filename == "workflow.json"
    download.value.save_as(tmp_path / "workflow.json")
    assert json.loads((tmp_path / "workflow.json").read_text(encoding="utf-8")) == prompt


def test_a_script_that_got_in_would_not_run(alone, written, tmp_path):
    bad = tmp_path / "bad.html"
    text = written.read_text(encoding="utf-8")
    bad.write_text(text.replace("<main>", "<main><script>document.title = 'ran'</script><img src='https://example.com/x.png'>"))
    assert bad.stat().st_size > len(text)
    alone.goto(bad.as_uri())
    assert alone.title() != "ran" and alone.asked == [] and alone.problems, "the policy has to complain"


def test_the_node_opens_and_saves_its_report(editor, prompt):
    page = editor.page
    # another name, because ComfyUI does not write the same report twice
    here = {**prompt["10"]["inputs"], "filename_prefix": f"tests/{editor.renderer}"}
    prompt = {**prompt, "10": {**prompt["10"], "inputs": here}}
    page.evaluate("(prompt) => app.loadApiJson(prompt, 'report')", prompt)
    node = page.evaluate(
        """() => {
            const node = app.graph.nodes.find((n) => n.type === 'UniForgetReport')
            node.setSize([380, 420])
            return node.id
        }"""
    )
    editor.show(node)
    root = page.locator(".uniforget-report")
    assert "Run the workflow" in root.inner_text()
    entry = editor.run()
    [saved] = entry["outputs"][str(node)]["uniforget_report"]
    page.get_by_text("Open the report").wait_for()
    assert saved["filename"] in root.inner_text()
    editor.shot("node")
    page.get_by_text("Open the report").click()
    frame = page.frame_locator(".uniforget-report-dialog iframe")
    frame.get_by_role("heading", name="What was switched off").wait_for()
    editor.shot("open")
    assert page.locator(".uniforget-report-dialog iframe").get_attribute("sandbox") == "allow-downloads"
    page.keyboard.press("Escape")
    page.locator(".uniforget-report-dialog").wait_for(state="detached")
    with page.expect_download() as download:
        root.get_by_text("Save a copy").click()
    assert download.value.suggested_filename == saved["filename"]
    # a saved workflow shows it again, and what a stranger's workflow names instead is not taken
    workflow = editor.saved()
    page.evaluate("(w) => app.loadGraphData(w)", workflow)
    page.get_by_text("Open the report").wait_for()
    for stranger in ({"filename": "../x.html"}, {"filename": "x.png"}, {"filename": 3}, "x", None, [1]):
        for one in workflow["nodes"]:
            if one["id"] == node:
                one["properties"]["uniforget_report"] = stranger
        page.evaluate("(w) => app.loadGraphData(w)", workflow)
        page.get_by_text("Run the workflow: the report").wait_for()
