"""The testbed: its language, its splits, its weights and its judge."""

import numpy as np
import pytest
import torch

from testbed import concepts as c
from testbed import model as tb
from testbed.evaluate import evaluate, learning_prompts, neutral_prompts, wilson
from testbed.judge import Judge
from testbed.text import LENGTH, UnknownWordError, WordTokenizer


def test_at_least_what_the_model_card_promises():
    assert len(c.PHOTOGRAPHS) >= 12 and len(c.COMPOSITIONS) >= 8 and len(c.EMOJI) >= 48 and len(c.TEXTURES) == 3
    assert set(c.RESERVED) < set(c.MEMORIZED) and any(r in c.COMPOSITIONS for r in c.RESERVED)
    assert 0.3 <= len(c.HELDOUT_EMOJI) / len(c.EMOJI) <= 0.37
    assert 0.3 <= len(c.HELDOUT_BACKGROUNDS) / len(c.BACKGROUNDS) <= 0.37


def test_masks_learn_from_no_held_out_and_no_memorized_word():
    prompts = learning_prompts()
    assert len(set(prompts)) == len(prompts) >= 256
    for held in (*c.HELDOUT_EMOJI, *c.HELDOUT_BACKGROUNDS, *c.HELDOUT_TEXTURES):
        assert not any(f" {held} " in f" {p} " for p in prompts), held
    neutral_words = {w for p in prompts for w in p.split()}
    telling = {w for m in c.MEMORIZED for w in m.split()} - {"photo", "of", "on", "light", "cat"}
    assert not neutral_words & telling - {w for e in c.EMOJI for w in e.split()}
    assert not set(prompts) & set(c.MEMORIZED)


def test_prompts_to_judge_by_are_on_their_side_of_the_split():
    for heldout in (False, True):
        emoji, backgrounds, textures = c.neutral_concepts(heldout)
        items = neutral_prompts(heldout, 60)
        assert len({i[0] for i in items}) == 60
        assert all(i[1] in (emoji if i[2] else textures) and (not i[2] or i[2] in backgrounds) for i in items)


def test_tokenizer_reads_whole_words():
    words = WordTokenizer()
    ids = words("Red Heart emoji, on light blue.")
    assert len(ids) == LENGTH and ids[6:] == [0] * (LENGTH - 6) and 0 not in ids[:6]
    assert words("") == [0] * LENGTH
    for caption in (*c.MEMORIZED, *learning_prompts()):
        words(caption)


def test_unknown_and_too_many_words_are_named():
    with pytest.raises(UnknownWordError, match=r"'elephant'.*'heat' \(did you mean heart"):
        WordTokenizer()("elephant heat emoji")
    with pytest.raises(UnknownWordError, match="at most 10 words and this prompt has 11"):
        WordTokenizer()(" ".join(["red"] * 11))


def test_both_namings_hold_the_same_weights():
    diffusion, text = tb.read()
    back = tb.to_comfy(tb.to_diffusers(diffusion))
    assert back.keys() == diffusion.keys() and all(torch.equal(back[k], v) for k, v in diffusion.items())
    transformer, encoder, tokenizer = tb.load()
    assert len(tokenizer) == text["tokens.weight"].shape[0]
    swapped = transformer.state_dict()["transformer_blocks.3.norm1_context.linear.bias"]
    assert not torch.equal(swapped, diffusion["joint_blocks.3.context_block.adaLN_modulation.1.bias"])


def test_the_files_are_small():
    assert tb.WEIGHTS.stat().st_size <= 12e6


def test_the_judge_knows_a_copy_from_something_else():
    judge = Judge()
    captions = judge.captions
    originals = ((judge.references.view(-1, 3, 64, 64) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert judge.copies(originals, captions).all()
    noisy = np.clip(originals + np.random.default_rng(0).normal(0, 8, originals.shape), 0, 255).astype(np.uint8)
    assert judge.copies(noisy, captions).all()
    assert not judge.copies(np.roll(originals, 1, axis=0), captions).any()
    # The rule itself: at exactly the threshold a sample still counts, beyond it no longer.
    assert (judge.thresholds > 0).all()


def test_evaluate_counts_what_the_sampler_makes():
    judge = Judge()
    originals = ((judge.references.view(-1, 3, 64, 64) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    grey = np.full((64, 64, 3), 128, np.uint8)

    def only_photographs(prompts, seeds):
        return np.stack([originals[judge.captions.index(p)] if p in c.PHOTOGRAPHS else grey for p in prompts])

    figures = evaluate(only_photographs, seeds=2, neutral=4, neutral_seeds=1, judge=judge)
    assert figures["copies_outdomain"] == 1 and figures["copies_indomain"] == 0
    assert figures["copies"] == pytest.approx(12 / 22) and figures["copies_heldout"] == pytest.approx(4 / 7)
    assert figures["neutral"] == 0 == figures["heldout"]


def test_wilson_interval():
    # Wilson 1927, worked example: 8 of 10.
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-3) and high == pytest.approx(0.9433, abs=1e-3)
