"""Masks that do not fit, models that no mask fits, and masks that do nothing: each is said, and the model stays as it was."""

import comfy.ops
import pytest
import torch
from comfy.ldm.cascade.stage_c import StageC
from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams
from comfy.ldm.lightricks.model import LTXVModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from uniforget_pack.nodes.apply import ApplyMask
from uniforget_pack.uniforget.errors import FamilyError, MismatchError
from uniforget_pack.uniforget.hosts.comfy.apply import applied, apply_mask, sites_of
from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo

from tests.comfyui.inside import zoo

FC2 = "joint_blocks.1.x_block.mlp.fc2"


def with_gates(mask, gates, kinds=None, **info):
    """`mask` with other gates and information."""
    return GateMask(gates, kinds or {name: mask.kinds[name] for name in gates}, type(mask.info)(**{**vars(mask.info), **info}))


def apply(model, mask, strength=1.0, ffn=1.0, norm=1.0, attn=1.0):
    """``(model, text)`` as the node hands them out."""
    out = ApplyMask.execute(model, mask, strength, ffn, norm, attn)
    return out.args[0], out.ui.as_dict()["text"][0]


def assert_untouched(model):
    assert not model.patches and not applied(model)


# --- masks for another model


def test_a_mask_of_another_family_names_both(demo):
    mask = demo.mask()
    with pytest.raises(MismatchError, match=r"family 'flux' and this model is Stable Diffusion 3 / 3\.5 \('sd3'\).*Use a mask"):
        apply(demo.model, with_gates(mask, mask.gates, family="flux"))
    assert_untouched(demo.model)


@pytest.mark.parametrize(("learned", "used"), [("sdxl", "koala_700m"), ("sdxl", "sdxl_refiner"), ("sd35_medium", "sd3")])
def test_a_mask_of_another_variant_is_refused_as_a_whole(learned, used):
    family, sites = sites_of(zoo.patcher(learned))
    model = zoo.patcher(used)
    there = {s.name for s in sites_of(model)[1]}
    odd = [s.name for s in sites if s.name not in there]
    assert 0 < len(odd) < len(sites), "some of it fits"
    mask = GateMask({s.name: torch.zeros(s.units) for s in sites}, {s.name: s.kind for s in sites}, MaskInfo(family.name, ""))
    expected = rf"^{len(odd)} of the mask's {len(sites)} sites do not exist in this model: {odd[0]}.*learn one for this model"
    with pytest.raises(MismatchError, match=expected):
        apply(model, mask)
    assert_untouched(model)


@pytest.mark.parametrize("name", ["sd1", "flux_dev", "z_image"])
def test_a_mask_of_other_sizes_names_the_sites_and_both_sizes(name):
    model = zoo.patcher(name)
    family, sites = sites_of(model)
    wider = {s.name: torch.zeros(s.units * (1 + i % 2)) for i, s in enumerate(sites)}
    mask = GateMask(wider, {s.name: s.kind for s in sites}, MaskInfo(family.name, ""))
    odd = sites[1]
    expected = (
        rf"^{len(sites) // 2} of the mask's {len(sites)} sites have another size or kind than in this model: "
        rf"{odd.name} has {2 * odd.units} {odd.kind} gates in the mask and {odd.units} {odd.kind} units in the model, "
    )
    with pytest.raises(MismatchError, match=expected):
        apply(model, mask)
    assert_untouched(model)


def test_one_missing_site_among_many_is_an_error_that_names_it(demo):
    mask = demo.mask()
    gates = {**mask.gates, "joint_blocks.99.x_block.mlp.fc2": torch.zeros(1024)}
    kinds = {**mask.kinds, "joint_blocks.99.x_block.mlp.fc2": "ffn"}
    with pytest.raises(
        MismatchError, match=rf"^1 of the mask's {len(gates)} sites do not exist in this model: joint_blocks\.99\."
    ):
        apply(demo.model, with_gates(mask, gates, kinds))
    with pytest.raises(MismatchError, match=rf"{FC2} has 1024 norm gates in the mask and 1024 ffn units in the model"):
        apply(demo.model, with_gates(mask, {FC2: torch.zeros(1024)}, {FC2: "norm"}))
    assert_untouched(demo.model)


@pytest.mark.parametrize("taken", [0, 3])
def test_patches_that_comfyui_does_not_take_are_named(demo, monkeypatch, taken):
    """ComfyUI drops weights that it does not know without a word."""
    mask = demo.mask()
    all_of_them = len(apply_mask(demo.model, mask).patches)
    assert all_of_them > 5
    add = type(demo.model).add_patches
    monkeypatch.setattr(type(demo.model), "add_patches", lambda self, patches: add(self, dict([*patches.items()][:taken])))
    expected = rf"ComfyUI took {taken} of the mask's {all_of_them} weight patches; refused: diffusion_model\.joint_blocks\."
    with pytest.raises(MismatchError, match=expected + r".*apply the mask before that node"):
        apply(demo.model, mask)
    assert_untouched(demo.model)


# --- masks that do nothing


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_a_mask_that_switches_nothing_off_is_said_and_changes_nothing(demo, caplog, strength):
    mask = demo.mask()
    idle = with_gates(mask, {name: torch.ones_like(gates) for name, gates in mask.gates.items()})
    before = demo.sample(demo.model)
    model, text = apply(demo.model, idle, strength)
    assert "Careful: this mask switches nothing off, so the model is unchanged" in text
    assert "switches nothing off" in caplog.text
    assert torch.equal(demo.sample(model), before) and not model.patches
    assert len(applied(model)) == 1


def test_a_strength_of_zero_is_said(demo, caplog):
    mask = demo.mask(("ffn", "norm"))
    for strengths in ({"strength": 0.0}, {"ffn": 0.0, "norm": 0.0}):
        model, text = apply(demo.model, mask, **strengths)
        assert "The model is unchanged: the strength of all that this mask switches off is 0." in text and not model.patches
    for strengths in ({}, {"strength": 0.1}, {"ffn": 0.0}, {"attn": 0.0}):
        model, text = apply(demo.model, mask, **strengths)
        assert "unchanged" not in text and model.patches
    assert "Careful" not in caplog.text


# --- models of no family


def meta(build, **config):
    return build(**config, dtype=torch.bfloat16, device=torch.device("meta"), operations=comfy.ops.disable_weight_init)


VIDEO_UNET = {
    **zoo.unet(64, (1, 1), (0, 1), 1, 1024, True, 768, (1, 2)),
    **{"use_temporal_attention": True, "use_temporal_resblock": True, "merge_strategy": "learned_with_images"},
    **{"extra_ff_mix_layer": True, "video_kernel_size": [3, 1, 1]},
}
HUNYUAN_VIDEO = zoo.known(
    HunyuanVideoParams,
    {
        **zoo.flux(double=1, single=1, axes_dim=[16, 56, 56]),
        **{"image_model": "hunyuan_video", "patch_size": [1, 2, 2], "theta": 256, "byt5": False, "meanflow": False},
        **{"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False},
    },
)
# ComfyUI's class and settings, then what the message says of it
FOREIGN = {
    "hunyuan_video": (HunyuanVideo, HUNYUAN_VIDEO, ["HunyuanVideo", "double_blocks.0.img_mod.lin.weight"]),
    "ltxv": (LTXVModel, {"num_layers": 1}, ["LTX-Video", "transformer_blocks.0."]),
    "cascade": (StageC, {}, ["Stable Cascade", "clip_txt_mapper.weight"]),
    "svd": (UNetModel, VIDEO_UNET, ["Stable Video Diffusion", "input_blocks.0.0.weight"]),
}


@pytest.mark.parametrize(("build", "config", "words"), FOREIGN.values(), ids=FOREIGN)
def test_a_model_of_no_family_is_named(demo, build, config, words):
    class Patcher:
        """A loaded model as far as it is looked at."""

        model = torch.nn.Module()
        object_patches_backup = {}

    with torch.device("meta"):
        Patcher.model.diffusion_model = meta(build, **config)
    with pytest.raises(FamilyError) as caught:
        apply(Patcher(), demo.mask())
    count = len([*Patcher.model.diffusion_model.parameters()])
    for word in ("UniForget cannot mask", f"found {count} weights such as", "Use a model of a supported family", *words):
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize("name", zoo.SMALL)
def test_no_model_of_a_family_is_taken_for_another_whichever_is_asked_first(name, monkeypatch):
    from uniforget_pack.uniforget.model import detect

    shapes = {k: tuple(v.shape) for k, v in zoo.small(name).diffusion_model.named_parameters()}
    monkeypatch.setattr(detect, "FAMILIES", detect.FAMILIES[::-1])
    assert detect.detect(shapes)[0].name == zoo.ARCHITECTURES[name][0]
