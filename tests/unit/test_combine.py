"""Combining masks and choosing parts of them: hand-computed gates, the laws of sets, and blocks as artists write them."""

import re

import pytest
import torch

from uniforget import __version__, config
from uniforget.errors import MismatchError, SettingError
from uniforget.mask import file as maskfile
from uniforget.mask.combine import MODES, changes, chosen_kinds, combine, report
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.model.families.schema import KINDS
from uniforget.model.fingerprint import fingerprint

FFN, NORM, ATTN = (f"joint_blocks.0.x_block.{leaf}" for leaf in ("mlp.fc2", "adaLN_modulation.1", "attn.proj"))
KIND_OF = {FFN: "ffn", NORM: "norm", ATTN: "attn"}


def mask(gates, kinds=KIND_OF, **info):
    kinds = {name: kinds[name] if isinstance(kinds, dict) else kinds for name in gates}
    return GateMask(
        {name: torch.tensor(values) for name, values in gates.items()}, kinds, MaskInfo(**{"family": "sd3", "base": "", **info})
    )


def base(seed):
    """A model's fingerprint."""
    return fingerprint({"w": torch.randn(50, 50, generator=torch.Generator().manual_seed(seed))})


def off(made):
    """What a hard mask switches off."""
    return {(name, i) for name, gates in made.gates.items() for i, value in enumerate(gates.tolist()) if value == 0}


def random_mask(seed, hard=True, names=(FFN, NORM, ATTN)):
    generator = torch.Generator().manual_seed(seed)
    # Steps of 1/255, so that files keep soft gates exactly.
    draw = {name: torch.randint(0, 256, (40,), generator=generator).float() / 255 for name in names}
    return mask({name: ((v > 0.5).float() if hard else v).tolist() for name, v in draw.items()})


HARD_A, HARD_B = mask({FFN: [1.0, 1.0, 0.0, 0.0]}), mask({FFN: [1.0, 0.0, 1.0, 0.0]})
SOFT_A, SOFT_B = mask({FFN: [0.25, 0.75, 1.0, 0.0]}), mask({FFN: [0.5, 0.25, 0.5, 0.75]})


@pytest.mark.parametrize(
    ("mode", "weight", "hard", "soft"),
    [
        ("union", 0.5, [1, 0, 0, 0], [0.25, 0.25, 0.5, 0.0]),
        ("intersection", 0.5, [1, 1, 1, 0], [0.5, 0.75, 1.0, 0.75]),
        ("difference", 0.5, [1, 1, 0, 1], [0.75, 1.0, 1.0, 0.25]),
        ("blend", 0.25, [1, 0.75, 0.25, 0], [0.3125, 0.625, 0.875, 0.1875]),
        ("blend", 0.0, [1, 1, 0, 0], [0.25, 0.75, 1.0, 0.0]),
        ("blend", 1.0, [1, 0, 1, 0], [0.5, 0.25, 0.5, 0.75]),
    ],
)
def test_gates_by_hand(mode, weight, hard, soft):
    assert combine(HARD_A, HARD_B, mode, weight).gates[FFN].tolist() == hard
    assert combine(SOFT_A, SOFT_B, mode, weight).gates[FFN].tolist() == soft


def test_the_defaults_are_those_of_the_settings():
    assert combine(SOFT_A, SOFT_B).digest() == combine(SOFT_A, SOFT_B, config.COMBINE["mode"].default).digest()
    half = combine(SOFT_A, SOFT_B, "blend")
    assert half.gates[FFN].tolist() == combine(SOFT_A, SOFT_B, "blend", config.COMBINE["weight"].default).gates[FFN].tolist()
    assert half.gates[FFN].tolist() == [0.375, 0.5, 0.75, 0.375]
    assert chosen_kinds(config.COMBINE["kinds"].default) == KINDS


@pytest.mark.parametrize("param", config.COMBINE.values(), ids=lambda p: p.name)
def test_every_setting_has_a_valid_default_and_is_explained(param):
    assert param.check(param.default) == param.default
    assert len(param.tooltip) > 30 and param.tooltip.endswith(".")


def test_the_choices_are_those_the_engine_knows():
    assert set(config.COMBINE["mode"].choices) == set(MODES)
    chosen = [chosen_kinds(c) for c in config.COMBINE["kinds"].choices]
    assert len(set(chosen)) == len(chosen) == 7 and all(kinds and set(kinds) <= set(KINDS) for kinds in chosen)


def test_hard_masks_behave_like_sets():
    a, b = random_mask(1), random_mask(2)
    assert off(a) - off(b) and off(b) - off(a) and off(a) & off(b), "the masks must overlap in part"
    assert off(combine(a, b, "union")) == off(a) | off(b)
    assert off(combine(a, b, "intersection")) == off(a) & off(b)
    assert off(combine(a, b, "difference")) == off(a) - off(b)
    assert off(combine(b, a, "difference")) == off(b) - off(a)
    assert all(combine(a, b, mode).hard for mode in ("union", "intersection", "difference"))
    assert not combine(a, b, "blend").hard


@pytest.mark.parametrize("hard", [True, False])
def test_laws(hard):
    a, b, c = (random_mask(seed, hard) for seed in (1, 2, 3))
    empty = mask({name: [1.0] * 40 for name in (FFN, NORM, ATTN)})
    assert len({m.digest() for m in (a, b, c, empty)}) == 4
    for mode in ("union", "intersection"):
        assert combine(a, b, mode).digest() == combine(b, a, mode).digest() not in (a.digest(), b.digest())
        assert combine(a, a, mode).digest() == a.digest()
        assert combine(combine(a, b, mode), c, mode).digest() == combine(a, combine(b, c, mode), mode).digest()
    assert combine(a, empty, "union").digest() == a.digest()
    assert combine(a, combine(a, b, "intersection"), "union").digest() == a.digest()
    assert combine(a, empty, "difference").gates[FFN].equal(a.gates[FFN])
    assert combine(a, a, "difference").digest() == empty.digest()
    assert combine(combine(a, b, "difference"), combine(a, b, "union"), "union").digest() == combine(a, b, "union").digest()
    assert combine(a, b, "blend", 0.3).digest() == combine(b, a, "blend", 0.7).digest()
    assert combine(a, a, "blend", 0.3).digest() == a.digest()
    # what is only in a and what is in both add up to a
    only, both = combine(a, b, "difference"), combine(a, b, "intersection")
    for name, gates in a.gates.items():
        assert torch.allclose((1 - only.gates[name]) + (1 - both.gates[name]), 1 - gates, atol=1e-6)


def test_blends_never_leave_the_range():
    # 0.55 + 0.45 in float32 is not always 1: GateMask would refuse more than 1
    a = random_mask(1, hard=False)
    for i in range(101):
        made = combine(a, mask({name: [1.0] * 40 for name in (FFN, NORM, ATTN)}), "blend", i / 100)
        assert made.gates[FFN].max() <= 1
        assert combine(a, a, "blend", i / 100).gates[FFN].equal(a.gates[FFN])


def test_a_site_that_only_one_mask_has_counts_as_kept_in_the_other():
    a, b = mask({FFN: [0.0, 1.0]}), mask({NORM: [0.0, 0.5, 1.0]})
    for first, second in ((a, b), (b, a)):
        assert {n: g.tolist() for n, g in combine(first, second, "union").gates.items()} == {FFN: [0, 1], NORM: [0, 0.5, 1]}
        assert off(combine(first, second, "intersection")) == set()
    assert {n: g.tolist() for n, g in combine(a, b, "difference").gates.items()} == {FFN: [0, 1], NORM: [1, 1, 1]}
    assert combine(a, b, "blend", 0.5).gates[NORM].tolist() == [0.5, 0.75, 1.0]
    assert combine(a, b).kinds == {FFN: "ffn", NORM: "norm"}


def test_the_order_of_sites_does_not_depend_on_which_mask_comes_first():
    two, ten = (f"joint_blocks.{i}.x_block.mlp.fc2" for i in (2, 10))
    a, b = mask({ten: [0.0]}, "ffn"), mask({two: [0.0]}, "ffn")
    assert list(combine(a, b).gates) == list(combine(b, a).gates) == [two, ten]
    # a mask with all sites keeps its own order, which is the model's
    model = mask({FFN: [0.0], ATTN: [0.0], NORM: [1.0]})
    part = mask({NORM: [0.0], FFN: [1.0]})
    assert list(combine(model, part).gates) == list(combine(part, model).gates) == [FFN, ATTN, NORM]
    turned = mask({NORM: [1.0], ATTN: [0.0], FFN: [0.0]})
    assert combine(model, turned).digest() == combine(turned, model).digest()


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(MismatchError, match="families, 'sd3' and 'flux'"):
        combine(HARD_A, mask({FFN: [1.0]}, family="flux"))
    with pytest.raises(
        MismatchError, match=rf"^1 sites differ.*{re.escape(FFN)} has 4 ffn gates in one and 1 ffn gates in the other"
    ):
        combine(HARD_A, mask({FFN: [1.0], NORM: [1.0]}))
    with pytest.raises(MismatchError, match="4 ffn gates in one and 4 norm gates in the other"):
        combine(HARD_A, mask({FFN: [1.0] * 4}, "norm"))
    names = [f"joint_blocks.{i}.x_block.mlp.fc2" for i in range(8)]
    with pytest.raises(MismatchError, match="^8 sites.* and 3 more. They belong to different variants"):
        combine(mask({n: [1.0] for n in names}, "ffn"), mask({n: [1.0] * 2 for n in names}, "ffn"))
    with pytest.raises(MismatchError, match="families"):
        changes(HARD_A, mask({FFN: [1.0]}, family="flux"))
    with pytest.raises(SettingError, match="'mode': expected one of 'union'.*found 'xor'"):
        combine(HARD_A, HARD_B, "xor")
    with pytest.raises(SettingError, match="'weight'"):
        combine(HARD_A, HARD_B, "blend", 1.5)
    with pytest.raises(SettingError, match="'kinds'.*found 'ffn, norm'"):
        chosen_kinds("ffn, norm")


def test_the_result_says_where_it_came_from():
    learned = {
        "base": base(1),
        "base_name": "SD3",
        "method": "stepwise",
        "preset": "medium",
        "beta": 2.0,
        "steps": 400,
        "version": "0",
    }
    a = mask({FFN: [0.0, 1.0]}, targets=("norm",), seed=1, extra={"loss_hard": "0.1"}, **learned)
    b = mask({FFN: [1.0, 0.0]}, targets=("ffn",), seed=2, extra={"loss_hard": "0.1"}, **learned)
    info = combine(a, b, "blend", 0.25).info
    assert (info.family, info.base, info.base_name, info.method) == ("sd3", base(1), "SD3", "blend")
    assert (info.preset, info.beta, info.steps, info.seed, info.version) == ("medium", 2.0, 400, 0, __version__)
    assert info.targets == ("ffn", "norm")
    # what was measured on either mask does not hold for the result
    assert info.extra == {"combined_a": a.digest(), "combined_b": b.digest(), "combined_weight": "0.25"}
    assert "combined_weight" not in combine(a, b, "union").info.extra


def test_one_caution_for_masks_of_one_model_of_several_and_of_others():
    a, b = (mask({FFN: [0.0, 1.0]}, base=base(i), base_name=f"model{i}") for i in (1, 2))
    assert a.cautions(base(1)) == combine(a, a).cautions(base(1)) == []
    [other] = a.cautions(base(2))
    [part] = combine(a, b).cautions(base(2))
    [none] = combine(a, b).cautions(base(3))
    assert "Careful: this mask was learned on another model (model1)." in other
    assert "Careful: a part of this mask was learned on another model (model1 + model2)." in part
    assert "Careful: this mask was learned on another model (model1 + model2)." in none
    [unread] = a.cautions("")
    assert "a format that UniForget cannot compare" in unread
    unknown = mask({FFN: [0.0, 1.0]}, base="")
    assert unknown.cautions("") == unknown.cautions(base(1)) == unknown.cautions() == []


def test_different_base_models_are_allowed_and_named():
    a, b, c = (mask({FFN: [0.0, 1.0]}, base=base(i), base_name=f"model{i}") for i in (1, 2, 3))
    made = combine(a, b)
    assert made.info.base.split() == [base(1), base(2)] and made.info.base_name == "model1 + model2"
    [caution] = made.cautions()
    assert "different models (model1 + model2)" in caution and caution in report(made, {"A": a})
    again = combine(combine(made, a), combine(c, b))
    assert again.info.base.split() == [base(1), base(2), base(3)] and again.info.base_name == "model1 + model2 + model3"
    assert combine(a, a).cautions() == [] and combine(a, a).info.base == base(1)
    # a copy in another dtype has a slightly different fingerprint
    weights = torch.randn(50, 50, generator=torch.Generator().manual_seed(1))
    copy = fingerprint({"w": weights.to(torch.float8_e4m3fn).float()})
    assert copy != base(1)
    assert combine(a, mask({FFN: [0.0, 1.0]}, base=copy)).info.base == base(1)
    assert combine(a, mask({FFN: [0.0, 1.0]})).info.base == "", "nothing is known about one of them"
    opaque = mask({FFN: [0.0, 1.0]}, base="something")
    assert combine(opaque, opaque).info.base == "something"


def test_results_are_saved_loaded_and_ordinary_tensors(tmp_path):
    a, b = random_mask(1), random_mask(2)
    for mode in MODES:
        with torch.inference_mode():
            made = combine(a, b, mode, 1 / 3).select(("ffn", "norm"), "0")
        assert not any(gates.is_inference() for gates in made.gates.values())
        assert made.digest() not in (a.digest(), b.digest())
        maskfile.save(made, tmp_path / "x.safetensors")
        loaded = maskfile.load(tmp_path / "x.safetensors")
        assert loaded.digest() == made.digest() and loaded.info == made.info and loaded.hard == (mode != "blend")


def test_changes_by_hand():
    before = mask({FFN: [0.0, 0.0, 1.0, 1.0], NORM: [1.0, 1.0]})
    after = mask({FFN: [1.0, 0.25, 0.49, 0.5], ATTN: [0.0, 1.0]})
    found = changes(before, after)
    assert list(found) == ["ffn", "norm", "attn", "all"]
    assert found["ffn"] == (0.5, 0.5, 1, 1)
    assert found["norm"] == (0.0, 0.0, 0, 0)
    assert found["attn"] == (0.0, 0.5, 1, 0)
    assert found["all"] == (2 / 8, 3 / 8, 2, 1)


def test_the_report_tells_shares_changes_and_how_far_soft_gates_go():
    made = combine(HARD_A, HARD_B, "union")
    text = report(made, {"mask A": HARD_A, "mask B": HARD_B})
    assert f"mask {made.digest()} (hard), family sd3" in text
    assert "switched off: ffn 75.0%, all 75.0%" in text and "on average" not in text and "Careful" not in text
    assert f"from mask A ({HARD_A.digest()}): ffn 50.0% -> 75.0%, all 50.0% -> 75.0%; 1 more off, 0 on again" in text
    soft = report(combine(HARD_A, HARD_B, "blend", 0.25), {"mask A": HARD_A})
    assert "(soft)" in soft and "switched off: ffn 50.0%" in soft
    assert "turned down on average: ffn 50.0%, all 50.0%" in soft


def test_a_mask_that_switches_nothing_off_is_legal_and_said_to_be_useless(tmp_path):
    made = combine(HARD_A, HARD_A, "difference")
    assert made.off_share() == 0
    assert "switches nothing off" in report(made, {"mask A": HARD_A})
    assert HARD_A.cautions() == [] and mask({FFN: [0.99, 1.0]}).cautions() == []
    maskfile.save(made, tmp_path / "x.safetensors")
    assert maskfile.load(tmp_path / "x.safetensors").digest() == made.digest()


def test_parts_of_a_mask_combine_to_that_mask_again():
    whole = random_mask(4)
    ffn, rest = whole.select(("ffn",)), whole.select(("norm", "attn"))
    assert len({whole.digest(), ffn.digest(), rest.digest()}) == 3
    assert list(ffn.gates) == list(whole.gates), "shares stay shares of the whole model"
    assert combine(ffn, rest, "union").digest() == whole.digest()
    assert combine(whole, rest, "difference").digest() == ffn.digest()
    assert combine(ffn, rest, "intersection").cautions() != []
