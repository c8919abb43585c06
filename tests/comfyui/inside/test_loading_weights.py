"""Ways of loading, as docs/loading.md lists them: LoRAs, merges and saved files, by ComfyUI's stock nodes."""

import comfy.hooks as hooks
import comfy.model_management as management
import comfy_extras.nodes_hooks as hook_nodes
import comfy_extras.nodes_model_merging as merging
import pytest
import torch
from uniforget_pack.uniforget.hosts.comfy.apply import applied, apply_mask
from uniforget_pack.uniforget.mask.edit import merge

import nodes
from tests.comfyui.inside import zoo
from tests.comfyui.inside.ways import CPU, difference, files, prompt, random_mask, run, sample, weights

__all__ = ["files"]
NAME = "sd3"
# masked columns, masked rows, and a weight that no mask touches
LAYERS = ("joint_blocks.0.x_block.mlp.fc2", "joint_blocks.1.x_block.adaLN_modulation.1", "joint_blocks.1.x_block.mlp.fc1")


def loaded(model):
    """Weights as the model computes with them, all on the device."""
    management.load_models_gpu([model])
    return weights(model)


def same(found, wanted, tolerance=1e-5):
    assert found.keys() == wanted.keys()
    return all(difference(found[k], wanted[k]) <= tolerance for k in wanted)


@pytest.fixture
def lora(files):
    """``(file name, layer's weight -> its difference)`` of a LoRA on a few layers."""
    generator = torch.Generator().manual_seed(7)
    shapes = {k: tuple(v.shape) for k, v in zoo.small(NAME).diffusion_model.state_dict().items()}
    state, differences = {}, {}
    for layer in LAYERS:
        rows, columns = shapes[f"{layer}.weight"]
        up, down = torch.randn(rows, 4, generator=generator), 0.1 * torch.randn(4, columns, generator=generator)
        state |= {f"diffusion_model.{layer}.lora_up.weight": up, f"diffusion_model.{layer}.lora_down.weight": down}
        differences[f"{layer}.weight"] = up @ down
    return files("loras", "style.safetensors", state), differences


def with_lora(model, name, strength=0.5):
    return run(nodes.LoraLoaderModelOnly, model=model, lora_name=name, strength_model=strength)


def test_lora_before_and_after(lora):
    name, differences = lora
    model = zoo.patcher(NAME)
    mask = random_mask(model, hard=False)
    original = loaded(model)
    changed = {k: v + 0.5 * differences.get(k, 0) for k, v in original.items()}
    assert not same(changed, original)
    before = apply_mask(with_lora(model, name), mask)
    assert same(loaded(before), merge(changed, mask))
    after = with_lora(apply_mask(model, mask), name)
    wanted = {k: v + 0.5 * differences.get(k, 0) for k, v in merge(original, mask).items()}
    assert same(loaded(after), wanted) and not same(loaded(after), merge(changed, mask))
    both = with_lora(before, name)
    wanted = {k: v + 0.5 * differences.get(k, 0) for k, v in merge(changed, mask).items()}
    assert same(loaded(both), wanted)
    assert all(torch.equal(v, original[k]) for k, v in loaded(model).items())


def hooked(name, lora_name, seed):
    """A prompt that switches the LoRA on by a hook, at the strength that :func:`with_lora` has."""
    group = run(hook_nodes.CreateHookLora, lora_name=lora_name, strength_model=0.5, strength_clip=0.0)
    values = {"cond_NEW": prompt(name, seed), "strength": 1.0, "set_cond_area": "default", "hooks": group}
    return run(hook_nodes.ConditioningSetProperties, **values)


def test_lora_by_hook_counts_as_one_loaded_after(lora):
    name, _ = lora
    model = zoo.patcher(NAME)
    masked = apply_mask(model, random_mask(model, hard=False))
    plain, before = sample(masked, NAME), sample(model, NAME)
    prompts = [hooked(NAME, name, seed) for seed in (1, 2)]
    found = sample(masked, NAME, *prompts)
    assert difference(found, plain) > 0.01, "the LoRA must change something"
    assert difference(found, sample(with_lora(masked, name), NAME)) < 1e-5
    # for one prompt only: the LoRA comes and goes within each step, and the mask stays
    mixed = sample(masked, NAME, prompts[0])
    assert difference(mixed, found) > 0.001 and difference(mixed, plain) > 0.001
    assert torch.equal(sample(masked, NAME), plain) and torch.equal(sample(model, NAME), before)


def test_lora_by_hook_is_masked_where_weights_are_not_on_the_device(lora):
    """There ComfyUI adds the hook's LoRA to the weight as it is stored, and patches come on top whenever it is used."""
    name, _ = lora
    model = zoo.patcher(NAME)
    masked = apply_mask(model, random_mask(model, hard=False))
    lora_on = hooked(NAME, name, 1)[0][1]["hooks"]
    masked.register_all_hook_patches(lora_on, hooks.create_target_dict(hooks.EnumWeightTarget.Model))
    masked.partially_load(CPU, 0.1)
    plain = zoo.predict(NAME, model.model)
    masked.patch_hooks(lora_on)
    found = zoo.predict(NAME, model.model)
    masked.patch_hooks(None)
    assert torch.equal(zoo.predict(NAME, model.model), plain)
    masked.detach()
    wanted = apply_mask(with_lora(model, name), random_mask(model, hard=False))
    management.load_models_gpu([wanted])
    assert difference(found, plain) > 0.01
    assert difference(found, zoo.predict(NAME, model.model)) < 1e-5


def test_merge_before_and_after():
    one, two = zoo.patcher(NAME, seed=0), zoo.patcher(NAME, seed=1)
    mask = random_mask(one, hard=False)
    first, second = loaded(one), loaded(two)
    blend = lambda a, b, share: {k: share * a[k] + (1 - share) * b[k] for k in a}  # noqa: E731
    mix = lambda a, b, share: run(merging.ModelMergeSimple, model1=a, model2=b, ratio=share)  # noqa: E731
    assert not same(merge(first, mask), first)
    assert same(loaded(apply_mask(mix(one, two, 0.7), mask)), merge(blend(first, second, 0.7), mask))
    only_first = blend(merge(first, mask), second, 0.7)
    assert same(loaded(mix(apply_mask(one, mask), two, 0.7)), only_first)
    assert same(loaded(mix(two, apply_mask(one, mask), 0.3)), only_first)
    both = mix(apply_mask(one, mask), apply_mask(two, mask), 0.7)
    assert same(loaded(both), merge(blend(first, second, 0.7), mask))
    # the difference that a merge adds is that of the masked model
    added = run(
        merging.ModelAdd, model1=one, model2=run(merging.ModelSubtract, model1=apply_mask(one, mask), model2=two, multiplier=1.0)
    )
    assert same(loaded(added), {k: first[k] + v - second[k] for k, v in merge(first, mask).items()})
    assert all(torch.equal(v, first[k]) for k, v in loaded(one).items())
    assert all(torch.equal(v, second[k]) for k, v in loaded(two).items())


def test_a_blocks_merge_keeps_the_mask_in_its_blocks():
    one, two = zoo.patcher(NAME, seed=0), zoo.patcher(NAME, seed=1)
    mask = random_mask(one)
    masked, second = merge(loaded(one), mask), loaded(two)
    inputs = {"model1": apply_mask(one, mask), "model2": two, "joint_blocks.0.": 1.0, "joint_blocks.1.": 0.0}
    found = loaded(run(merging.ModelMergeBlocks, **inputs))
    assert same({k: v for k, v in found.items() if ".0." in k[:15]}, {k: v for k, v in masked.items() if ".0." in k[:15]})
    assert same({k: v for k, v in found.items() if ".1." in k[:15]}, {k: v for k, v in second.items() if ".1." in k[:15]})


@pytest.mark.parametrize("partly", [False, True])
def test_saved_and_loaded_as_a_plain_model(files, lora, partly):
    model = zoo.patcher(NAME)
    mask = random_mask(model)
    masked = apply_mask(with_lora(model, lora[0]), mask, 0.8)
    wanted, picture = loaded(masked), sample(masked, NAME)
    masked.detach()
    if partly:
        masked.partially_load(CPU, 0.1)
    merging.ModelSave().save(masked, filename_prefix="diffusion_models/forgotten")
    (path,) = (files.at / "diffusion_models").glob("forgotten*.safetensors")
    again = run(nodes.UNETLoader, unet_name=path.name, weight_dtype="default")
    assert applied(again) == [] and not again.patches, "the file is an ordinary model"
    assert all(torch.equal(v, wanted[k]) for k, v in loaded(again).items())
    assert torch.equal(sample(again, NAME), picture)
    assert difference(picture, sample(with_lora(model, lora[0]), NAME)) > 0.01, "the mask must have changed something"
