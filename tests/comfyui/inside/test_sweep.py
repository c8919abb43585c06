"""Strength Sweep on real ComfyUI: the grid, its order, its measured likeness, and what it refuses before drawing anything."""

import json

import comfy.model_management
import comfy.sample
import pytest
import torch
from uniforget_pack.nodes import sweep as node
from uniforget_pack.nodes.sweep import StrengthSweep
from uniforget_pack.uniforget.checks.likeness import likeness as alike
from uniforget_pack.uniforget.errors import PromptFileError, SettingError
from uniforget_pack.uniforget.hosts.comfy import sample as comfy_sampling
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.report.sweep import MOST_PICTURES

CAT, BRICKS = "soft cat top left on blue", "photo of coffee"
STEPS = 4


@pytest.fixture(autouse=True)
def nothing_remembered():
    comfy_sampling._originals.clear()


@pytest.fixture
def sampled(monkeypatch):
    """``(has patches, seed)`` of everything that ComfyUI samples, in order."""
    real, seen = comfy.sample.sample, []

    def sample(model, *args, seed, **kwargs):
        seen.append((bool(model.patches), seed))
        return real(model, *args, seed=seed, **kwargs)

    monkeypatch.setattr(comfy.sample, "sample", sample)
    return seen


def run(demo, mask=None, latent=None, **changes):
    """Runs the node: ``(sheet, pictures, ui)``."""
    kinds = {"strength_ffn": 1.0, "strength_norm": 1.0, "strength_attn": 1.0}
    sampler = {"seed": 5, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    values = {
        "prompts": f"{CAT}\n{BRICKS}\n",
        "everyday": "",
        "negative": "",
        "strengths": "0, 0.5, 1",
        "find": False,
        "seeds": 1,
    }
    latent = latent or {"samples": torch.zeros(1, 16, 12, 12)}
    values |= {**kinds, **sampler, "save": False, "filename_prefix": "uniforget/sweep", **changes}
    out = StrengthSweep.execute(demo.model, mask or demo.mask(), demo.clip, demo.vae, latent, **values)
    return *out.args, out.ui


def test_the_grid_is_what_the_stock_sampler_draws_row_by_row(demo, sampled):
    import nodes  # ComfyUI's

    mask = demo.mask()
    sheet, pictures, ui = run(demo, mask, seeds=2, strengths="1 0.5")
    assert pictures.shape == (12, 96, 96, 3) and sheet.shape[0] == 1 and sheet.shape[-1] == 3
    assert sorted(sampled) == sorted([(False, 5), (False, 6)] * 2 + [(True, 5), (True, 6)] * 4), "the original once per row"
    [grid] = ui["sweep"]
    assert grid["strengths"] == [0.0, 0.5, 1.0]
    assert grid["rows"] == [{"prompt": p, "seed": s, "everyday": False} for p in (CAT, BRICKS) for s in ("5", "6")]
    keys = {"filename", "subfolder", "type", "similarity", "word"}
    assert len(grid["cells"]) == 12 and all(set(c) == keys for c in grid["cells"])
    assert json.loads(json.dumps(grid)) == grid
    for row, column in ((0, 0), (1, 1), (2, 2), (3, 1)):
        model = apply_mask(demo.model, mask, grid["strengths"][column])
        prompt, seed = (CAT, BRICKS)[row // 2], 5 + row % 2
        latent = {"samples": torch.zeros(1, 16, 12, 12)}
        args = (model, seed, STEPS, 3.0, "euler", "simple", demo.encode(prompt), demo.encode(""), latent)
        expected = demo.vae.decode(nodes.common_ksampler(*args)[0]["samples"])[0]
        assert torch.equal(pictures[3 * row + column], expected), (row, column)


def test_likeness_is_one_for_the_original_and_falls_with_the_strength(demo):
    _, pictures, ui = run(demo, demo.mask(share=0.15), strengths="0, 0.3, 1", steps=8)
    likeness = torch.tensor([cell["similarity"] for cell in ui["sweep"][0]["cells"]]).reshape(2, 3)
    assert (likeness[:, 0] == 1).all()
    assert (likeness[:, 1] < 1).all() and (likeness[:, 2] < likeness[:, 1]).all()
    assert likeness[1, 2] == pytest.approx(alike(pictures[5:6], pictures[3:4])[0])


def test_the_least_strength_is_found_beside_the_everyday_prompts(demo, monkeypatch):
    # A few steps of a small model with a random mask: what is left is not what this is about.
    monkeypatch.setattr(node, "word", lambda value: "gone" if value < 0.999 else "recognizable")
    _, pictures, ui = run(demo, demo.mask(share=0.3), prompts=CAT, everyday=BRICKS, strengths="0, 1", find=True)
    [grid] = ui["sweep"]
    assert [row["everyday"] for row in grid["rows"]] == [False, True]
    assert len(grid["strengths"]) == 5 and len(pictures) == 10, "three more columns"
    assert [cell["word"] for cell in grid["cells"][5:]] == [""] * 5, "no word for what should stay"
    words = [cell["word"] for cell in grid["cells"][:5]]
    assert words == [node.word(cell["similarity"]) for cell in grid["cells"][:5]] and words[0] == "recognizable"
    assert grid["found"] is not None and words[grid["strengths"].index(grid["found"])] == "gone"


def test_what_no_strength_takes_away_is_told(demo):
    *_, ui = run(demo, demo.mask(share=0.01), prompts=CAT, strengths="0.01", find=True)
    assert ui["sweep"][0]["found"] is None and "Not gone even at strength 0.01" in ui["sweep"][0]["notes"][-1]


def test_another_mask_does_not_draw_the_originals_again(demo, sampled):
    run(demo)
    assert [patched for patched, _ in sampled].count(False) == 2
    sampled.clear()
    run(demo, demo.mask(seed=4), strengths="0.75")
    assert sampled == [(True, 5)] * 2


def test_kinds_at_zero_are_the_original(demo):
    _, pictures, ui = run(demo, demo.mask(("ffn",)), strength_ffn=0.0, strengths="1")
    assert torch.equal(pictures[0], pictures[1])
    assert "unchanged" in ui["sweep"][0]["notes"][0] and ui["sweep"][0]["kinds"]["strength_ffn"] == 0


def test_of_a_batch_the_first_is_used_and_the_node_says_so(demo):
    start = torch.randn(3, 16, 12, 12, generator=torch.Generator().manual_seed(2))
    batch = {"samples": start, "batch_index": [4, 5, 6]}
    _, pictures, ui = run(demo, latent=batch, prompts=CAT, strengths="0", denoise=0.5)
    assert "3 pictures" in ui["sweep"][0]["notes"][-1]
    _, alone, _ = run(demo, latent={"samples": start[:1], "batch_index": [4]}, prompts=CAT, strengths="0", denoise=0.5)
    assert len(pictures) == 1 and torch.equal(pictures, alone)


def test_one_bar_over_all_pictures(demo, monkeypatch):
    from comfy.utils import ProgressBar

    seen = []
    monkeypatch.setattr(
        ProgressBar, "update_absolute", lambda bar, value, total=None, preview=None: seen.append((value, bar.total))
    )
    run(demo)
    assert {total for _, total in seen} == {6 * STEPS}
    values = [value for value, _ in seen]
    assert values == sorted(values) and values[-1] == 6 * STEPS and set(values) == set(range(1, 6 * STEPS + 1))


def test_saved_files_and_the_random_state(demo):
    torch.manual_seed(4)
    state = torch.get_rng_state()
    *_, ui = run(demo, save=True, filename_prefix="uniforget/swept")
    assert torch.equal(torch.get_rng_state(), state)
    assert ui["sheet"][0]["filename"].startswith("swept_sheet") and ui["sweep"][0]["cells"][0]["type"] == "temp"
    *_, ui = run(demo, save=True, save_cells=True, filename_prefix="uniforget/swept")
    assert ui["sweep"][0]["cells"][0]["type"] == "output"


def test_interrupting_in_the_middle(demo, sampled, monkeypatch):
    real = comfy_sampling.Bar.next

    def after(bar):
        real(bar)
        if bar.done == 3:
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr(comfy_sampling.Bar, "next", after)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(demo)
    assert len(sampled) == 4, "the fourth ends at its first step"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"strengths": "0, 0.5, 1.5"}, SettingError, "1.5"),
        ({"strengths": "0; half"}, SettingError, "half"),
        ({"strengths": "-0.1"}, SettingError, "-0.1"),
        ({"strengths": "nan"}, SettingError, "nan"),
        ({"strengths": " ,"}, SettingError, "strengths.*none"),
        ({"prompts": " \n\n"}, SettingError, "prompts.*none"),
        ({"prompts": "a\n" + "b" * 3000}, PromptFileError, "line 2"),
        ({"seeds": 0}, SettingError, "seeds"),
        ({"seeds": 30}, SettingError, rf"2 prompts x 30 seeds x 3 strengths = 180.*{MOST_PICTURES}"),
        ({"steps": 0}, SettingError, "steps"),
        ({"strength_norm": 2}, SettingError, "strength_norm"),
        ({"prompts": f"{CAT}\nphoto of an elephant"}, Exception, "elephant"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_drawn(demo, sampled, change, error, words):
    with pytest.raises(error, match=words):
        run(demo, **change)
    assert sampled == []
