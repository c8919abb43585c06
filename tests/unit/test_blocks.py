"""Choosing parts of a mask: kinds, and blocks as artists write them."""

from dataclasses import replace

import pytest
import torch

from uniforget.errors import FamilyError, SettingError
from uniforget.mask.combine import blocks_in, chosen_kinds, combine
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.model.blocks import block_numbers, block_of, describe_blocks, select_blocks
from uniforget.model.detect import family
from uniforget.model.families import FAMILIES
from uniforget.model.families.schema import KINDS, Blocks


def mask(kinds, family, extra=None, gates=(0.0, 1.0)):
    """Every site has the same gates."""
    return GateMask(
        {name: torch.tensor(gates) for name in kinds}, kinds, MaskInfo(family, "base", method="test", extra=extra or {})
    )


def unet(family="sd1", inside=(1, 2, 4, 5, 7, 8), middle=True, out=range(3, 12)):
    rows = [*(f"input_blocks.{i}" for i in inside), *(["middle_block"] if middle else []), *(f"output_blocks.{i}" for i in out)]
    leaves = {"ff.net.2": "ffn", "norm1": "norm", "attn2.to_out.0": "attn"}
    kinds = {f"{row}.1.transformer_blocks.0.{leaf}": kind for row in rows for leaf, kind in leaves.items()}
    return mask(kinds, family)


def flux(double=19, single=38):
    kinds = {f"double_blocks.{i}.{s}_mlp.2": "ffn" for i in range(double) for s in ("img", "txt")}
    for i in range(single):
        kinds |= {f"single_blocks.{i}.linear2.mlp": "ffn", f"single_blocks.{i}.linear2.attn": "attn"}
        kinds[f"single_blocks.{i}.modulation.lin"] = "norm"
    return mask(kinds, "flux")


def sd3(blocks=24):
    names = [f"joint_blocks.{i}.{s}_block.mlp.fc2" for i in range(blocks) for s in ("x", "context")][:-1]
    return mask(dict.fromkeys(names, "ffn"), "sd3")


def z_image(layers=30):
    names = [f"layers.{i}.feed_forward.w2" for i in range(layers)]
    names += [f"{row}_refiner.{i}.feed_forward.w2" for row in ("noise", "context") for i in range(2)]
    return mask(dict.fromkeys(names, "ffn"), "z_image")


IN4_8_MID_OUT5 = {(row, n) for row, numbers in (("IN", (4, 5, 7, 8)), ("MID", (0,)), ("OUT", (3, 4, 5))) for n in numbers}
SELECTIONS = [
    *((unet, text, IN4_8_MID_OUT5) for text in ("IN4-8, MID, OUT0-5", "in 4-8;mid;out 0-5", "IN04-IN08\nM\nOUT00\u201305")),
    (unet, "input_blocks.4, middle, output 11", {("IN", 4), ("MID", 0), ("OUT", 11)}),
    (unet, "IN", {("IN", n) for n in (1, 2, 4, 5, 7, 8)}),
    (unet, "IN0-11", {("IN", n) for n in (1, 2, 4, 5, 7, 8)}),  # there is IN11 in the model, without gates
    (unet, "IN 4, 7-8", {("IN", 4), ("IN", 7), ("IN", 8)}),
    (unet, "mid0", {("MID", 0)}),
    (unet, "not IN, not OUT", {("MID", 0)}),
    (unet, "OUT, not OUT4-11", {("OUT", 3)}),
    (unet, "! OUT; all", {("IN", n) for n in (1, 2, 4, 5, 7, 8)} | {("MID", 0)}),
    *((flux, t, {("DOUBLE", n) for n in range(8)} | {("SINGLE", n) for n in range(10, 21)})
      for t in ("double 0-7, single 10-20", "D0-7 S10-20", "DOUBLE0 - 7;SINGLE10-S20",
                "double blocks 0-7, single_blocks.10-20")),
    (flux, "DOUBLE", {("DOUBLE", n) for n in range(19)}),
    (flux, "s 3 5, 37", {("SINGLE", 3), ("SINGLE", 5), ("SINGLE", 37)}),
    *((sd3, t, {("", n) for n in (3, 4, 5, 12)}) for t in ("3-5, 12", "3 4 5 12", "joint 3-5; blocks 12", "Layers 3-5 12")),
    (sd3, "not 1-23", {("", 0)}),
    (z_image, "3-4, NOISE", {("", 3), ("", 4), ("NOISE", 0), ("NOISE", 1)}),
    (z_image, "NOISE 1, 3", {("NOISE", 1), ("", 3)}),
    (z_image, "context 0 1", {("CONTEXT", 0), ("CONTEXT", 1)}),
]  # fmt: skip


@pytest.mark.parametrize(("made", "text", "blocks"), SELECTIONS, ids=lambda v: v if isinstance(v, str) else "")
def test_blocks_as_artists_write_them(made, text, blocks):
    whole = made()
    part = whole.select(blocks=text)
    there = {block_of(family(whole.info.family), name) for name, gates in part.gates.items() if gates.min() == 0}
    assert there == blocks
    # all gates of a block, and no other
    for name, gates in part.gates.items():
        assert gates.tolist() == ([0, 1] if block_of(family(whole.info.family), name) in blocks else [1, 1])


@pytest.mark.parametrize("text", ["", "  ", "all", "ALL", ",", "IN, MID, OUT"])
def test_everything_is_the_very_same_mask(text):
    whole = unet()
    assert whole.select(KINDS, text) is whole


REFUSED = [
    (unet, "IN4-12", "'IN4-12': there is no IN 12, the last one is 11. .*IN1-2, IN4-5, IN7-8, MID, OUT3-11"),
    (unet, "MID1", "there is no MID 1, the last one is 0"),
    (unet, "IN8-4", "'IN8-4': the range is the wrong way round, 4-8"),
    (unet, "IN4-OUT5", "'IN4-OUT5': a range stays within one kind of block"),
    (unet, "IN4-", "cannot read '-'"),
    (unet, "IN4.5", "cannot read '.5'"),
    (unet, "IN-4", "cannot read '-4'"),
    (unet, "4-8", "'4-8' does not say which kind of block"),
    (unet, "double 3", "'double 3': no kind of block starts with 'double'"),
    (unet, "IN4, not", "nothing follows 'not'"),
    (unet, "IN9", "'IN9' leaves no block"),
    (unet, "IN4, not IN", "'IN4, not IN' leaves no block"),
    (unet, "not all", "leaves no block"),
    (unet, "IN4, &", "cannot read '&'"),
    (unet, "IN" + "9" * 5000, "cannot read '9"),
    (lambda: unet("sdxl", (4, 5, 7, 8), False, range(6)), "MID", "'MID': this mask has no MID blocks.*IN4-5, IN7-8, OUT0-5"),
    (flux, "double 19", "FLUX.1 mask.*DOUBLE0-18, SINGLE0-37"),
    (flux, "S38", "there is no SINGLE 38, the last one is 37"),
    (flux, "IN4", "no kind of block starts with 'in'"),
    (sd3, "20-24", "'20-24': there is no block 24, the last one is 23.*in the blocks 0-23:"),
    (z_image, "NOISE 2", "there is no NOISE 2, the last one is 1.*0-29, NOISE0-1, CONTEXT0-1"),
]


@pytest.mark.parametrize(("made", "text", "message"), REFUSED, ids=lambda v: v[:20] if isinstance(v, str) else "")
def test_selections_that_mean_nothing_are_refused_with_what_there_is(made, text, message):
    with pytest.raises(SettingError, match=rf"Setting 'blocks': .*{message}"):
        made().select(blocks=text)


@pytest.mark.parametrize("made", [unet, flux, sd3, z_image])
def test_the_blocks_it_lists_can_be_written_back(made):
    whole = made()
    listed = blocks_in(whole)
    entry = family(whole.info.family)
    for part in listed.split(", "):
        chosen = select_blocks(part, entry, whole.gates)
        assert describe_blocks(entry, chosen) == part
        assert len(chosen) < len(whole.gates) or part == listed
    assert select_blocks(listed, entry, whole.gates) == set(whole.gates)


def test_numbers_of_blocks():
    found = block_numbers(family("sd1"), unet().gates)
    assert found == {"IN": [1, 2, 4, 5, 7, 8], "MID": [0], "OUT": list(range(3, 12))}
    assert block_numbers(family("sdxl"), unet("sdxl", (4, 5, 7, 8), False, range(6)).gates) == {
        "IN": [4, 5, 7, 8],
        "OUT": [*range(6)],
    }
    assert block_of(family("flux"), "single_blocks.12.linear2.mlp") == ("SINGLE", 12)
    assert block_of(family("sd1"), "middle_block.1.transformer_blocks.0.ff.net.2") == ("MID", 0)
    assert block_of(family("flux"), "time_in.in_layer") is None


@pytest.mark.parametrize("entry", FAMILIES, ids=lambda f: f.name)
def test_no_two_rows_of_a_family_share_a_beginning(entry):
    # "I" for IN, "S" for SINGLE and so on would be ambiguous
    firsts = [{text[0].lower() for text in (row.label, row.path) if text} for row in entry.blocks]
    assert sum(map(len, firsts)) == len(set().union(*firsts))
    assert len({row.label for row in entry.blocks}) == len(entry.blocks)


def test_a_label_may_be_quite_another_word_than_the_modules():
    whole = unet()
    entry = replace(family("sd1"), blocks=(Blocks("DOWN", r"input_blocks\.(\d+)\."), Blocks("UP", r"output_blocks\.(\d+)\.")))
    for text in ("down 4", "D4", "input_blocks.4"):
        assert describe_blocks(entry, select_blocks(text, entry, whole.gates)) == "DOWN4"
    # the middle is in none of these rows: it is only in "everything"
    middle = {name for name in whole.gates if name.startswith("middle")}
    assert select_blocks("", entry, whole.gates) == set(whole.gates) and len(middle) == 3
    assert select_blocks("not DOWN, not UP", entry, whole.gates) == middle
    assert not select_blocks("DOWN, UP", entry, whole.gates) & middle


def test_kinds():
    part = unet().select(("norm", "attn"))
    assert {kind: part.off_share(kind) for kind in KINDS} == {"ffn": 0, "norm": 0.5, "attn": 0.5}
    both = unet().select(chosen_kinds("ffn"), "MID")
    assert [name for name, gates in both.gates.items() if gates.min() == 0] == ["middle_block.1.transformer_blocks.0.ff.net.2"]
    assert sd3().select(("ffn", "norm")).off_share("ffn") == 0.5, "a kind that the mask lacks may be asked for beside others"
    with pytest.raises(SettingError, match="this mask has nothing of norm; it has ffn"):
        sd3().select(("norm",))
    with pytest.raises(SettingError, match=r"in 'double 3' this mask has ffn only.*\(norm\)"):
        flux().select(("norm",), "double 3")
    for kinds in ((), ("heads",)):
        with pytest.raises(SettingError, match="Kinds to keep: expected some of ffn, norm, attn; found"):
            sd3().select(kinds)


def test_a_selection_says_what_it_is_of():
    whole = unet()
    part = whole.select(("ffn", "norm"), "IN4-8").select(blocks="IN4")
    assert part.info.extra["selected"] == "ffn, norm, IN4-8; then IN4"
    assert part.info.extra["selected_from"] == whole.select(("ffn", "norm"), "IN4-8").digest()
    assert (part.info.method, part.info.base) == (whole.info.method, whole.info.base)
    made = combine(whole, whole, "union").select(("ffn",))
    assert made.info.extra == {
        "combined_a": whole.digest(), "combined_b": whole.digest(), "selected": "ffn", "selected_from": whole.digest()
    }  # fmt: skip
    learned = mask(
        {"joint_blocks.0.x_block.mlp.fc2": "ffn", "joint_blocks.0.x_block.adaLN_modulation.1": "norm"},
        "sd3",
        {"loss_hard": "0.1"},
    )
    assert "loss_hard" not in learned.select(("ffn",)).info.extra, "it was measured on the whole mask"


def test_a_family_of_a_newer_version():
    strange = mask({"stages.0.mlp": "ffn", "stages.1.mlp": "ffn"}, "sd9")
    assert blocks_in(strange) == ""
    assert combine(strange, strange, "difference").off_share() == 0
    with pytest.raises(FamilyError, match="'sd9'"):
        strange.select(blocks="0")
