"""Clean LoRA, Attack Check and Memorization Guard in real ComfyUI, on the demo model."""

import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from uniforget_pack.nodes import checking, drawguard
from uniforget_pack.nodes.attackcheck import AttackCheck
from uniforget_pack.nodes.cleanlora import CleanLora
from uniforget_pack.nodes.drawguard import MemorizationGuard
from uniforget_pack.testbed import model as tb
from uniforget_pack.uniforget.checks.bands import Bands
from uniforget_pack.uniforget.errors import ModelFileError, SettingError
from uniforget_pack.uniforget.hosts.comfy.guard import guarded
from uniforget_pack.uniforget.hosts.comfy.learn import empty_latent

import nodes

SETTINGS = {"tries": 2, "neutral": 16, "sampling_steps": 4, "cfg": 3.0, "seed": 0}
# Everything is usual, and nothing is.
WIDE = Bands([100.0, 1e-3], {"update": [0.0] * 2, "pull": [0.0] * 2}, {"update": [50.0] * 2, "pull": [50.0] * 2}, 10.0)
NARROW = Bands([100.0, 1e-3], {"update": [-9.0] * 2, "pull": [-9.0] * 2}, {"update": [0.1] * 2, "pull": [0.1] * 2}, 1.0)


@pytest.fixture
def side(demo):
    return demo.model.model.canvas


@pytest.fixture
def draw(demo, side):
    """Latents of two pictures by stock sampling; the prompt is one that the model knows."""
    [text] = checking.neutral(demo.model, 1)

    def run(model, sampler="euler", cfg=3.0, seed=5, steps=4):
        latent = empty_latent(model, side, side)
        latent = latent.expand(2, *latent.shape[1:])
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, "simple", demo.encode(text), demo.encode(""), latent, seed=seed, disable_pbar=True
        )  # fmt: skip

    return run


@pytest.mark.parametrize("action", ["tells", "redraws", "steers"])
@pytest.mark.parametrize(("sampler", "cfg"), [("euler", 3.0), ("euler", 1.0), ("dpmpp_2m", 3.0), ("euler_ancestral", 3.0)])
def test_usual_pictures_stay_what_they_were_to_the_last_bit(demo, draw, action, sampler, cfg):
    told = []
    model = guarded(demo.model, WIDE, action, 3, told.append)
    assert torch.equal(draw(model, sampler, cfg), draw(demo.model, sampler, cfg))
    assert [(t.alarms, t.tries, len(t.worst)) for t in told] == [(0, 1, 2)] and min(told[0].worst) > 0


def test_an_alarm_is_told_and_the_picture_stays(demo, draw):
    told = []
    assert torch.equal(draw(guarded(demo.model, NARROW, "tells", 3, told.append)), draw(demo.model))
    assert [(t.alarms, t.tries, t.still) for t in told] == [(2, 1, 2)]


def test_redrawing_begins_again_with_other_noise_and_always_the_same(demo, draw):
    told = []
    model = guarded(demo.model, NARROW, "redraws", 3, told.append)
    torch.manual_seed(1)
    before = torch.get_rng_state(), random.getstate()
    first, second = draw(model), draw(model)
    assert torch.equal(first, second) and not torch.equal(first, draw(demo.model)) and torch.isfinite(first).all()
    assert [(t.alarms, t.tries, t.still) for t in told] == [(2, 3, 2)] * 2
    assert before[1] == random.getstate()
    assert not torch.equal(draw(model, seed=6), first)


@pytest.mark.parametrize("cfg", [3.0, 1.0])
def test_steering_changes_the_picture(demo, draw, cfg):
    model = guarded(demo.model, NARROW, "steers", 3, lambda told: None)
    assert not torch.equal(draw(model, cfg=cfg), original := draw(demo.model, cfg=cfg))
    assert torch.isfinite(draw(model, cfg=cfg)).all()
    assert torch.equal(draw(demo.model, cfg=cfg), original), "the model itself is as it was"


def test_the_node_learns_what_is_usual_once(demo, draw, side, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    values = {**SETTINGS, "action": "tells", "width": side, "height": side}
    first = MemorizationGuard.execute(demo.model, demo.clip, **values)
    [kept] = (tmp_path / "uniforget" / "guard").iterdir()
    assert "learned" in first.ui.as_dict()["text"][0]
    monkeypatch.setattr(drawguard, "measured", None)
    second = MemorizationGuard.execute(demo.model, demo.clip, **values)
    assert "known" in second.ui.as_dict()["text"][0]
    assert torch.equal(draw(first.args[0]), draw(demo.model)) and torch.equal(draw(second.args[0]), draw(demo.model))
    kept.write_bytes(b"{}")
    with pytest.raises(TypeError):  # it would be learned again
        MemorizationGuard.execute(demo.model, demo.clip, **values)
    with pytest.raises(SettingError, match="'action': expected one of"):
        MemorizationGuard.execute(demo.model, demo.clip, **{**values, "action": "stops"})


def test_an_alarm_is_marked_in_what_the_running_workflow_saves(monkeypatch):
    item = (0, "id", {}, {"extra_pnginfo": {"workflow": 1}}, [])
    queue = SimpleNamespace(currently_running={0: item})
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue)))
    monkeypatch.setitem(sys.modules, "server", server)
    told = SimpleNamespace(worst=(0.5, 1.7), alarms=1, action="tells", tries=1, still=1)
    drawguard.mark(told)
    info = item[3]["extra_pnginfo"]
    assert info["workflow"] == 1 and info["uniforget_guard"]["worst"] == [0.5, 1.7] and info["uniforget_guard"]["alarms"] == 1
    assert "1 of 2 pictures: this prompt is likely memorized (1.7 times" in drawguard.words(told)


def test_an_attack_before_and_after_a_mask(demo, draw, side):
    pictures = torch.rand(2, side, side, 3, generator=torch.Generator().manual_seed(0))
    values = {**SETTINGS, "caption": "", "steps": 2, "width": side, "height": side, "strength": 1.0}
    values.pop("neutral")
    before = draw(demo.model)
    out = AttackCheck.execute(demo.model, demo.clip, demo.vae, pictures[:1], pictures[1:], mask=demo.mask(), **values)
    assert out.args[0].shape == (8, side, side, 3) and out.args[1].startswith("No: this attack does not bring the picture back")
    assert not torch.equal(out.args[0][:2], out.args[0][4:6]), "the mask counts"
    assert torch.equal(before, draw(demo.model)), "the model is as it was"
    with pytest.raises(SettingError, match="are the same"):
        AttackCheck.execute(demo.model, demo.clip, demo.vae, pictures[:1], pictures[:1], **values)
    with pytest.raises(SettingError, match="Attack Check: expected at least one colour picture in 'control'"):
        AttackCheck.execute(demo.model, demo.clip, demo.vae, pictures[:1], None, **values)


@pytest.fixture
def lora(tmp_path, monkeypatch):
    """A LoRA of one layer of the demo model in ComfyUI's folder, and the folders."""
    names = folder_paths.folder_names_and_paths
    for folder in ("loras", "checkpoints"):
        (tmp_path / folder).mkdir()
        monkeypatch.setitem(names, folder, ([str(tmp_path / folder)], names[folder][1]))
    os.link(tb.WEIGHTS, tmp_path / "checkpoints" / "demo.safetensors")
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    weight = load_file(tb.WEIGHTS)[f"{tb.DIFFUSION_PREFIX}joint_blocks.0.x_block.mlp.fc2.weight"]
    generator = torch.Generator().manual_seed(0)
    key = "diffusion_model.joint_blocks.0.x_block.mlp.fc2"
    state = {
        f"{key}.lora_B.weight": 0.1 * torch.randn(weight.shape[0], 4, generator=generator),
        f"{key}.lora_A.weight": 0.1 * torch.randn(4, weight.shape[1], generator=generator),
    }
    save_file(state, tmp_path / "loras" / "style.safetensors")
    return state


def test_a_cleaned_lora_loads_like_the_original(demo, draw, lora):
    given = {"lora_name": "style.safetensors", "model_name": "checkpoints/demo.safetensors", "filename_prefix": "cleaned"}
    assert CleanLora.validate_inputs(**given) is True
    out = CleanLora.execute(**given, strength=1.0, keep=0.5, overwrite=False)
    path = Path(out.args[0])
    assert (
        path.name == "cleaned_00001.safetensors"
        and path.parent.name == "loras"
        and "of 4 channels" in out.ui.as_dict()["text"][0]
    )
    save_file(load_file(path), Path(folder_paths.get_folder_paths("loras")[0]) / "again.safetensors")
    found = {}
    for name, file in (("original", "style"), ("cleaned", "again")):
        found[name] = draw(nodes.LoraLoader().load_lora(demo.model, None, f"{file}.safetensors", 1.0, 0)[0])
    plain = draw(demo.model)
    assert not torch.equal(found["original"], plain) and not torch.equal(found["cleaned"], plain)
    assert not torch.equal(found["original"], found["cleaned"])


def test_names_that_are_not_there_are_refused_before_anything_runs(lora):
    given = {"lora_name": "style.safetensors", "model_name": "checkpoints/demo.safetensors", "filename_prefix": "cleaned"}
    for wrong, says in (
        ("lora_name", "'lora_name': expected"),
        ("model_name", "'model_name': expected"),
        ("filename_prefix", "plain name"),
    ):
        assert says in CleanLora.validate_inputs(**{**given, wrong: "../x.safetensors"})
    with pytest.raises(ModelFileError, match="lora_name"):
        CleanLora.execute(**{**given, "lora_name": "no.safetensors"}, strength=1.0, keep=0.5, overwrite=False)
