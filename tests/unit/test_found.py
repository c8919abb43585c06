"""Memorized prompts are found among others, and answered as their rewordings are."""

import json

import pytest
import torch

from tests.unit.tiny import TinyModel, info
from uniforget.errors import LearnError, PromptFileError
from uniforget.learn import Settings, learn
from uniforget.learn.found import SHARE, alike, find, finished, lesson, rewordings, summary, to_learn
from uniforget.learn.trajectories import record_teacher, watch
from uniforget.prompts import Prompt, parse_prompts, prompts_hash, to_jsonl

NEUTRAL = [f"a photo of thing number {i}" for i in range(24)]
POOL = ["a red fox in the snow", "the famous portrait", "two apples on a table", "stubborn emblem"]


class Canned:
    """Draws one picture for "the famous portrait" and for whatever names the stubborn emblem; for all else, what the noise suggests."""

    def __init__(self, texts):
        self.texts, self.prompts, self.groups = texts, len(texts), [0] * (len(texts) + 1)
        self.sigmas = torch.tensor([1.0, 0.0])

    def initial(self, count, generator):
        return torch.randn(count, 2, 8, 8, generator=generator)

    def denoise(self, x, sigma, which):
        fixed = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(9))
        known = [self.texts[i] == POOL[1] or "stubborn" in self.texts[i] for i in which]
        return torch.where(torch.tensor(known).view(-1, 1, 1, 1), fixed + 0.01 * x, x)


def ask(texts, run):
    return run(Canned(texts))


def test_what_draws_one_picture_is_found_and_gets_answers_that_do_not():
    told = []
    found = find(ask, POOL, NEUTRAL, Settings(batch=5), told.append)
    assert [one.prompt for one in found] == POOL
    assert [one.memorized for one in found] == [False, True, False, True]
    portrait, emblem = found[1].prompt, found[3].prompt
    assert portrait.answers and POOL[1] not in portrait.answers
    assert all(sorted(text.split()) != [] and text != portrait for text in portrait.answers)
    assert emblem.answers == ()  # every rewording draws it
    assert "2 of 4" in summary(found) and "1 of these" in summary(found)
    assert told[-1].step == told[-1].steps and {state.stage for state in told} == {"finding"}


def test_finding_is_deterministic_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    assert find(ask, POOL, NEUTRAL, Settings(seed=3)) == find(ask, POOL, NEUTRAL, Settings(seed=3, batch=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_too_few_neutral_prompts_are_refused():
    with pytest.raises(LearnError, match="at least 20 neutral prompts.*found 3"):
        find(ask, POOL, NEUTRAL[:3], Settings())


def test_alike_ignores_the_mean_of_channels_and_knows_packed_latents():
    x = torch.randn(3, 4, 6, 6)
    shifted = x + torch.randn(3, 4, 1, 1)
    assert bool((alike(x, shifted) > 12).all()) and bool((alike(x, torch.randn(3, 4, 6, 6)).abs() < 1).all())
    packed = lambda t: t.flatten(2).transpose(1, 2)  # noqa: E731
    assert torch.allclose(alike(packed(x), packed(x.roll(1, 0))), alike(x, x.roll(1, 0)))


def test_rewordings_differ_from_the_prompt_and_from_each_other():
    texts = rewordings("one two three", ["the", "of"], seed=0)
    assert len(set(texts)) == len(texts) >= 8 and "one two three" not in texts
    assert {word for text in texts for word in text.split()} <= {"one", "two", "three", "the", "of"}
    assert rewordings("single", ["the"], seed=0)


def test_finished_latents_are_in_the_order_of_the_prompts():
    model = Canned([*POOL, *NEUTRAL])
    model.groups = [i % 2 for i in range(len(model.texts) + 1)]
    found = finished(model, Settings(batch=3), 6, 0, lambda state: None)
    for i in range(6):
        alone = model.denoise(model.initial(1, torch.Generator().manual_seed(i)), None, [i])[0]
        assert torch.allclose(found[i], alone, atol=1e-5)


def test_prompts_with_answers_survive_text_and_count_in_the_hash():
    prompt = Prompt("the famous portrait")
    prompt.answers = ("the portrait famous", "a the famous portrait")
    lines = [*to_learn([], NEUTRAL[:2]), prompt]
    again = parse_prompts("# a remark\n" + to_jsonl(lines))
    assert again == lines and again[2].answers == prompt.answers and not getattr(again[0], "answers", ())
    assert prompts_hash(again) == prompts_hash(lines) != prompts_hash([str(line) for line in lines])


@pytest.mark.parametrize(
    "answers, said",
    [("text", "expected a list of at most 64 prompts; found text"), ([3], "expected text; found a number"), (["x"] * 65, "found 65"), ([""], "empty")],
)  # fmt: skip
def test_answers_that_are_none_are_refused_by_line(answers, said):
    with pytest.raises(PromptFileError, match=f"line 1, key 'answers': .*{said}"):
        parse_prompts(json.dumps({"prompt": "x", "answers": answers}))


def test_a_lesson_encodes_each_text_once_and_keeps_the_share():
    prompts = [*NEUTRAL, *(Prompt(f"known {i}") for i in range(3))]
    for i, prompt in enumerate(prompts[-3:]):
        prompt.answers = (f"other {i}", NEUTRAL[i])
    texts, pairs = lesson(prompts)
    assert len(set(texts)) == len(texts) == 24 + 3 + 3
    asked = [(texts[a], texts[b]) for a, b in pairs if a != b]
    assert len(asked) / len(pairs) == pytest.approx(SHARE, abs=0.05)
    assert {a for a, _ in asked} == {"known 0", "known 1", "known 2"} and ("known 1", NEUTRAL[1]) in asked
    assert lesson(["a", "b", "a"]) == (["a", "b", "a"], [(0, 0), (1, 1), (2, 2)])


def test_the_teacher_is_asked_for_the_answers_and_the_student_for_the_prompts():
    model = TinyModel(prompts=4)
    model.pairs = [(0, 0), (1, 1), (2, 3)]
    settings = Settings(steps=4, batch=3, cfg=1.0, noises=1)
    cache = record_teacher(model, settings)
    assert (cache.which, cache.answers) == ([0, 1, 2], [0, 1, 3])
    plain = TinyModel(prompts=4)
    plain.pairs = [(0, 0), (1, 1), (3, 3)]
    assert torch.equal(cache.states, record_teacher(plain, settings).states)
    assert next(step.rows for step in watch(model, settings, [0, 1, 2])) == [0, 1, 2]


@pytest.mark.parametrize("objective, along", [("stepwise", "teacher"), ("stepwise", "student"), ("trajectory", "teacher")])
def test_learning_brings_the_prompt_towards_its_answer(objective, along):
    def distance(model, gates):
        from uniforget.mask.gates import gated

        x = model.initial(8, torch.Generator().manual_seed(5))
        wanted = model.denoise(x, torch.full((8,), 1.0), [3] * 8)
        with gated(model.modules, model.sites) as install:
            install(gates)
            return (model.denoise(x, torch.full((8,), 1.0), [2] * 8) - wanted).square().mean().item()

    model = TinyModel(prompts=4)
    model.hidden[:4] *= 4  # so that prompts differ
    model.pooled[:4] *= 4
    model.pairs = [(2, 3)]
    settings = Settings(
        objective=objective, along=along, beta=0.0, steps=60, batch=4, cfg=1.0, noises=4, learning_rate=0.3, harden=0
    )
    soft = learn(model, settings, info()).soft
    assert distance(model, dict(soft.gates)) < 0.9 * distance(model, {})
