"""Load and Save Memorization Mask, and the demo's score, on real ComfyUI."""

import asyncio
import errno
import os
import pickle

import folder_paths
import numpy as np
import pytest
import safetensors.numpy
import torch
from uniforget_pack.nodes.maskio import LoadMask, SaveMask, find_mask, saving_as
from uniforget_pack.nodes.score import DemoScore
from uniforget_pack.uniforget import atomic
from uniforget_pack.uniforget.errors import FamilyError, MaskFileError, SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.untrusted import safe


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty models/uniforget/ for each test."""
    paths = folder_paths.folder_names_and_paths["uniforget"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "uniforget", ([str(tmp_path)], paths[1]))
    return tmp_path


def test_saved_and_loaded_again(demo, folder):
    mask = demo.mask()
    out = SaveMask.execute(mask, "client/portraits", False)
    assert out.args[0] is mask
    path = folder / "client" / "portraits_00001.safetensors"
    assert path.exists() and mask.digest() in out.ui.as_dict()["text"][0]
    SaveMask.execute(mask, "client/portraits", False)
    assert (folder / "client" / "portraits_00002.safetensors").exists()
    loaded = LoadMask.execute("client/portraits_00001.safetensors")
    assert loaded.args[0].digest() == mask.digest() and mask.digest() in loaded.ui.as_dict()["text"][0]
    expected = demo.sample(apply_mask(demo.model, mask))
    assert torch.equal(demo.sample(apply_mask(demo.model, loaded.args[0])), expected)
    before = LoadMask.fingerprint_inputs("client/portraits_00001.safetensors")
    SaveMask.execute(demo.mask(seed=9), "client/portraits_00001", True)
    assert LoadMask.fingerprint_inputs("client/portraits_00001.safetensors") != before


@pytest.mark.parametrize(
    "name", ["../../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..\\x.safetensors", "C:\\x.safetensors"]
)
def test_names_from_a_graph_cannot_leave_the_folder(demo, folder, name):
    def check(call, *args):
        with pytest.raises(
            SettingError, match=r"^Setting '(mask_name|filename_prefix)': expected a plain name inside .*Change the name"
        ):
            call(*args)

    outside = {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")}
    check(find_mask, name)
    check(lambda: saving_as(name, True).__enter__())
    check(LoadMask.execute, name)
    check(LoadMask.fingerprint_inputs, name)
    check(SaveMask.execute, demo.mask(), name, True)
    for message in (asyncio.run(LoadMask.validate_inputs(name)), SaveMask.validate_inputs(name)):
        assert "expected a plain name" in message and repr(name) in message
    assert {path: path.stat().st_mtime_ns for path in folder.parent.rglob("*")} == outside


def truncated(data):
    return data[: len(data) // 2]


def flipped(data):
    """One bit of the gates, at the very end, is another."""
    return data[:-1] + bytes([data[-1] ^ 1])


def float_typed(data):
    header_size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + header_size].replace(b'"dtype":"U8"', b'"dtype":"F8"')
    return data[:8] + header + data[8 + header_size :]


# what is done to a mask file, and what is said then
BAD_FILES = {
    "empty": (lambda data: b"", "the file is empty"),
    "truncated": (truncated, "the file is cut off"),
    "flipped": (flipped, "this mask file is damaged: "),
    "wrong_typed": (float_typed, "its header cannot be read"),
    "pickle": (lambda data: pickle.dumps({"gates": [1.0]}), "refused: pickle"),
    "gguf": (lambda data: b"GGUF" + data, "found a GGUF model"),
    "web_page": (lambda data: b"<!DOCTYPE html>" + data, "Choose a mask that UniForget saved"),
    "newer": (lambda data: data.replace(b'format\\":1', b'format\\":2'), "Update UniForget"),
    "model": (lambda data: safetensors.numpy.save({"out.weight": np.zeros((2, 2))}), "no UniForget mask (it holds 'out.weight')"),
}


@pytest.mark.parametrize(("change", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_is_no_good_mask_is_named_with_the_reason(demo, folder, change, reason):
    SaveMask.execute(demo.mask(), "good", True)
    data = (folder / "good.safetensors").read_bytes()
    assert asyncio.run(LoadMask.validate_inputs("good.safetensors")) is True
    (folder / "bad.safetensors").write_bytes(change(data))
    message = asyncio.run(LoadMask.validate_inputs("bad.safetensors"))
    assert message.startswith(str(folder / "bad.safetensors")) and reason in message
    # a name that another node chose is only checked when the node runs
    with pytest.raises(MaskFileError, match="bad.safetensors") as caught:
        LoadMask.execute("bad.safetensors")
    assert safe(caught.value, page=True) == message  # the page gets it without what could be markup


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.safetensors", "There is no mask"), (5, "No mask is chosen"), ("", "No mask")]
)
def test_a_mask_that_is_not_there_is_said_with_what_to_do(name, reason):
    message = asyncio.run(LoadMask.validate_inputs(name))
    assert reason in message and "press R" in message
    with pytest.raises(MaskFileError, match=reason):
        LoadMask.execute(name)
    with pytest.raises(MaskFileError, match=reason):
        LoadMask.fingerprint_inputs(name)


@pytest.fixture
def failing(monkeypatch):
    """``failing(step, number)``: from now on that step of saving fails."""

    def make(step, number):
        def fail(*args, **kwargs):
            raise OSError(number, os.strerror(number))

        if step == "open":
            monkeypatch.setattr(atomic, "open", fail, raising=False)
        else:
            monkeypatch.setattr(os, step, fail)

    return make


@pytest.mark.parametrize(
    ("step", "number", "reason"),
    [
        ("open", errno.EROFS, "read-only"),
        ("open", errno.EACCES, "read-only"),
        ("fsync", errno.ENOSPC, "The disk is full: free some space and save again."),
        ("place", errno.ENOSPC, "The disk is full"),
    ],
)
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_mask_that_cannot_be_saved_leaves_the_folder_as_it_was(demo, folder, failing, step, number, reason, overwrite):
    SaveMask.execute(demo.mask(), "kept", True)
    before = (folder / "kept.safetensors").read_bytes()
    failing({True: "replace", False: "link"}[overwrite] if step == "place" else step, number)
    with pytest.raises(MaskFileError, match=rf"kept.*\.safetensors: the mask was not saved.*{reason}"):
        SaveMask.execute(demo.mask(seed=9), "kept", overwrite)
    assert os.listdir(folder) == ["kept.safetensors"] and (folder / "kept.safetensors").read_bytes() == before


def test_overwriting_replaces_what_uniforget_made_and_nothing_else(demo, folder):
    """A stranger's workflow names a file of the user's own."""
    SaveMask.execute(demo.mask(), "mine", True)
    SaveMask.execute(demo.mask(seed=9), "mine", True)
    assert LoadMask.execute("mine.safetensors").args[0].digest() == demo.mask(seed=9).digest()
    own = safetensors.numpy.save({"lora_up.weight": np.ones((2, 2))}, {"format": "pt"})
    (folder / "own.safetensors").write_bytes(own)
    assert "left no note" in SaveMask.validate_inputs("own", True)
    assert SaveMask.validate_inputs("own", False) is True and SaveMask.validate_inputs("mine", True) is True
    with pytest.raises(SettingError, match=r"own\.safetensors: UniForget left no note in this file, so it is not overwritten"):
        SaveMask.execute(demo.mask(), "own", True)
    assert (folder / "own.safetensors").read_bytes() == own
    assert sorted(os.listdir(folder)) == ["mine.safetensors", "own.safetensors"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_made_is_named(demo, folder, failing, number):
    failing("mkdir", number)
    with pytest.raises(MaskFileError, match=rf"client: nothing was saved.*{os.strerror(number)}"):
        SaveMask.execute(demo.mask(), "client/portraits", False)
    assert not os.listdir(folder)


def test_a_file_in_the_way_of_a_folder_is_named(demo, folder):
    (folder / "client").write_bytes(b"")
    with pytest.raises(MaskFileError, match="client: nothing was saved"):
        SaveMask.execute(demo.mask(), "client/portraits", False)
    assert os.listdir(folder) == ["client"]


def test_demo_score_measures_both_models(demo):
    mask = demo.mask(share=1.1)  # everything off: nothing can be a copy any more
    out = DemoScore.execute(demo.model, apply_mask(demo.model, mask, 1.0), demo.clip, demo.vae, mask, 1, 7, 4)
    figures = out.ui["uniforget_score"][0]
    assert figures["copies_before"] > 0.8 and figures["copies_after"] < 0.1
    assert figures["off_share"] == 1.0 and figures["strength"] == 1.0 and figures["seeds"] == 1
    assert sum(figures[k] for k in ("forgotten", "copy", "partial", "broken", "off_prompt", "collapsed")) == pytest.approx(1)
    assert figures["broken"] > 0.5 and figures["forgotten"] < 0.3
    assert out.args[0].shape[-1] == 3 and out.ui["images"][0]["filename"].endswith(".png")


def test_demo_score_refuses_other_models(demo):
    class Other:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(FamilyError, match="forgotten is not the UniForget Demo Model"):
        DemoScore.execute(demo.model, Other(), demo.clip, demo.vae, demo.mask(), 1, 7, 4)
