"""Mask Map and Embedded Mask on real ComfyUI: pictures pixel by pixel, parts of masks, and models that compute with them."""

import asyncio
import itertools
import re
from pathlib import Path

import pytest
import torch
from uniforget_pack.nodes.combine import CombineMasks
from uniforget_pack.nodes.embedded import EmbeddedMask
from uniforget_pack.nodes.mappicture import BOTTOM, LEFT, RIGHT, ROW, SCALE, THEMES, TOP, WIDEST, colour, mask_picture
from uniforget_pack.nodes.maskmap import MaskMapNode
from uniforget_pack.uniforget import config
from uniforget_pack.uniforget.errors import MaskFileError, SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.mask import text as masktext
from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo
from uniforget_pack.uniforget.mask.subspace import Basis, SubspaceMask
from uniforget_pack.uniforget.model.sites import find_sites

from tests.comfyui.inside import zoo

WEB = Path(__file__).resolve().parents[3] / "web"


def cell(picture, column, row, wide=WIDEST):
    """The colour of a cell, with the model's columns `wide` pixels apart."""
    return picture.getpixel((LEFT + column * wide + wide // 2, TOP + row * ROW + ROW // 2))


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLIND = {
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}


def seen(rgb, matrix):
    linear = torch.tensor([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)])
    return (torch.tensor(matrix) @ linear).clamp(0, 1)


def test_more_is_always_brighter_in_every_colour_vision():
    steps = [colour(i / 50) for i in range(51)]
    greys = [luminance(step) for step in steps]
    assert all(a < b for a, b in itertools.pairwise(greys))
    weights = torch.tensor((0.2126, 0.7152, 0.0722))
    for name, matrix in BLIND.items():
        found = [float(seen(step, matrix) @ weights) for step in steps]
        assert all(a < b for a, b in itertools.pairwise(found)), name
        # the ends are as far apart as text has to be from its ground
        assert (found[-1] + 0.05) / (found[0] + 0.05) > 7, name


def test_words_can_be_read_in_both_themes():
    for paper, ink, faint, nothing in THEMES.values():
        contrast = [(max(a, b) + 0.05) / (min(a, b) + 0.05) for a, b in ((luminance(paper), luminance(c)) for c in (ink, faint))]
        assert contrast[0] > 10 and contrast[1] > 4.5
        assert nothing != paper


def test_the_panel_in_the_page_has_the_same_colours():
    script = (WEB / "maskmap_view.js").read_text(encoding="utf-8")
    assert tuple(re.findall(r"#[0-9a-f]{6}", script.split("const SCALE = ")[1].split("\n")[0])) == SCALE


def small():
    def gates(off, of=100):
        return (torch.arange(of) >= off).float()

    made = {
        "joint_blocks.0.x_block.mlp.fc2": gates(50),
        "joint_blocks.0.context_block.mlp.fc2": gates(0),
        "joint_blocks.1.x_block.mlp.fc2": gates(25),
    }
    return GateMask(made, dict.fromkeys(made, "ffn"), MaskInfo("sd3", ""))


@pytest.mark.parametrize("theme", THEMES)
def test_the_picture_shows_shares_as_colours(theme):
    picture = mask_picture(small(), theme)
    assert picture.mode == "RGB" and picture.size == (LEFT + 900 + RIGHT, TOP + 2 * ROW + BOTTOM)
    paper, _, _, nothing = THEMES[theme]
    # the scale ends at 50 %
    assert [cell(picture, *at) for at in ((0, 0), (0, 1), (1, 0), (1, 1))] == [colour(1), colour(0), colour(0.5), nothing]
    assert picture.getpixel((2, 2)) == paper
    faded = mask_picture(small(), theme, {"1"})
    assert cell(faded, 1, 0) == colour(0.5)
    assert cell(faded, 0, 0) == tuple(round(c * 0.2 + p * 0.8) for c, p in zip(colour(1), paper, strict=True))


def test_a_huge_model_is_drawn_small():
    shapes = {name: tuple(p.shape) for name, p in zoo.real("flux_dev").state_dict().items()}
    entry, sites = find_sites(shapes)
    made = GateMask({s.name: torch.ones(s.units) for s in sites}, {s.name: s.kind for s in sites}, MaskInfo(entry.name, ""))
    picture = mask_picture(made)
    assert picture.width < 2300 and cell(picture, 56, 0, 31) == colour(0)


def execute(mask, blocks="", theme="dark"):
    out = MaskMapNode.execute(mask, blocks, theme)
    return (*out.args, out.ui)


def test_the_node_hands_on_the_chosen_blocks(demo):
    mask = demo.mask()
    kept, blocks, picture, shown = execute(mask)
    assert kept is mask and blocks == "" and picture.shape[0] == 1 and picture.shape[-1] == 3
    assert picture.min() >= 0 and picture.max() <= 1
    data = shown["uniforget_map"][0]
    assert data["digest"] == mask.digest() and data["columns"] == ["0", "1", "2", "3"] and mask.digest() in shown["text"][0]
    part, blocks, faded, again = execute(mask, " 1-2 ")
    assert blocks == "1-2" and not torch.equal(faded, picture) and again["uniforget_map"][0] == data
    values = {name: param.default for name, param in config.COMBINE.items()}
    combined = CombineMasks.execute(mask, **values | {"blocks": blocks}).args[0]
    assert part.digest() == combined.digest() != mask.digest()
    assert torch.equal(demo.sample(apply_mask(demo.model, part)), demo.sample(apply_mask(demo.model, combined)))
    with pytest.raises(SettingError, match="'blocks'.*there is no block 9"):
        execute(mask, "9")
    with pytest.raises(SettingError, match="'theme'"):
        execute(mask, theme="sepia")


def test_the_node_takes_subspaces():
    layers = [f"joint_blocks.{i}.{s}_block.mlp.fc1" for i in range(2) for s in ("x", "context")]
    basis = Basis(torch.eye(8), torch.tensor([0.8, 0.1, 0.05, 0.03, 0.01, 0.005, 0.003, 0.002]))
    subspace = SubspaceMask(
        {name: basis for name in layers},
        {n: n for n in layers},
        dict.fromkeys(layers, "ffn"),
        0.02,
        MaskInfo("sd3", "", method="subspace"),
    )
    kept, _, _, shown = execute(subspace, "1")
    assert list(kept.shared) == layers[2:]
    data = shown["uniforget_map"][0]
    assert data["what"] == "subspace" and data["cells"][0][:3] == [0, 0, 1] and data["cells"][0][5:7] == [8, 4]
    assert data["cells"][0][8] == pytest.approx(0.02, abs=1e-4)


def test_an_embedded_mask_is_the_mask(demo):
    mask = demo.mask()
    text = masktext.to_text(mask)
    assert asyncio.run(EmbeddedMask.validate_inputs(text)) is True and asyncio.run(EmbeddedMask.validate_inputs(None)) is True
    out = EmbeddedMask.execute(text)
    assert out.args[0].digest() == mask.digest() and out.args[0].info == mask.info
    assert mask.digest() in out.ui.as_dict()["text"][0]
    assert torch.equal(demo.sample(apply_mask(demo.model, out.args[0])), demo.sample(apply_mask(demo.model, mask)))
    assert "cut off" in asyncio.run(EmbeddedMask.validate_inputs(text[:-1])) and "is empty" in asyncio.run(
        EmbeddedMask.validate_inputs("")
    )
    with pytest.raises(MaskFileError, match="damaged|cut off"):
        EmbeddedMask.execute(text[:-3] + ("AAA" if text[-3:] != "AAA" else "BBB"))
