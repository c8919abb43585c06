"""Edits: exact, the same merged as running, bit-identical at strength 0."""

import pytest
import torch
from torch import nn

from tests.unit.tiny import TinyModel, info, random_mask
from uniforget.errors import FamilyError, MismatchError
from uniforget.hosts.diffusers.apply import fold_
from uniforget.mask.edit import Chain, Project, Scale, hooked, merge, pack, unpack
from uniforget.mask.gates import gated, scales
from uniforget.mask.info import GateMask
from uniforget.model.sites import Place, Site


def predict(model):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 3, 16, 16, generator=generator)
    with torch.no_grad():
        return model.denoise(x, torch.tensor([0.9, 0.5, 0.2]), [0, 3, -1])


def edited(weight, gates, bias=None, **place):
    """`weight` and `bias` with one site's gates merged into them."""
    weight, bias = torch.tensor(weight), None if bias is None else torch.tensor(bias)
    size = weight.shape[1] if place["axis"] == "in" else weight.shape[0]
    site = Site("site", "attn", len(gates), (Place("layer", size=size, **place),))
    found = scales([site], {"site": torch.tensor(gates)}, {} if bias is None else {"layer.bias": (size,)})
    weight = found["layer.weight"].weight(weight).tolist()
    return weight if bias is None else (weight, found.get("layer.bias", Scale()).weight(bias).tolist())


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


def test_several_sites_on_one_weight_become_one_edit():
    heads = Site("attn", "attn", 1, (Place("layer", "in", 4, 0, 2),))
    neurons = Site("ffn", "ffn", 2, (Place("layer", "in", 4, 2),))
    rows = Site("norm", "norm", 2, (Place("layer", "out", 2),))
    scale = {"attn": torch.tensor([0.5]), "ffn": torch.tensor([1.0, 0.0]), "norm": torch.tensor([1.0, 2.0])}
    [(name, edit)] = scales([heads, neurons, rows], scale, {}).items()
    assert name == "layer.weight" and edit.columns.tolist() == [0.5, 0.5, 1, 0] and edit.rows.tolist() == [1, 2]
    assert edit.weight(torch.tensor(WEIGHT)).tolist() == [[0.5, 1, 3, 0], [5, 6, 14, 0]]


def test_golden_projections():
    gone = torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    kept = torch.eye(4)[:, 1:]
    assert Project(gone).weight(torch.tensor(WEIGHT)).tolist() == [[0, 2, 3, 4], [0, 6, 7, 8]]
    assert Project(kept, True).weight(torch.tensor(WEIGHT)).tolist() == [[0, 2, 3, 4], [0, 6, 7, 8]]
    assert Project(gone, strength=0.5).weight(torch.tensor(WEIGHT)).tolist() == [[0.5, 2, 3, 4], [2.5, 6, 7, 8]]


def _some_edits():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(shape, generator=generator)  # noqa: E731
    basis = torch.linalg.qr(torch.randn(24, 9, generator=generator))[0]
    yield "columns", Scale(draw(24))
    yield "rows", Scale(None, draw(16))
    yield "both", Scale(draw(24), draw(16))
    yield "gone", Project(basis, False, 0.7)
    yield "kept", Project(basis, True, 0.7)
    yield "all", Chain([Scale(draw(24), draw(16)), Project(basis, True), Scale(draw(24), draw(16)), Project(basis, False, 0.3)])


EDITS = dict(_some_edits())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_the_weights_form_of_an_edit_is_its_running_form(edit, bias):
    torch.manual_seed(1)
    layer, x = nn.Linear(24, 16, bias=bias), torch.randn(5, 3, 24)
    plain = layer(x)
    with hooked({"layer": layer}, {"layer.weight": edit, "layer.bias": edit}):
        running = layer(x)
    assert torch.equal(layer(x), plain), "hooks must be gone"
    rows = [e.rows for e in getattr(edit, "edits", [edit]) if isinstance(e, Scale) and e.rows is not None]
    layer.weight.data = edit.weight(layer.weight.data)
    if bias and rows:
        layer.bias.data = Chain([Scale(None, r) for r in rows]).weight(layer.bias.data)
    assert not torch.allclose(running, plain, atol=1e-2), "the edit must change something"
    assert torch.allclose(running, layer(x), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_is_done_in_float32_and_rounded_once_in_pieces_as_well(edit, dtype):
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = edit.weight(weight)
    assert found.dtype == dtype
    exact = edit.weight(weight.double() if dtype == torch.float64 else weight.float())
    assert torch.equal(found, exact.to(dtype))
    assert torch.allclose(
        torch.cat([edit.weight(weight[:5]), edit.weight(weight[5:], 5)]), found, rtol=1e-2 if dtype != torch.float64 else 1e-9
    )
    assert torch.allclose(edit.at(0.0).weight(weight.float()), weight.float(), atol=1e-6)


@pytest.mark.parametrize("edit", [e for e in EDITS.values() if not isinstance(e, Chain)], ids=[n for n in EDITS if n != "all"])
def test_an_edit_comes_back_from_a_plain_tuple(edit):
    fields = pack(edit)
    assert type(fields) is tuple
    weight = torch.randn(16, 24)
    assert torch.equal(unpack(list(fields)).weight(weight), edit.weight(weight))


def test_what_columns_and_rows_are_multiplied_by():
    columns, rows = torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0.0])
    found = Chain([Scale(columns), Scale(columns, rows), Project(torch.eye(3)[:, :1])]).factors()
    assert [(axis, factors.tolist()) for axis, factors in found] == [("in", [0, 1, 0.5]), ("in", [0, 1, 0.5]), ("out", [0])]


@pytest.mark.parametrize("kinds", [("ffn",), ("norm",), ("attn",), ("ffn", "norm", "attn")])
@pytest.mark.parametrize("strength", [0.37, 1.0])
@pytest.mark.parametrize("hard", [True, False])
def test_hooks_equal_folding(kinds, strength, hard):
    model = TinyModel(kinds)
    mask = random_mask(model, hard=hard)
    before = predict(model)
    with gated(model.modules, model.sites, mask.factors(strength)):
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
    assert mask.factors(1.0, {"ffn": 0.0, "norm": 0.0, "attn": 0.0}) == {}


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
    return GateMask({name: torch.zeros(units)}, {name: "ffn"}, info(**changes))


def test_fold_a_state_dict_leaves_the_rest_alone():
    state = comfy_state()
    out = merge(state, state_mask())
    assert out["joint_blocks.0.x_block.mlp.fc2.weight"].abs().max() == 0
    assert state["joint_blocks.0.x_block.mlp.fc2.weight"].abs().max() > 0
    changed = {"joint_blocks.0.x_block.mlp.fc2.weight"}
    assert all(out[k] is state[k] for k in state.keys() - changed)


def test_fully_pruned_layer_gives_its_bias_and_one_unit_is_fine():
    state = comfy_state()
    mask = GateMask({"joint_blocks.0.x_block.mlp.fc2": torch.eye(16)[3]}, {"joint_blocks.0.x_block.mlp.fc2": "ffn"}, info())
    folded = merge(state, mask)["joint_blocks.0.x_block.mlp.fc2.weight"]
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
        merge(comfy_state(), mask)
    assert all(word in str(caught.value) for word in words)


def test_an_unknown_family_is_named():
    with pytest.raises(FamilyError, match="double_blocks.0.img_mlp.0.weight"):
        merge({"double_blocks.0.img_mlp.0.weight": torch.zeros(2, 2)}, state_mask())
