"""Ways of loading, as docs/loading.md lists them: number formats, by ComfyUI's stock loader and saver."""

import json

import comfy.float
import comfy.model_management as management
import comfy.sd
import comfy_extras.nodes_model_merging as merging
import pytest
import torch
import uniforget_pack.uniforget.hosts.comfy.apply as host
from uniforget_pack.nodes.apply import ApplyMask
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask, base_fingerprint
from uniforget_pack.uniforget.mask.edit import merge

import nodes
from tests.comfyui.inside import zoo
from tests.comfyui.inside.ways import CPU, difference, files, random_mask, run

__all__ = ["files"]
NAME = "sd3"
FP8 = torch.float8_e4m3fn
FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CASTS = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
SCALED = ("scaled fp8", "scaled fp8, odd scales", "mixed fp8", "mixed fp8, odd scales")
FORMATS = (*FLOATS, *CASTS, *SCALED)


def state(seed=0):
    return {k: v.clone() for k, v in zoo.small(NAME, seed).diffusion_model.state_dict().items()}


def quantized(plain, kind):
    """``(state, metadata)`` of a file with fp8 matrices and a scale for each: the older layout, or that of mixed precision."""
    out, layers = {}, {}
    for name, weight in plain.items():
        if weight.ndim != 2 or not name.endswith(".weight"):
            out[name] = weight
            continue
        scale = torch.tensor(0.01) if "odd" in kind else weight.abs().max() / torch.finfo(FP8).max
        path = name.removesuffix(".weight")
        out[name] = (weight / scale).clamp(-448, 448).to(FP8)
        out[f"{path}.{'weight_scale' if 'mixed' in kind else 'scale_weight'}"] = scale.float().clone()
        layers[path] = {"format": "float8_e4m3fn"}
    if "mixed" in kind:
        return out, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return out | {"scaled_fp8": torch.zeros(2, dtype=FP8)}, None


def load(files, kind, seed=0):
    """The small model out of a file, as a graphics card would keep it."""
    plain = state(seed)
    if kind in SCALED:
        name = files("diffusion_models", f"{kind}.safetensors", *quantized(plain, kind))
        return run(nodes.UNETLoader, unet_name=name, weight_dtype="default")
    dtype = FLOATS.get(kind, torch.float16)
    name = files("diffusion_models", f"{kind}.safetensors", {k: v.to(dtype) for k, v in plain.items()})
    if kind in CASTS:
        return run(nodes.UNETLoader, unet_name=name, weight_dtype=kind)
    # a processor would get fp32 from the stock loader's "default"
    return comfy.sd.load_diffusion_model(str(files.at / "diffusion_models" / name), {"dtype": dtype})


def numbers(model):
    """The state as it is loaded now, in fp32, whatever format the weights are kept in."""
    out = {
        k: v.float() for k, v in model.model.diffusion_model.state_dict().items() if k.endswith((".weight", ".bias", "pos_embed"))
    }
    for path, module in model.model.diffusion_model.named_modules():
        if hasattr(module, "convert_weight"):
            out[f"{path}.weight"] = module.convert_weight(module.weight.clone()).float()
    return {k: v.clone() for k, v in out.items()}


def predict(model, budget=1e32):
    model.partially_load(CPU, budget)
    return zoo.predict(NAME, model.model)


def twin(plain):
    """A fp32 model with these weights."""
    model = zoo.patcher(NAME)
    model.model.diffusion_model.load_state_dict(plain)
    return model


def spacing(value, original, kind):
    """How far apart fp8 numbers are at `value`, at most."""
    mantissa, smallest = (2, 2.0**-16) if kind == "fp8_e5m2" else (3, 2.0**-9)
    if kind in SCALED and value.ndim == 2:  # biases have no scale
        smallest *= 0.01 if "odd" in kind else original.abs().max() / 448
    return (value.abs() * 2.0**-mantissa).clamp_min(smallest) * 1.001


def rounding_moves():
    """The share of fp8 numbers that this ComfyUI moves when it only puts them back (0.3.75: one in a thousand; later: none)."""
    every = torch.arange(-126, 127).to(torch.uint8).view(FP8).float().repeat(1000)
    again = comfy.float.stochastic_rounding(every[:, None].contiguous(), FP8, seed=1)[:, 0].float()
    return (again != every)[every.isfinite()].float().mean().item()


def check_fp8(kind, hard, masked, original, exact):
    """What is off is off, and nothing is further from the exact product than the next fp8 number."""
    allowed = 5 * rounding_moves()
    now = numbers(masked)
    for name, value in exact.items():
        if torch.equal(value, original[name]):
            assert torch.equal(now[name], value), f"{name} has no gates"
            continue
        away = (now[name] - value).abs()
        assert (now[name][value == 0] == 0).all(), f"{name}: what is off must be off"
        assert (away <= spacing(value, original[name], kind)).all(), name
        weight = masked.model.diffusion_model.get_parameter(name)
        # Formats with a tensor class of their own get a new scale, from the largest weight that is left.
        rescaled = type(weight) is not torch.nn.Parameter and ("odd" in kind or value.abs().max() < original[name].abs().max())
        if hard and not rescaled:
            assert (away > 0).sum() <= allowed * away.numel() + (allowed > 0), f"{name}: what is on must stay as it is"


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_format(files, kind, hard):
    model = load(files, kind)
    mask = random_mask(model, hard=hard)
    before, original = predict(model), numbers(model)
    exact = merge(original, mask)
    if kind in FLOATS:
        exact = {k: v.to(FLOATS[kind]).float() for k, v in exact.items()}
    wanted = predict(twin(exact))
    effect = difference(wanted, before)
    assert effect > 0.1, "the mask must change something"
    masked = apply_mask(model, mask)
    assert difference(predict(masked), wanted) < (1e-5 if kind in FLOATS else 0.1 * effect)
    if kind in FLOATS:
        assert all(torch.equal(v, exact[k]) for k, v in numbers(masked).items())
    else:
        check_fp8(kind, hard, masked, original, exact)
    model.detach()
    # Multiplied whenever they are used, such weights are not rounded to the format again; ComfyUI 0.3.75 does so with scaled fp8.
    limit = {**dict.fromkeys(FLOATS, 0.005), **dict.fromkeys(CASTS, 1e-5)}.get(kind, 0.1 * effect)
    assert difference(predict(masked, 0.1), wanted) < limit
    assert torch.equal(predict(apply_mask(model, mask, 0.0)), before)
    assert torch.equal(predict(model), before)
    assert all(torch.equal(v, original[k]) for k, v in numbers(model).items())


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_model_in_another_format_is_recognised(files, kind):
    full, model, other = zoo.patcher(NAME), load(files, kind), load(files, kind, seed=1)
    for learned, used in ((full, model), (model, full)):
        text = says(used, random_mask(learned))
        assert "Careful" not in text and "compare" not in text
    assert "Careful: this mask was learned on another model (the test's)" in says(other, random_mask(full))
    # patched weights are not what is compared
    masked = apply_mask(model, random_mask(model))
    management.load_models_gpu([masked])
    host._fingerprints.clear()
    again = base_fingerprint(masked)
    management.load_models_gpu([model])
    host._fingerprints.clear()
    assert again and again == base_fingerprint(model)


def says(model, mask):
    return ApplyMask.execute(model, mask, 1.0, 1.0, 1.0, 1.0).ui.as_dict()["text"][0]


@pytest.mark.parametrize("kind", FORMATS)
def test_saved_in_its_format(files, kind):
    model = load(files, kind)
    masked = apply_mask(model, random_mask(model))
    before, wanted = predict(model), predict(masked)
    dtypes = {k: v.dtype for k, v in model.model.diffusion_model.state_dict().items()}
    save = lambda m, name: merging.ModelSave().save(m, filename_prefix=f"diffusion_models/{name}")  # noqa: E731
    try:
        save(model, "plain")
    except AttributeError:  # ComfyUI 0.3.75 cannot save mixed precision, with or without a mask
        assert "mixed" in kind
        with pytest.raises(AttributeError):
            save(masked, "forgotten")
        return
    save(masked, "forgotten")
    (path,) = (files.at / "diffusion_models").glob("forgotten*.safetensors")
    if kind in FLOATS:
        again = comfy.sd.load_diffusion_model(str(path), {"dtype": FLOATS[kind]})
    else:
        again = run(nodes.UNETLoader, unet_name=path.name, weight_dtype=kind if kind in CASTS else "default")
    found = {k: v.dtype for k, v in again.model.diffusion_model.state_dict().items()}
    assert dtypes.items() <= found.items(), "the file must keep the format"
    assert difference(wanted, before) > 0.1 and difference(predict(again), wanted) < 1e-5
