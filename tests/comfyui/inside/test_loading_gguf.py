"""Ways of loading, as docs/loading.md lists them: GGUF by ComfyUI-GGUF's nodes, and other formats of other nodes.

ComfyUI-GGUF is not a package that could be installed: ``GGUF_NODES_PATH`` names a checkout of it (``pip install gguf`` beside it),
and without one only what it does with ComfyUI's and our classes is tested.
"""

import importlib.util
import os
import sys
from pathlib import Path

import comfy.lora
import comfy.model_management as management
import comfy_extras.nodes_model_merging as merging
import pytest
import torch
import uniforget_pack.uniforget.hosts.comfy.apply as host
from uniforget_pack.nodes.apply import ApplyMask
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask, base_fingerprint
from uniforget_pack.uniforget.mask.edit import merge
from uniforget_pack.uniforget.model.fingerprint import same_base, similarity

import nodes
from tests.comfyui.inside import zoo
from tests.comfyui.inside.test_learn_loading import agreement, learn
from tests.comfyui.inside.ways import CPU, difference, files, holds, random_mask, run

__all__ = ["files"]
NAME = "sd3"


class Packed(torch.Tensor):
    """Seen from outside what ComfyUI-GGUF keeps a matrix in: rows of bytes behind the shape of the matrix."""

    @staticmethod
    def __new__(cls, data, tensor_type, tensor_shape):
        return torch.Tensor._make_subclass(cls, data)

    def __init__(self, data, tensor_type, tensor_shape):
        self.tensor_type, self.tensor_shape = tensor_type, tensor_shape

    def detach(self):
        return self

    @property
    def shape(self):
        return self.tensor_shape


class PackedLinear(torch.nn.Linear):
    """A Linear over such a matrix; here two weights share a byte and all a scale of 0.05."""

    def get_weight(self, packed, dtype):
        data = packed.as_subclass(torch.Tensor)
        return (torch.stack([data // 16, data % 16], -1).to(dtype) - 8).reshape(packed.tensor_shape) * 0.05

    def pack(self):
        weight = self.weight.as_subclass(torch.Tensor)
        steps = (weight / 0.05).round().clamp(-8, 7).add(8).to(torch.uint8)
        data = steps[:, 0::2] * 16 + steps[:, 1::2]
        self.weight = torch.nn.Parameter(Packed(data, "four bits", weight.shape), requires_grad=False)


@pytest.fixture
def packed():
    """A small model whose Linears are packed."""
    model = zoo.patcher(NAME)
    for module in model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = PackedLinear
            module.pack()
    return model


def test_packed_weights_have_the_sites_of_their_shapes(packed):
    plain = zoo.patcher(NAME)
    assert host.sites_of(packed) == host.sites_of(plain)
    mask = random_mask(plain)
    found, wanted = apply_mask(packed, mask).patches, apply_mask(plain, mask).patches
    assert found.keys() == wanted.keys()
    for key, ((_, adapter, *_),) in found.items():
        assert all(
            torch.equal(a, b) if torch.is_tensor(a) else a == b
            for a, b in zip(adapter.weights, wanted[key][0][1].weights, strict=True)
        )


def test_packed_weights_are_recognised(packed):
    plain, other = (base_fingerprint(zoo.patcher(NAME, seed)) for seed in (0, 1))
    found = base_fingerprint(packed)
    assert 0.9 < similarity(found, plain) < 1 and same_base(found, plain)
    assert not same_base(found, other)
    assert "Careful" not in says(packed, random_mask(zoo.patcher(NAME)))
    assert "Careful" in says(packed, random_mask(zoo.patcher(NAME, 1)))


def says(model, mask):
    return ApplyMask.execute(model, mask, 1.0, 1.0, 1.0, 1.0).ui.as_dict()["text"][0]


@pytest.mark.parametrize("intermediate", [torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_patches_multiply_weights_that_were_just_unpacked(dtype, intermediate):
    """ComfyUI-GGUF keeps the patches beside the weight, and hands both to ComfyUI in whatever dtype the model computes in."""
    model = zoo.patcher(NAME)
    mask = random_mask(model, hard=False)
    plain = model.model.diffusion_model.state_dict()
    exact = merge({k: v.float() for k, v in plain.items()}, mask)
    masked = apply_mask(model, mask)
    assert len(masked.patches) > 10
    for key, patches in masked.patches.items():
        name = key.removeprefix(host.PREFIX)
        weight = plain[name].to(dtype, copy=True)
        found = comfy.lora.calculate_weight(patches, weight, key, intermediate)
        assert found.dtype == dtype and not torch.equal(found.float(), plain[name])
        assert difference(found.float(), exact[name]) < 2 * torch.finfo(dtype).eps


class Foreign(torch.Tensor):
    """A weight in a format that nobody knows."""


def test_a_format_that_cannot_be_read_is_said_and_masked_all_the_same():
    model = zoo.patcher(NAME)
    mask = random_mask(model)
    host._fingerprints.clear()
    for module in model.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.as_subclass(Foreign), requires_grad=False)
    before = zoo.predict(NAME, model.model)
    assert base_fingerprint(model) == ""
    text = says(model, mask)
    assert "in a format that UniForget cannot compare" in text and "Careful" not in text
    management.load_models_gpu([apply_mask(model, mask)])
    wanted = zoo.patcher(NAME)
    wanted.model.diffusion_model.load_state_dict(merge(dict(wanted.model.diffusion_model.state_dict()), mask))
    assert difference(zoo.predict(NAME, model.model), before) > 0.01
    assert difference(zoo.predict(NAME, model.model), zoo.predict(NAME, wanted.model)) < 1e-5


@pytest.fixture(scope="module")
def city96():
    """ComfyUI-GGUF as ComfyUI would load it."""
    if not os.environ.get("GGUF_NODES_PATH"):
        pytest.skip("GGUF_NODES_PATH is not set")
    pytest.importorskip("gguf", reason="pip install gguf")
    folder = Path(os.environ["GGUF_NODES_PATH"])
    spec = importlib.util.spec_from_file_location("gguf_nodes", folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = sys.modules["gguf_nodes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def write_gguf(path, kind):
    """The small model with its matrices in a GGUF format."""
    import gguf

    writer = gguf.GGUFWriter(path, "sd3")
    for name, weight in zoo.small(NAME).diffusion_model.state_dict().items():
        packs = weight.ndim == 2 and weight.shape[1] % 32 == 0 and name.endswith(".weight")
        form = gguf.GGMLQuantizationType[kind if packs else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def unpacked(model):
    """A fp32 model with the numbers that a GGUF model computes with."""
    plain = zoo.patcher(NAME)
    state = {k: v.as_subclass(torch.Tensor) for k, v in model.model.diffusion_model.named_parameters()}
    for path, module in model.model.diffusion_model.named_modules():
        if hasattr(module, "get_weight"):
            state |= {f"{path}.{k}": module.get_weight(v, torch.float32) for k, v in module.named_parameters(recurse=False)}
    state |= {k: v.as_subclass(torch.Tensor) for k, v in model.model.diffusion_model.named_buffers()}
    plain.model.diffusion_model.load_state_dict({k: v.clone() for k, v in state.items()})
    return plain


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_gguf(city96, files, kind):
    (files.at / "diffusion_models").mkdir()
    write_gguf(files.at / "diffusion_models" / "small.gguf", kind)
    model = run(city96["UnetLoaderGGUF"], unet_name="small.gguf")
    assert type(model).__name__ == "GGUFModelPatcher"
    same = unpacked(model)
    assert difference(zoo.predict(NAME, model.model), zoo.predict(NAME, same.model)) < 1e-5

    def predict(budget):
        def result(patcher):
            patcher.partially_load(CPU, budget)
            return zoo.predict(NAME, patcher.model)

        return result

    for hard in (True, False):
        for budget in (1e32, 0.1):
            model.detach()
            tolerance = 1e-3 if kind == "F16" else 1e-5  # which is kept as it is, and rounded again where it is masked
            holds(model, unpacked(model), None, predict(budget), random_mask(model, hard=hard), tolerance=tolerance)
    full = base_fingerprint(zoo.patcher(NAME))
    for patcher in (model, apply_mask(model, random_mask(model))):
        management.load_models_gpu([patcher])
        host._fingerprints.clear()
        assert same_base(base_fingerprint(patcher), full)
        assert not same_base(base_fingerprint(patcher), base_fingerprint(zoo.patcher(NAME, 1)))
    management.load_models_gpu([model])


def test_gguf_with_a_lora(city96, files):
    (files.at / "diffusion_models").mkdir()
    write_gguf(files.at / "diffusion_models" / "small.gguf", "Q4_0")
    model = run(city96["UnetLoaderGGUF"], unet_name="small.gguf")
    generator = torch.Generator().manual_seed(7)
    layer = "joint_blocks.0.x_block.mlp.fc2"
    rows, columns = model.model.diffusion_model.get_parameter(f"{layer}.weight").shape
    up, down = torch.randn(rows, 4, generator=generator), 0.1 * torch.randn(4, columns, generator=generator)
    name = files(
        "loras",
        "style.safetensors",
        {f"diffusion_model.{layer}.lora_up.weight": up, f"diffusion_model.{layer}.lora_down.weight": down},
    )
    lora = lambda m: run(nodes.LoraLoaderModelOnly, model=m, lora_name=name, strength_model=0.5)  # noqa: E731
    mask = random_mask(model, hard=False)

    def predict(patcher):
        management.load_models_gpu([patcher])
        return zoo.predict(NAME, patcher.model)

    same = unpacked(model)
    before = predict(model)
    for way in (lambda m: apply_mask(lora(m), mask), lambda m: lora(apply_mask(m, mask))):
        found = predict(way(model))
        assert difference(found, predict(way(same))) < 1e-5 and difference(found, before) > 0.01
    assert torch.equal(predict(model), before)


def test_gguf_is_not_saved_with_or_without_a_mask(city96, files):
    """Said in docs/loading.md; were it to work one day, the mask must be in the file."""
    (files.at / "diffusion_models").mkdir()
    write_gguf(files.at / "diffusion_models" / "small.gguf", "Q4_0")
    model = run(city96["UnetLoaderGGUF"], unet_name="small.gguf")
    for patcher in (model, apply_mask(model, random_mask(model))):
        with pytest.raises(NotImplementedError, match="meta tensor"):
            merging.ModelSave().save(patcher, filename_prefix="diffusion_models/forgotten")


@pytest.mark.parametrize("objective", ["stepwise", "scores"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_learning_on_gguf(city96, files, kind, objective):
    """The mask is that of a model whose weights are the very numbers that are unpacked."""
    (files.at / "diffusion_models").mkdir()
    write_gguf(files.at / "diffusion_models" / "small.gguf", kind)
    model = run(city96["UnetLoaderGGUF"], unet_name="small.gguf")
    management.load_models_gpu([model])
    before = zoo.predict(NAME, model.model)
    wanted = learn(unpacked(model), objective=objective)
    found = learn(model, objective=objective)
    assert agreement(found.mask, wanted.mask) > 0.97 and 0 < wanted.mask.off_share() < 1
    management.load_models_gpu([model])
    assert torch.equal(zoo.predict(NAME, model.model), before)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_a_subspace_of_gguf(city96, files, kind):
    """Learned and applied as on a model whose weights are the very numbers that are unpacked."""
    (files.at / "diffusion_models").mkdir()
    write_gguf(files.at / "diffusion_models" / "small.gguf", kind)
    model = run(city96["UnetLoaderGGUF"], unet_name="small.gguf")
    management.load_models_gpu([model])
    before = zoo.predict(NAME, model.model)
    same = unpacked(model)
    wanted = learn(same, objective="subspace", threshold=0.02).mask
    found = learn(model, objective="subspace", threshold=0.02).mask
    assert found.shared == wanted.shared and found.off_share() == pytest.approx(wanted.off_share(), abs=0.02)

    def predict(patcher):
        management.load_models_gpu([patcher])
        return zoo.predict(NAME, patcher.model)

    moved = predict(apply_mask(model, wanted))
    assert difference(moved, predict(apply_mask(same, wanted))) < 1e-4 and difference(moved, before) > 0.01
    assert torch.equal(predict(model), before)
