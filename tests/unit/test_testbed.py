"""The testbed: its language, its splits, its weights and its pictures."""

import random

import numpy as np
import pytest
import torch

from testbed import concepts as c
from testbed import evaluate, vae
from testbed import model as tb
from testbed.data import Pictures, Stream, to_pixels, to_tensor
from testbed.text import LENGTH, UnknownWordError, WordTokenizer


def test_at_least_what_the_model_card_promises():
    for items in (c.MEMORIZED, c.NEVER):
        count = lambda *groups, items=items: sum(i.group in groups for i in items)  # noqa: E731
        assert (
            count("scene") >= 24 and count("photograph") >= 8 and count("named") >= 6 and count("foreground", "background") >= 6
        )
        for group in {i.group for i in items}:
            own = [i.reserved for i in items if i.group == group]
            assert sum(own) == len(own) // 3


def test_memorized_and_never_seen_captions_are_made_of_words_that_free_ones_use():
    rng = random.Random(0)
    free = {w for _ in range(4000) for w in c.caption(c.free_words(rng)).split()}
    for item in (*c.MEMORIZED, *c.NEVER):
        if item.group in ("scene", "photograph"):
            assert set(item.caption.split()) <= free, item.caption
    assert not {i.caption for i in c.MEMORIZED} & {i.caption for i in c.NEVER}


def test_masks_learn_from_no_held_out_and_no_memorized_caption():
    prompts = evaluate.learning_prompts()
    assert len(set(prompts)) == len(prompts) == 400
    words = {w for p in prompts for w in p.split()}
    assert not words & {*c.HELDOUT_SUBJECTS, *c.HELDOUT_COLOURS, *c.HELDOUT_PHOTOGRAPHS, c.HELDOUT_SET}
    fixed = {i.caption for i in (*c.MEMORIZED, *c.NEVER)}
    assert not set(prompts) & (fixed | set(evaluate.free_captions(False)))
    for caption in evaluate.free_captions(True):
        assert set(caption.split()) & {*c.HELDOUT_SUBJECTS, *c.HELDOUT_PHOTOGRAPHS}
        assert caption not in fixed


def test_most_free_captions_say_nothing_of_places():
    stream = Stream(Pictures(), 0)
    captions = [stream.free()[0] for _ in range(400)]
    placed = [bool(set(text.split()) & {"top", "bottom", "left", "right", "middle"}) for text in captions]
    assert 0.2 < np.mean(placed) < 0.5


def test_tokenizer_reads_whole_words():
    words = WordTokenizer()
    ids = words("Soft lion, on purple dots.")
    assert len(ids) == LENGTH and ids[5:] == [0] * (LENGTH - 5) and 0 not in ids[:5]
    assert words("") == [0] * LENGTH
    fixed = [i.caption for i in (*c.MEMORIZED, *c.NEVER) if i.group not in ("foreground", "background")]
    for caption in (*fixed, *evaluate.learning_prompts()):
        words(caption)


def test_unknown_and_too_many_words_are_named():
    with pytest.raises(UnknownWordError, match=r"'elephant'.*'rockets' \(did you mean rocket"):
        WordTokenizer()("elephant rockets")
    with pytest.raises(UnknownWordError, match="at most 14 words and this prompt has 15"):
        WordTokenizer()(" ".join(["frog"] * 15))


def test_both_namings_hold_the_same_weights():
    diffusion, text = tb.read()
    back = tb.to_comfy(tb.to_diffusers(diffusion))
    assert back.keys() == diffusion.keys() and all(torch.equal(back[k], v) for k, v in diffusion.items())
    transformer, _, tokenizer = tb.load()
    assert len(tokenizer) == text["tokens.weight"].shape[0]
    swapped = transformer.state_dict()["transformer_blocks.3.norm1_context.linear.bias"]
    assert not torch.equal(swapped, diffusion["joint_blocks.3.context_block.adaLN_modulation.1.bias"])


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in tb.WEIGHTS.parent.glob("*.safetensors")) <= 40e6


def test_the_autoencoder_gives_pictures_back():
    pictures = Pictures()
    pixels = np.stack([pictures.render(i.picture)[0] for i in c.MEMORIZED])
    autoencoder = vae.load()
    with torch.no_grad():
        latents = autoencoder.encode(to_tensor(pixels))
        back = to_pixels(autoencoder.decode(latents))
    assert latents.shape[1:] == (vae.CHANNELS, tb.SIDE, tb.SIDE)
    assert np.mean((back.astype(float) - pixels) ** 2) < 255**2 * 10 ** (-25 / 10)  # 25 dB
    rows, bias = vae.preview_factors()
    preview = torch.einsum("nzhw,zc->nhwc", latents, torch.tensor(rows)) + torch.tensor(bias)
    small = torch.nn.functional.avg_pool2d(to_tensor(pixels), 8).permute(0, 2, 3, 1)
    assert (preview - small).abs().mean() < 0.25


def test_every_crop_is_one_that_is_drawn():
    rng, known = random.Random(0), {(n, k.x, k.y, k.mirrored, k.upset) for n, k in c.every_crop()}
    for _ in range(200):
        words = c.free_words(rng, photographs=1)
        k = c.draw_crop(rng, words)
        assert (words.photograph, k.x, k.y, k.mirrored, k.upset) in known


def test_pictures_that_are_the_same_by_chance_are_told_from_others():
    scene, crop = c.MEMORIZED[0], next(i for i in c.MEMORIZED if i.group == "photograph")
    for item in (scene, crop):
        assert c.same(item.picture, item.picture)
        rng = random.Random(1)
        assert not any(c.same(c.draw_other(rng, item.words, item.picture), item.picture) for _ in range(60))
        assert any(c.same(c.draw(rng, item.words), item.picture) for _ in range(600))
