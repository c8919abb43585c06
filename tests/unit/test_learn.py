"""Learning: exact gradients, determinism, sparsity, cancellation, nothing left behind."""

from contextlib import contextmanager

import pytest
import torch

from tests.unit.tiny import TinyModel, info
from uniforget.errors import LearnError
from uniforget.learn import Session, Settings, learn
from uniforget.learn.objectives import OBJECTIVES
from uniforget.learn.relax import hard_gates, sample_noise, soft_gates, sparsity_loss, split
from uniforget.learn.trajectories import record_teacher
from uniforget.mask.gates import gated

SETTINGS = Settings(beta=1.0, steps=12, batch=4, noises=1, cfg=2.0)


@contextmanager
def objective_of(name, model, settings=SETTINGS, cache=None):
    """The objective on a model, whose gates it moves."""
    cache = cache or record_teacher(model, settings)
    with gated(model.modules, model.sites) as install:
        gates = lambda flat: install({} if flat is None else split(flat, model.sites))  # noqa: E731
        yield OBJECTIVES[name](model, cache, settings, torch.Generator().manual_seed(0), gates)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_equals_finite_differences(name):
    cache = record_teacher(TinyModel(prompts=4), SETTINGS)
    cache.states = cache.states.double()
    model = TinyModel(prompts=4)
    model.transformer.double()
    model.sigmas, model.hidden, model.pooled = model.sigmas.double(), model.hidden.double(), model.pooled.double()
    torch.manual_seed(0)
    size = sum(s.units for s in model.sites)
    gates = torch.rand(size, dtype=torch.float64) * 0.8 + 0.1
    direction = torch.randn(size, dtype=torch.float64)
    batch = list(range(SETTINGS.batch))

    real, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    try:
        with objective_of(name, model, cache=cache) as objective:
            objective.batches = iter([batch] * 3)
            _, gradient = objective.loss_and_gradient(gates)
            step = 1e-3
            up, _ = objective.loss_and_gradient(gates + step * direction)
            down, _ = objective.loss_and_gradient(gates - step * direction)
    finally:
        torch.Tensor.float = real
    assert gradient.abs().max() > 0
    assert ((up - down) / (2 * step)).item() == pytest.approx((gradient @ direction).item(), rel=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_untouched_model_has_no_loss(name):
    with objective_of(name, model := TinyModel()) as objective:
        size = sum(s.units for s in model.sites)
        loss, _ = objective.loss_and_gradient(torch.ones(size))
        pruned, _ = objective.loss_and_gradient(torch.zeros(size))
    assert loss < 1e-5 < pruned


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_seed_gives_the_same_mask_and_leaves_the_users_random_state(name):
    model, again, third = TinyModel(), TinyModel(), TinyModel()
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    settings = Settings(beta=300.0, steps=12, batch=4, noises=1, cfg=2.0, objective=name, learning_rate=0.5, seed=5)
    first = learn(model, settings, info())
    second = learn(again, settings, info())
    assert torch.equal(torch.rand(3), expected)
    assert first.mask.digest() == second.mask.digest()
    assert first.mask.hard and not first.soft.hard
    assert 0 < first.mask.off_share() < 1
    assert [p.reconstruction for p in first.curve] == [p.reconstruction for p in second.curve]
    other = learn(third, Settings(**{**vars(settings), "seed": 6}), info())
    assert other.mask.digest() != first.mask.digest()


def test_more_beta_switches_off_more():
    shares = [
        learn(TinyModel(), Settings(beta=beta, steps=20, batch=4, noises=1, learning_rate=0.5), info()).mask.off_share()
        for beta in (0.1, 30.0, 3000.0)
    ]
    assert shares == sorted(shares) and shares[0] < shares[2]


def test_cancelling_leaves_no_hook_and_the_model_as_it_was():
    model = TinyModel()
    before = {k: v.clone() for k, v in model.transformer.state_dict().items()}

    class Cancelled(Exception):
        pass

    def report(progress):
        if progress.stage == "learning" and progress.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        learn(model, SETTINGS, info(), Session(report))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules.values())
    assert all(torch.equal(before[k], v) for k, v in model.transformer.state_dict().items())


def test_nan_stops_with_advice():
    model = TinyModel()
    model.hidden[:] = float("nan")
    with pytest.raises(LearnError, match="Lower the learning rate"):
        learn(model, SETTINGS, info())


def test_nothing_to_gate_is_an_error():
    with pytest.raises(LearnError, match="no sites"):
        learn(TinyModel(kinds=()), SETTINGS, info())


def test_golden_gates():
    # logit 3, no noise: sigmoid(3 / 0.83) * 1.2 - 0.1 = 1.068..., clamped to 1; logit 0: 0.5 exactly.
    assert soft_gates(torch.tensor([3.0, 0.0, -9.0])).tolist() == [1.0, 0.5, 0.0]
    assert sparsity_loss(torch.tensor([0.0])).item() == pytest.approx(0.7310586)
    assert hard_gates(torch.tensor([0.2, -0.2, 0.0])).tolist() == [1.0, 0.0, 0.0]
    noise = sample_noise(10_000, torch.Generator().manual_seed(0))
    assert noise.abs().max() <= 1.0986123 and noise.abs().max() > 1.0


def test_hard_gates_pass_a_gradient():
    logits = torch.tensor([0.5, -0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(hard_gates(logits).sum(), logits)
    assert (gradient > 0.2).all()
