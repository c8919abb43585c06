"""No text of a stranger becomes code in ComfyUI's page: hostile masks, files, labels and results through every node, in both renderers."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from testbed import model as tb
from uniforget.mask import file as maskfile
from uniforget.mask import subspacefile
from uniforget.mask import text as masktext
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask

# No quotes and no slash: it must be the name of a file as well.
SCRIPT = "<img src=x onerror=window.ufRan=1>"
# What ComfyUI's page makes links of: without any bracket, attributes out of an address.
LINK = "http://x/__LNK0__ [[a|https://x onmouseover=window.ufRan=1 y]]"
HOSTILE = f'{SCRIPT} "{SCRIPT} &lt;img src=x onerror=window.ufRan=1&gt; {LINK}'
FC2 = "joint_blocks.1.x_block.mlp.fc2"
KNOWN = "soft cat on blue"  # the demo model refuses other words
LONGEST = 120_000  # ms

# Sends one of ComfyUI's messages to its page, as its server would.
SEND = "([kind, detail]) => window.comfyAPI.api.api.dispatchCustomEvent(kind, detail)"
# Whatever has handlers of ours in it, in the page; also those that would only run when somebody moves the mouse there.
FOUND = """() => [...document.querySelectorAll('*')].filter((e) =>
  e.matches('img[src="x"]') || [...e.attributes].some((a) => a.name.startsWith('on') && a.value.includes('ufRan'))
).map((e) => e.outerHTML.slice(0, 200))"""


def info(**more):
    texts = dict.fromkeys(("base_name", "method", "preset", "prompts_hash", "version"), HOSTILE)
    return MaskInfo("sd3", "", targets=("ffn",), extra={"note": HOSTILE, "combined_a": HOSTILE, SCRIPT: SCRIPT}, **texts | more)


def mask(every, **more):
    gates = {FC2: (torch.arange(1024) % every != 0).float()}
    return GateMask(gates, {FC2: "ffn"}, info(**more))


@pytest.fixture(scope="module")
def names(client, server):
    """``(masks, model)``: how a folder of hostile masks and a hostile copy of the demo model are called in ComfyUI's lists."""
    root = Path(client.get("/internal/folder_paths")["uniforget"][0])
    folder = root / f"uniforget_hostile_{os.getpid()}"
    folder.mkdir(parents=True)
    maskfile.save(mask(5), folder / f"{SCRIPT}.safetensors")
    basis = Basis(torch.eye(1024), torch.linspace(1, 0, 1024) / 512)
    subspacefile.save(SubspaceMask({FC2: basis}, {FC2: FC2}, {FC2: "ffn"}, 0.05, info()), folder / "subspace.safetensors")
    model = Path(client.get("/internal/folder_paths")["checkpoints"][0], f"{SCRIPT}.safetensors")
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tb.WEIGHTS, model)
    # A LoRA of the same name for it.
    lora = Path(client.get("/internal/folder_paths")["loras"][0], model.name)
    key, generator = "lora_unet_" + FC2.replace(".", "_"), torch.Generator().manual_seed(0)
    with safe_open(tb.WEIGHTS, "pt") as file:
        rows, columns = file.get_slice(next(n for n in file.keys() if n.endswith(f"{FC2}.weight"))).get_shape()  # noqa: SIM118
    pair = {
        "lora_up.weight": torch.rand(rows, 4, generator=generator),
        "lora_down.weight": torch.rand(4, columns, generator=generator),
    }
    save_file({f"{key}.{name}": value for name, value in pair.items()}, lora, {"ss_output_name": HOSTILE})
    yield folder.name, model.name
    shutil.rmtree(folder)
    model.unlink(), lora.unlink()


@pytest.fixture(scope="module")
def prompt(graph, names):
    """Every node but those that :func:`refused` has, with hostile text wherever a stranger's can be."""
    masks, model = names
    small = {"width": 96, "height": 96}
    learning = {**small, "steps": 1, "batch": 1, "sampling_steps": 1, "prompts": f"# {HOSTILE}\n{KNOWN}"}
    drawing = {"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    m, clip, vae = ({"model": ["1", 0]}, {"clip": ["1", 1]}, {"vae": ["1", 2]})
    latent, picture = {"latent_image": ["12", 0]}, ["13", 0]
    return {
        "1": graph("UniForgetDemoModel", checkpoint=model),
        "2": graph("UniForgetLoadMask", mask_name=f"{masks}/{SCRIPT}.safetensors"),
        "3": graph("UniForgetEmbeddedMask", mask_text=masktext.to_text(mask(7))),
        "4": graph("UniForgetCombine", mask_a=["2", 0], mask_b=["3", 0]),
        "5": graph("UniForgetSaveMask", mask=["4", 0], filename_prefix=f"{masks}/saved"),
        "6": graph("UniForgetApply", **m, mask=["5", 0]),
        "7": graph("UniForgetMaskMap", mask=["5", 0]),
        "8": graph("UniForgetLoadMask", mask_name=f"{masks}/subspace.safetensors"),
        "9": graph("UniForgetThreshold", mask=["8", 0]),
        "10": graph("CLIPTextEncode", text=KNOWN, **clip),
        "11": graph("UniForgetCompact", **m, mask=["2", 0]),
        "12": graph("EmptySD3LatentImage", **small, batch_size=1),
        "13": graph("EmptyImage", **small, batch_size=1, color=0),
        "14": graph("UniForgetLearn", **m, **clip, **learning),
        "15": graph("UniForgetRecover", **m, **clip, mask=["2", 0], filename_prefix=masks, **learning),
        "16": graph("UniForgetSaveSanitized", model_name=f"checkpoints/{model}", mask=["2", 0], filename_prefix=masks),
        "17": graph("UniForgetPreview", **m, **vae, **latent, mask=["3", 0], positive=["10", 0], **drawing, filename_prefix=masks),
        "18": graph(
            "UniForgetSweep",
            **m, **clip, **vae, **latent, mask=["2", 0], prompts=KNOWN, strengths="0, 1", **drawing, filename_prefix=masks,
        ),
        "19": graph(
            "UniForgetCompare",
            original=picture, forgotten=picture, label_original=HOSTILE, label_forgotten=SCRIPT, filename_prefix=masks,
        ),
        "20": graph(
            "UniForgetReport",
            model=["6", 0], mask=["5", 0], original=picture, forgotten=picture, title=HOSTILE, notes=HOSTILE, filename_prefix=masks,
        ),
        "21": graph(
            "UniForgetPictureCheck", **m, **clip, **vae, **small, images=picture, mask=["2", 0], noises=3, baseline=4, sampling_steps=1
        ),
        "22": graph("UniForgetPromptCheck", **m, **clip, **small, prompts=KNOWN, mask=["2", 0], neutral=8, seeds=1),
        "23": graph("UniForgetDemoScore", original=["1", 0], forgotten=["6", 0], **clip, **vae, mask=["5", 0], seeds=1, captions=7, neutral=4),
        "24": graph("PreviewAny", source=["9", 0]),
        "25": graph("PreviewAny", source=["11", 0]),
        "26": graph("PreviewAny", source=["14", 0]),
        "27": graph("UniForgetGuard", **m, **clip, **small, neutral=16, sampling_steps=1),
        "28": graph("PreviewAny", source=["27", 0]),
        "29": graph("EmptyImage", **small, batch_size=1, color=255),
        "30": graph(
            "UniForgetAttackCheck", **m, **clip, **vae, **small, picture=picture, control=["29", 0], mask=["2", 0], steps=1, tries=1, sampling_steps=1
        ),
        "31": graph("UniForgetCleanLora", lora_name=model, model_name=f"checkpoints/{model}", filename_prefix=masks),
        "32": graph("UniForgetFind", **m, **clip, **small, pool=KNOWN, sampling_steps=1),
        "33": graph(
            "UniForgetVariety",
            **m, **vae, **latent, mask=["2", 0], positive=["10", 0], seeds=2, **drawing, filename_prefix=masks,
        ),
    }  # fmt: skip


@pytest.fixture
def refused(graph, names):
    """Graphs that end in an error whose message holds a stranger's text: (where, graph)."""
    masks, model = names
    demo = graph("UniForgetDemoModel")
    family = masktext.to_text(mask(3, **{}).__class__(mask(3).gates, mask(3).kinds, MaskInfo(SCRIPT, "", base_name=HOSTILE)))
    compact = graph("UniForgetLoadCompact", model_name=f"checkpoints/{model}")
    embedded = graph("UniForgetEmbeddedMask", mask_text=family)
    return [
        ("Load, before", {"1": graph("UniForgetLoadMask", mask_name=f"{SCRIPT}.safetensors"), "2": graph("UniForgetMaskMap", mask=["1", 0])}),
        ("Embedded, before", {"1": graph("UniForgetEmbeddedMask", mask_text=HOSTILE), "2": graph("UniForgetMaskMap", mask=["1", 0])}),
        ("Save, before", {"1": embedded, "2": graph("UniForgetSaveMask", mask=["1", 0], filename_prefix=HOSTILE)}),
        ("Apply, family", {"1": embedded, "2": demo, "3": graph("UniForgetApply", model=["2", 0], mask=["1", 0]), "4": graph("PreviewAny", source=["3", 0])}),
        ("Load Compact", {"1": compact, "2": graph("PreviewAny", source=["1", 0])}),
        ("words", {"1": demo, "2": graph("UniForgetPromptCheck", model=["1", 0], clip=["1", 1], width=96, height=96, prompts=HOSTILE)}),
        ("blocks", {"1": embedded, "2": graph("UniForgetMaskMap", mask=["1", 0], blocks=SCRIPT)}),
    ]  # fmt: skip


def load(editor, prompt):
    editor.page.evaluate("(p) => app.loadApiJson(p, 'hostile')", prompt)
    # All of it in view: what is not seen may not be drawn.
    editor.page.evaluate(
        """() => {
            app.graph.nodes.forEach((node, i) => (node.pos = [(i % 6) * 520, Math.floor(i / 6) * 700]))
            app.canvas.ds.scale = 0.4
            app.canvas.ds.offset = [100, 100]
            app.canvas.setDirty(true, true)
        }"""
    )
    editor.page.wait_for_timeout(1500)


def ran(editor):
    """What of the hostile text has run, or would, when somebody moves the mouse there."""
    editor.page.wait_for_timeout(1500)
    return [*editor.page.evaluate(FOUND), *(["a script ran"] if editor.page.evaluate("window.ufRan === 1") else [])]


def hostile(value):
    """The same result with every text made hostile but where a file is told, which must be there."""
    if isinstance(value, dict):
        return value if "filename" in value else {name: hostile(part) for name, part in value.items()}
    return [hostile(part) for part in value] if isinstance(value, list) else HOSTILE if isinstance(value, str) else value


def test_such_text_would_run_and_would_be_found(editor, prompt):
    # Else the other tests here would prove nothing.
    load(editor, {"1": prompt["13"]})
    editor.show(1)
    editor.page.evaluate(SEND, ["progress_text", {"nodeId": "1", "text": "<img src=x onerror=window.ufControl=1>"}])
    editor.page.wait_for_timeout(500)
    # Nodes 2.0 does not show this text at all in the version that the tests install; others do, as HTML.
    assert editor.page.evaluate("window.ufControl === 1") == (editor.renderer == "classic")
    for html in ("<img src=x>", "<b onmouseover=window.ufRan=1>x</b>"):
        editor.page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', `<p id=ufControl>${html}</p>`)", html)
        assert len(ran(editor)) >= 1
        editor.page.evaluate("document.querySelector('#ufControl').remove()")


def test_every_node_is_among_these(prompt, refused, object_info):
    tried = {node["class_type"] for part in (prompt, *(graph for _, graph in refused)) for node in part.values()}
    assert {name for name in object_info if name.startswith("UniForget")} <= tried


def test_no_node_runs_a_strangers_text(editor, prompt, client):
    client.request("/free", {"free_memory": True, "unload_models": True})  # what is remembered shows nothing
    load(editor, prompt)
    assert len(editor.page.evaluate("app.graph.nodes.map((n) => n.id)")) == len(prompt)
    entry = editor.run()
    missing = set(prompt) - {"1", "10", "12", "13", "29"} - set(entry["outputs"])
    assert not missing, f"nodes that have shown nothing: {missing}"
    assert ran(editor) == []
    # It was shown, as text.
    shown = editor.page.evaluate("[...document.querySelectorAll('.uniforget-text')].map((e) => e.textContent)")
    assert len([text for text in shown if "\u2039img src=x onerror" in text]) > 4
    # And what results could hold with other models and prompts.
    for node, output in entry["outputs"].items():
        detail = {"node": node, "display_node": node, "output": hostile(output), "prompt_id": "x"}
        editor.page.evaluate(SEND, ["executed", detail])
    assert ran(editor) == []
    # A workflow keeps results: opened again, they are as they were.
    saved = editor.saved()
    assert "onerror" in json.dumps(saved)
    editor.page.evaluate("(w) => app.loadGraphData(w)", saved)
    assert ran(editor) == []


def test_no_error_of_a_node_runs_a_strangers_text(editor, refused, client):
    for where, graph in refused:
        before = set(client.get("/history"))
        load(editor, graph)
        editor.page.evaluate("app.queuePrompt(0, 1)")
        if "before" not in where:
            editor.page.wait_for_function(
                "async (before) => Object.keys(await (await fetch('/history')).json()).some((id) => !before.includes(id))",
                arg=list(before), timeout=LONGEST, polling=500,
            )  # fmt: skip
        assert ran(editor) == [], where
        text = editor.page.evaluate("document.body.innerText")
        assert "onerror" in text, f"{where}: the error was not shown"
        editor.page.keyboard.press("Escape")
        editor.page.wait_for_timeout(300)
