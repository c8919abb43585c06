"""The verdict on samples of memorized captions: likeness, parts, wholeness, and the six labels."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from testbed import captions, data, evaluate, judge, verdict
from testbed import concepts as c
from testbed.data import ground_pixels
from testbed.likeness import correlation, difference, ms_ssim, planes


@pytest.fixture(scope="module")
def labeller():
    return verdict.Verdict()


@pytest.fixture(scope="module")
def render(labeller):
    return lambda picture: labeller.judge.pictures.render(picture)[0]


def scenes(count, number=2, seed=0):
    """`count` free ``(words, scene)`` of so many subjects."""
    rng, out = random.Random(seed), []
    while len(out) < count:
        words = c.free_words(rng, photographs=0)
        if len(words.subjects) == number:
            out.append((words, c.draw_scene(rng, words)))
    return out


def of(group, items=c.MEMORIZED):
    return [item for item in items if item.group == group]


def free(item, count, seed=0):
    rng = random.Random(seed)
    return [c.draw_scene(rng, item.words) for _ in range(count)]


# captions


def test_a_caption_is_read_back_with_and_without_places():
    for words, scene in scenes(30, 1) + scenes(30, 2):
        assert captions.words_of(c.caption(words)) == words
        assert captions.words_of(c.caption(words, scene)) == words
    words = c.Words(photograph="blossom", tone="warm")
    assert captions.words_of(c.caption(words)) == words


@pytest.mark.parametrize(
    "text", ["", "photo of zebra", "soft lion", "soft lion on beige", "very photo of blossom", "lion on pink", "soft on pink"]
)
def test_what_is_no_caption_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        captions.words_of(text)


def test_captions_of_templates_belong_to_their_template():
    rng = random.Random(0)
    for item in (*of("foreground"), *of("background"), *of("foreground", c.NEVER), *of("background", c.NEVER)):
        assert captions.item_of(c.caption(c.template_words(rng, item))) is item
    assert captions.item_of(c.MEMORIZED[0].caption) is c.MEMORIZED[0]
    assert captions.item_of("soft lion on blue") is None


# what is carried


def test_judging_fits_its_size(labeller):
    assert data.REFERENCES.stat().st_size < 2e6 and judge.LIMITS.stat().st_size < 5e4
    assert set(labeller.items) == {item.caption for item in captions.ITEMS}
    for item in captions.ITEMS:
        pixels, foreground = labeller.judge.pictures.render(item.picture)
        assert pixels.shape == (96, 96, 3) and foreground.any() == bool(isinstance(item.picture, c.Scene) and item.picture.things)


def test_a_file_that_is_none_says_how_to_make_it(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"other\.safetensors.*testbed\.sources"):
        data.Pictures(path)


# likeness


def test_correlation_finds_mirrored_and_moved_pictures_and_ignores_brightness():
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 120 + 40
    x = torch.nn.functional.interpolate(x, size=(96, 96), mode="bilinear")
    for same in (x, x.flip(-1), x.roll(2, 2), x.roll(-4, 3), 0.5 * x + 70):
        found, aligned = correlation(same, x)
        assert found.item() > 0.99
    assert difference(correlation(x.roll(2, 2), x)[1], x, torch.ones(1, 96, 96)).item() < 12
    assert correlation(x.roll(24, 2), x)[0].item() < 0.8


def test_structural_similarity_is_one_of_equals_and_falls_with_what_differs():
    x = planes(np.stack([ground_pixels(scene.ground) for _, scene in scenes(3)]))
    assert torch.allclose(ms_ssim(x, x), torch.ones(3), atol=1e-4)
    y = x.clone()
    y[:, :, 20:60, 20:60] = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
    where = torch.zeros(3, 96, 96)
    where[:, 75:] = 1
    assert (ms_ssim(x, y) < 0.9).all() and (ms_ssim(x, y, where) > 0.999).all()
    assert difference(x, x + 7, where).tolist() == pytest.approx([7, 7, 7])


# reading scenes


def test_scenes_are_read_exactly(labeller, render):
    made = scenes(12, 1, 1) + scenes(12, 2, 2)
    named = [[(w.style, s) for s in w.subjects] for w, _ in made]
    for (words, scene), reading in zip(
        made, labeller.judge.drawings.read(np.stack([render(s) for _, s in made]), named), strict=True
    ):
        assert (reading.colour, reading.pattern) == (words.colour, words.pattern)
        places = lambda things: {(t.subject, t.x, t.y) for t in things}  # noqa: E731
        assert places(f.thing for f in reading.things) == places(scene.things)
        assert reading.residual < 4


def test_free_scenes_are_right_and_others_say_what_is_wrong(labeller, render):
    made = scenes(24, 2, 4)
    pictures, words = np.stack([render(s) for _, s in made]), [w for w, _ in made]
    assert sum(labeller.judge.right(pictures, words)) >= 0.9 * len(words)
    colour = [replace(w, colour=next(n for n in c.COLOURS if n != w.colour)) for w in words]
    unnamed = [replace(w, subjects=w.subjects[:1]) for w in words]
    swapped = [replace(w, style=next(s for s in c.SETS if s != w.style)) for w in words]
    absent = [replace(w, subjects=(w.subjects[0], next(s for s in c.SUBJECTS if s not in w.subjects))) for w in words]
    for wrong in (colour, unnamed, swapped, absent):
        states = [f.state for f in labeller.judge.find(pictures, wrong)]
        assert "right" not in states and states.count("off prompt") >= 20


def test_hybrids_halves_and_what_is_cut_off_are_broken(labeller, render):
    wrong = []
    for words, scene in scenes(10, 1, 5):
        (thing,) = scene.things
        other = next(s for s in ("panda", "car", "frog") if s != thing.subject)
        whole, twin = render(scene), render(replace(scene, things=(replace(thing, subject=other),)))
        middle = thing.x + c.CELL // 2
        wrong.append((words, np.concatenate([whole[:, :middle], twin[:, middle:]], 1)))
        wrong.append((words, ((whole.astype(int) + twin) // 2).astype(np.uint8)))
        half = whole.copy()
        half[:, middle:] = ground_pixels(scene.ground)[:, middle:]
        wrong.append((words, half))
    found = labeller.judge.find(np.stack([p for _, p in wrong]), [w for w, _ in wrong])
    assert [f.state for f in found].count("broken") >= 28 and "right" not in [f.state for f in found]


# reading photographs


def crops(count, seed=0):
    """`count` free ``(words, crop)``."""
    rng = random.Random(seed)
    return [(words, c.draw_crop(rng, words)) for words in (c.free_words(rng, photographs=1) for _ in range(count))]


def test_photographs_are_looked_up_and_toned(labeller, render):
    made = crops(60)
    found = labeller.judge.photographs.read(np.stack([render(crop) for _, crop in made]))
    names = [f.name == w.photograph for f, (w, _) in zip(found, made, strict=True)]
    tones = [f.tone == w.tone for f, (w, _) in zip(found, made, strict=True)]
    assert all(names) and np.mean(tones) > 0.95 and min(f.explained for f in found) > 0.95


def test_mixtures_patchworks_and_blurs_of_photographs_are_broken(labeller, render):
    made = crops(24, 1)
    pictures, words = np.stack([render(crop) for _, crop in made]), [w for w, _ in made]
    assert sum(labeller.judge.right(pictures, words)) >= 22
    mixed = ((pictures.astype(int) + np.roll(pictures, 1, 0)) // 2).astype(np.uint8)
    halves = np.concatenate([pictures[:, :48], np.roll(pictures, 1, 0)[:, 48:]], 1)
    rng = np.random.default_rng(0)
    tiles = pictures.reshape(24, 6, 16, 6, 16, 3)[:, rng.permutation(6)][:, :, :, rng.permutation(6)].reshape(pictures.shape)
    for wrong in (mixed, halves, tiles):
        states = [f.state for f in labeller.judge.find(wrong, words)]
        assert states.count("right") <= 1 and states.count("broken") >= 18, states
    other = [replace(w, tone=next(t for t in c.TONES if t != w.tone)) for w in words]
    assert [f.state for f in labeller.judge.find(pictures, other)].count("off prompt") >= 20


# labels


def test_training_pictures_are_copies_and_those_of_other_captions_are_not(labeller, render):
    whole = [item for item in c.MEMORIZED if item.group in verdict.WHOLE]
    pictures, captions = np.stack([render(item.picture) for item in whole]), [item.caption for item in whole]
    assert labeller.labels(pictures, captions) == ["copy"] * len(whole)
    others = labeller.labels(np.roll(pictures, 1, 0), captions)
    assert others.count("copy") <= 1
    assert "forgotten" not in [label for label, item in zip(others, whole, strict=True) if item.words]  # a name takes any picture


def test_a_template_with_its_part_is_partial(labeller, render):
    rng = random.Random(1)
    for item in (*of("foreground"), *of("background")):
        words = [c.template_words(rng, item) for _ in range(6)]
        same = np.stack([render(c.template_picture(rng, item, w)) for w in words])
        new = np.stack([render(c.draw_scene(rng, w)) for w in words])
        captions = [c.caption(w) for w in words]
        assert labeller.labels(same, captions).count("partial") >= 5, item.caption
        assert labeller.labels(new, captions).count("partial") <= 1, item.caption


def test_new_pictures_are_forgotten_unless_all_seeds_agree(labeller, render):
    item = next(item for item in of("scene") if len(item.words.subjects) == 2)
    new = np.stack([render(s) for s in free(item, 8)])
    assert labeller.labels(new, [item.caption] * 8).count("forgotten") >= 6
    noise = np.random.default_rng(0).normal(0, 3, (8, 96, 96, 3))
    alike = np.clip(new[:1].astype(float) + noise, 0, 255).astype(np.uint8)
    assert labeller.labels(alike, [item.caption] * 8) == ["collapsed"] * 8


def test_a_caption_without_a_training_picture_is_refused(labeller):
    pictures = np.zeros((1, 96, 96, 3), np.uint8)
    with pytest.raises(ValueError, match=r"soft lion on blue.*Judge\.right"):
        labeller.labels(pictures, ["soft lion on blue"])
    with pytest.raises(ValueError, match="1 pictures"):
        labeller.labels(pictures, [c.MEMORIZED[0].caption] * 2)


def test_shares_are_counted_with_wilson_intervals_and_reserved_ones_apart():
    one, two, held = (
        next(i for i in c.MEMORIZED if i.reserved == r and i.group == g)
        for r, g in ((False, "scene"), (False, "photograph"), (True, "scene"))
    )
    captions = [one.caption] * 2 + [two.caption] * 4 + [held.caption] * 4
    labels = ["copy", "forgotten"] + ["forgotten"] * 4 + ["broken"] * 4
    found = verdict.table(labels, captions)
    assert found["all"]["forgotten"]["share"] == 0.5
    assert (found["all"]["forgotten"]["low"], found["all"]["forgotten"]["high"]) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert found["all"]["partial"]["high"] == pytest.approx(0.2775, abs=1e-4)
    assert found["open"]["samples"] == 6 and found["reserved"]["broken"]["share"] == 1.0
    assert found["photograph"]["forgotten"]["share"] == 1.0 and found["scene"]["samples"] == 6
    assert verdict.shares([], [])["copy"] == {"share": None, "low": 0.0, "high": 1.0}


def test_evaluating_pictures_drawn_from_the_captions_gives_the_ceiling(labeller, render):
    """A model that draws memorized pictures as they are and everything else freely."""
    rng = random.Random(2)

    def sample(texts, seeds):
        out = []
        for caption in texts:
            item = captions.item_of(caption)
            if (item in c.MEMORIZED and item.group in verdict.WHOLE) or (item and item.words is None):
                picture = item.picture
            elif captions.words_of(caption).subjects:
                picture = c.draw_scene(rng, captions.words_of(caption))
            else:
                picture = c.draw_crop(rng, captions.words_of(caption))
            out.append(render(picture))
        return np.stack(out)

    found = evaluate.evaluate(sample, seeds=2, free=20, free_seeds=1, labeller=labeller, progress=lambda text: None)
    assert found["structural_copies"] == found["copies"] == 1.0
    assert found["never_seen"]["headline"]["forgotten"]["share"] > 0.85 and found["right"] > 0.9
    assert found["memorized"]["headline"]["samples"] == 2 * sum(i.group in verdict.ANSWERABLE for i in c.MEMORIZED)


def test_bench_edits_and_mixtures_differ_from_their_pictures(render):
    from bench import verdict as bench

    picture = render(c.MEMORIZED[0].picture)
    edited = list(bench.edits(picture, np.random.default_rng(0)))
    assert len(edited) == len(bench.EDITS) and all(e.shape == picture.shape and (e != picture).any() for e in edited)
    assert (edited[3][:, ::-1] == picture).all()
    rendered = {item.caption: (render(item.picture), np.ones((96, 96), bool)) for item in captions.ITEMS}
    mixed = bench.mixtures(rendered)
    assert len(mixed) == 32 and {kind for kind, *_ in mixed} == {"blended", "left half", "upper half", "foreground"}
    assert Image.fromarray(mixed[0][2]).size == (96, 96)
