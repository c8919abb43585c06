"""What other packs do to models: blocks compiled by object patches, DoRA and OFT in front of Compact Model."""

import comfy.model_management as management
import pytest
import torch
from comfy.weight_adapter.lora import LoRAAdapter
from comfy.weight_adapter.oft import OFTAdapter
from uniforget_pack.uniforget.checkpoint import compactfile
from uniforget_pack.uniforget.errors import MismatchError
from uniforget_pack.uniforget.hosts.comfy.apply import applied, apply_mask, base_fingerprint, layers_of
from uniforget_pack.uniforget.hosts.comfy.compact import compact, load

from tests.comfyui.inside import zoo
from tests.comfyui.inside.test_compact import hard_mask, predict
from tests.comfyui.inside.test_loading_formats import NAME as SD3
from tests.comfyui.inside.test_loading_formats import load as load_model
from tests.comfyui.inside.ways import difference, files, random_mask

__all__ = ["files"]
BLOCKS = ("diffusion_model.joint_blocks.0", "diffusion_model.joint_blocks.1")


def compiled(model, keys, backend="eager"):
    """As packs do it that compile parts for good: by object patches on a clone."""
    clone = model.clone()
    for key in keys:
        clone.add_object_patch(key, torch.compile(clone.get_model_object(key), backend=backend))
    return clone


def loaded(model):
    """The model's prediction; it stays in memory, as between two runs of a graph."""
    management.load_models_gpu([model])
    return zoo.predict(SD3, model.model)


@pytest.mark.parametrize("keys", [BLOCKS, ("diffusion_model",)], ids=["blocks", "model"])
@pytest.mark.parametrize("first", [True, False], ids=["compiled before", "compiled after"])
def test_another_strength_while_a_compiled_clone_stays_loaded(keys, first):
    torch._dynamo.reset()
    model, mask = zoo.patcher(SD3), random_mask(zoo.patcher(SD3), hard=False)
    expected = {strength: predict(apply_mask(model, mask, strength), SD3) for strength in (0.3, 1.0)}
    before, base, names = predict(model, SD3), base_fingerprint(model), [layer.name for layer in layers_of(model)[1]]
    state = {k: v.clone() for k, v in model.model.state_dict().items()}
    for strength, wanted in expected.items():
        assert difference(wanted, before) > 0.01
        masked = apply_mask(compiled(model, keys), mask, strength) if first else compiled(apply_mask(model, mask, strength), keys)
        assert difference(loaded(masked), wanted) < 1e-5, strength
        assert [entry["strength"] for entry in applied(masked)] == [strength]
        # while it is loaded, its names and weights are not the model's own
        assert [layer.name for layer in layers_of(model)[1]] == names
        uncached = zoo.patcher(SD3)
        uncached.model, uncached.backup, uncached.object_patches_backup = (
            masked.model,
            masked.backup,
            masked.object_patches_backup,
        )
        assert base_fingerprint(uncached) == base
        small = compact(model, hard_mask(model), 8)[0]
        assert any("joint_blocks.0" in key for key in small.object_patches)
    masked.detach()
    assert all(torch.equal(v, state[k]) for k, v in model.model.state_dict().items())
    assert torch.equal(predict(model, SD3), before)


def adapter(kind, generator, rows, columns):
    """A LoRA whose effect depends on the whole weight that it is put on."""
    if kind == "oft":
        return OFTAdapter(set(), (0.02 * torch.randn(8, rows // 8, rows // 8, generator=generator), None, 8.0, None))
    up, down = torch.randn(rows, 4, generator=generator), 0.02 * torch.randn(4, columns, generator=generator)
    scale = torch.ones(rows, 1) if kind == "dora rows" else torch.ones(1, columns)
    return LoRAAdapter(set(), (up, down, 4.0, None, None if kind == "lora" else 2 * scale, None))


def with_adapter(model, kind):
    generator = torch.Generator().manual_seed(1)
    clone, patches = model.clone(), {}
    for layer in ("joint_blocks.0.x_block.mlp.fc2", "joint_blocks.1.x_block.mlp.fc1", "joint_blocks.1.x_block.attn.qkv"):
        key = f"diffusion_model.{layer}.weight"
        patches[key] = adapter(kind, generator, *model.model.diffusion_model.get_parameter(f"{layer}.weight").shape)
    assert len(clone.add_patches(patches, 0.5)) == 3
    return clone


@pytest.mark.parametrize("budget", [1e32, 0.1])
@pytest.mark.parametrize("kind", ["lora", "dora rows", "dora columns", "oft"])
def test_loras_that_look_at_the_whole_weight_land_before_and_after_compact_model(kind, budget):
    model = zoo.patcher(SD3)
    mask = hard_mask(model)
    plain, masked = predict(model, SD3), predict(apply_mask(model, mask), SD3)
    before = with_adapter(model, kind)
    wanted = predict(apply_mask(before, mask), SD3)
    assert difference(predict(before, SD3), plain) > 1e-3 and difference(wanted, masked) > 1e-3
    assert difference(predict(compact(before, mask, 8)[0], SD3, budget), wanted) < 1e-5
    assert torch.equal(predict(model, SD3), plain)


@pytest.mark.parametrize("kind", ["scaled fp8", "fp16"])
def test_formats_that_convert_their_weights(files, kind):
    model = load_model(files, kind)
    mask = hard_mask(model)
    before = with_adapter(model, "dora rows")
    wanted = predict(apply_mask(before, mask), SD3)
    assert difference(predict(compact(before, mask, 8)[0], SD3), wanted) < (0.05 if "fp8" in kind else 1e-3)


@pytest.mark.parametrize("kind", ["lora", "dora rows", "oft"])
def test_a_compact_file_refuses_what_needs_the_weights_it_no_longer_has(files, kind):
    model = zoo.patcher(SD3)
    state = {f"model.diffusion_model.{k}": v for k, v in model.model.diffusion_model.state_dict().items()}
    source = files.at / "diffusion_models" / files("diffusion_models", "model.safetensors", state)
    compactfile.save(source, files.at / "small.safetensors", hard_mask(model), 8)
    small = with_adapter(load(files.at / "small.safetensors")[0], kind)
    management.load_models_gpu([small])
    if kind == "lora":
        small.pre_run()
    else:
        with pytest.raises(MismatchError, match=r"whole weights that a (DoRA|oft) LoRA.*Load the original model"):
            small.pre_run()
    management.load_models_gpu([model])
