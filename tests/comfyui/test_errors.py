"""What artists see when something is wrong with a mask, through ComfyUI's HTTP API: the node, the thing and what to do."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from launcher.errors import WorkflowError
from uniforget.mask import file as maskfile
from uniforget.mask.info import GateMask, MaskInfo

FC2 = "joint_blocks.1.x_block.mlp.fc2"


@pytest.fixture(scope="module")
def masks(client):
    """A folder of our own in the server's models/uniforget/ (which may be a user's); its name starts the names of masks."""
    root = Path(client.get("/internal/folder_paths")["uniforget"][0])
    folder = root / f"uniforget_tests_{os.getpid()}"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def mask(gates=None, kind="ffn", family="sd3"):
    """A mask that fits the demo model, unless told otherwise."""
    gates = gates or {FC2: (torch.arange(1024) % 5 != 0).float()}
    return GateMask(gates, dict.fromkeys(gates, kind), MaskInfo(family, ""))


@pytest.fixture
def load_and_save(graph):
    return lambda name, prefix: {
        "1": graph("UniForgetLoadMask", mask_name=name),
        "2": graph("UniForgetSaveMask", mask=["1", 0], filename_prefix=prefix, overwrite=True),
    }


@pytest.fixture
def apply(client, graph, masks):
    """``apply(mask)``: runs the demo model with the mask from a file; returns what the Apply node (3) says."""

    def run(mask):
        maskfile.save(mask, masks / "applied.safetensors")
        prompt = {
            "1": graph("UniForgetLoadMask", mask_name=f"{masks.name}/applied.safetensors"),
            "2": graph("UniForgetDemoModel"),
            "3": graph("UniForgetApply", model=["2", 0], mask=["1", 0]),
            "4": graph("PreviewAny", source=["3", 0]),
        }
        return client.run(prompt)["outputs"]["3"]["text"][0]

    return run


def refused(call, *words):
    """The message of a workflow that ComfyUI refuses or that fails; all `words` must be in it, in this order."""
    with pytest.raises(WorkflowError) as caught:
        call()
    message, at = str(caught.value), 0
    for word in words:
        assert word in message[at:], f"{word!r} is not there, or too early, in: {message}"
        at = message.index(word, at)
    return message


def test_the_graphs_of_these_tests_run_when_nothing_is_wrong(client, masks, load_and_save, apply):
    maskfile.save(mask(), masks / "good.safetensors")
    entry = client.run(load_and_save(f"{masks.name}/good.safetensors", f"{masks.name}/again"))
    assert maskfile.load(masks / "again.safetensors").digest() == mask().digest()
    assert mask().digest() in entry["outputs"]["2"]["text"][0]
    text = apply(mask())
    assert mask().digest() in text and "unchanged" not in text


@pytest.mark.parametrize("name", ["../../x.safetensors", "/etc/x.safetensors", "..\\..\\x.safetensors"])
def test_names_that_lead_out_of_the_folder_are_refused_before_anything_runs(client, masks, load_and_save, name):
    maskfile.save(mask(), masks / "good.safetensors")
    good = f"{masks.name}/good.safetensors"
    words = ["refused", "(node", "expected a plain name inside", repr(name), "Change the name"]
    loading = refused(lambda: client.run(load_and_save(name, "x")), *words)
    assert "UniForgetLoadMask (node 1)" in loading and "'mask_name'" in loading
    saving = refused(lambda: client.run(load_and_save(good, name)), *words)
    assert "UniForgetSaveMask (node 2)" in saving and "'filename_prefix'" in saving
    assert not [folder for folder in masks.parents if (folder / "x.safetensors").exists()]


def test_a_name_from_another_node_is_refused_when_it_arrives(client, masks, graph, load_and_save):
    maskfile.save(mask(), masks / "good.safetensors")
    prompt = load_and_save(f"{masks.name}/good.safetensors", ["3", 0])
    prompt["3"] = graph("PrimitiveString", value="../../x")
    refused(lambda: client.run(prompt), "UniForgetSaveMask (node 2) failed", "SettingError", "'../../x'", "Change the name")
    assert not [folder for folder in masks.parents if (folder / "x.safetensors").exists()]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: data[:-3], "the file is cut off"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "this mask file is damaged"),
        (lambda data: data.replace(b'"dtype":"U8"', b'"dtype":"F8"'), "header cannot be read"),
        (lambda data: b"\x80\x04K\x01.", "refused: pickle"),
        (lambda data: data.replace(b'format\\":1', b'format\\":2'), "Update UniForget"),
    ],
    ids=["empty", "truncated", "corrupted", "wrong_typed", "pickled", "newer"],
)
def test_a_bad_mask_file_is_refused_with_its_name_and_the_reason(client, masks, load_and_save, change, reason):
    (masks / "bad.safetensors").write_bytes(change(maskfile.dumps(mask())))
    run = load_and_save(f"{masks.name}/bad.safetensors", f"{masks.name}/never")
    refused(lambda: client.run(run), "refused", "UniForgetLoadMask (node 1)", "bad.safetensors", reason)
    assert not (masks / "never.safetensors").exists()


@pytest.mark.parametrize("name", ["absent.safetensors", 5])
def test_a_mask_that_is_not_there_is_refused_with_what_to_do(client, load_and_save, name):
    refused(lambda: client.run(load_and_save(name, "x")), "UniForgetLoadMask (node 1)", "press R")


def test_a_model_where_a_mask_belongs_is_refused(client, graph):
    prompt = {"1": graph("UniForgetDemoModel"), "2": graph("UniForgetSaveMask", mask=["1", 0])}
    refused(lambda: client.run(prompt), "UniForgetSaveMask (node 2)", "mismatch", "mask")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (mask(family="flux"), ["family 'flux'", "Stable Diffusion 3 / 3.5 ('sd3')", "Use a mask of the same family"]),
        (mask({FC2: torch.zeros(10)}), ["1 of the mask's 1 sites", f"{FC2} has 10 ffn gates", "1024 ffn units", "learn one"]),
        (mask(kind="norm"), [f"{FC2} has 1024 norm gates", "1024 ffn units", "learn one for this model"]),
        (
            mask({FC2: torch.zeros(1024), "joint_blocks.40.x_block.mlp.fc2": torch.zeros(1024)}),
            ["1 of the mask's 2 sites do not exist in this model: joint_blocks.40.x_block.mlp.fc2", "learn one for this model"],
        ),
    ],
    ids=["family", "size", "kind", "block"],
)
def test_a_mask_that_does_not_fit_names_the_node_and_the_sites(apply, other, words):
    refused(lambda: apply(other), "UniForgetApply (node 3) failed", "MismatchError", *words)


def test_a_mask_that_switches_nothing_off_is_said_on_the_node(apply):
    assert "Careful: this mask switches nothing off, so the model is unchanged" in apply(mask({FC2: torch.ones(1024)}))


def test_a_place_that_cannot_be_written_to_is_named(client, masks, load_and_save):
    maskfile.save(mask(), masks / "good.safetensors")
    (masks / "file").write_bytes(b"in the way")
    run = load_and_save(f"{masks.name}/good.safetensors", f"{masks.name}/file/portrait")
    refused(
        lambda: client.run(run), "UniForgetSaveMask (node 2) failed", "MaskFileError", str(masks / "file"), "nothing was saved"
    )
    (masks / "taken.safetensors").mkdir()
    run = load_and_save(f"{masks.name}/good.safetensors", f"{masks.name}/taken")
    refused(lambda: client.run(run), "UniForgetSaveMask (node 2)", "taken.safetensors", "expected a file; found a folder")
    assert (masks / "file").read_bytes() == b"in the way" and not [*(masks / "taken.safetensors").iterdir()]
    assert not [path for path in masks.iterdir() if path.suffix == ".tmp"]
