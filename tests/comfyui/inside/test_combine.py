"""Combine Memorization Masks on real ComfyUI: what it shows, files, and models that compute with its result."""

import folder_paths
import pytest
import torch
from uniforget_pack.nodes.apply import ApplyMask
from uniforget_pack.nodes.combine import CombineMasks
from uniforget_pack.nodes.maskio import LoadMask, SaveMask
from uniforget_pack.uniforget import config
from uniforget_pack.uniforget.errors import SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask, sites_of
from uniforget_pack.uniforget.mask.info import GateMask
from uniforget_pack.uniforget.model.blocks import block_of, describe_blocks, select_blocks
from uniforget_pack.uniforget.model.sites import find_sites

from tests.comfyui.inside import zoo

FC2 = "diffusion_model.joint_blocks.{}.x_block.mlp.fc2.weight"


def run(mask_a, mask_b=None, **settings):
    """The node's mask and text, with its defaults for what is not given."""
    values = {name: param.default for name, param in config.COMBINE.items()} | settings
    out = CombineMasks.execute(mask_a, **values, **({"mask_b": mask_b} if mask_b else {}))
    return out.args[0], out.ui.as_dict()["text"][0]


def test_every_mode_says_what_it_made(demo):
    a, b = demo.mask(seed=1), demo.mask(seed=2)
    shares = {}
    for mode in config.COMBINE["mode"].choices:
        made, text = run(a, b, mode=mode, weight=0.7)
        shares[mode] = made.off_share()
        assert text.startswith(f"{mode} of A and B")
        assert (
            f"switched off: ffn {made.off_share('ffn'):.1%}, norm {made.off_share('norm'):.1%}, all {made.off_share():.1%}"
            in text
        )
        assert a.digest() in text and b.digest() in text and made.digest() in text
        assert "blocks of this model: 0-" in text and "Careful" not in text
        assert ("weight 0.7" in text and "turned down on average" in text) == (mode == "blend")
    # independent masks with 30 % off each; a blend with 0.7 of B is off (below a half) where B is
    assert shares == pytest.approx({"union": 0.51, "intersection": 0.09, "difference": 0.21, "blend": 0.3}, abs=0.02)


def test_a_part_of_one_mask(demo):
    mask = demo.mask()
    made, text = run(mask, kinds="ffn", blocks="1")
    assert text.startswith("only ffn, 1\n") and "norm 0.0%" in text and " of A and B" not in text
    whole, part = (m.gates["joint_blocks.1.x_block.mlp.fc2"] for m in (mask, made))
    assert part is whole and made.gates["joint_blocks.0.x_block.mlp.fc2"].min() == 1
    same, text = run(mask)
    assert same is mask and text.startswith("mask A unchanged: connect mask B")
    with pytest.raises(SettingError, match="'blocks'.*there is no block 99"):
        run(mask, blocks="99")
    with pytest.raises(SettingError, match="'kinds'"):
        run(mask, kinds="heads")


def test_warnings_reach_the_node_and_the_log(demo, caplog):
    mask = demo.mask()
    _, text = run(mask, mask, mode="difference")
    assert "switches nothing off" in text and "switches nothing off" in caplog.text
    caplog.clear()
    other = GateMask(mask.gates, mask.kinds, mask.info.__class__(**{**vars(mask.info), "base": "AAAA", "base_name": "dreamy_v7"}))
    made, text = run(mask, other, kinds="ffn")
    assert "different models (dreamy_v7)" in text and "dreamy_v7" in caplog.text
    # it goes on to warn wherever it is applied
    text = ApplyMask.execute(demo.model, made, 1.0, 1.0, 1.0, 1.0).ui.as_dict()["text"][0]
    assert "Careful: a part of this mask was learned on another model (dreamy_v7)" in text
    made, _ = run(mask, demo.mask(seed=2))
    assert "Careful" not in ApplyMask.execute(demo.model, made, 1.0, 1.0, 1.0, 1.0).ui.as_dict()["text"][0]


@pytest.mark.parametrize("mode", config.COMBINE["mode"].choices)
def test_saved_loaded_and_applied(demo, mode, tmp_path, monkeypatch):
    extensions = folder_paths.folder_names_and_paths["uniforget"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "uniforget", ([str(tmp_path)], extensions))
    a, b = demo.mask(seed=1), demo.mask(seed=2)
    made, _ = run(a, b, mode=mode, weight=0.25, kinds="ffn + norm", blocks="1")
    SaveMask.execute(made, "both", True)
    loaded = LoadMask.execute("both.safetensors").args[0]
    assert loaded.digest() == made.digest() not in (a.digest(), b.digest()) and loaded.info == made.info
    patched = apply_mask(demo.model, loaded)
    before, after = demo.sample(demo.model), demo.sample(patched)
    assert (after - before).abs().max() > 0.01, "the mask must change something"
    assert torch.equal(demo.sample(demo.model), before)
    off = [1 - m.gates["joint_blocks.1.x_block.mlp.fc2"] for m in (a, b)]
    expected = {
        "union": 1 - torch.maximum(*off), "intersection": 1 - off[0] * off[1], "difference": 1 - off[0] * (1 - off[1]),
        "blend": 1 - 0.75 * off[0] - 0.25 * off[1],
    }[mode]  # fmt: skip
    original = dict(demo.model.model.named_parameters())[FC2.format(1)]
    weight = patched.patches[FC2.format(1)][0][1].calculate_weight(original.clone(), "", 1.0, 1.0, None, None)
    # a soft mask is saved in steps of 1/255
    assert not torch.equal(weight, original) and torch.allclose(
        weight, original * expected, atol=original.abs().max() / 255 if mode == "blend" else 0
    )
    assert FC2.format(0) not in patched.patches, "blocks that are not chosen stay untouched"


def test_a_union_of_the_parts_samples_like_the_whole(demo):
    mask = demo.mask()
    ffn, norm = run(mask, kinds="ffn")[0], run(mask, kinds="norm")[0]
    together = run(ffn, norm)[0]
    whole, half = (demo.sample(apply_mask(demo.model, m)) for m in (mask, ffn))
    assert not torch.equal(whole, half)
    assert torch.equal(demo.sample(apply_mask(demo.model, together)), whole)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_every_site_of_every_family_is_in_a_block(name):
    family, sites = sites_of(zoo.patcher(name))
    names = [site.name for site in sites]
    assert not [n for n in names if block_of(family, n) is None]
    assert select_blocks(describe_blocks(family, names), family, names) == set(names)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd1", "IN1-2, IN4-5, IN7-8, MID, OUT3-11"),
        ("sdxl", "IN4-5, IN7-8, MID, OUT0-5"),
        ("sdxl_refiner", "IN4-5, IN7-8, MID, OUT3-8"),
        ("flux_dev", "DOUBLE0-18, SINGLE0-37"),
        ("z_image", "0-29, NOISE0-1, CONTEXT0-1"),
    ],
)
def test_blocks_at_real_size(name, blocks):
    family, sites = find_sites({n: tuple(p.shape) for n, p in zoo.real(name).named_parameters()})
    assert describe_blocks(family, (site.name for site in sites)) == blocks
