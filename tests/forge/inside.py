"""Run by Forge's Python inside Forge's folder: masks on Forge's own modules, patcher and LoRA loader.

Prints one line for each thing that was found right.
"""

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "packages_3rdparty")]
sys.argv.append("--always-cpu")  # Forge reads its options on import

# ruff: noqa: E402
import gguf
import torch
from backend.nn.flux import IntegratedFluxTransformer2DModel
from backend.nn.unet import IntegratedUNet2DConditionModel
from backend.operations import using_forge_operations
from backend.operations_gguf import ParameterGGUF
from backend.patcher.base import ModelPatcher
from torch import nn

spec = importlib.util.spec_from_file_location(
    "extension", ROOT / "uniforget" / "__init__.py", submodule_search_locations=[str(ROOT / "uniforget")]
)
sys.modules["extension"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["extension"])
from extension.hosts.webui import Request, Run, forge
from extension.mask.edit import merge
from extension.mask.gates import gated
from extension.mask.info import GateMask, MaskInfo
from extension.model.sites import find_sites

UNET = {
    "in_channels": 4, "model_channels": 32, "out_channels": 4, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "num_heads": 8,
    "use_spatial_transformer": True, "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "context_dim": 768,
}  # fmt: skip
REAL_UNET = UNET | {
    "model_channels": 320, "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_output": [1] * 9 + [0] * 3,
}  # fmt: skip
FLUX = {
    "in_channels": 4, "vec_in_dim": 32, "context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [16, 24, 24], "theta": 10000, "qkv_bias": True, "guidance_embed": False,
}  # fmt: skip


def build(make, dtype=torch.float32, bnb=None):
    """A model as Forge's loader makes it from a state dict of random weights."""
    torch.manual_seed(0)
    state = {k: torch.randn(v.shape) / 8 if v.ndim > 1 else 1 + torch.randn(v.shape) / 8 for k, v in make().state_dict().items()}
    if bnb == "gguf":
        state = {k: quantized(v) if linear(k, v) else v for k, v in state.items()}
    with using_forge_operations(device="cpu", dtype=dtype, manual_cast_enabled=dtype not in (torch.float32,), bnb_dtype=bnb):
        model = make()
    model.load_state_dict(state)
    if bnb is None:
        model.to(dtype)
    for parameter in model.parameters():
        if getattr(parameter, "gguf_cls", None) is not None:
            parameter.gguf_cls.bake(parameter)
    holder = nn.Module()
    holder.diffusion_model = model.requires_grad_(False)
    return ModelPatcher(holder, torch.device("cpu"), torch.device("cpu"))


def linear(name, value):
    return value.ndim == 2 and "blocks" in name and "transformer_blocks" in name and value.shape[1] % 32 == 0


def quantized(value):
    data = gguf.quants.quantize(value.numpy(), gguf.GGMLQuantizationType.Q8_0)
    tensor = types.SimpleNamespace(tensor_type=gguf.GGMLQuantizationType.Q8_0, shape=list(reversed(value.shape)), data=data)
    return ParameterGGUF(tensor)


def half(patcher):
    family, sites = find_sites(forge.shapes_of(patcher))
    generator = torch.Generator().manual_seed(1)
    gates = {s.name: (torch.rand(s.units, generator=generator) > 0.5).float() for s in sites}
    return GateMask(gates, {s.name: s.kind for s in sites}, MaskInfo(family.name, ""))


def run_unet(patcher):
    torch.manual_seed(2)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 768)
    with torch.inference_mode():
        return patcher.model.diffusion_model(x, torch.tensor([500.0]), context=text)


def applied(patcher, mask, **request):
    clone, landed = forge.apply(patcher, Run(Request(True, **request), mask))
    clone.refresh_loras()
    return clone, landed


def check_unet(name, dtype, bnb, tolerance):
    """A masked model draws what hooks make the same model draw; afterwards it draws what it drew before."""
    patcher = build(lambda: IntegratedUNet2DConditionModel(**UNET), dtype, bnb)
    before, mask = run_unet(patcher), half(patcher)
    modules, (_, sites) = dict(patcher.model.diffusion_model.named_modules()), find_sites(forge.shapes_of(patcher))
    for strength in (1.0, 0.3):  # 0.3 is rounded in 16 bits, switching off is not
        clone, landed = applied(patcher, mask, strength=strength)
        masked = run_unet(clone)
        patcher.refresh_loras()
        assert torch.equal(run_unet(patcher), before), "weights did not come back"
        with gated(modules, sites, mask.factors(strength)):
            expected = run_unet(patcher)
        assert torch.isfinite(expected).all() and not torch.equal(expected, before)
        error = ((masked - expected).norm() / (expected - before).norm()).item()
        assert error <= (0 if strength == 1 else tolerance), error
        online = {k for (*_, mode), keys in clone.lora_patches.items() if mode for k in keys}
        print(
            f"{name}, strength {strength}: {landed} sites, {len(online)} weights patched at every use, relative error {error:.1e}"
        )
    zero, _ = applied(patcher, mask, strength=0.0)
    assert not zero.lora_patches and torch.equal(run_unet(zero), before)


def check_lora(online):
    """A LoRA before a mask is masked, in both of Forge's modes."""
    patcher = build(lambda: IntegratedUNet2DConditionModel(**UNET))
    mask = half(patcher)
    name = "middle_block.1.transformer_blocks.0.ff.net.2"
    key = f"diffusion_model.{name}.weight"
    weight = patcher.model.get_parameter(key).clone()
    torch.manual_seed(3)
    up, down = torch.randn(weight.shape[0], 4), torch.randn(4, weight.shape[1])
    with_lora = patcher.clone()
    with_lora.add_patches(filename="style", patches={key: ("lora", (up, down, 4.0, None, None))}, online_mode=online)
    with_lora.refresh_loras()
    changed = run_unet(with_lora)
    clone, _ = applied(with_lora, mask)
    masked = run_unet(clone)
    patcher.refresh_loras()
    state = {k.removeprefix("diffusion_model."): v for k, v in patcher.model.named_parameters()}
    state[f"{name}.weight"] = weight + up @ down
    folded = merge(state, mask)
    with torch.inference_mode():
        for k, value in folded.items():
            patcher.model.diffusion_model.get_parameter(k).copy_(value)
    error = ((masked - run_unet(patcher)).norm() / masked.norm()).item()
    assert error < 1e-4 and not torch.allclose(masked, changed), error
    print(f"LoRA {'online' if online else 'offline'}: relative error {error:.1e}")


def check_flux():
    """All sites of FLUX are patched, those of fused Linears and biases among them."""
    patcher = build(lambda: IntegratedFluxTransformer2DModel(**FLUX))
    mask = half(patcher)
    state = {n.removeprefix("diffusion_model."): w.clone() for n, w in patcher.model.named_parameters()}
    _, landed = applied(patcher, mask, strength=0.5)
    expected = merge(state, mask, 0.5)
    found = {n.removeprefix("diffusion_model."): w for n, w in patcher.model.named_parameters()}
    assert any(not torch.equal(found[n], w) for n, w in state.items())
    assert all(torch.allclose(found[n], w, atol=1e-6) for n, w in expected.items())
    print(f"FLUX: {landed} sites")


def check_names():
    """Forge's Stable Diffusion 1.5 at its real size has the sites that the engine knows of the checkpoint."""
    with torch.device("meta"):
        model = IntegratedUNet2DConditionModel(**REAL_UNET)
    family, sites = find_sites({n: tuple(w.shape) for n, w in model.named_parameters()})
    print(f"real {family.name}: {len(sites)} sites {' '.join(f'{s.name}:{s.kind}:{s.units}' for s in sites)}")


check_unet("fp32", torch.float32, None, 1e-5)
check_unet("fp16", torch.float16, None, 0.02)
check_unet("fp8", torch.float8_e4m3fn, None, 1e-5)
check_unet("GGUF Q8_0", torch.float16, "gguf", 0.02)
check_lora(False)
check_lora(True)
check_flux()
check_names()
