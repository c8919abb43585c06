"""Load and Save Memorization Mask, and the demo's score, on real ComfyUI."""

import folder_paths
import pytest
import torch
from uniforget_pack.nodes.maskio import LoadMask, SaveMask, find_mask, target_path
from uniforget_pack.nodes.score import DemoScore
from uniforget_pack.uniforget.errors import FamilyError, MaskFileError, SettingError
from uniforget_pack.uniforget.hosts.comfy import apply_mask


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
def test_names_from_a_graph_cannot_leave_the_folder(name):
    with pytest.raises((SettingError, MaskFileError)):
        find_mask(name)
    with pytest.raises((SettingError, MaskFileError)):
        target_path(name, True)
    assert LoadMask.validate_inputs(name) is not True


def test_a_file_that_is_no_mask_is_named(folder):
    (folder / "bad.safetensors").write_bytes(b"\x80\x04K\x01.")
    message = LoadMask.validate_inputs("bad.safetensors")
    assert "bad.safetensors" in message and "pickle" in message
    assert "There is no mask" in LoadMask.validate_inputs("absent.safetensors")


def test_demo_score_measures_both_models(demo):
    mask = demo.mask(share=1.1)  # everything off: nothing can be a copy any more
    out = DemoScore.execute(demo.model, apply_mask(demo.model, mask, 1.0), demo.clip, mask, 1, 4)
    figures = out.ui["uniforget_score"][0]
    assert figures["copies_before"] > 0.8 and figures["copies_after"] < 0.1
    assert figures["off_share"] == 1.0 and figures["strength"] == 1.0 and figures["seeds"] == 1
    assert out.args[0].shape[-1] == 3 and out.ui["images"][0]["filename"].endswith(".png")


def test_demo_score_refuses_other_models(demo):
    class Other:
        model = torch.nn.Linear(1, 1)

    with pytest.raises(FamilyError, match="forgotten is not the UniForget Demo Model"):
        DemoScore.execute(demo.model, Other(), demo.clip, demo.mask(), 1, 4)
