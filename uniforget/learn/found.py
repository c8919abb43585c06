"""Memorized prompts that a model is asked for, not told: found in a long list of prompts, with something else to answer them by.

Nobody names a concept here either, but more is used than neutral prompts: what is learned this way is called *self-found*.

Finding: a memorized prompt gives one picture, whatever the noise. What the noises of hardly any neutral prompt agree on as much is taken for
memorized. A prompt that says all there is to see ("a red square") cannot be told from it, and loses little.

Answering: words that are added, repeated or exchanged keep a model from copying (Somepalli et al., arXiv 2305.20086). Those of a prompt's
rewordings that do not lead to its memorized picture are its *answers*: the model learns to answer the prompt as the untouched model
answers them.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config import Settings
from ..errors import LearnError
from ..prompts import Prompt
from .model import Clock, Model, Progress, euler

NOISES = 2  # of each prompt
SURE = 0.95  # share of neutral prompts whose noises agree less than those of a memorized one,
APART = 0.5  # ... and than a memorized picture and its prompt's answers
REWORDINGS = 16  # tried of each memorized prompt
SHARE = 1 / 3  # of what is learned from: memorized prompts with answers
FEWEST, MOST = 20, 128  # neutral prompts that are compared with
FILLERS = 30  # the most frequent words of a list: what a rewording adds
Ask = Callable[[list[str], Callable[[Model], Any]], Any]


@dataclass(frozen=True)
class Found:
    """One prompt of a list.

    Attributes:
        agreement: of its noises, see :func:`alike`; ``memorized``: whether that is more than neutral prompts have.
    """

    prompt: Prompt
    agreement: float
    memorized: bool


def find(
    ask: Ask, pool: Sequence[str], neutral: Sequence[str], settings: Settings, report: Callable[[Progress], None] = lambda p: None
) -> list[Found]:
    """Look for memorized prompts in `pool`, and for answers to those that are. Deterministic for a seed on one machine.

    Args:
        ask: ``ask(texts, run)`` is what `run` makes of the untouched model whose prompts are these texts.
        neutral: at least ``FEWEST`` prompts that are certainly not memorized; the first ``MOST`` are looked at.
        settings: batch and seed count; sampling steps and size of the pictures are the model's.
        report: told of every batch; may raise to cancel.

    Returns:
        one for each of `pool`, in its order. Memorized ones have no answers where every rewording led to the same picture.

    Raises:
        LearnError: there are too few neutral prompts to compare with.
    """
    if len(neutral) < FEWEST:
        raise LearnError(f"Expected at least {FEWEST} neutral prompts to compare with; found {len(neutral)}.")
    texts = [*pool, *neutral[:MOST]]
    drawn = ask(texts, lambda model: [finished(model, settings, len(texts), k, report) for k in range(NOISES)])
    pairs = [alike(a, b) for a, b in itertools.combinations(drawn, 2)]
    agree = torch.stack(pairs).mean(0)
    sure, apart = torch.quantile(agree[len(pool) :], torch.tensor([SURE, APART], dtype=torch.float64)).tolist()
    agreement = agree.tolist()
    known = [i for i in range(len(pool)) if agreement[i] > sure]
    answers: dict[int, list[str]] = {i: [] for i in known}
    if known:
        words = [word for word, _ in Counter(" ".join(texts).split()).most_common(FILLERS)]
        tried = [(i, text) for i in known for text in rewordings(pool[i], words, settings.seed) if text not in texts]
        latents = ask([text for _, text in tried], lambda model: finished(model, settings, len(tried), NOISES, report))
        away = torch.stack([alike(latents, of[[i for i, _ in tried]]) for of in drawn]).amax(0)
        for (i, text), distance in zip(tried, away.tolist(), strict=True):
            if distance <= apart:
                answers[i].append(text)
    out = []
    for i, text in enumerate(pool):
        prompt = Prompt(text)
        prompt.answers = tuple(answers.get(i, ()))
        out.append(Found(prompt, agreement[i], i in answers))
    return out


@torch.no_grad()
def finished(model: Model, settings: Settings, count: int, number: int, report: Callable[[Progress], None]) -> torch.Tensor:
    """Finished latents of the first `count` prompts, float32 (count, ...) on the CPU. Each starts from a noise of its own.

    Without guidance: with it, memorized prompts agree less and others more, and it costs twice as much.

    Args:
        number: which noise: 0, 1, ...
    """
    rows = sorted(range(count), key=lambda i: model.groups[i])
    out: list[torch.Tensor] = [torch.empty(0)] * count
    clock = Clock(count)
    for start in range(0, count, settings.batch):
        chunk = rows[start : start + settings.batch]
        seeds = [(settings.seed * 31 + number) * 1_000_003 + i for i in chunk]
        x = torch.cat([model.initial(1, torch.Generator().manual_seed(seed)) for seed in seeds])
        for k in range(len(model.sigmas) - 1):
            x = euler(model, x, k, chunk, 1.0)[0]
        for i, latent in zip(chunk, x.cpu(), strict=True):
            out[i] = latent
        done = start + len(chunk)
        report(Progress(done, count, stage="finding", left=clock.left(done)))
    return torch.stack(out)


def alike(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How alike latents (n, ...) are in what they show, float64 (n,): their correlation r without each channel's mean, as -log(1 - r)."""
    places = 1 if a.ndim == 3 else tuple(range(2, a.ndim))  # packed latents are (n, places, channels)
    a, b = ((x - x.mean(places, keepdim=True)).flatten(1) for x in (a.double(), b.double()))
    found = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
    return -torch.log1p(-found.clamp(max=1 - 1e-9))


def rewordings(prompt: str, fillers: Sequence[str], seed: int) -> list[str]:
    """At most ``REWORDINGS`` different texts made of `prompt` by adding a filler, exchanging two words, or repeating one."""
    rng, words = random.Random(f"{seed} {prompt}"), prompt.split()
    out: dict[str, None] = {}
    for _ in range(4 * REWORDINGS):
        changed, kind = list(words), rng.random()
        if kind < 0.6 or len(words) < 2:
            changed.insert(rng.randrange(1, len(words) + 1), rng.choice(fillers))
        elif kind < 0.9:
            i, k = rng.sample(range(len(words)), 2)
            changed[i], changed[k] = changed[k], changed[i]
        else:
            i = rng.randrange(len(words))
            changed.insert(i, words[i])
        if changed != words and len(out) < REWORDINGS:
            out[" ".join(changed)] = None
    return list(out)


def summary(found: Sequence[Found]) -> str:
    """What was found, in words."""
    known = [one for one in found if one.memorized]
    stuck = sum(not one.prompt.answers for one in known)
    text = f"{len(known)} of {len(found)} prompts draw the same picture whatever the noise"
    return f"{text}; to {stuck} of these every rewording draws it too, so nothing can be learned for them" if stuck else text


def to_learn(found: Sequence[Found], neutral: Sequence[str]) -> list[str]:
    """What to learn from: the neutral prompts, and the memorized ones with their answers."""
    known = [one.prompt for one in found if one.memorized and one.prompt.answers]
    return [*(text for text in neutral if text not in known), *known]


def lesson(prompts: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """What to encode, and which pairs of it to learn from (see :func:`.model.pairs_of`): those with answers have a share of ``SHARE``.

    Args:
        prompts: those with answers are asked, and answered as their answers are; the others stay as they are.
    """
    plain = [prompt for prompt in prompts if not getattr(prompt, "answers", ())]
    asked = [prompt for prompt in prompts if isinstance(prompt, Prompt) and prompt.answers]
    more = dict.fromkeys(text for prompt in asked for text in (prompt, *prompt.answers))
    kept = set(plain)
    texts = [*plain, *(text for text in more if text not in kept)]
    place = {text: i for i, text in enumerate(texts)}
    pairs = [(i, i) for i in range(len(plain))]
    each = max(1, round(len(plain) * SHARE / (1 - SHARE) / max(1, len(asked))))
    pairs += [(place[prompt], place[prompt.answers[k % len(prompt.answers)]]) for prompt in asked for k in range(each)]
    return texts, pairs
