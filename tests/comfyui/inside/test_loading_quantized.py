"""Ways of loading, as docs/loading.md lists them: formats of ComfyUI 0.33 with a scale for every few weights, or with weights stored rotated."""

import json

import comfy.quant_ops
import pytest
import torch
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.mask.edit import merge

import nodes
from tests.comfyui.inside.test_loading_formats import numbers, predict, says, state, twin
from tests.comfyui.inside.ways import difference, files, random_mask, run

__all__ = ["files"]
ALGORITHMS = getattr(comfy.quant_ops, "QUANT_ALGOS", {})
# format -> its name in ComfyUI, settings, and bounds: what rounding may leave of what is switched off (a share of its size), and how far
# predictions may be from the exact ones (a share of what the mask changes)
FORMATS = {
    "mxfp8": ("mxfp8", {}, 0.0, 0.1),
    "nvfp4": ("nvfp4", {}, 0.0, 0.5),
    "int8": ("int8_tensorwise", {"per_channel": True}, 0.0, 0.1),
    "int8 convrot": ("int8_tensorwise", {"per_channel": True, "convrot": True, "convrot_groupsize": 64}, 0.02, 0.1),
    "int4 convrot": ("convrot_w4a4", {"convrot_groupsize": 64}, 0.3, 0.5),
    "asymmetric w4a8": ("asym_w4a8_int8", {"convrot_groupsize": 64}, 0.15, 0.2),
}
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(entry[0] not in ALGORITHMS, reason="this version of ComfyUI has no such format"))
    for kind, entry in FORMATS.items()
]


def load(files, kind, seed=0):
    """The small model out of a file in which the large matrices of its blocks are quantized."""
    name, settings, *_ = FORMATS[kind]
    out = {}
    for key, weight in state(seed).items():
        path = key.removesuffix(".weight")
        if weight.ndim != 2 or not key.startswith("joint_blocks.") or weight.shape[1] % 64 or weight.shape[0] % 16:
            out[key] = weight
            continue
        quantized = comfy.quant_ops.QuantizedTensor.from_float(weight, ALGORITHMS[name]["comfy_tensor_layout"], **settings)
        out |= quantized.state_dict(key)
        note = {"format": name, "full_precision_matrix_mult": True, **{k: v for k, v in settings.items() if k != "per_channel"}}
        out[f"{path}.comfy_quant"] = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
    file = files("diffusion_models", "quantized.safetensors", out)
    return run(nodes.UNETLoader, unet_name=file, weight_dtype="default")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_acts_on_the_weights_that_the_model_computes_with(files, kind):
    """Rotated weights are rotated back, multiplied and rotated again: ComfyUI does that for any patch."""
    model = load(files, kind)
    mask = random_mask(model)
    before, original = predict(model), numbers(model)
    plain = state()
    size = max(plain[k].std() for k in original if k in plain and plain[k].ndim == 2)
    assert max((original[k] - plain[k]).abs().max() for k in plain if k in original) < size, (
        "the test must read what is computed with"
    )
    exact = merge(original, mask)
    wanted = predict(twin(exact))
    effect = difference(wanted, before)
    masked = apply_mask(model, mask)
    found = predict(masked)
    now = numbers(masked)
    changed = [k for k, value in exact.items() if value.ndim == 2 and not torch.equal(value, original[k])]
    off = {k: exact[k] == 0 for k in changed if (exact[k] == 0).any()}
    left = max(now[k][zero].norm() / original[k][zero].norm() for k, zero in off.items())
    *_, rest, away = FORMATS[kind]
    assert effect > 0.1 and len(off) >= 8
    assert left <= rest, "what is off must be off, up to rounding"
    assert difference(found, wanted) < away * effect
    assert torch.equal(predict(apply_mask(model, mask, 0.0)), before)
    assert torch.equal(predict(model), before)
    assert "Careful" not in says(model, mask)
