"""Memory modes: the same gradient, less kept for backward, nothing left behind."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.test_learn import objective_of
from tests.unit.test_trajectories import Mixed
from tests.unit.tiny import TinyModel
from uniforget.learn import Settings, memory
from uniforget.learn.objectives import OBJECTIVES
from uniforget.mask.gates import gated

SETTINGS = Settings(batch=3, noises=1, cfg=2.0)


def gradient_in(name, mode, model, rows=SETTINGS.batch):
    """Loss, gradient, and the number of backward passes, of one batch in one memory mode."""
    settings = Settings(**{**vars(SETTINGS), "memory": mode, "objective": name})
    gates = 0.2 + 0.7 * torch.rand(sum(s.units for s in model.sites), generator=torch.Generator().manual_seed(1))
    calls = []
    real = torch.autograd.grad

    def counting(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs)

    torch.autograd.grad = counting
    try:
        with objective_of(name, model, settings) as objective:
            objective.rows = rows
            loss, gradient = objective.loss_and_gradient(gates)
    finally:
        torch.autograd.grad = real
    return loss.item(), gradient, len(calls)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_mode_gives_the_same_gradient(name):
    model = TinyModel()
    loss, expected, _ = gradient_in(name, "keep", model)
    assert loss > 0 and expected.abs().max() > 0
    chain = len(model.sigmas) - 1 if name == "trajectory" else 1
    for mode, rows, backward_passes in (
        ("step", 3, chain),
        ("block", 3, chain),
        ("block", 1, 3 * chain),
        ("micro", 2, 2),
        ("micro", 1, 3),
    ):
        other, found, calls = gradient_in(name, mode, model, rows)
        assert calls == backward_passes
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
    """One evaluation of a row keeps 100 bytes, a backward pass spans 8 of them, and a batch is 4 rows."""
    for free, expected in (
        *((5000, ("keep", 4)), (4000, ("micro", 3)), (1041, ("micro", 1)), (1039, ("step", 4)), (300, ("step", 2))),
        *((129, ("block", 2)), (50, ("block", 1)), (0, ("block", 1))),
    ):
        assert memory.choose("auto", 100, 4, 8, free) == expected
    assert memory.choose("keep", 100, 4, 8, 0) == ("keep", 4)
    assert memory.choose("micro", 100, 4, 8, 0) == ("micro", 1) and memory.choose("micro", 100, 4, 8, 1 << 30) == ("micro", 4)
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20 and memory.peak_bytes(torch.device("cpu")) > 1 << 20


def test_what_one_row_keeps_is_measured():
    model = TinyModel()
    with objective_of("stepwise", model, Settings(**{**vars(SETTINGS), "memory": "auto"})) as objective:
        gates = torch.ones(sum(s.units for s in model.sites))
        objective.settle_memory(gates, 1 << 40)
        assert (objective.memory, objective.rows) == ("keep", 3)
        objective.memory = "auto"
        objective.settle_memory(gates, kept_bytes(model, block=False))  # of four rows; guidance makes two of each
        assert (objective.memory, objective.rows) == ("micro", 1)


class Asking(TorchDispatchMode):
    """Counts what makes a GPU be waited for: asking a tensor for its value, its truth, or where it is not zero."""

    ASK = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.ASK:
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("mode", ["keep", "micro", "step", "block"])
def test_an_update_asks_for_no_value_on_the_way(name, mode):
    """Loss and gradient are made without a wait for the device, also where a batch's prompts differ in length."""
    model = Mixed()
    with Asking() as asking:
        loss, _, _ = gradient_in(name, mode, model, rows=2)
    assert loss > 0 and len({tuple(sorted(which)) for which in model.passes}) > 1
    assert asking.asked == ["_local_scalar_dense"], "only the test itself asks, for the loss"
