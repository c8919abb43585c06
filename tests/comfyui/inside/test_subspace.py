"""Subspace forgetting inside real ComfyUI: learned, applied, moved, saved and loaded; LoRAs, restoring, errors."""

import asyncio

import folder_paths
import pytest
import torch
from uniforget_pack.nodes.apply import ApplyMask
from uniforget_pack.nodes.combine import CombineMasks
from uniforget_pack.nodes.learn import LearnMask
from uniforget_pack.nodes.maskio import LoadMask, SaveMask
from uniforget_pack.nodes.threshold import SetThreshold
from uniforget_pack.testbed import model as tb
from uniforget_pack.uniforget import config
from uniforget_pack.uniforget.errors import MismatchError, SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import PREFIX, applied, apply_mask
from uniforget_pack.uniforget.hosts.diffusers.apply import project_
from uniforget_pack.uniforget.mask.subspace import SubspaceMask

from tests.comfyui.inside import zoo

PROMPTS = "\n".join(f"soft {thing} top left on blue" for thing in ("apple", "panda", "frog"))
QKV = "joint_blocks.1.x_block.attn.qkv"


_learned: list = []


@pytest.fixture
def learned(demo):
    if _learned:
        return _learned[0]
    values = {name: p.default for name, p in config.LEARN.items()}
    small = {"prompts": PROMPTS, "batch": 2, "width": 96, "height": 96, "sampling_steps": 2, "objective": "subspace"}
    _learned.append(LearnMask.execute(demo.model, demo.clip, **(values | small)).args[0])
    return _learned[0]


def apply(model, mask, strength=1.0, **kinds):
    values = {f"strength_{kind}": kinds.get(kind, 1.0) for kind in ("ffn", "norm", "attn")}
    out = ApplyMask.execute(model, mask, strength, **values)
    return out.args[0], out.ui.as_dict()["text"][0]


def weights(patcher):
    """The weights that a loaded ModelPatcher computes with."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    return {k: v.clone() for k, v in patcher.model.diffusion_model.state_dict().items()}


def test_learned_and_applied(demo, learned):
    before = demo.sample(demo.model)
    assert isinstance(learned, SubspaceMask) and learned.info.family == "sd3" and learned.threshold == pytest.approx(0.01)
    patched, text = apply(demo.model, learned)
    assert "directions removed" in text and "Careful" not in text
    assert not torch.equal(demo.sample(patched), before)
    assert applied(patched) == [{"mask": learned.digest(), "strength": 1.0}]
    assert torch.equal(demo.sample(demo.model), before)
    same, text = apply(demo.model, learned, 0.0)
    assert torch.equal(demo.sample(same), before) and "unchanged" in text


def test_the_weights_are_those_that_diffusers_gets(demo, learned):
    found = weights(apply_mask(demo.model, learned, 0.7, {"ffn": 0.5}))
    transformer = tb.load()[0]
    project_(transformer, learned, 0.7, {"ffn": 0.5})
    expected = tb.to_comfy(transformer.state_dict())
    for name, weight in found.items():
        torch.testing.assert_close(weight.float(), expected[name].float(), atol=2e-3, rtol=2e-3)
    weights(demo.model)


def test_loras_before_are_projected_and_loras_after_are_not(demo, learned):
    key = f"{PREFIX}{QKV}.weight"
    outside = learned.bases[QKV].edit(learned.threshold)
    assert outside is not None
    width = learned.bases[QKV].width
    out = demo.model.model.diffusion_model.get_submodule(QKV).weight.shape[0]
    vectors, complement, _ = outside
    gone = (
        vectors[:, 0].float()
        if not complement
        else torch.linalg.qr(torch.cat([vectors.float(), torch.randn(width, 1)], 1))[0][:, -1]
    )
    change = torch.ones(out, 1) * gone  # reads only what the subspace removes
    patch = {key: ("diff", (change,))}
    early, late = demo.model.clone(), apply_mask(demo.model, learned)
    early.add_patches(patch)
    early = apply_mask(early, learned)
    late.add_patches(patch)
    plain = weights(apply_mask(demo.model, learned))[f"{QKV}.weight"].float()
    torch.testing.assert_close(weights(early)[f"{QKV}.weight"].float(), plain, atol=5e-3, rtol=5e-3)
    assert (weights(late)[f"{QKV}.weight"].float() - plain - change.to(plain)).abs().max() < 5e-3
    weights(demo.model)


def test_moved_saved_and_loaded(demo, learned, tmp_path, monkeypatch):
    paths = folder_paths.folder_names_and_paths["uniforget"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "uniforget", ([str(tmp_path)], paths[1]))
    moved = SetThreshold.execute(learned, 0.02)
    assert "energy given up on neutral prompts: 2.00%" in moved.ui.as_dict()["text"][0]
    assert moved.args[0].off_share() > learned.off_share()
    SaveMask.execute(moved.args[0], "sub", False)
    assert asyncio.run(LoadMask.validate_inputs("sub_00001.safetensors")) is True
    again = LoadMask.execute("sub_00001.safetensors").args[0]
    assert again.digest() == moved.args[0].digest()
    expected = demo.sample(apply(demo.model, moved.args[0])[0])
    assert torch.equal(demo.sample(apply(demo.model, again)[0]), expected)


def test_a_part_of_it(demo, learned):
    values = {name: param.default for name, param in config.COMBINE.items()} | {"kinds": "attn", "blocks": "1"}
    out = CombineMasks.execute(learned, **values)
    part = out.args[0]
    assert set(part.kinds.values()) == {"attn"} and all(name.startswith("joint_blocks.1.") for name in part.shared)
    changed = weights(apply_mask(demo.model, part))
    before = weights(demo.model)
    assert {n for n, w in changed.items() if not torch.equal(w, before[n])} <= {f"{n}.weight" for n in part.shared}


def test_what_does_not_fit_is_told(demo, learned):
    with pytest.raises(SettingError, match="Input 'mask A' of a combination needs a mask of gates; found a subspace"):
        CombineMasks.execute(learned, **{name: p.default for name, p in config.COMBINE.items()}, mask_b=demo.mask())
    with pytest.raises(SettingError, match="needs a subspace; found a mask of gates, which has no threshold"):
        SetThreshold.execute(demo.mask(), 0.01)
    with pytest.raises(SettingError, match=r"'threshold': .*expected 0\.002 to 0\.03"):
        SetThreshold.execute(learned, 0.1)
    with pytest.raises(MismatchError, match="family 'sd3'.*family 'sd1'"):
        apply(zoo.patcher("sd1"), learned)
