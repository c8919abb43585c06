"""Watching the untouched model: how much is recorded, batches of prompts that share a forward pass, and what learning will take."""

import pytest
import torch

from tests.unit.tiny import TinyModel, info
from uniforget.learn import Session, Settings, learn, measure
from uniforget.learn.model import by_group, grouped
from uniforget.learn.trajectories import Batches, record_teacher, recorded_rows, watch


class Mixed(TinyModel):
    """Prompts of two lengths, and a note of what went through the model together."""

    def __init__(self, **more):
        super().__init__(**more)
        self.groups = grouped([i % 2 for i in range(self.prompts)] + [0], lambda a, b: a == b)
        self.passes = []

    def denoise(self, x, sigma, which):
        def run(x, sigma, which):
            self.passes.append(which)
            return TinyModel.denoise(self, x, sigma, which)

        return by_group(self.groups, run, x, sigma, which)


@pytest.mark.parametrize(
    ("objective", "steps", "batch", "expected"),
    [("stepwise", 4, 3, 4), ("stepwise", 400, 16, 516), ("trajectory", 4, 3, 12), ("stepwise", 1, 1, 1)],
)
def test_no_more_is_recorded_than_updates_can_use(objective, steps, batch, expected):
    """Three states a trajectory, six prompts: ceil(steps x batch / 3) of them, and 512 rounded up to whole rounds at most."""
    rows = recorded_rows(TinyModel(prompts=6, steps=3), Settings(objective=objective, steps=steps, batch=batch))
    assert len(rows) == len(set(rows)) == expected
    assert len({row % 6 for row in rows}) == min(6, expected) or expected < 12


def test_each_trajectory_is_itself_whatever_is_watched_with_it():
    model, settings = TinyModel(prompts=6, steps=2), Settings(batch=4, cfg=2.0, seed=3)
    whole = {row: step.after[i] for step in watch(model, settings, range(6)) if step.last for i, row in enumerate(step.rows)}
    [alone] = [step.after[0] for step in watch(model, settings, [5]) if step.last]
    assert len(whole) == 6 and torch.allclose(whole[5], alone, atol=1e-5)
    short = Settings(batch=4, cfg=2.0, seed=3, steps=1)
    cache = record_teacher(model, short)
    for i, row in enumerate(recorded_rows(model, short)):
        assert cache.which[i] == row % 6 and torch.allclose(
            cache.states[i, -1].float(), whole[row % 6 if row < 6 else 0], atol=1e-2
        ) == (row < 6)


def test_most_batches_are_of_one_length_and_none_is_left_out():
    batches = Batches(50, 8, torch.Generator().manual_seed(0), lambda item: item % 3)
    drawn = [next(batches) for _ in range(150)]
    lengths = [len({item % 3 for item in batch}) for batch in drawn]
    assert sum(n == 1 for n in lengths) > 0.6 * len(drawn) and max(lengths) <= 3
    counts = torch.tensor([item for batch in drawn for item in batch]).bincount(minlength=50)
    assert counts.min() >= counts.float().mean() - 2 and counts.max() <= counts.float().mean() + 2
    again = Batches(50, 8, torch.Generator().manual_seed(0), lambda item: item % 3)
    assert [next(again) for _ in range(150)] == drawn
    firsts = [batch[0] % 3 for batch in drawn[:40]]
    assert firsts != sorted(firsts), "lengths take turns"


def test_prompts_of_two_lengths_learn_in_few_passes():
    model = Mixed(prompts=6, steps=2)
    assert model.groups == [0, 1, 0, 1, 0, 1, 0]
    result = learn(model, Settings(beta=300.0, steps=6, batch=4, noises=2, cfg=1.0, learning_rate=2.0), info())
    assert 0 < result.mask.off_share() < 1
    apart = Mixed(prompts=6, steps=2)
    for _ in watch(apart, Settings(batch=3, cfg=1.0), range(6)):
        pass
    assert [len(which) for which in apart.passes] == [3] * 4 and all(len({w % 2 for w in which}) == 1 for which in apart.passes)


@pytest.mark.parametrize("objective", ["stepwise", "trajectory", "scores"])
def test_what_learning_takes_is_measured_and_leaves_nothing(objective, tmp_path, monkeypatch):
    model = TinyModel(prompts=6, steps=2)
    calls = []
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda *args: calls.append(1) or denoise(*args))
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    settings = Settings(beta=30.0, steps=100, batch=2, cfg=2.0, objective=objective)
    cost = measure(model, settings, info())
    assert torch.equal(torch.rand(2), expected)
    assert cost.seconds > 0 and cost.peak > 1 << 20 and "learning takes about" in str(cost) and "main memory" in str(cost)
    assert len(calls) < 100 and (cost.update > 0) == (objective != "scores")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules.values())


def test_progress_says_what_is_left():
    seen = []
    learn(TinyModel(prompts=6, steps=2), Settings(steps=8, batch=4, cfg=1.0), info(), Session(seen.append))
    teacher, learning = ([p for p in seen if p.stage == stage] for stage in ("teacher", "learning"))
    assert str(teacher[0]).startswith("watching the model: 4 of ") and str(teacher[-1]).endswith(", 0 s left")
    assert "learning: 7 of 8, loss" in str(learning[6]) and learning[6].left > 0 == learning[7].left
    assert all(p.seconds > 0 for p in learning)
