"""Memory modes: the same gradient, less kept for backward, nothing left behind."""

import pytest
import torch

from tests.unit.tiny import TinyModel
from uniforget.learn import OBJECTIVES, Settings, memory, record_teacher
from uniforget.mask.gates import gated

SETTINGS = Settings(batch=3, noises=1, cfg=2.0)


def gradient_in(name, mode, model):
    """Loss, gradient, and the bytes kept for backward at most, of one batch in one memory mode."""
    settings = Settings(**{**vars(SETTINGS), "memory": mode, "objective": name})
    bank = record_teacher(model, settings)
    factors = {}
    objective = OBJECTIVES[name](model, bank, settings, torch.Generator().manual_seed(0), factors)
    gates = 0.2 + 0.7 * torch.rand(sum(objective.units), generator=torch.Generator().manual_seed(1))
    kept = []
    real = torch.autograd.grad

    def counting(*args, **kwargs):
        kept.append(1)
        return real(*args, **kwargs)

    torch.autograd.grad = counting
    try:
        with gated(model.modules, model.sites, factors):
            loss, gradient = objective.loss_and_gradient(gates)
    finally:
        torch.autograd.grad = real
    return loss, gradient, len(kept)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_mode_gives_the_same_gradient(name):
    model = TinyModel()
    loss, expected, _ = gradient_in(name, "keep", model)
    assert loss > 0 and expected.abs().max() > 0
    for mode, backward_passes in (("step", len(model.sigmas) - 1), ("block", len(model.sigmas) - 1)):
        other, found, calls = gradient_in(name, mode, model)
        assert calls == (backward_passes if name == "trajectory" else 1)
        assert other == pytest.approx(loss, rel=1e-5)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all("forward" not in m.__dict__ for m in model.modules.values())


def kept_bytes(model, block):
    x = torch.randn(4, 3, 16, 16)
    with gated(model.modules, model.sites, {s.name: torch.ones(s.units, requires_grad=True) for s in model.sites}):
        run = lambda: model.denoise(x, torch.full((4,), 0.5), [0, 1, 2, 3])  # noqa: E731
        if not block:
            return memory.saved_bytes(run, model.transformer.parameters())
        with memory.checkpointed(memory.blocks_in(model.modules, model.sites)):
            return memory.saved_bytes(run, model.transformer.parameters())


def test_blocks_keep_far_less():
    model = TinyModel()
    assert list(memory.blocks_in(model.modules, model.sites)) == ["transformer_blocks.0", "transformer_blocks.1"]
    assert 0 < kept_bytes(model, block=True) < kept_bytes(model, block=False) / 2


def test_a_replaced_forward_comes_back():
    model = TinyModel()
    block = model.modules["transformer_blocks.0"]
    own = block.forward
    block.forward = own
    with memory.checkpointed(memory.blocks_in(model.modules, model.sites)):
        assert block.forward is not own
    assert block.__dict__["forward"] is own and "forward" not in model.modules["transformer_blocks.1"].__dict__


def test_the_fastest_mode_that_fits_is_chosen():
    assert memory.choose(100, 8, 2000) == "keep"
    assert memory.choose(100, 8, 1000) == "step"
    assert memory.choose(100, 8, 120) == "block"
    assert memory.choose(100, 8, 0) == "block"
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20
