"""The mask's values: what is a mask, and what it says about itself."""

import pytest
import torch

from uniforget.errors import MaskError
from uniforget.mask.info import GateMask, MaskInfo

FFN, NORM = "joint_blocks.0.x_block.mlp.fc2", "joint_blocks.0.x_block.adaLN_modulation.1"
INFO = MaskInfo("sd3", "base")


def mask(ffn=(1.0, 0.0, 0.25, 0.5), norm=(1.0, 1.0), info=INFO):
    return GateMask({FFN: torch.tensor(ffn), NORM: torch.tensor(norm)}, {FFN: "ffn", NORM: "norm"}, info)


def test_shares_count_gates_below_a_half():
    assert mask().off_share() == 2 / 6
    assert mask().off_share("ffn") == 0.5
    assert mask().sparsity() == {"ffn": 0.5, "norm": 0.0, "all": 2 / 6}


def test_share_of_an_absent_kind_is_an_error_that_lists_those_present():
    with pytest.raises(MaskError, match=r"'attn'; it has ffn, norm, all"):
        mask().off_share("attn")


def test_hard_and_harden():
    assert not mask().hard
    hardened = mask().harden()
    assert hardened.hard
    assert hardened.gates[FFN].tolist() == [1, 0, 0, 1]
    assert mask().harden(0.2).gates[FFN].tolist() == [1, 0, 1, 1]
    assert mask().gates[FFN].tolist() == [1, 0, 0.25, 0.5]
    for threshold in (0, 1.5, float("nan")):
        with pytest.raises(MaskError, match="Threshold"):
            mask().harden(threshold)


def test_digest_is_of_names_kinds_and_gates_only():
    # SHA-256 of b"ffn 4 <FFN>\n\xff\x00\x40\x80norm 2 <NORM>\n\xff\xff"
    assert mask().digest() == "31c77bf4c9"
    assert mask(info=MaskInfo("other", "")).digest() == mask().digest()
    assert mask(norm=(1.0, 0.0)).digest() != mask().digest()
    renamed = GateMask({"a": torch.ones(2)}, {"a": "ffn"}, INFO)
    assert renamed.digest() != GateMask({"a": torch.ones(2)}, {"a": "norm"}, INFO).digest()
    assert renamed.digest() != GateMask({"b": torch.ones(2)}, {"b": "ffn"}, INFO).digest()


def test_order_is_kept_and_later_changes_to_the_callers_dicts_do_not_reach_the_mask():
    gates = {"b": torch.ones(1), "a": torch.zeros(1)}
    kinds = {"a": "ffn", "b": "norm"}
    made = GateMask(gates, kinds, INFO)
    gates.clear()
    kinds.clear()
    assert list(made.gates) == ["b", "a"]
    assert made.kinds == {"a": "ffn", "b": "norm"}


def test_summary_tells_what_people_need():
    info = MaskInfo("sd3", "f00", "my model", "stepwise", 2.0, "medium", seed=7)
    text = mask(info=info).summary()
    for part in (mask().digest(), "soft", "sd3", "ffn 50.0%", "norm 0.0%", "medium", "beta 2", "seed 7", "base model: my model"):
        assert part in text


@pytest.mark.parametrize(
    ("gates", "kinds", "message"),
    [
        ({}, {}, "no gates"),
        ({"a": torch.ones(1)}, {"b": "ffn"}, "same sites"),
        ({"a": torch.ones(1)}, {"a": "head"}, "Site a: expected a kind out of ffn, norm, attn; found 'head'"),
        ({"a": torch.ones(1, 2)}, {"a": "ffn"}, r"1-D float32.*found torch.float32 \(1, 2\)"),
        ({"a": torch.ones(2, dtype=torch.float16)}, {"a": "ffn"}, "found torch.float16"),
        ({"a": torch.ones(2, device="meta")}, {"a": "ffn"}, "on meta"),
        ({"a": [1.0]}, {"a": "ffn"}, "found list"),
        ({"a": torch.ones(0)}, {"a": "ffn"}, "has no gates"),
        ({"a": torch.tensor([0.5, float("nan")])}, {"a": "ffn"}, "Site a: expected gates from 0 to 1; found nan"),
        ({"a": torch.tensor([0.5, 1.001])}, {"a": "ffn"}, "found 0.5 to 1.001"),
        ({"a": torch.tensor([-0.1, 1.0])}, {"a": "ffn"}, "found -0.1 to 1"),
        ({"a": torch.tensor([1.0, float("inf")])}, {"a": "ffn"}, "found 1 to inf"),
        ({"a..b": torch.ones(1)}, {"a..b": "ffn"}, "dotted path"),
        ({"a b": torch.ones(1)}, {"a b": "ffn"}, "dotted path"),
        ({"a.": torch.ones(1)}, {"a.": "ffn"}, "dotted path"),
        ({"a" * 201: torch.ones(1)}, {"a" * 201: "ffn"}, "dotted path"),
        ({1: torch.ones(1)}, {1: "ffn"}, "dotted path"),
    ],
)
def test_what_is_no_mask_is_refused(gates, kinds, message):
    with pytest.raises(MaskError, match=message):
        GateMask(gates, kinds, INFO)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", ""),
        ("family", 3),
        ("base", None),
        ("method", "\ud800"),
        ("seed", -1),
        ("seed", 1.0),
        ("seed", True),
        ("seed", 2**64),
        ("steps", "4"),
        ("beta", float("nan")),
        ("beta", -1),
        ("learn_seconds", float("inf")),
        ("targets", "ffn"),
        ("targets", ("fnn",)),
        ("extra", {"a": 1}),
        ("extra", "a"),
    ],
)
def test_what_is_no_information_is_refused_by_name(field, value):
    with pytest.raises(MaskError, match=f"Mask information '{field}"):
        MaskInfo(**{"family": "sd3", "base": "", field: value})
