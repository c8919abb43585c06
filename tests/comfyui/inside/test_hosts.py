"""One mask in every host: what is merged, patched by ComfyUI or Forge, or written into a file, is the same to the bit; and hooks compute it."""

import importlib
import sys
from copy import deepcopy
from types import ModuleType, SimpleNamespace

import comfy.model_management as management
import pytest
import torch
from safetensors.torch import load_file, save_file
from uniforget_pack.uniforget.checkpoint.fileplan import Use
from uniforget_pack.uniforget.checkpoint.sanitize import sanitize
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask, layers_of, sites_of
from uniforget_pack.uniforget.hosts.diffusers.apply import merge_
from uniforget_pack.uniforget.hosts.webui import Request, Run, a1111
from uniforget_pack.uniforget.mask.edit import merge
from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo
from uniforget_pack.uniforget.mask.subspace import Basis, SubspaceMask

from tests.comfyui.inside import zoo
from tests.unit import webui_host

STRENGTH, PER_KIND = 0.7, {"ffn": 1.0, "norm": 0.9, "attn": 0.4}
PREFIX = "model.diffusion_model."


def gates(model):
    """Soft gates in all sites."""
    family, sites = sites_of(model)
    generator = torch.Generator().manual_seed(0)
    values = {s.name: torch.rand(s.units, generator=generator) for s in sites}
    # As files keep them.
    values = {name: (v * 255).round() / 255 for name, v in values.items()}
    return GateMask(values, {s.name: s.kind for s in sites}, MaskInfo(family.name, ""))


def subspace(model):
    """A third of the directions of all layers."""
    family, layers = layers_of(model)
    generator = torch.Generator().manual_seed(0)
    bases = {}
    for layer in layers:
        vectors = torch.linalg.qr(torch.randn(layer.width, layer.width, generator=generator))[0]
        kept = layer.width - layer.width // 3
        energy = torch.cat([torch.full((kept,), 1 / kept), torch.zeros(layer.width - kept)])
        bases[layer.name] = Basis(vectors.bfloat16().float(), energy)
    kinds = {layer.name: layer.kind for layer in layers}
    return SubspaceMask(bases, {name: name for name in bases}, kinds, 1e-4, MaskInfo(family, "", method="subspace"))


def merged(model, mask, tmp_path, monkeypatch):
    return merge(model.model.diffusion_model.state_dict(), mask, STRENGTH, PER_KIND)


def merged_in_place(model, mask, tmp_path, monkeypatch):
    network = deepcopy(model.model.diffusion_model)
    merge_(network, mask, STRENGTH, PER_KIND)
    return network.state_dict()


def comfy(model, mask, tmp_path, monkeypatch):
    patched = apply_mask(model, mask, STRENGTH, PER_KIND)
    # What newer versions of ComfyUI do to every adapter.
    for patches in patched.patches.values():
        patches[:] = [(a, type(b)(b.loaded_keys, _moved(b.weights)), *rest) for a, b, *rest in patches]
    management.load_models_gpu([patched], force_full_load=True)
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


def _moved(weights):
    return tuple(w.to("cpu", copy=True) if torch.is_tensor(w) else w for w in weights)


def forge(model, mask, tmp_path, monkeypatch):
    calculators = {}
    for name in ("backend", "backend.patcher", "backend.patcher.lora"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["backend.patcher"].lora = SimpleNamespace(extra_weight_calculators=calculators)
    module = "uniforget_pack.uniforget.hosts.webui.forge"
    sys.modules.pop(module, None)  # it holds on to the Forge that it found first
    host = importlib.import_module(module)
    request = Request(enabled=True, strength=STRENGTH, **{f"strength_{kind}": value for kind, value in PER_KIND.items()})
    network = torch.nn.Module()
    network.diffusion_model = model.model.diffusion_model
    clone, _ = host.apply(webui_host.ModelPatcher(network, None, None), Run(request, mask))
    found = clone.weights(calculators)
    buffers = dict(model.model.diffusion_model.named_buffers())
    return {name: found.get(f"diffusion_model.{name}", buffers.get(name)) for name in model.model.diffusion_model.state_dict()}


def file(model, mask, tmp_path, monkeypatch):
    state = {PREFIX + name: value.contiguous() for name, value in model.model.diffusion_model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    sanitize(tmp_path / "model.safetensors", tmp_path / "clean.safetensors", [Use(mask, STRENGTH, PER_KIND)])
    return {name.removeprefix(PREFIX): value for name, value in load_file(tmp_path / "clean.safetensors").items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [gates, subspace])
@pytest.mark.parametrize("host", [merged_in_place, comfy, forge, file])
@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_every_host_makes_the_same_weights(name, host, make, dtype, tmp_path, monkeypatch):
    model = zoo.patcher(name)
    model.model.diffusion_model.to(dtype)
    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    mask = make(model)
    wanted = merged(model, mask, tmp_path, monkeypatch)
    changed = {k for k in before if not torch.equal(wanted[k], before[k])}
    assert len(changed) >= len(mask.names), "the mask must change something"
    found = host(model, mask, tmp_path, monkeypatch)
    assert found.keys() == wanted.keys()
    different = [k for k in wanted if found[k].dtype != wanted[k].dtype or not torch.equal(found[k], wanted[k])]
    assert not different, f"{len(different)} of {len(changed)}, such as {different[0]}"


@pytest.mark.parametrize("make", [gates, subspace])
@pytest.mark.parametrize("name", ["sd1", "sd3", "flux_dev"])
def test_hooks_compute_what_merged_weights_do(name, make):
    model = zoo.patcher(name)
    network, mask = model.model.diffusion_model, make(model)
    request = Request(enabled=True, strength=STRENGTH, **{f"strength_{kind}": value for kind, value in PER_KIND.items()})
    before = zoo.predict(name, model.model)
    with a1111.applied(network, Run(request, mask)):
        hooked = zoo.predict(name, model.model)
    assert torch.equal(zoo.predict(name, model.model), before), "hooks must be gone"
    merge_(network, mask, STRENGTH, PER_KIND)
    found = zoo.predict(name, model.model)
    assert (found - before).abs().max() > 1e-3, "the mask must change something"
    assert (found - hooked).abs().max() <= 1e-4 * before.abs().max().clamp_min(1)
