"""Recover Quality in real ComfyUI: the LoRA it trains, applied and loaded from its file, and a run that is cancelled."""

from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from uniforget_pack.nodes.recover import RecoverQuality
from uniforget_pack.uniforget import config
from uniforget_pack.uniforget.checkpoint import lora as lorafile
from uniforget_pack.uniforget.errors import ModelFileError
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.learn.optimize import Optimizer

import nodes
from tests.comfyui.inside.test_learn import PROMPTS
from tests.comfyui.inside.ways import run


def recover(demo, mask, **changes):
    values = {name: p.default for name, p in config.RECOVER.items()}
    small = {"prompts": PROMPTS, "steps": 12, "batch": 4, "width": 96, "height": 96, "sampling_steps": 3, "rank": 8}
    return RecoverQuality.execute(demo.model, demo.clip, mask, "tests/recovered", **{**values, **small, **changes})


@pytest.fixture(autouse=True)
def loras(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    extensions = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


def test_the_masked_model_comes_nearer_to_the_original(demo):
    mask = demo.mask(("ffn", "norm"), share=0.15)
    before = demo.sample(demo.model)
    masked = demo.sample(apply_mask(demo.model, mask))
    out = recover(demo, mask, steps=40, learning_rate=0.003)
    text = out.ui.as_dict()["text"][0]
    model, path = out.args
    found = demo.sample(model)
    assert (found - before).square().mean() < 0.8 * (masked - before).square().mean()
    assert "saved as" in text and path.endswith("recovered_00001.safetensors")
    assert torch.equal(demo.sample(demo.model), before)
    # From its file, by the stock loader, behind the mask or before it.
    name = str(Path(path).relative_to(Path(folder_paths.get_output_directory(), "loras")))
    lora = lambda m: run(nodes.LoraLoaderModelOnly, model=m, lora_name=name, strength_model=1.0)  # noqa: E731
    torch.testing.assert_close(demo.sample(lora(apply_mask(demo.model, mask))), found, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(demo.sample(apply_mask(lora(demo.model), mask)), found, atol=2e-2, rtol=1e-2)


def test_gates_and_a_subspace(demo):
    from uniforget_pack.nodes.learn import LearnMask
    from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask

    mask = demo.mask(("ffn", "norm"), share=0.1)
    values = {name: p.default for name, p in config.LEARN.items()}
    small = {
        "prompts": PROMPTS,
        "batch": 4,
        "width": 96,
        "height": 96,
        "sampling_steps": 3,
        "objective": "subspace",
        "preset": "strong",
    }
    space = LearnMask.execute(apply_mask(demo.model, mask), demo.clip, **{**values, **small}).args[0]
    before = demo.sample(demo.model)
    edited = demo.sample(apply_mask(apply_mask(demo.model, mask), space))
    out = recover(demo, mask, steps=40, learning_rate=0.003, mask_b=space)
    assert (demo.sample(out.args[0]) - before).square().mean() < 0.9 * (edited - before).square().mean()
    assert torch.equal(demo.sample(demo.model), before)


def test_a_cancelled_run_goes_on(demo, monkeypatch):
    mask = demo.mask()
    calls, stop = [], [0]
    real = comfy.model_management.throw_exception_if_processing_interrupted

    def interrupt():
        calls.append(1)
        if len(calls) == stop[0]:
            raise comfy.model_management.InterruptProcessingException
        real()

    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", interrupt)
        first = recover(demo, mask).args[0]
        stop[0] = len(calls) - 8  # a few updates before the end
        calls.clear()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            recover(demo, mask)
    wanted = demo.sample(first)
    unfinished = Path(folder_paths.get_output_directory(), "uniforget", "unfinished")
    assert list(unfinished.glob("recover-*.unfinished.safetensors"))
    out = recover(demo, mask)
    assert out.args[1].endswith("_00002.safetensors") and not list(unfinished.glob("recover-*"))
    torch.testing.assert_close(demo.sample(out.args[0]), wanted, atol=1e-4, rtol=1e-4)


def test_a_lora_that_could_not_be_saved_is_not_lost(demo, monkeypatch):
    """The disk is full just then: queued again it is saved, without training again."""
    mask, seen, real = demo.mask(), [], Optimizer.move
    monkeypatch.setattr(Optimizer, "move", lambda self, *given: seen.append(1) or real(self, *given))
    with monkeypatch.context() as patch:
        patch.setattr(lorafile, "save", full_disk)
        with pytest.raises(ModelFileError, match="full"):
            recover(demo, mask, seed=11)
    assert seen
    seen.clear()
    out = recover(demo, mask, seed=11)
    assert not seen and Path(out.args[1]).is_file()


def full_disk(*given, **more):
    raise ModelFileError("the disk is full")


def test_names_stay_inside(demo):
    for name in ("../x", "C:x", ""):
        assert "plain name inside" in RecoverQuality.validate_inputs(name)
    assert RecoverQuality.validate_inputs("client/x") is True
