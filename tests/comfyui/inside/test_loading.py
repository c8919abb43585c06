"""Ways of loading, as docs/loading.md lists them: little memory, branches of one graph, sweeps, and what applying costs."""

from itertools import pairwise

import comfy.model_management as management
import pytest
import torch
import uniforget_pack.uniforget.hosts.comfy.apply as host
from uniforget_pack.nodes.apply import ApplyMask
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.model import sites

from bench.common import allocated
from tests.comfyui.inside import zoo
from tests.comfyui.inside.ways import CPU, difference, folded, random_mask

NAME = "sd3"
# What --novram, --lowvram and plenty of memory come down to: bytes of weights that may be on the device.
NOVRAM, PLENTY = 0.1, 1e32


def size(model):
    return model.model_size()


def predict(model, budget=PLENTY):
    """One prediction with `budget` bytes for the weights on the device."""
    model.partially_load(CPU, budget)
    return zoo.predict(NAME, model.model)


def offloaded(model):
    """Weights whose patches are computed anew whenever they are used, because they are not on the device."""
    modules = model.model.diffusion_model.modules()
    return sum(len(getattr(m, "weight_function", ())) + len(getattr(m, "bias_function", ())) for m in modules)


@pytest.fixture
def model():
    made = zoo.patcher(NAME)
    yield made
    made.detach()


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("way", ["novram", "lowvram"])
def test_little_memory(model, way, hard):
    mask = random_mask(model, hard=hard)
    masked = apply_mask(model, mask)
    before, wanted = predict(model), predict(folded(zoo.patcher(NAME), mask))
    assert difference(wanted, before) > 0.01, "the mask must change something"
    budget = NOVRAM if way == "novram" else size(model) * 0.6
    model.detach()  # what a model has on the device already is not taken from it
    found = predict(masked, budget)
    count = offloaded(masked)
    assert (count == len(masked.patches)) if way == "novram" else (0 < count < len(masked.patches))
    assert difference(found, wanted) < 1e-5
    assert torch.equal(predict(apply_mask(model, mask, 0.0), budget), before)
    assert torch.equal(predict(model, budget), before) and torch.equal(predict(model), before)


def test_weights_leave_the_device_while_memory_runs_short(model):
    mask = random_mask(model, hard=False)
    masked = apply_mask(model, mask)
    before, wanted = predict(model), predict(folded(zoo.patcher(NAME), mask))
    assert difference(predict(masked), wanted) < 1e-5
    assert offloaded(masked) == 0
    for share in (0.3, 0.3, 1.0):
        assert masked.partially_unload(CPU, share * size(model)) > 0 or share == 1.0
        assert offloaded(masked) > 0
        assert difference(zoo.predict(NAME, model.model), wanted) < 1e-5
    assert torch.equal(predict(model), before)


def test_unloaded_and_loaded_again(model):
    mask = random_mask(model, hard=False)
    masked = apply_mask(model, mask)
    state = {k: v.clone() for k, v in model.model.state_dict().items()}
    before = predict(model)
    management.load_models_gpu([masked])
    wanted = zoo.predict(NAME, model.model)
    assert not torch.equal(wanted, before)
    for unload in (management.unload_all_models, lambda: management.free_memory(1e30, CPU), masked.detach):
        unload()
        assert all(torch.equal(v, state[k]) for k, v in model.model.state_dict().items()), "unloading must restore the weights"
        management.load_models_gpu([masked])
        assert torch.equal(zoo.predict(NAME, model.model), wanted)
    management.unload_all_models()


@pytest.mark.parametrize("budgets", [(PLENTY, PLENTY), (NOVRAM, NOVRAM), (PLENTY, NOVRAM)])
def test_branches_of_one_graph_do_not_meet(model, budgets):
    masks = [random_mask(model, seed=seed) for seed in (1, 2)]
    branches = [model, *(apply_mask(model, mask) for mask in masks), apply_mask(apply_mask(model, masks[0]), masks[1])]
    twice = folded(folded(zoo.patcher(NAME), masks[0]), masks[1])
    wanted = [predict(model), *(predict(folded(zoo.patcher(NAME), mask)) for mask in masks), predict(twice)]
    assert len({w.sum().item() for w in wanted}) == 4
    model.detach()
    for i in (1, 0, 2, 1, 3, 0, 3, 2):
        found = predict(branches[i], budgets[i % 2])
        assert difference(found, wanted[i]) < 1e-5, f"branch {i}"
        assert i or torch.equal(found, wanted[0])


def test_a_sweep_over_strengths_only_multiplies(model, monkeypatch):
    """Nothing is learned, loaded or looked for again."""
    mask = random_mask(zoo.patcher(NAME))
    calls = []
    fingerprint = host.fingerprint
    monkeypatch.setattr(host, "fingerprint", lambda *a, **k: calls.append("fingerprint") or fingerprint(*a, **k))
    sites._find.cache_clear()
    network, pictures = model.model, []
    chained = model.clone()
    for strength in (0.0, 0.25, 0.5, 1.0):
        for start in (model, chained):
            masked = ApplyMask.execute(start, mask, strength, 1.0, 1.0, 1.0).args[0]
            assert masked.model is network, "no copy of the model"
        pictures.append(predict(masked))
    assert all(difference(a, b) > 0.01 for a, b in pairwise(pictures))
    assert calls == ["fingerprint"] and sites._find.cache_info().misses == 1


def tensors(value):
    """Tensors in nested tuples, lists and adapters."""
    if torch.is_tensor(value):
        return [value]
    parts = value if isinstance(value, tuple | list) else getattr(value, "weights", ())
    return [t for part in parts for t in tensors(part)]


def test_applying_holds_vectors_and_no_weights(model):
    mask = random_mask(model)
    before = {k: (v.data_ptr(), v.clone()) for k, v in model.model.state_dict().items()}
    apply_mask(model, mask)  # the first time looks for sites
    masked = apply_mask(model, mask)
    peak, held = allocated(lambda: apply_mask(model, mask))
    factors = {t.data_ptr(): t.nbytes for t in tensors(list(masked.patches.values()))}
    largest = max(v.nbytes for _, v in before.values())
    assert 0 < held <= 2 * sum(factors.values()) + 1024 and held < size(model) / 50
    assert peak < largest / 2, "far less than one layer"
    now = model.model.state_dict()
    assert all(now[k].data_ptr() == where and torch.equal(now[k], v) for k, (where, v) in before.items())


def test_loading_takes_one_layer_at_a_time(model):
    """ComfyUI keeps the original of a patched weight, as for a LoRA; beyond the patched ones, one layer is at work at a time."""
    masked = apply_mask(model, random_mask(model))
    before = {k: v.data_ptr() for k, v in model.model.state_dict().items()}
    sizes = {k: v.nbytes for k, v in model.model.state_dict().items()}
    peak, _ = allocated(lambda: masked.partially_load(CPU, PLENTY))
    patched = sum(sizes[k] for k in masked.patches)
    assert patched <= peak <= patched + max(sizes.values())
    kept = {k: b.weight.data_ptr() for k, b in masked.backup.items()}
    assert kept == {k: before[k] for k in masked.patches}, "the originals themselves, no copies"
    masked.detach()
    peak, _ = allocated(lambda: masked.partially_load(CPU, NOVRAM))
    assert peak < max(sizes.values()), "without room for weights on the device, nothing is patched beforehand"
    assert {k: v.data_ptr() for k, v in model.model.state_dict().items()} == before
