"""Save Sanitized Checkpoint in real ComfyUI: the file that Apply and ComfyUI's own saving give, names that stay inside, cancelling."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import comfy.model_management as management
import comfy_extras.nodes_model_merging as merging
import folder_paths
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from uniforget_pack.nodes import sanitize as node
from uniforget_pack.nodes.sanitize import SaveSanitized
from uniforget_pack.uniforget.checkpoint.verify import verify
from uniforget_pack.uniforget.errors import ModelFileError, SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask

import nodes
from tests.comfyui.inside import zoo
from tests.comfyui.inside.test_loading_formats import FLOATS, NAME, SCALED, load
from tests.comfyui.inside.ways import difference, files, random_mask, run

__all__ = ["files"]


@pytest.fixture(autouse=True)
def folders(files, monkeypatch):
    extensions = folder_paths.folder_names_and_paths["checkpoints"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(files.at / "checkpoints")], extensions))


def save(name, mask, strength=1.0, prefix="clean", overwrite=False, mask_b=None, **kinds):
    values = {f"strength_{kind}": kinds.get(kind, 1.0) for kind in ("ffn", "norm", "attn")}
    assert SaveSanitized.validate_inputs(name, prefix) is True
    out = SaveSanitized.execute(
        name, mask, strength, filename_prefix=prefix, overwrite=overwrite, compact=False, mask_b=mask_b, **values
    )
    return out.args[0], out.ui.as_dict()["text"][0]


@pytest.mark.parametrize("strength", [1.0, 0.8])
@pytest.mark.parametrize("kind", FLOATS)
def test_it_is_what_apply_and_save_give(files, kind, strength):
    """Bit for bit in the stored dtype."""
    model = load(files, kind)
    mask = random_mask(model, hard=strength == 1)
    mask = replace(mask, gates={n: (255 * g).round() / 255 for n, g in mask.gates.items()})  # as files hold them
    merging.ModelSave().save(apply_mask(model, mask, strength), filename_prefix="diffusion_models/comfy")
    (wanted,) = (files.at / "diffusion_models").glob("comfy*.safetensors")
    path, text = save(f"diffusion_models/{kind}.safetensors", mask, strength)
    assert (
        "Careful" not in text and mask.digest() in text and path == str(files.at / "diffusion_models" / "clean_00001.safetensors")
    )
    found = load_file(path)
    other = {k.removeprefix("model.diffusion_model."): v for k, v in load_file(wanted).items()}
    assert found.keys() <= other.keys()
    for name, value in found.items():
        assert torch.equal(value, other[name]), name
    again = run(nodes.UNETLoader, unet_name="clean_00001.safetensors", weight_dtype="default")
    management.load_models_gpu([again])
    patched = apply_mask(model, mask, strength)
    management.load_models_gpu([patched])
    assert difference(zoo.predict(NAME, again.model), zoo.predict(NAME, patched.model)) < 0.01
    assert verify(Path(path), files.at / "diffusion_models" / f"{kind}.safetensors").ok


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_fp8_keeps_its_scales(files, kind):
    """What is on stays bit for bit, what is off is zero, and the model that comes out is the masked one."""
    model = load(files, kind)
    mask = random_mask(model)
    name = f"{kind}.safetensors"
    path, text = save(f"diffusion_models/{name}", mask)
    assert "Careful" not in text
    with safe_open(files.at / "diffusion_models" / name, "pt") as a, safe_open(path, "pt") as b:
        assert (a.metadata() or {}).items() <= b.metadata().items() and list(a.keys()) == list(b.keys())
        for key in a.keys():  # noqa: SIM118
            before, after = a.get_tensor(key), b.get_tensor(key)
            assert before.dtype == after.dtype
            assert torch.equal(before.reshape(-1).view(torch.uint8), after.reshape(-1).view(torch.uint8)) or key.endswith(
                (".weight", ".bias")
            )
    again = run(nodes.UNETLoader, unet_name="clean_00001.safetensors", weight_dtype="default")
    predictions = []
    for one in (model, apply_mask(model, mask), again):
        management.load_models_gpu([one])
        predictions.append(zoo.predict(NAME, one.model))
    before, wanted, found = predictions
    assert difference(found, wanted) < 0.1 * difference(wanted, before)


def test_a_full_checkpoint_with_clip_and_vae(files, demo):
    """The demo model's own checkpoint: loaded by the stock loader, saved by both ways."""
    mask = demo.mask(("ffn", "norm", "attn"))
    state = {f"model.diffusion_model.{k}": v for k, v in demo.model.model.diffusion_model.state_dict().items()}
    state |= {f"first_stage_model.{i}": torch.randn(3, 3) for i in range(3)}
    files("checkpoints", "full.safetensors", {k: v.half() for k, v in state.items()}, {"modelspec.title": "x"})
    path, _ = save("checkpoints/full.safetensors", mask, 0.5, "client/clean", ffn=0.0)
    assert path == str(files.at / "checkpoints" / "client" / "clean_00001.safetensors")
    before, after = load_file(files.at / "checkpoints" / "full.safetensors"), load_file(path)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.startswith("model.diffusion_model.") for k in changed)
    ffn = {f"model.diffusion_model.{n}.weight" for n, kind in mask.kinds.items() if kind == "ffn"}
    assert not changed & ffn
    again, _ = save("checkpoints/full.safetensors", mask, prefix="client/clean")
    assert again.endswith("clean_00002.safetensors")
    with safe_open(again, "pt") as file:
        assert file.metadata()["modelspec.title"] == "x"
        (note,) = json.loads(file.metadata()["uniforget_applied"])
    assert note["applied"][0]["mask"] == mask.digest() and note["source"] == "full.safetensors"


def test_names_stay_inside(files):
    model = load(files, "fp16")
    mask = random_mask(model)
    (files.at / "secret.safetensors").write_bytes(b"x")
    for name in (
        "../secret.safetensors",
        "diffusion_models/../secret.safetensors",
        "/etc/passwd",
        "loras/a.safetensors",
        "",
        None,
    ):
        with pytest.raises(ModelFileError, match="expected a .safetensors or .sft file in ComfyUI's folders"):
            node.find_model(name)
    for prefix in ("../x", "a/../../x", "C:\\x", "CON", ""):
        assert "plain name inside" in SaveSanitized.validate_inputs("diffusion_models/fp16.safetensors", prefix)
    assert "choose another" in SaveSanitized.validate_inputs("diffusion_models/none.safetensors", "x")
    with pytest.raises(ModelFileError):
        SaveSanitized.execute("diffusion_models/none.safetensors", mask, 1.0, 1.0, 1.0, 1.0, "x", False, False)


def test_a_merge_of_the_users_own_is_never_replaced(files):
    """A stranger's workflow with `overwrite` and the merge's name; and with the name of the very model that is read."""
    model = load(files, "fp16")
    mask, name = random_mask(model), "diffusion_models/fp16.safetensors"
    merge = files.at / "diffusion_models" / "merge.safetensors"
    save_file({"a": torch.zeros(1)}, merge, {"format": "pt"})
    before = {path: path.read_bytes() for path in (merge, files.at / name)}
    for prefix, words in (("merge", "left no note"), ("fp16", "left no note|which is read")):
        with pytest.raises(SettingError, match=words):
            SaveSanitized.execute(name, mask, 1.0, 1.0, 1.0, 1.0, prefix, False, True)
        assert "left no note" in SaveSanitized.validate_inputs(name, prefix, True)
    assert {path: path.read_bytes() for path in before} == before
    path, _ = save(name, mask, prefix="clean", overwrite=True)
    again, _ = save(name, mask, 0.5, prefix="clean", overwrite=True)
    assert path == again == str(files.at / "diffusion_models" / "clean.safetensors")


def test_cancelled_it_leaves_nothing(files, monkeypatch):
    model = load(files, "fp16")
    mask = random_mask(model)
    before = sorted(p.name for p in (files.at / "diffusion_models").iterdir())
    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            save("diffusion_models/fp16.safetensors", mask)
    finally:
        management.interrupt_current_processing(False)
    assert sorted(p.name for p in (files.at / "diffusion_models").iterdir()) == before


def test_a_mask_of_another_model_is_told(files):
    load(files, "fp16")
    mask = random_mask(zoo.patcher(NAME, 1))
    text = save("diffusion_models/fp16.safetensors", mask)[1]
    assert "Careful" in text and "learned on another model (the test's)" in text
    assert "nothing was changed" in save("diffusion_models/fp16.safetensors", mask, 0.0)[1]


def test_models_are_listed_by_folder(files):
    load(files, "fp16")
    save_file({"a": torch.zeros(1)}, files.at / "diffusion_models" / "b.safetensors")
    (files.at / "diffusion_models" / "c.ckpt").write_bytes(b"")
    for name in ("d.sft", "e.SAFETENSORS"):
        save_file({"a": torch.zeros(1)}, files.at / "diffusion_models" / name)
    (files.at / "diffusion_models" / "fake.sft").write_bytes(b"PK\x03\x04" + b"\0" * 50)
    folder_paths.filename_list_cache.clear()
    names = ["b.safetensors", "d.sft", "e.SAFETENSORS", "fake.sft", "fp16.safetensors"]
    assert node.models() == [*(f"diffusion_models/{name}" for name in names), node.BUNDLED]
    for name in names:
        assert node.SaveSanitized.validate_inputs(f"diffusion_models/{name}", "clean") is True
    assert "c.ckpt" in node.SaveSanitized.validate_inputs("diffusion_models/c.ckpt", "clean")
    # what is in it decides
    mask = random_mask(load(files, "fp16"))
    shutil.copy(files.at / "diffusion_models" / "fp16.safetensors", files.at / "diffusion_models" / "g.sft")
    folder_paths.filename_list_cache.clear()
    assert save("diffusion_models/g.sft", mask)[0].endswith(".safetensors")
    with pytest.raises(ModelFileError, match=r"fake\.sft: this is a pickle"):
        save("diffusion_models/fake.sft", mask)
