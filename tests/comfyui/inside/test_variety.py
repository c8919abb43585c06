"""Seed Variety on real ComfyUI: what it draws and what it counts."""

import pytest
import torch
from uniforget_pack.nodes.variety import SeedVariety
from uniforget_pack.uniforget.checks.likeness import variety
from uniforget_pack.uniforget.errors import SettingError

from .test_sweep import CAT


def run(demo, **changes):
    """Runs the node: ``(sheet, before, after, ui)``."""
    values = {"strength": 1.0, "strength_ffn": 1.0, "strength_norm": 1.0, "strength_attn": 1.0, "seeds": 3}
    values |= {"seed": 2**64 - 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    values |= {"save": False, "filename_prefix": "uniforget/variety", **changes}
    latent = {"samples": torch.zeros(1, 16, 12, 12)}
    out = SeedVariety.execute(demo.model, demo.mask(), demo.encode(CAT), latent, demo.vae, **values)
    return *out.args, out.ui


def test_the_numbers_are_those_of_the_pictures(demo):
    sheet, before, after, ui = run(demo)
    assert sheet.ndim == 4 and 0 < before < 1.2 and 0 < after < 1.2 and before != after
    assert ui["uniforget_variety"] == [before, after]
    assert f"Before: {before:.2f}. After: {after:.2f}." in ui["text"][0]


def test_strength_0_leaves_the_variety_as_it_was(demo):
    _, before, after, ui = run(demo, strength=0.0)
    assert before == after and "unchanged" in ui["text"][0]


def test_one_seed_has_no_variety(demo):
    with pytest.raises(SettingError, match="seeds"):
        run(demo, seeds=1)
    with pytest.raises(ValueError, match="at least two"):
        variety(torch.zeros(1, 8, 8, 3))
