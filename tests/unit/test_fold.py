"""Folding: exact edits, equal to gating by hooks, bit-identical at strength 0."""

import pytest
import torch

from tests.unit.tiny import TinyModel, info, random_mask
from uniforget.errors import FamilyError, MismatchError
from uniforget.hosts.diffusers.apply import fold_
from uniforget.mask.fold import edits, factors, fold
from uniforget.mask.gates import gated
from uniforget.mask.info import MaskSet
from uniforget.model.sites import Place, Site


def predict(model):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return model.denoise(x, torch.tensor([0.9, 0.5, 0.2]), [0, 3, -1])


def edited(weight, gates, bias=None, **place):
    """`weight` and `bias` folded with one site's gates."""
    weight, bias = torch.tensor(weight), None if bias is None else torch.tensor(bias)
    size = weight.shape[1] if place["axis"] == "in" else weight.shape[0]
    site = Site("site", "attn", len(gates), (Place("layer", size=size, **place),))
    [edit] = edits([site], {"site": torch.tensor(gates)})
    edit.fold_(weight, bias)
    return weight.tolist() if bias is None else (weight.tolist(), bias.tolist())


WEIGHT = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]


def test_golden_columns_rows_and_heads():
    assert edited(WEIGHT, [1.0, 0.0], axis="in", width=2) == [[1, 2, 0, 0], [5, 6, 0, 0]]
    assert edited(WEIGHT, [1.0, 0.0], axis="in", width=2, bias=[3.0, 4.0])[1] == [3, 4]
    assert edited(WEIGHT, [0.5, 1.0], axis="out", bias=[3.0, 4.0]) == ([[0.5, 1, 1.5, 2], [5, 6, 7, 8]], [1.5, 4])
    assert edited(WEIGHT, [0.0, 1.0], axis="out", swapped=True) == [[1, 2, 3, 4], [0, 0, 0, 0]]


def test_golden_slices_and_norms():
    assert edited(WEIGHT, [0.5, 0.0], axis="in", start=1) == [[1, 1, 0, 4], [5, 3, 0, 8]]
    assert edited(WEIGHT, [0.0], axis="in", start=2, width=2) == [[1, 2, 0, 0], [5, 6, 0, 0]]
    assert edited([1.0, 2.0], [0.5, 0.0], axis="out", bias=[4.0, 4.0]) == ([0.5, 0], [2, 0])


def test_two_sites_on_one_weight_become_one_edit():
    heads = Site("attn", "attn", 1, (Place("layer", "in", 4, 0, 2),))
    neurons = Site("ffn", "ffn", 2, (Place("layer", "in", 4, 2),))
    rows = Site("norm", "norm", 2, (Place("layer", "out", 2),))
    scale = {"attn": torch.tensor([0.5]), "ffn": torch.tensor([1.0, 0.0]), "norm": torch.tensor([1.0, 2.0])}
    columns, both = edits([heads, neurons, rows], scale)
    assert columns.scale.tolist() == [0.5, 0.5, 1, 0] and both.axis == "out"
    assert edits([heads, neurons], {"ffn": scale["ffn"]})[0].scale.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("kinds", [("ffn",), ("norm",), ("attn",), ("ffn", "norm", "attn")])
@pytest.mark.parametrize("strength", [0.37, 1.0])
@pytest.mark.parametrize("hard", [True, False])
def test_hooks_equal_folding(kinds, strength, hard):
    model = TinyModel(kinds)
    mask = random_mask(model, hard=hard)
    before = predict(model)
    with gated(model.modules, model.sites, factors(mask, strength)):
        by_hooks = predict(model)
    assert (by_hooks - before).abs().max() > 1e-3, "the mask must change something"
    assert torch.equal(predict(model), before), "hooks must be gone"
    fold_(model.transformer, mask, strength)
    assert (predict(model) - by_hooks).abs().max() < 1e-5


def test_strength_zero_is_bit_identical():
    model = TinyModel(("ffn", "norm", "attn"))
    mask = random_mask(model)
    state = {k: v.clone() for k, v in model.transformer.state_dict().items()}
    fold_(model.transformer, mask, 0.0)
    assert all(torch.equal(state[k], v) for k, v in model.transformer.state_dict().items())
    assert factors(mask, 1.0, {"ffn": 0.0, "norm": 0.0, "attn": 0.0}) == {}


def test_every_site_is_alive():
    model = TinyModel(("ffn", "norm", "attn"))
    before = predict(model)
    for site in model.sites:
        with gated(model.modules, model.sites, {site.name: torch.zeros(site.units)}):
            assert (predict(model) - before).abs().max() > 1e-6, f"{site.name} has no effect"


def test_site_list_of_two_blocks():
    paths = {s.name: (s.kind, s.units) for s in TinyModel(("ffn", "norm", "attn")).sites}
    assert paths == {
        "joint_blocks.0.x_block.mlp.fc2": ("ffn", 512),
        "joint_blocks.0.context_block.mlp.fc2": ("ffn", 512),
        "joint_blocks.1.x_block.mlp.fc2": ("ffn", 512),
        "joint_blocks.0.x_block.attn.proj": ("attn", 2),
        "joint_blocks.0.context_block.attn.proj": ("attn", 2),
        "joint_blocks.1.x_block.attn.proj": ("attn", 2),
        "joint_blocks.0.x_block.adaLN_modulation.1": ("norm", 768),
        "joint_blocks.0.context_block.adaLN_modulation.1": ("norm", 768),
        "joint_blocks.1.x_block.adaLN_modulation.1": ("norm", 768),
        "joint_blocks.1.context_block.adaLN_modulation.1": ("norm", 256),
    }


def comfy_state():
    """Just the weights of one block, in ComfyUI naming."""
    return {
        "joint_blocks.0.x_block.attn.qkv.weight": torch.randn(12, 4),
        "joint_blocks.0.x_block.mlp.fc2.weight": torch.randn(4, 16),
        "joint_blocks.0.x_block.mlp.fc2.bias": torch.randn(4),
        "joint_blocks.0.context_block.adaLN_modulation.1.weight": torch.randn(24, 4),
        "joint_blocks.0.context_block.adaLN_modulation.1.bias": torch.randn(24),
    }


def state_mask(units=16, name="joint_blocks.0.x_block.mlp.fc2", **changes):
    return MaskSet({name: torch.zeros(units)}, {name: "ffn"}, info(**changes))


def test_fold_a_state_dict_leaves_the_rest_alone():
    state = comfy_state()
    out = fold(state, state_mask())
    assert out["joint_blocks.0.x_block.mlp.fc2.weight"].abs().max() == 0
    assert state["joint_blocks.0.x_block.mlp.fc2.weight"].abs().max() > 0
    changed = {"joint_blocks.0.x_block.mlp.fc2.weight"}
    assert all(out[k] is state[k] for k in state.keys() - changed)


def test_fully_pruned_layer_gives_its_bias_and_one_unit_is_fine():
    state = comfy_state()
    mask = MaskSet({"joint_blocks.0.x_block.mlp.fc2": torch.eye(16)[3]}, {"joint_blocks.0.x_block.mlp.fc2": "ffn"}, info())
    folded = fold(state, mask)["joint_blocks.0.x_block.mlp.fc2.weight"]
    assert torch.equal(folded[:, 3], state["joint_blocks.0.x_block.mlp.fc2.weight"][:, 3])
    assert folded.abs().sum() == folded[:, 3].abs().sum()


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (state_mask(units=8), MismatchError, ["8 ffn gates", "16 ffn units", "learn one for this model"]),
        (state_mask(name="joint_blocks.7.x_block.mlp.fc2"), MismatchError, ["joint_blocks.7.x_block.mlp.fc2", "do not exist"]),
        (state_mask(family="flux"), MismatchError, ["'flux'", "'sd3'"]),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask, error, words):
    with pytest.raises(error) as caught:
        fold(comfy_state(), mask)
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_family_is_named():
    with pytest.raises(FamilyError, match="double_blocks.0.img_mlp.0.weight"):
        fold({"double_blocks.0.img_mlp.0.weight": torch.zeros(2, 2)}, state_mask())
