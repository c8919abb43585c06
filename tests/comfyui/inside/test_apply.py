"""Apply Memorization Mask on real ComfyUI: exact, reversible, composable, and refused where it does not fit."""

import comfy.lora
import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from uniforget_pack.nodes.apply import ApplyMask
from uniforget_pack.nodes.demo import DemoModel, load_testbed
from uniforget_pack.uniforget.errors import MismatchError, SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import applied, apply_mask, sites_of
from uniforget_pack.uniforget.mask.edit import merge
from uniforget_pack.uniforget.mask.gates import gated
from uniforget_pack.uniforget.mask.info import GateMask

FC2 = "joint_blocks.1.x_block.mlp.fc2"
KEY = f"diffusion_model.{FC2}.weight"


def weights(patcher):
    """Weights as the model computes with them, after patching."""
    comfy.model_management.load_models_gpu([patcher])
    return {k: v.clone() for k, v in patcher.model.state_dict().items()}


def predict(demo, patcher):
    """One prediction of the model as it computes with its patches."""
    comfy.model_management.load_models_gpu([patcher])
    x = torch.randn(2, 16, 12, 12, generator=torch.Generator().manual_seed(1))
    hidden, extra = demo.encode("soft cat top left on blue")[0]
    sigma = torch.tensor([0.9, 0.4])
    return patcher.model.apply_model(x, sigma, c_crossattn=hidden.repeat(2, 1, 1), y=extra["pooled_output"].repeat(2, 1))


def changed(mask, **values):
    return GateMask(mask.gates, mask.kinds, mask.info.__class__(**{**vars(mask.info), **values}))


def test_apply_sample_remove_restores_every_bit(demo):
    before = demo.sample(demo.model)
    masked = apply_mask(demo.model, demo.mask())
    after = demo.sample(masked)
    assert (after - before).abs().max() > 0.01, "the mask must change something"
    assert torch.equal(demo.sample(demo.model), before)
    assert torch.equal(demo.sample(masked), after)
    assert torch.equal(demo.sample(demo.model), before)


@pytest.mark.parametrize("kinds", [("ffn",), ("norm",), ("attn",), ("ffn", "norm", "attn")])
@pytest.mark.parametrize("strength", [0.37, 1.0])
def test_patching_equals_hooks_equals_folding(demo, kinds, strength):
    mask = demo.mask(kinds, hard=False)
    patched = predict(demo, apply_mask(demo.model, mask, strength))
    _, sites = sites_of(demo.model)
    before = predict(demo, demo.model)
    network = demo.model.model.diffusion_model
    with gated(dict(network.named_modules()), [s for s in sites if s.kind in kinds], mask.factors(strength)):
        by_hooks = predict(demo, demo.model)
    assert (by_hooks - before).abs().max() > 1e-3, "the mask must change something"
    assert (by_hooks - patched).abs().max() < 3e-5
    folded = merge(dict(network.state_dict()), mask, strength)
    computed = weights(apply_mask(demo.model, mask, strength))
    assert all(torch.equal(computed[f"diffusion_model.{k}"], v) for k, v in folded.items())


def test_strength_zero_and_kinds_at_zero_are_bit_identical(demo):
    before = demo.sample(demo.model)
    assert torch.equal(demo.sample(apply_mask(demo.model, demo.mask(), 0.0)), before)
    assert torch.equal(demo.sample(apply_mask(demo.model, demo.mask(), 1.0, {"ffn": 0.0, "norm": 0.0})), before)
    only_norm = apply_mask(demo.model, demo.mask(), 1.0, {"ffn": 0.0})
    assert KEY not in only_norm.patches and not torch.equal(demo.sample(only_norm), before)


def test_two_masks_in_one_graph_do_not_meet(demo):
    one, two = apply_mask(demo.model, demo.mask(seed=1)), apply_mask(demo.model, demo.mask(seed=2))
    a, b = demo.sample(one), demo.sample(two)
    assert not torch.equal(a, b)
    assert torch.equal(demo.sample(one), a) and torch.equal(demo.sample(two), b)
    both = apply_mask(one, demo.mask(seed=2))
    assert [len(p) for p in both.patches.values()].count(2) == len(one.patches)
    assert len(applied(both)) == 2 and len(applied(one)) == 1 and applied(demo.model) == []


def lora(model, clip, seed=3):
    """A LoRA on one masked layer, as a loader node applies it: (patched model, the weight's difference)."""
    generator = torch.Generator().manual_seed(seed)
    up, down = 0.3 * torch.randn(256, 4, generator=generator), 0.3 * torch.randn(4, 1024, generator=generator)
    state = {f"{KEY.removesuffix('.weight')}.lora_up.weight": up, f"{KEY.removesuffix('.weight')}.lora_down.weight": down}
    patches = comfy.lora.load_lora(state, {KEY.removesuffix(".weight"): KEY})
    clone = model.clone()
    assert clone.add_patches(patches, 1.0) == [KEY]
    return clone, up @ down


def test_lora_before_is_masked_and_after_is_not(demo):
    mask = demo.mask(("ffn",))
    original = weights(demo.model)[KEY]
    before, difference = lora(demo.model, demo.clip)
    factor = mask.gates[FC2]
    assert (weights(apply_mask(before, mask))[KEY] - (original + difference) * factor).abs().max() < 1e-5
    after, difference = lora(apply_mask(demo.model, mask), demo.clip)
    assert (weights(after)[KEY] - (original * factor + difference)).abs().max() < 1e-5
    assert torch.equal(weights(demo.model)[KEY], original)


def test_stock_checkpoint_save_loads_back_as_the_patched_model(demo):
    import comfy_extras.nodes_model_merging as merging

    masked = apply_mask(demo.model, demo.mask())
    expected, computed = demo.sample(masked), weights(masked)
    merging.save_checkpoint(
        masked,
        clip=demo.clip,
        vae=demo.vae,
        filename_prefix="checkpoints/forgotten",
        output_dir=folder_paths.get_output_directory(),
    )
    folder_paths.add_model_folder_path("checkpoints", f"{folder_paths.get_output_directory()}/checkpoints")
    name = sorted(n for n in folder_paths.get_filename_list("checkpoints") if n.startswith("forgotten"))[-1]
    loaded, clip, vae = DemoModel.execute(name).args
    again = weights(loaded)
    assert all(torch.equal(again[k], v) for k, v in computed.items() if k.startswith("diffusion_model."))
    demo.clip = clip
    assert torch.equal(demo.sample(loaded), expected)


def test_apply_node_says_what_it_did_and_warns_about_another_base(demo, caplog):
    mask = demo.mask()
    text = ApplyMask.execute(demo.model, mask, 0.5, 1.0, 1.0, 1.0).ui.as_dict()["text"][0]
    assert mask.digest() in text and "0.5" in text and "Careful" not in text
    other = changed(mask, base="AAAA", base_name="dreamy_v7")
    text = ApplyMask.execute(demo.model, other, 1.0, 1.0, 1.0, 1.0).ui.as_dict()["text"][0]
    assert "Careful" in text and "dreamy_v7" in text and "dreamy_v7" in caplog.text


def test_a_lora_does_not_look_like_another_base(demo):
    patched, _ = lora(demo.model, demo.clip)
    weights(patched)
    assert "Careful" not in ApplyMask.execute(patched, demo.mask(), 1.0, 1.0, 1.0, 1.0).ui.as_dict()["text"][0]


def test_wrong_masks_and_settings_are_refused(demo):
    mask = demo.mask()
    with pytest.raises(MismatchError, match="'flux'"):
        apply_mask(demo.model, changed(mask, family="flux"))
    with pytest.raises(MismatchError, match="do not exist in this model"):
        name = "joint_blocks.11.x_block.mlp.fc2"
        apply_mask(demo.model, GateMask({name: torch.zeros(1024)}, {name: "ffn"}, mask.info))
    with pytest.raises(MismatchError, match="10 ffn gates.*1024 ffn units"):
        apply_mask(demo.model, GateMask({FC2: torch.zeros(10)}, {FC2: "ffn"}, mask.info))
    with pytest.raises(SettingError, match="strength"):
        ApplyMask.execute(demo.model, mask, 1.5, 1.0, 1.0, 1.0)


def test_another_checkpoint_is_no_demo_model(tmp_path):
    comfy.utils.save_torch_file({"model.diffusion_model.x.weight": torch.zeros(2)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(Exception, match="not a UniForget demo model"):
        load_testbed(tmp_path / "x.safetensors")
