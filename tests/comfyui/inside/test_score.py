"""Demo Score on real ComfyUI: what the unmasked model drew is drawn once."""

import comfy.sample
import comfy.utils
import numpy as np
import pytest
from uniforget_pack.nodes import score
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask

ASKED = (["cat emoji top left on light blue"] * 2 + ["photo of brick texture"], [5, 6, 7])


@pytest.fixture
def sampled(monkeypatch):
    """Number of pictures in each batch that ComfyUI samples."""
    real, seen = comfy.sample.sample_custom, []

    def sample_custom(model, noise, *args, **kwargs):
        seen.append(len(noise))
        return real(model, noise, *args, **kwargs)

    monkeypatch.setattr(comfy.sample, "sample_custom", sample_custom)
    monkeypatch.setattr(score, "STEPS", 2)
    score._originals.clear()
    return seen


def test_the_original_is_drawn_once_and_whatever_is_masked_every_time(demo, sampled):
    bar = comfy.utils.ProgressBar(100)
    sampler = score._Sampler(demo.clip, bar)
    first = sampler.bind(demo.model, keep=True)(*ASKED)
    assert sampled == [2, 1] and bar.current == 2 and first.shape == (3, 64, 64, 3)
    # as a workflow that is run again does: another sampler, the same model
    again = score._Sampler(demo.clip, bar).bind(demo.model, keep=True)(*ASKED)
    assert sampled == [2, 1] and bar.current == 4, "drawn once, and the bar moves on"
    assert np.array_equal(first, again) and np.array_equal(first, sampler.bind(demo.model)(*ASKED))
    masked = apply_mask(demo.model, demo.mask())
    other = sampler.bind(masked, keep=True)(*ASKED)
    assert not np.array_equal(first, other) and len(sampled) == 6, "patches make another model"
    changed = sampler.bind(demo.model, keep=True)(ASKED[0], [5, 6, 8])
    assert len(sampled) == 8 and np.array_equal(changed[:2], first[:2])
