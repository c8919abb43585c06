"""Compact models inside real ComfyUI: the masked model's outputs, on a clone, with LoRAs, in little memory, restored afterwards."""

from dataclasses import replace

import comfy.model_management as management
import folder_paths
import pytest
import torch
from safetensors.torch import load_file
from uniforget_pack.nodes.compact import CompactModel
from uniforget_pack.nodes.sanitize import LoadCompact, SaveSanitized
from uniforget_pack.uniforget.checkpoint import compactfile, safefile
from uniforget_pack.uniforget.errors import MismatchError, ModelFileError
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.hosts.comfy.compact import compact, install
from uniforget_pack.uniforget.mask.info import GateMask

from tests.comfyui.inside import zoo
from tests.comfyui.inside.test_loading_formats import NAME as SD3
from tests.comfyui.inside.test_loading_formats import load
from tests.comfyui.inside.ways import CPU, difference, files, random_mask

__all__ = ["files"]


def hard_mask(model, seed=0):
    """60 % of everything off; of the first FFN nothing is left, of the second one unit."""
    mask = random_mask(model, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    gates = {n: (torch.rand(g.shape, generator=generator) > 0.6).float() for n, g in mask.gates.items()}
    first, second = [n for n, kind in mask.kinds.items() if kind == "ffn"][:2]
    gates[first][:] = 0
    gates[second][:] = 0
    gates[second][3] = 1
    return GateMask(gates, mask.kinds, mask.info)


def predict(model, name, budget=1e32):
    model.partially_load(CPU, budget)
    out = zoo.predict(name, model.model)
    model.detach()
    return out


@pytest.mark.parametrize("name", zoo.SMALL)
def test_the_output_is_the_masked_models(name):
    model = zoo.patcher(name)
    mask = hard_mask(model)
    before = predict(model, name)
    wanted = predict(apply_mask(model, mask), name)
    clone, plan = compact(model, mask, 8)
    assert plan.hidden and "ffn" not in plan.whole
    sizes = {k: v.shape for k, v in model.model.diffusion_model.state_dict().items()}
    for budget in (1e32, 0.1):
        clone.partially_load(CPU, budget)
        inside = {k: v.shape for k, v in clone.model.diffusion_model.state_dict().items()}
        assert {k for k in sizes if sizes[k] != inside[k]} >= {f"{path}.weight" for path in plan.hidden}
        assert difference(zoo.predict(name, clone.model), wanted) < 1e-5
        clone.detach()
    assert {k: v.shape for k, v in model.model.diffusion_model.state_dict().items()} == sizes
    assert torch.equal(predict(model, name), before)
    assert difference(wanted, before) > 1e-3


def test_another_clone_may_be_loaded_meanwhile():
    """Cut while a masked or a compact clone of the same model is in memory."""
    model = zoo.patcher(SD3)
    mask, other = hard_mask(model), hard_mask(model, 5)
    wanted = predict(apply_mask(model, mask), SD3)
    for busy in (apply_mask(model, other), compact(model, other, 8)[0]):
        management.load_models_gpu([busy])
        clone = compact(model, mask, 8)[0]
        management.load_models_gpu([clone])
        assert difference(zoo.predict(SD3, clone.model), wanted) < 1e-5
        management.load_models_gpu([model])


@pytest.mark.parametrize("budget", [1e32, 0.1])
def test_loras_land_before_and_after(budget):
    model = zoo.patcher(SD3)
    mask = hard_mask(model)
    generator = torch.Generator().manual_seed(1)
    layers = ("joint_blocks.0.x_block.mlp.fc2", "joint_blocks.1.x_block.mlp.fc1", "joint_blocks.1.x_block.attn.qkv")
    patches = {}
    for layer in layers:
        rows, columns = model.model.diffusion_model.get_parameter(f"{layer}.weight").shape
        up, down = torch.randn(rows, 4, generator=generator), 0.1 * torch.randn(4, columns, generator=generator)
        patches[f"diffusion_model.{layer}.weight"] = ("diff", (up @ down,))
    with_lora = model.clone()
    with_lora.add_patches(patches, 0.5)
    before, wanted = predict(with_lora, SD3), predict(apply_mask(with_lora, mask), SD3)
    assert difference(predict(compact(with_lora, mask, 8)[0], SD3, budget), wanted) < 1e-5
    late = compact(model, mask, 1)[0]
    late.add_patches(patches, 0.5)
    # Afterwards it lands on what is there: what it would give to cut neurons is gone.
    gone = apply_mask(model, mask)
    gone.add_patches({k: v for k, v in patches.items() if "fc2" not in k}, 0.5)
    layer = layers[0]
    kept = mask.gates[layer] if layer in mask.gates else torch.ones(patches[f"diffusion_model.{layer}.weight"][1][0].shape[1])
    gone.add_patches(
        {f"diffusion_model.{layer}.weight": ("diff", (patches[f"diffusion_model.{layer}.weight"][1][0] * _floor(kept),))}, 0.5
    )
    found = predict(late, SD3, budget)
    assert difference(found, predict(gone, SD3)) < 1e-5 and difference(found, before) > 0.01


def _floor(gates):
    """One unit is always left."""
    if not gates.any():
        gates = gates.clone()
        gates[0] = 1
    return gates


@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp8_e4m3fn", "scaled fp8"])
def test_formats(files, kind):
    model = load(files, kind)
    mask = hard_mask(model)
    before, wanted = predict(model, SD3), predict(apply_mask(model, mask), SD3)
    found = predict(compact(model, mask, 8)[0], SD3)
    assert difference(found, wanted) < 0.05 * difference(wanted, before) + 1e-5
    assert torch.equal(predict(model, SD3), before)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_a_file_of_every_family(files, name):
    """Written, read, spread out and cut again; small models, which ComfyUI's loaders do not recognise, get their weights by hand."""
    model = zoo.patcher(name)
    mask = hard_mask(model)
    wanted = predict(apply_mask(model, mask), name)
    state = dict(model.model.diffusion_model.state_dict())
    files("diffusion_models", "small.safetensors", state)
    source, target = (files.at / "diffusion_models" / f"{n}.safetensors" for n in ("small", "cut"))
    compactfile.save(source, target, mask, 8)
    prefix, found = compactfile.read(safefile.read_header(target))
    assert prefix == "" and target.stat().st_size < source.stat().st_size
    other = zoo.patcher(name, 1)
    other.model.diffusion_model.load_state_dict(compactfile.whole(load_file(target), prefix, found))
    install(other, found, "cut.safetensors")
    assert difference(predict(other, name), wanted) < 1e-5
    sizes = {k: v.shape for k, v in other.model.diffusion_model.state_dict().items()}
    assert all(v.shape == sizes[k] for k, v in load_file(target).items())


@pytest.mark.parametrize("name", ["sd3", "sd35_large"])
def test_saved_and_loaded(files, name):
    """Through the nodes; the file is smaller, and LoRAs land on what comes out of it."""
    model = zoo.patcher(name)
    mask = hard_mask(model)
    mask = GateMask(mask.gates, mask.kinds, replace(mask.info, base=""))
    state = {k: v for k, v in model.model.diffusion_model.state_dict().items()}
    files("diffusion_models", "small.safetensors", state)
    wanted = predict(apply_mask(model, mask), name)
    out = SaveSanitized.execute("diffusion_models/small.safetensors", mask, 1.0, 1.0, 1.0, 1.0, "cut", True, False)
    assert "layers cut" in out.ui.as_dict()["text"][0]
    folder_paths.filename_list_cache.clear()
    path = files.at / "diffusion_models" / "cut_00001.safetensors"
    assert path.stat().st_size < 0.95 * (files.at / "diffusion_models" / "small.safetensors").stat().st_size
    loaded = LoadCompact.execute("diffusion_models/cut_00001.safetensors").args[0]
    assert loaded.model_size() < model.model_size()
    for budget in (1e32, 0.1):
        assert difference(predict(loaded, name, budget), wanted) < 1e-5
    with pytest.raises(ModelFileError, match="no compact model"):
        LoadCompact.execute("diffusion_models/small.safetensors")
    # A LoRA lands on what is left of it.
    layer = next(n for n, kind in mask.kinds.items() if kind == "ffn").removesuffix(".mlp")
    shape = model.model.diffusion_model.get_parameter(f"{layer}.weight").shape
    patch = {f"diffusion_model.{layer}.weight": ("diff", (torch.randn(shape, generator=torch.Generator().manual_seed(0)),))}
    changed = loaded.clone()
    assert changed.add_patches(patch, 1.0)
    small = compact(model, mask, 64)[0]
    small.add_patches(patch, 1.0)
    assert difference(predict(changed, name), predict(small, name)) < 1e-5


def test_what_cannot_be_cut_is_told(files):
    model = load(files, "mixed fp8")
    with pytest.raises(MismatchError, match="packed weights"):
        compact(model, hard_mask(model))
    plain = zoo.patcher(SD3)
    clone = compact(plain, hard_mask(plain))[0]
    with pytest.raises(MismatchError, match="compact already"):
        compact(clone, hard_mask(plain))


def test_the_node_and_stock_sampling(demo):
    mask = demo.mask(("ffn", "norm", "attn"), share=0.5)
    before = demo.sample(demo.model)
    wanted = demo.sample(apply_mask(demo.model, mask))
    out = CompactModel.execute(demo.model, mask, "8")
    assert "layers cut" in out.ui.as_dict()["text"][0]
    torch.testing.assert_close(demo.sample(out.args[0]), wanted, atol=1e-3, rtol=1e-3)
    assert torch.equal(demo.sample(demo.model), before)
