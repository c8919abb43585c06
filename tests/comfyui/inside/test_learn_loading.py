"""Learning on models as people load them: with little memory, with patches underneath, in fp8."""

from dataclasses import replace

import comfy.model_management as management
import pytest
import torch
from uniforget_pack.uniforget.hosts.comfy import apply as host
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask, sites_of
from uniforget_pack.uniforget.learn import Settings
from uniforget_pack.uniforget.mask.info import MaskInfo

from tests.comfyui.inside import zoo
from tests.comfyui.inside.test_loading_formats import NAME, load, numbers, predict, twin
from tests.comfyui.inside.ways import files, random_mask

__all__ = ["files"]
SETTINGS = Settings(beta=50.0, steps=6, batch=4, learning_rate=2.0, cfg=3.0)


def learn(model, kinds=("ffn", "norm"), **changes):
    """A mask for a small SD3 and three prompts."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    prompts = [[[draw(1, 5, 32), {"pooled_output": draw(1, 24)}]] for _ in range(4)]
    sites = [s for s in sites_of(model)[1] if s.kind in kinds]
    settings = replace(SETTINGS, **changes)
    info = MaskInfo(family="sd3", base="", method=settings.objective, preset="strong")
    sigmas = torch.tensor([1.0, 0.7, 0.4, 0.0])
    latent = torch.zeros(1, 16, zoo.SIZE, zoo.SIZE)
    return host.learn_mask(model, sites, prompts[1:], prompts[0], latent, sigmas, settings, info, lambda p: None)


@pytest.fixture
def budget(monkeypatch):
    """Sets how many bytes of weights ComfyUI may keep on the device, as ``--novram`` and ``--lowvram`` do."""
    real = management.LoadedModel.model_load

    def to(size):
        monkeypatch.setattr(
            management.LoadedModel, "model_load", lambda self, memory=0, force_patch_weights=False: real(self, size, False)
        )

    return to


def streamed(model):
    """Weights that are fetched and patched whenever they are used."""
    return sum(len(getattr(m, "weight_function", ())) for m in model.model.diffusion_model.modules())


@pytest.mark.parametrize("objective", ["stepwise", "trajectory", "scores", "subspace"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_little_memory_learns_the_same_mask(budget, share, objective):
    plain = zoo.patcher(NAME)
    patched = apply_mask(plain, random_mask(plain, hard=False))  # something that has to be patched while it is streamed
    wanted = learn(patched, objective=objective)
    plain.detach()
    management.unload_all_models()
    budget(0.1 + share * plain.model_size())
    seen = []
    real = host._Loaded._denoise

    def watch(self, *args):
        seen.append(streamed(patched))
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host._Loaded, "_denoise", watch)
        found = learn(patched, objective=objective)
    assert min(seen) > 0 and (share == 0 or max(seen) < len(patched.patches)), "weights must have been streamed"
    assert 0 < wanted.mask.off_share() < 1
    if objective == "subspace":
        for name, basis in wanted.mask.bases.items():
            torch.testing.assert_close(found.mask.bases[name].energy, basis.energy, rtol=1e-3, atol=1e-5)
        return
    assert agreement(found.mask, wanted.mask) > 0.99
    if objective != "scores":
        assert found.curve[0].reconstruction == pytest.approx(wanted.curve[0].reconstruction, rel=1e-4)


@pytest.mark.parametrize("objective", ["stepwise", "trajectory", "scores"])
@pytest.mark.parametrize("kind", ["bf16", "fp8_e4m3fn", "fp8_e5m2", "scaled fp8", "mixed fp8"])
def test_formats(files, kind, objective):
    """Where weights are stored in few bits, the mask is that of a model whose weights are those very numbers."""
    model = load(files, kind)
    before = predict(model)
    wanted = learn(twin(numbers(model)), objective=objective)
    found = learn(model, objective=objective)
    assert 0 < wanted.mask.off_share() < 1
    assert agreement(found.mask, wanted.mask) > 0.97
    assert torch.equal(predict(model), before), "the model must be as it was"
    assert not torch.equal(predict(apply_mask(model, found.mask)), before)


@pytest.mark.parametrize("kind", ["bf16", "fp8_e4m3fn", "scaled fp8", "mixed fp8"])
def test_a_subspace_of_weights_in_few_bits(files, kind):
    """It is that of a model whose weights are those very numbers; applied, the model computes with projected weights."""
    model = load(files, kind)
    before = predict(model)
    plain = twin(numbers(model))
    wanted = learn(plain, objective="subspace", threshold=0.02).mask
    found = learn(model, objective="subspace", threshold=0.02).mask
    assert found.shared == wanted.shared and found.off_share() == pytest.approx(wanted.off_share(), abs=0.02)
    assert torch.equal(predict(model), before), "the model must be as it was"
    same = predict(apply_mask(plain, wanted))
    moved = predict(apply_mask(model, found))
    assert not torch.equal(moved, before)
    assert (moved - same).norm() < 0.5 * (moved - before).norm()
    management.unload_all_models()
    assert torch.equal(predict(model), before), "the original weights must come back"


def agreement(one, other):
    """Share of gates on which two masks agree."""
    same = [one.gates[name] == other.gates[name] for name in one.gates]
    return torch.cat(same).float().mean().item()
