"""The checks' maths, with denoisers made by hand."""

import math
import random

import pytest
import torch

from uniforget.checks import picture, prompt, stats
from uniforget.checks.prompt import Pull, Span


class Memory:
    """Restores pictures that it knows exactly but for an error, and all others with a larger one; flow noise levels."""

    def __init__(self, known=(), conditions=None, exact=0.01, vague=0.04):
        self.known, self.conditions, self.exact, self.vague = known, conditions or {}, exact, vague
        self.asked = []

    def noised(self, latents, noise, level):
        self.truth = latents
        self.asked.append((level, noise.clone()))
        return latents, torch.full((len(latents),), level)

    def predict(self, x, sigma, which):
        def one(picture, condition):
            knows = any(torch.equal(picture, k) for k in self.known) or condition in self.conditions
            return picture + math.sqrt(self.exact if knows else self.vague)

        return [torch.stack([one(p, c) for p in x]) for c in which]


def latents(pictures):
    """Pictures (n, h, w, c) with their copies as latents (4, n, c, h, w)."""
    return picture.with_copies(pictures).permute(0, 1, 4, 2, 3)


def test_copies_are_the_picture_mirrored_and_moved_by_a_twentieth():
    image = torch.arange(40.0).view(1, 1, 40, 1) + 100 * torch.arange(20.0).view(1, 20, 1, 1)
    same, mirrored, left, right = picture.with_copies(image)
    assert torch.equal(same, image)
    assert mirrored[0, 0, :3, 0].tolist() == [39, 38, 37]
    assert left[0, 0, :3, 0].tolist() == [2, 3, 4] and left[0, 0, -3:, 0].tolist() == [39, 38, 37], "edges are mirror images"
    assert right[0, 0, :4, 0].tolist() == [2, 1, 0, 1] and right[0, 3, -1, 0] == 337
    assert {t.shape for t in (same, mirrored, left, right)} == {(1, 20, 40, 1)}


def test_the_gain_is_the_log_ratio_of_the_errors():
    pictures = torch.rand(2, 20, 20, 3, generator=torch.Generator().manual_seed(0))
    given = latents(pictures)
    model, calls = Memory(known=[given[0, 0]]), []
    found = picture.gains(model, given, given, [-1, -1], noises=3, report=lambda: calls.append(1))
    assert found.shape == (2, 3) and len(calls) == 2 * 3 * 3
    assert found[0].tolist() == pytest.approx([math.log(4)] * 3, abs=1e-4), "a quarter of the error"
    assert found[1].tolist() == pytest.approx([0.0] * 3, abs=1e-4)


def test_the_copy_that_is_restored_best_counts():
    pictures = torch.rand(1, 20, 20, 3, generator=torch.Generator().manual_seed(0))
    given = latents(pictures)
    model = Memory(known=[given[0, 0], given[1, 0]])
    assert picture.gains(model, given, given, [-1], 2)[0].tolist() == pytest.approx([0, 0], abs=1e-4), (
        "its mirror image is known too"
    )


def test_picture_and_copies_get_the_same_noise_and_the_random_state_is_left():
    given = latents(torch.rand(1, 20, 20, 3, generator=torch.Generator().manual_seed(0)))
    state, python = torch.random.get_rng_state(), random.getstate()
    first, second = Memory(), Memory()
    for model in (first, second):
        picture.gains(model, given, given, [-1], 2, seed=5, levels=(0.2, 0.8))
    assert [level for level, _ in first.asked] == [0.2, 0.8, 0.2, 0.8]
    for (_, noise), (_, again) in zip(first.asked, second.asked, strict=True):
        assert torch.equal(noise, again) and torch.equal(noise[0], noise[3])
    assert torch.equal(first.asked[0][1], first.asked[1][1]) and not torch.equal(first.asked[0][1], first.asked[2][1])
    assert torch.equal(torch.random.get_rng_state(), state) and random.getstate() == python


def test_verdicts_compare_the_interval_with_the_models_own_pictures():
    own = torch.tensor([[0.0, 0.02], [0.09, 0.11], [0.19, 0.21]], dtype=torch.float64)  # means 0.01, 0.1, 0.2
    found = picture.findings(torch.tensor([[1.0, 1.1, 1.2], [0.1, 0.11, 0.09], [0.1, 0.5, 0.9]], dtype=torch.float64), own)
    # mean 0.31 / 3, deviation 0.09504, t(0.95, 2) = 2.920, times the root of 4 / 3
    assert found[0].usual == pytest.approx(0.10333, abs=1e-4)
    assert found[0].bound == pytest.approx(0.10333 + 2.920 * 0.09504 * math.sqrt(4 / 3), abs=1e-3)
    assert [f.verdict for f in found] == ["known", "unknown", "unclear"]
    assert (found[0].gain, found[0].low) == (pytest.approx(1.1), pytest.approx(1.1 - 4.303 * 0.1 / math.sqrt(3), abs=1e-3))


def test_sentences_say_what_was_found():
    known = picture.Finding(math.log(2), math.log(1.6), math.log(2.5), 0.05, 0.1)
    unknown = picture.Finding(-0.05, -0.06, 0.02, 0.05, 0.1)
    assert picture.sentence(known, None) == (
        "Yes, the model knows this picture: it repairs it 50 % better than its mirror image or a moved copy (most likely 38 to 60 %); "
        "up to 10 % is usual for pictures that it does not know."
    )
    both = picture.sentence(known, unknown, "picture 2")
    assert both.startswith("Yes, the model knows picture 2: ") and "After forgetting, no sign of it any more: " in both
    assert "it repairs it 5 % worse than its mirror image or a moved copy (most likely -6 to 2 %)" in both


def test_quantiles_are_those_of_students_tables():
    for freedom, value in [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (11, 2.201), (30, 2.042)]:
        assert stats.t_quantile(0.975, freedom) == pytest.approx(value, rel=0.01)
    assert stats.interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(2 - 2.484, abs=0.001), pytest.approx(2 + 2.484, abs=0.001))
    assert stats.interval([1.0]) == (1.0, -math.inf, math.inf)


def test_the_upper_bound_knows_only_the_upper_half():
    assert stats.upper_bound([-9.0, -5.0, 0.0, 3.0, 4.0]) == pytest.approx(6.314 * math.sqrt(12.5) * math.sqrt(1.2), rel=1e-3)
    assert stats.upper_bound([-1.0, -1.0, 0.0, 3.0, 4.0]) == stats.upper_bound([-9.0, -5.0, 0.0, 3.0, 4.0])
    assert stats.upper_bound([2.0, 2.0, 2.0]) == 2


def test_areas_under_curves():
    assert stats.auc([3.0, 4.0], [1.0, 2.0]) == 1 and stats.auc([1.0], [1.0]) == 0.5
    assert stats.auc([1.0, 3.0], [2.0, 4.0]) == 0.25
    low, high = stats.auc_interval([1.0, 3.0, 5.0, 2.5], [2.0, 4.0, 0.0, 1.0])
    assert 0 <= low < stats.auc([1.0, 3.0, 5.0, 2.5], [2.0, 4.0, 0.0, 1.0]) < high <= 1
    assert stats.auc_interval([5.0, 6.0], [1.0, 2.0]) == (1.0, 1.0)


def test_what_a_span_leaves():
    span = Span(torch.tensor([[1.0, 0, 0, 0], [1.0, 1.0, 0, 0]]))
    assert span.beyond(torch.tensor([3.0, -2.0, 0, 0])) == pytest.approx(0, abs=1e-2)
    assert span.beyond(torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(2.0, abs=1e-3), "4 of 4 elements: root mean square 2"
    # (1, 0) and (1, 1): distances to each other's lines are 1 / root 2 and 1
    assert span.beyond_others() == pytest.approx([math.sqrt(0.5) / 2, 0.5], abs=1e-3)
    twice = Span(torch.ones(2, 4))
    assert all(math.isfinite(v) and v < 0.1 for v in twice.beyond_others()), "equal prompts leave nothing of each other"


class Words:
    """Predicts a fixed picture per condition, whatever the noise, or one that turns with it."""

    def __init__(self, pictures, loose=()):
        self.pictures, self.loose, self.sizes = pictures, loose, []

    def noised(self, latents, noise, level):
        assert level == 1.0 and not latents.any()
        return noise, torch.ones(len(noise))

    def predict(self, x, sigma, which):
        self.sizes.append(len(which))
        zero = torch.zeros_like(x)
        return [
            zero
            if i == -1
            else self.pictures[i].expand_as(x) * (torch.sign(x.flatten(1)[:, :1]).view(-1, 1, 1, 1) if i in self.loose else 1)
            for i in which
        ]


def test_pulls_and_agreement_of_hand_made_prompts():
    shape = (1, 4, 4)
    unit = torch.eye(16).view(16, 1, 4, 4)
    # two prompts (one beyond, one within what neutral ones span), then three neutral ones
    pictures = [4 * unit[7], 3 * unit[0] + 4 * unit[1], unit[0], unit[1], 2 * unit[2]]
    done = []
    model = Words(pictures, loose=(4,))
    found = prompt.pulls(model, 2, 3, shape, seeds=6, seed=2, at_once=2, report=done.append)
    assert sum(done) == 5 and max(model.sizes) == 2
    assert [p.size for p in found] == pytest.approx([1.0, 1.25, 0.25, 0.25, 0.5])
    assert [p.beyond for p in found] == pytest.approx([1.0, 0.0, 0.25, 0.25, 0.5], abs=5e-3)
    # four noises turn the last one one way, two the other way: 2 * (1 * 6 + 1 * 1 - 8) / 30
    assert (found[0].agreement, found[4].agreement) == (pytest.approx(1), pytest.approx(-1 / 15))
    assert math.isnan(prompt.pulls(model, 2, 3, shape, seeds=1)[0].agreement)


def test_scores_are_multiples_of_the_neutral_median_and_verdicts_follow_their_spread():
    neutral = [Pull(2.0, math.exp(v), 0.5) for v in (-0.1, 0.0, 0.1, -0.05, 0.05)]
    usual, unclear, sure = (prompt.scores([Pull(4.0, b, 0.9)], neutral)[0] for b in (1.05, 3.0, 20.0))
    assert (sure.pull, sure.beyond, sure.percentile, sure.agreement) == (2.0, pytest.approx(20.0), 1.0, 0.9)
    # two lie above the median, 0.1 and 0.05: root mean square 0.0791; t(0.95, 1) = 6.314, t(0.99, 1) = 31.82, the root of 6 / 5
    assert math.exp(6.314 * 0.0791 * math.sqrt(1.2)) == pytest.approx(1.728, abs=0.002)
    assert math.exp(31.82 * 0.0791 * math.sqrt(1.2)) == pytest.approx(15.75, abs=0.1)
    assert [s.verdict for s in (usual, unclear, sure)] == ["usual", "unclear", "memorized"]
    assert usual.percentile == 0.6
