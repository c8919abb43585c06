"""What the tests of ways of loading share: stock nodes, files in ComfyUI's folders, and what must hold of every way."""

import comfy.sample
import folder_paths
import pytest
import safetensors.torch
import torch
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask, base_fingerprint, sites_of
from uniforget_pack.uniforget.mask.edit import merge
from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo
from uniforget_pack.uniforget.model.families.schema import KINDS

from tests.comfyui.inside import zoo

CPU = torch.device("cpu")


def run(node, **inputs):
    """First output of a stock node of the old or the new kind (some changed between versions of ComfyUI)."""
    if hasattr(node, "execute"):
        return node.execute(**inputs).args[0]
    result = getattr(node(), node.FUNCTION)(**inputs)
    return result[0] if isinstance(result, tuple) else result


@pytest.fixture
def files(tmp_path, monkeypatch):
    """``write(folder, name, state, metadata)`` puts a file where stock loaders find it; ``files.at`` is ComfyUI's output folder."""

    def write(folder, name, state, metadata=None):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path / name, metadata)
        return name

    for folder in ("diffusion_models", "loras"):
        extensions = folder_paths.folder_names_and_paths[folder][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path / folder)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    write.at = tmp_path
    return write


def random_mask(model, kinds=KINDS, hard=True, seed=0):
    """Gates for all sites of `kinds`, 30 % off or anything in between, learned on this very model."""
    family, sites = sites_of(model)
    generator = torch.Generator().manual_seed(seed)
    draw = {s.name: torch.rand(s.units, generator=generator) for s in sites if s.kind in kinds}
    gates = {name: (v > 0.3).float() if hard else v for name, v in draw.items()}
    info = MaskInfo(family=family.name, base=base_fingerprint(model), base_name="the test's", method="test")
    return GateMask(gates, {s.name: s.kind for s in sites if s.name in gates}, info)


def folded(model, mask, strength=1.0):
    """The model, whose own weights are multiplied for good: give it one that nothing else uses."""
    network = model.model.diffusion_model
    network.load_state_dict(merge(dict(network.state_dict()), mask, strength))
    return model


def difference(a, b):
    """Largest difference of two results, relative to their size where that is above 1."""
    return ((a - b).abs().max() / b.abs().max().clamp_min(1.0)).item()


def holds(model, twin, way, result, mask, strength=1.0, tolerance=1e-5):
    """Assert what must hold of every way of loading, whether it comes before or after Apply Memorization Mask.

    Args:
        model, twin: two loaded copies of the same model; the twin's weights will be changed.
        way: model -> the model as the way makes it; ``None``: the way is all in `result`.
        result: model -> tensor.
    """
    way = way or (lambda model: model)
    before = result(way(model))
    wanted = result(way(folded(twin, mask, strength)))
    assert difference(wanted, before) > 0.01, "the mask must change something"
    assert difference(result(way(apply_mask(model, mask, strength))), wanted) <= tolerance
    assert difference(result(apply_mask(way(model), mask, strength)), wanted) <= tolerance
    assert torch.equal(result(way(apply_mask(model, mask, 0.0))), before), "strength 0 must change nothing"
    assert torch.equal(result(way(model)), before), "the model must stay as it was"


def sample(model, name, positive=None, negative=None, steps=1):
    """Latents of a small model from the zoo, by ComfyUI's own sampling."""
    positive, negative = positive or prompt(name, 1), negative or prompt(name, 2)
    noise, _ = zoo.inputs(name)
    form = {"seed": 3, "disable_pbar": True}
    return comfy.sample.sample(model, noise, steps, 2.0, "euler", "simple", positive, negative, torch.zeros_like(noise), **form)


def prompt(name, seed):
    """Conditioning with random numbers in place of an encoded prompt."""
    conditions = zoo.conditions(name, batch=1, seed=seed)
    extra = {"pooled_output": conditions["y"]} if "y" in conditions else {}
    return [[conditions["c_crossattn"], extra]]


def weights(model):
    """Weights and biases of the diffusion model as it is loaded now, as numbers (fp32) whatever format they are kept in."""
    out = {}
    for path, module in model.model.diffusion_model.named_modules():
        for leaf, value in module.named_parameters(recurse=False):
            convert = getattr(module, f"convert_{leaf}", None)
            if hasattr(value, "tensor_type"):
                value = module.get_weight(value, torch.float32)
            elif convert is not None:
                value = convert(value.clone())
            out[f"{path}.{leaf}"] = value.float().clone()
    return out
