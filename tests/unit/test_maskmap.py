"""The map of a mask: which cells there are, what they hold, and where they are drawn."""

import json

import pytest
import torch

from tests.unit import diffusers_zoo as zoo
from tests.unit import shapes
from tests.unit.masks import INFO
from uniforget.errors import FamilyError, MaskError, SettingError
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.map import MOST_BLOCKS, Cell, map_data, mask_map, mask_table, named_blocks
from uniforget.mask.subspace import Basis, SubspaceMask
from uniforget.model.blocks import block_name, block_of, block_rows, describe_blocks, select_blocks
from uniforget.model.detect import family
from uniforget.model.families import FAMILIES, sizes
from uniforget.model.sites import find_sites


def mask(family, **gates):
    """`gates`: "kind path" -> gates."""
    names = {name.split()[1]: (name.split()[0], torch.tensor(values)) for name, values in gates.items()}
    return GateMask({n: g for n, (_, g) in names.items()}, {n: k for n, (k, _) in names.items()}, MaskInfo(family, ""))


UNET = mask(
    "sd1",
    **{
        "ffn output_blocks.10.1.transformer_blocks.0.ff.net.2": [1.0, 0.0],
        "ffn input_blocks.4.1.transformer_blocks.0.ff.net.2": [0.0, 1.0, 1.0, 1.0],
        "ffn input_blocks.4.1.transformer_blocks.1.ff.net.2": [0.0, 0.0, 0.0, 1.0],
        "attn input_blocks.4.1.transformer_blocks.0.attn1.to_out.0": [1.0, 0.25],
        "attn input_blocks.4.1.transformer_blocks.0.attn2.to_out.0": [0.75, 0.75],
        "norm middle_block.1.transformer_blocks.0.norm1": [1.0],
        "ffn output_blocks.3.1.transformer_blocks.0.ff.net.2": [0.0],
    },
)


def test_cells_are_summed_over_the_layers_of_a_block():
    assert mask_table(UNET) == [
        Cell("", "IN4", "ffn", 8, 4, 0.5),
        Cell("self", "IN4", "attn", 2, 1, 0.375),
        Cell("cross", "IN4", "attn", 2, 0, 0.25),
        Cell("", "MID", "norm", 1, 0, 0.0),
        Cell("", "OUT3", "ffn", 1, 1, 1.0),
        Cell("", "OUT10", "ffn", 2, 1, 0.5),
    ]


def test_every_cell_has_its_place():
    found = mask_map(UNET)
    assert found.columns == ("IN4", "MID", "OUT3", "OUT10")
    assert found.rows == (("ffn", ""), ("norm", ""), ("attn", "self"), ("attn", "cross"))
    assert [(spot.column, spot.row, spot.span) for _, spot in found.cells] == [
        *((0, 0, 1), (0, 2, 1), (0, 3, 1), (1, 1, 1), (2, 0, 1), (3, 0, 1))
    ]
    assert found.top == 1.0


def test_blocks_without_streams_cover_all_rows_of_their_kind():
    flux = mask(
        "flux",
        **{
            "ffn double_blocks.0.img_mlp.2": [0.0, 1.0, 1.0, 1.0],
            "ffn double_blocks.0.txt_mlp.2": [1.0],
            "ffn single_blocks.3.linear2.mlp": [1.0],
            "attn single_blocks.3.linear2.attn": [1.0],
        },
    )
    found = mask_map(flux)
    assert found.columns == ("DOUBLE0", "SINGLE3")
    assert found.rows == (("ffn", "image"), ("ffn", "text"), ("attn", ""))
    assert [(cell.stream, tuple(spot)) for cell, spot in found.cells] == [
        *(("image", (0, 0, 1)), ("text", (0, 1, 1)), ("", (1, 0, 2)), ("", (1, 2, 1)))
    ]
    assert found.top == 0.3


def test_a_layer_beside_streams_has_a_row_of_its_own():
    pixart = mask(
        "pixart", **{"attn blocks.0.attn.proj": [1.0], "attn blocks.0.extra.proj": [0.0], "attn blocks.1.attn.proj": [1.0]}
    )
    assert mask_map(pixart).rows == (("attn", ""), ("attn", "self"))


def test_sites_outside_of_all_blocks_come_last():
    odd = mask("sd3", **{"ffn elsewhere.fc": [0.0], "ffn joint_blocks.7.x_block.mlp.fc2": [1.0]})
    assert [(cell.block, cell.stream) for cell in mask_table(odd)] == [("7", "image"), ("", "")]
    assert named_blocks(odd, "7") == {"7"} and named_blocks(odd, "") == {"7", ""}


@pytest.mark.parametrize(("shares", "top"), [((0.0,), 0.1), ((0.1,), 0.1), ((0.101,), 0.2), ((0.25, 0.7), 0.7), ((1.0,), 1.0)])
def test_the_scale_ends_at_the_next_ten_percent(shares, top):
    gates = {
        f"ffn joint_blocks.{i}.x_block.mlp.fc2": (torch.arange(1000) >= 1000 * share).float().tolist()
        for i, share in enumerate(shares)
    }
    assert mask_map(mask("sd3", **gates)).top == top


def test_a_subspace_shows_directions_and_energy():
    wide = Basis(torch.eye(4), torch.tensor([0.7, 0.2, 0.06, 0.04]))
    narrow = Basis(torch.eye(2), torch.tensor([0.5, 0.5]), missed=0.001)
    shared = {
        "double_blocks.0.img_attn.qkv": "a",
        "double_blocks.0.img_mlp.0": "a",
        "double_blocks.0.txt_attn.qkv": "b",
        "single_blocks.1.linear1": "a",
    }
    kinds = dict(zip(shared, ("attn", "ffn", "attn", "ffn"), strict=True))
    subspace = SubspaceMask({"a": wide, "b": narrow}, shared, kinds, 0.11, MaskInfo("flux", "", method="subspace"))
    found = [(c.stream, c.block, c.kind, c.units, c.off, c.share, round(c.energy, 6)) for c in mask_table(subspace)]
    assert found == [
        ("image", "DOUBLE0", "ffn", 4, 2, 0.5, 0.1),
        ("image", "DOUBLE0", "attn", 4, 2, 0.5, 0.1),
        ("text", "DOUBLE0", "attn", 2, 0, 0.0, 0.0),
        ("", "SINGLE1", "ffn", 4, 2, 0.5, 0.1),
    ]
    assert sum(c.off for c in mask_table(subspace)) / sum(c.units for c in mask_table(subspace)) == subspace.off_share()
    data = map_data(subspace)
    assert data["what"] == "subspace" and set(data["units"].values()) == {"directions"}
    assert named_blocks(subspace, "single") == {"SINGLE1"}


def test_selections_name_columns():
    assert named_blocks(UNET, "IN, OUT9-10") == {"IN4", "OUT10"}
    assert named_blocks(UNET, "not MID") == {"IN4", "OUT3", "OUT10"}
    with pytest.raises(SettingError, match="there is no IN 99"):
        named_blocks(UNET, "IN99")


def test_masks_that_cannot_be_drawn():
    with pytest.raises(FamilyError, match="'marble'"):
        mask_table(mask("marble", **{"ffn a.b": [1.0]}))
    many = mask("sd3", **{f"ffn joint_blocks.{i}.x_block.mlp.fc2": [1.0] for i in range(MOST_BLOCKS + 1)})
    with pytest.raises(MaskError, match=f"more than {MOST_BLOCKS} blocks"):
        mask_table(many)


REAL = (
    "sd1",
    "sdxl",
    "sd35_medium",
    "flux_dev",
    "flux2",
    "chroma",
    "qwen_image",
    "auraflow",
    "z_image",
    "pixart_sigma",
    "hunyuandit",
    "krea2",
    "lens",
    "omnigen2",
    "hidream_i1",
)


def weights(name):
    """Weight name -> shape of a published model."""
    return (
        shapes.kept()[name] if name in shapes.kept() else {key: tuple(p.shape) for key, p in zoo.real(name).state_dict().items()}
    )


@pytest.mark.parametrize("name", REAL)
def test_real_models_have_every_gate_on_the_map(name):
    entry, sites = find_sites(weights(name))
    made = GateMask({s.name: torch.ones(s.units) for s in sites}, {s.name: s.kind for s in sites}, MaskInfo(entry.name, ""))
    cells = mask_table(made)
    for kind in ("ffn", "norm", "attn"):
        assert sum(cell.units for cell in cells if cell.kind == kind) == sizes()[name][kind]["gates"]
    found = mask_map(made)
    assert "" not in found.columns and len(found.columns) == len(set(found.columns)) == len(
        {block_of(entry, s.name) for s in sites}
    )
    # No two cells share a place, and the widest of them fits into a row of its own.
    places = [(spot.column, row) for _, spot in found.cells for row in range(spot.row, spot.row + spot.span)]
    assert len(places) == len(set(places)) and max(row for _, row in places) == len(found.rows) - 1
    if name == "flux_dev":
        assert found.columns == (*(f"DOUBLE{i}" for i in range(19)), *(f"SINGLE{i}" for i in range(38)))
    # All of it goes into a workflow.
    assert len(json.dumps(map_data(made))) < 40_000


@pytest.mark.parametrize("entry", FAMILIES, ids=lambda f: f.name)
def test_every_stream_of_a_family_names_some_of_its_layers(entry):
    built = (*shapes.kept(), *zoo.VARIANTS)
    _, sites = find_sites(weights(next(name for name in built if sizes()[name]["family"] == entry.name)))
    made = GateMask({s.name: torch.ones(1) for s in sites}, {s.name: s.kind for s in sites}, MaskInfo(entry.name, ""))
    assert {cell.stream for cell in mask_table(made)} - {""} == {stream.label for stream in entry.streams}


def test_rows_of_blocks_say_what_may_be_written():
    rows = block_rows(family("sd1"), UNET.gates)
    assert [tuple(row) for row in rows] == [
        ("IN", ("in", "input_blocks"), (4,), 10, False),
        ("MID", ("mid", "middle_block"), (0,), 0, True),
        ("OUT", ("out", "output_blocks"), (3, 10), 10, False),
    ]
    named = [block_name(family("sd1"), place) for place in (("IN", 4), ("MID", 0), ("OUT", 10))]
    assert named == ["IN4", "MID", "OUT10"]
    assert all(select_blocks(name, family("sd1"), UNET.gates) for name in named)
    assert describe_blocks(family("sd1"), UNET.gates) == "IN4, MID, OUT3, OUT10"


def test_an_unknown_note_of_a_mask_does_no_harm():
    plain = GateMask({"joint_blocks.0.x_block.mlp.fc2": torch.zeros(3)}, {"joint_blocks.0.x_block.mlp.fc2": "ffn"}, INFO)
    assert map_data(plain)["off"] == {"ffn": 1.0, "all": 1.0}
