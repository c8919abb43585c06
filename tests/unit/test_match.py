"""Masks that would land on nothing, or on fewer sites than they have: refused as a whole, naming the sites."""

import copy

import pytest
import torch
from diffusers import PixArtTransformer2DModel

from tests.unit.tiny import info, random_mask, tiny_transformer
from uniforget.errors import MismatchError
from uniforget.hosts.diffusers.apply import find_modules, fold_
from uniforget.mask.edit import merge
from uniforget.mask.gates import match_sites
from uniforget.mask.info import GateMask
from uniforget.model.detect import family
from uniforget.model.sites import Place, Site

NAMES = [f"joint_blocks.{i}.x_block.mlp.fc2" for i in range(9)]
SITES = [Site(name, "ffn", 4, (Place(name, "in", 4),)) for name in NAMES]


def mask(units, kind="ffn", **changes):
    """A mask with sites ``joint_blocks.N`` of so many gates each."""
    gates = {f"joint_blocks.{n}.x_block.mlp.fc2": torch.zeros(count) for n, count in units.items()}
    return GateMask(gates, dict.fromkeys(gates, kind), info(**changes))


def refusal(made, sites=SITES):
    with pytest.raises(MismatchError) as caught:
        match_sites(made, family("sd3"), sites)
    return str(caught.value)


def test_sites_that_fit_are_found_in_the_masks_order():
    assert [s.name for s in match_sites(mask({3: 4, 0: 4}), family("sd3"), SITES)] == [NAMES[3], NAMES[0]]


def test_missing_sites_are_counted_and_named_up_to_five():
    assert refusal(mask({0: 4, 11: 4})) == (
        "1 of the mask's 2 sites do not exist in this model: joint_blocks.11.x_block.mlp.fc2. "
        "The mask was learned on another variant of this family: learn one for this model."
    )
    names = ", ".join(f"joint_blocks.{n}.x_block.mlp.fc2" for n in range(20, 25))
    assert f"8 of the mask's 9 sites do not exist in this model: {names} and 3 more. " in refusal(
        mask({0: 4, **dict.fromkeys(range(20, 28), 4)})
    )
    assert "2 of the mask's 2 sites do not exist" in refusal(mask({0: 4, 1: 4}), sites=[])


def test_sites_of_another_size_or_kind_are_named_with_both():
    assert refusal(mask({0: 4, 1: 8})).startswith(
        "1 of the mask's 2 sites have another size or kind than in this model: "
        "joint_blocks.1.x_block.mlp.fc2 has 8 ffn gates in the mask and 4 ffn units in the model. "
    )
    assert "has 4 attn gates in the mask and 4 ffn units in the model" in refusal(mask({0: 4}, kind="attn"))


def test_another_family_is_named_even_where_all_sites_fit():
    assert refusal(mask({0: 4}, family="flux")) == (
        "This mask was learned on a model of family 'flux' and this model is Stable Diffusion 3 / 3.5 ('sd3'). "
        "Use a mask of the same family, or learn one for this model."
    )


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_mask_that_fits_in_part_changes_nothing():
    model = tiny_transformer()
    _, sites, _ = find_modules(model)
    model.sites = sites
    good = random_mask(model)
    bad = GateMask({**good.gates, "other": torch.zeros(2)}, {**good.kinds, "other": "ffn"}, good.info)
    before = weights(model)
    with pytest.raises(MismatchError, match=rf"1 of the mask's {len(sites) + 1} sites do not exist in this model: other\."):
        fold_(model, bad)
    with pytest.raises(MismatchError, match="other"):
        merge(dict(model.state_dict()), bad)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    fold_(model, good)
    assert not all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_that_offloading_keeps_elsewhere_are_refused():
    model = tiny_transformer()
    _, sites, modules = find_modules(model)
    model.sites = sites
    made = random_mask(model)
    layer = "transformer_blocks.1.ff.net.2"
    modules[layer].to("meta")
    before = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    count = len(made.edits({name: tuple(p.shape) for name, p in model.named_parameters()}))
    with pytest.raises(
        MismatchError, match=rf"1 of the {count} weights .* have no values here, such as {layer}.weight: .*offloading"
    ):
        fold_(model, made)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_fused_projections_are_refused_because_the_model_would_not_notice():
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=16, attention_head_dim=2, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=32,
        sample_size=8, caption_channels=16, norm_type="ada_norm_single", use_additional_conditions=False,
    ).eval()  # fmt: skip
    made = GateMask({"blocks.0.norm1": torch.zeros(32)}, {"blocks.0.norm1": "norm"}, info(family="pixart"))
    before_fusing = copy.deepcopy(model)
    model.fuse_qkv_projections()
    expected = r"blocks\.0\.norm1: .*transformer_blocks\.0\.attn1\.to_qkv\. Load the model again, and fold the mask before"
    with pytest.raises(MismatchError, match=expected):
        fold_(model, made)
    fold_(before_fusing, made)
    before_fusing.fuse_qkv_projections()
    assert model.transformer_blocks[0].attn1.to_qkv.weight.all()
    assert not before_fusing.transformer_blocks[0].attn1.to_qkv.weight.any()
