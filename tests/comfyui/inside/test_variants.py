"""Published models with the architecture of another one: ComfyUI takes them for what they are, and their gates are the other's."""

import json
import os

import comfy.model_base
import comfy.model_detection
import comfy.supported_models as supported
import pytest
import torch
from uniforget_pack.uniforget.model.families import sizes
from uniforget_pack.uniforget.model.families.schema import KINDS
from uniforget_pack.uniforget.model.sites import find_sites

from tests.comfyui.inside import zoo
from tests.unit import shapes

_V_PREDICTION = ("v_pred", "ztsnr")
# variant -> (class that ComfyUI finds, other settings than the model it is like, weights that tell it)
VARIANTS = {
    "illustrious_xl": ("SDXL", {}, ()),
    "noobai_xl_vpred": ("SDXL", {}, _V_PREDICTION),
    "pony_v6_xl": ("SDXL", {}, ()),
    "sd35_large_turbo": ("SD3", {}, ()),
    "flux_krea": ("Flux", {}, ()),
    "flux_kontext": ("Flux", {}, ()),
    "flux_fill": ("FluxInpaint", {"in_channels": 96}, ()),
    "pony_v7": ("AuraFlow", {}, ()),
    "z_image_turbo": ("ZImage", {}, ()),
    "z_image_omni": ("ZImage", {"siglip_feat_dim": 1152, "pad_tokens_multiple": 32}, ()),
    "qwen_image_2512": ("QwenImage", {}, ()),
    "qwen_image_edit_2511": ("QwenImage", {}, ("__index_timestep_zero__",)),
    "qwen_image_layered": ("QwenImage", {"use_additional_t_cond": True}, ()),
    "wan22_t2v_a14b": ("WAN21_T2V", {}, ()),
    "hidream_e1": ("HiDream", {}, ()),
}


def test_every_variant_that_is_listed_is_tried():
    assert VARIANTS.keys() == {name for name, entry in sizes().items() if "like" in entry}


@pytest.mark.skipif(not zoo.NEWER, reason="this version of ComfyUI lacks some of the classes and settings")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_what_it_is_like(name):
    kind, changes, telling = VARIANTS[name]
    like = sizes()[name]["like"]
    family, base, _, config = zoo.ARCHITECTURES[like]
    settings = base({**config})
    settings.unet_config |= config | changes
    settings.set_inference_dtype(torch.float32, None)
    network = settings.get_model({}, device=torch.device("meta")).diffusion_model
    state = dict(network.state_dict()) | {key: torch.zeros(1) for key in telling}
    found = comfy.model_detection.model_config_from_unet(state, "")
    assert isinstance(found, getattr(supported, kind)), type(found)
    if telling is _V_PREDICTION:
        assert found.model_type(state) == comfy.model_base.ModelType.V_PREDICTION and found.sampling_settings["zsnr"]
    entry, sites = find_sites({key: tuple(value.shape) for key, value in state.items()})
    counts = {k: {"sites": len(c), "gates": sum(s.units for s in c)} for k in KINDS if (c := [s for s in sites if s.kind == k])}
    assert {"family": entry.name, **counts} == {k: sizes()[name][k] for k in ("family", *KINDS)} and entry.name == family


@pytest.mark.skipif(not zoo.NEWER, reason="this version of ComfyUI lacks some of the classes")
def test_what_other_versions_are_tested_with_is_what_this_one_builds():
    """``UNIFORGET_WRITE_SHAPES=1`` writes the file anew, with a ComfyUI that has all classes."""
    names = [*zoo.zoo_newer.ARCHITECTURES, "chroma_radiance", "longcat_image", "z_image_pixel"]
    built = {name: shapes.collapse({k: tuple(p.shape) for k, p in zoo.real(name).named_parameters()}) for name in names}
    if os.environ.get("UNIFORGET_WRITE_SHAPES"):
        lines = (f"{json.dumps(n)}: {{\n{_lines(weights)}\n}}" for n, weights in built.items())
        shapes.FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    kept = json.loads(shapes.FILE.read_text(encoding="utf-8"))
    assert kept == built


def _lines(weights):
    return ",\n".join(f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in weights.items())
