"""Learning on models as people load them: with little memory, with patches underneath, in fp8."""

from dataclasses import replace

import comfy.model_management as management
import comfy_extras.nodes_freelunch as freelunch
import pytest
import torch
from uniforget_pack.uniforget import learn as engine
from uniforget_pack.uniforget.hosts.comfy import learn as host
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask, sites_of
from uniforget_pack.uniforget.learn import Settings
from uniforget_pack.uniforget.learn.objectives import OBJECTIVES
from uniforget_pack.uniforget.learn.relax import split
from uniforget_pack.uniforget.learn.trajectories import record_teacher
from uniforget_pack.uniforget.mask.gates import gated
from uniforget_pack.uniforget.mask.info import MaskInfo

from tests.comfyui.inside import zoo
from tests.comfyui.inside.test_families import conditioning
from tests.comfyui.inside.test_loading_formats import NAME, load, numbers, predict, twin
from tests.comfyui.inside.ways import files, random_mask, run

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
    lesson = host.Lesson(prompts[1:], prompts[0], latent, sigmas)
    return host.loaded(model, sites, lesson, settings.batch, lambda found: engine.learn(found, settings, info))


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


@pytest.mark.parametrize("memory", ["keep", "micro", "block"])
@pytest.mark.parametrize("node", [freelunch.FreeU, freelunch.FreeU_V2])
def test_a_patch_that_assigns_to_slices(node, memory):
    """The gradient through FreeU is that of finite differences, and its prediction is the one without a gradient."""
    name = "sd1"
    plain = zoo.patcher(name)
    patched = run(node, model=plain, b1=1.3, b2=1.4, s1=0.9, s2=0.2)
    sites = [s for s in sites_of(patched)[1] if s.kind == "ffn"]
    lesson = host.Lesson(
        [conditioning(name, seed) for seed in (1, 2)], conditioning(name, 3), torch.zeros_like(zoo.inputs(name)[0][:1]),
        torch.tensor([5.0, 1.0, 0.0]),
    )  # fmt: skip
    settings = replace(SETTINGS, batch=2, noises=1, cfg=1.0, memory=memory)

    def check(model):
        cache = record_teacher(model, settings)
        size = sum(s.units for s in sites)
        with gated(model.modules, sites) as install:
            found = OBJECTIVES["stepwise"](
                model,
                cache,
                settings,
                torch.Generator().manual_seed(0),
                lambda flat: install({} if flat is None else split(flat, sites)),
            )
            found.rows = 1 if memory == "micro" else 2
            batch = next(found.batches)
            direction = torch.randn(size, generator=torch.Generator().manual_seed(1))
            gates = torch.full((size,), 0.7)
            found.batches = iter([batch] * 2)
            loss, gradient = found.loss_and_gradient(gates)
            assert loss.item() == pytest.approx(found.loss(batch, gates), rel=1e-5)
            # a short step, because FreeU_V2 divides by maxima
            up, down = (found.loss(batch, gates + h * direction) for h in (3e-4, -3e-4))
        return (up - down) / 6e-4, (gradient @ direction).item()

    slope, product = host.loaded(patched, sites, lesson, 2, check)
    assert slope != 0 and product == pytest.approx(slope, rel=0.03)
