"""The guard's bands: figures by hand, what neutral samplings make of them, alarms, and steering back."""

import json
import math

import pytest
import torch

from uniforget.checks.bands import FEWEST, Bands, Eye, Recorder, Watch

BANDS = Bands([1.0, 0.5], {"update": [0.0, 0.0], "pull": [0.0, math.log(2)]}, {"update": [0.1, 0.1], "pull": [0.1, 0.2]}, 3.0)


def test_figures_written_by_hand():
    x = torch.zeros(2, 1, 2, 2)
    cond, uncond = torch.full_like(x, 3.0), torch.full_like(x, 1.0)
    cond[1] *= 2
    found = Eye().look(x, torch.tensor([2.0, 2.0]), cond, uncond)
    assert found["update"] == pytest.approx([math.log(1.5), math.log(3)]) and found["pull"] == pytest.approx(
        [math.log(2), math.log(5)]
    )
    assert found.keys() == {"update", "pull"}, "at the first look nothing can have settled"
    assert Eye().look(x, torch.tensor([2.0]), cond, None).keys() == {"update"}


def test_settled_is_detail_over_what_still_moves():
    eye, x = Eye(), torch.zeros(1, 1, 2, 2)
    picture = torch.tensor([[[[5.0, 1.0], [1.0, 5.0]]]])  # detail of size 2 around a mean of 3
    eye.look(x, torch.tensor([1.0]), picture, None)
    [found] = eye.look(x, torch.tensor([0.5]), picture + 0.1, None)["settled"]
    assert found == pytest.approx(math.log(2 / 0.1 * math.log(2)), rel=1e-4)
    # half a step that moves half as much is as settled; a second look at the same level says nothing
    eye, half = Eye(), math.sqrt(0.5)
    eye.look(x, torch.tensor([1.0]), picture, None)
    assert eye.look(x, torch.tensor([half]), picture + 0.05, None)["settled"] == pytest.approx([found], rel=1e-4)
    assert "settled" not in eye.look(x, torch.tensor([half]), picture + 9, None)
    assert eye.look(x, torch.tensor([0.5]), picture + 0.1, None)["settled"] == pytest.approx([found], rel=1e-4)


def test_between_two_noise_levels_bands_are_interpolated_and_below_the_last_nothing_is_said():
    at = math.sqrt(0.5)  # half way between 1 and 0.5, in logarithms
    assert BANDS.deviation("pull", math.log(2) / 2 + 0.15, at) == pytest.approx(1)
    assert BANDS.deviation("pull", -5, 1.0) < 0 < BANDS.deviation("update", -0.2, 1.0) == pytest.approx(2)
    assert BANDS.watches(0.5) and BANDS.watches(2.0) and not BANDS.watches(0.49)


def sampling(recorder, generator, scale=1.0):
    recorder.begin()
    for sigma in (1.0, 0.8, 0.5, 0.2):
        x = torch.randn(1, 4, 8, 8, generator=generator)
        text = 0.3 * scale * torch.randn(1, 4, 8, 8, generator=generator)
        recorder.see(x, torch.tensor([sigma]), text, torch.zeros_like(x))


def test_bands_come_from_neutral_samplings_and_hold_for_others():
    generator = torch.Generator().manual_seed(0)
    recorder = Recorder()
    for _ in range(48):
        sampling(recorder, generator)
    bands = recorder.bands()
    assert list(bands.sigmas) == pytest.approx([1.0, 0.8]), "the first half"
    assert bands.middle["pull"] == pytest.approx([math.log(0.3)] * 2, abs=0.03) and bands.limit > 2
    fresh, wild = Recorder(), Recorder()
    for _ in range(100):
        sampling(fresh, generator)
        sampling(wild, generator, 3.0)
    over = lambda runs: sum(any(bands.deviation("pull", f["pull"], s) > bands.limit for s, f in run[:2]) for run in runs)  # noqa: E731
    assert over(fresh.seen) <= 2 and over(wild.seen) == 100


def test_too_few_or_different_samplings_make_no_bands():
    generator, recorder = torch.Generator().manual_seed(0), Recorder()
    for _ in range(FEWEST - 1):
        sampling(recorder, generator)
    with pytest.raises(ValueError, match="at least"):
        recorder.bands()
    sampling(recorder, generator)
    recorder.seen[-1][0] = (0.9, recorder.seen[-1][0][1])
    with pytest.raises(ValueError, match="different noise levels"):
        recorder.bands()


def test_what_settles_too_early_raises_an_alarm_and_is_steered_without_the_text():
    bands = Bands([1.0, 0.5], {"update": [0.0] * 2, "settled": [0.0] * 2}, {"update": [9.0] * 2, "settled": [1.0] * 2}, 3.0)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(2, 1, 4, 4, generator=generator)  # noqa: E731
    watch, x, uncond, first = Watch(bands), draw(), draw(), draw()
    assert watch.see(x, torch.ones(2), 2 * first, first, uncond, steer=True) is not None and not watch.alarms
    second = torch.stack([draw()[0], first[1] + 0.001])  # the first one moves on, the second one stays where it was
    guided = uncond + 2 * (second - uncond)
    out = watch.see(x, torch.full((2,), 0.6), guided, second, uncond, steer=True)
    assert watch.alarms == [1] and torch.equal(out[0], guided[0]) and torch.allclose(out[1], uncond[1], atol=1e-5)
    without = Watch(bands)
    without.see(x, torch.ones(2), first, first, None, steer=True)
    kept = without.see(x, torch.full((2,), 0.6), second, second, None, steer=True)
    assert without.alarms == [1] and torch.allclose(kept, second, atol=1e-5), "without guidance only the update can be held back"


def prediction(pull, update=1.0):
    """``(x, sigma, denoised, cond, uncond)`` of two pictures at level 1 with guidance 2; the second one has these sizes, the first is usual."""
    uncond = torch.full((2, 1, 4, 4), 0.5)
    cond = uncond + torch.tensor([1.0, pull]).view(2, 1, 1, 1)
    x = cond + torch.tensor([1.0, update]).view(2, 1, 1, 1)
    return x, torch.ones(2), uncond + 2 * (cond - uncond), cond, uncond


def test_what_is_usual_is_left_alone_to_the_last_bit():
    watch = Watch(BANDS)
    x, sigma, denoised, cond, uncond = prediction(1.1)
    assert watch.see(x, sigma, denoised, cond, uncond, steer=True) is denoised
    assert watch.alarms == [] and watch.worst[1] == pytest.approx(math.log(1.1) / 0.3, rel=1e-4)


@pytest.mark.parametrize(("pull", "update"), [(4.0, 1.0), (1.0, 3.0), (1.0, 0.3)])
def test_an_alarm_is_of_one_picture_and_stays(pull, update):
    watch = Watch(BANDS)
    given = prediction(pull, update)
    assert watch.see(*given, steer=False) is given[2] and watch.alarms == [1]
    watch.see(*prediction(1.0), steer=False)
    assert watch.alarms == [1] and watch.steps == 2


def test_steering_brings_the_pull_to_the_edge_of_its_band():
    x, sigma, denoised, cond, uncond = prediction(4.0)
    out = Watch(BANDS).see(x, sigma, denoised, cond, uncond, steer=True)
    assert torch.equal(out[0], denoised[0]) and out is not denoised
    # the text's part is 4 and may be exp(3 * 0.1); guidance doubles it
    assert torch.allclose(out[1], uncond[1] + 2 * math.exp(0.3), atol=1e-5)


def test_steering_brings_the_update_to_the_edge_of_its_band():
    x, sigma, denoised, cond, _ = prediction(1.0, update=3.0)
    out = Watch(BANDS).see(x, sigma, cond, cond, None, steer=True)
    assert torch.allclose(x[1] - out[1], torch.full((1, 4, 4), math.exp(0.3)), atol=1e-5) and torch.equal(out[0], cond[0])


def test_bands_survive_a_file_and_other_contents_are_refused():
    found = Bands.from_dict(json.loads(json.dumps(BANDS.as_dict())))
    assert found.as_dict() == BANDS.as_dict()
    good = BANDS.as_dict()
    for wrong in (
        *([], {}, {**good, "limit": 0}, {**good, "limit": True}, {**good, "sigmas": [0.5, 1.0]}, {**good, "sigmas": []}),
        *(
            {**good, "spread": {"update": [0.1, 0.0], "pull": [1, 1]}},
            {**good, "middle": {"update": [0.0]}},
            {**good, "sigmas": ["a", 1]},
        ),
        *({**good, "limit": math.nan}, {**good, "limit": 10**400}),
    ):
        with pytest.raises(ValueError, match="no bands"):
            Bands.from_dict(wrong)
