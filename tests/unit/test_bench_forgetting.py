"""The evidence benchmark: controls are what they say, tables say what rows say, rows can be told apart."""

import json

import numpy as np
import pytest
import torch

from bench import controls, forgetting, forgetting_analysis, forgetting_docs
from testbed import attack, concepts, evaluate, host, vae, verdict
from testbed import model as testbed
from testbed.data import to_tensor
from uniforget.learn import Settings


@pytest.fixture(scope="module")
def loaded():
    return testbed.load()


@pytest.fixture(scope="module")
def model(loaded):
    return host.TestbedModel(*loaded, evaluate.learning_prompts()[::80], steps=2)


SETTINGS = Settings(batch=4)
WANTED = {"ffn": 0.4, "norm": 0.2}


@pytest.fixture(scope="module")
def moments(model):
    return controls.neurons(model, SETTINGS)


def test_every_control_switches_off_the_same_share_of_every_kind(model, moments):
    found = {name: controls.scored(name, model, SETTINGS) for name in controls.NAMES}
    masks = {name: controls.ranked(model, scores, WANTED, name) for name, scores in found.items()}
    for mask in masks.values():
        assert {k: pytest.approx(v, abs=1e-3) for k, v in controls.shares(mask).items()} == WANTED
    assert len({mask.digest() for mask in masks.values()}) == len(masks)
    assert controls.shares(masks["OBS"], 0.5)["ffn"] == pytest.approx(0.2, abs=1e-3)


def test_fisher_is_the_squared_sensitivity(model):
    """Against finite differences: gates with a larger score change the prediction more."""
    scores = controls.fisher(model, SETTINGS, draws=8)
    name = "joint_blocks.1.x_block.mlp.fc2"
    order = scores[name].argsort()
    x = model.initial(4, torch.Generator().manual_seed(0))

    def change(units):
        from uniforget.mask.gates import gated

        gates = torch.ones(1024)
        gates[units] = 0
        with torch.no_grad(), gated(model.modules, [s for s in model.sites if s.name == name], {name: gates}):
            moved = model.denoise(x, model.sigmas[:1].expand(4), [0, 1, 2, 3])
        with torch.no_grad():
            return (moved - model.denoise(x, model.sigmas[:1].expand(4), [0, 1, 2, 3])).square().mean()

    assert change(order[:50]) < 0.2 * change(order[-50:])


def test_the_attack_finds_what_the_model_knows(loaded):
    other, item = "soft cat top left on blue", concepts.MEMORIZED[0]
    with torch.no_grad():
        x0 = vae.load().encode(to_tensor(verdict.default().judge.pictures.render(item.picture)[0][None]))
    before = torch.random.get_rng_state()
    hidden, pooled = attack.attack(*loaded, [other], x0, steps=12)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        start, _ = testbed.encode(*loaded[1:], [other])
    assert hidden.shape == start.shape and not torch.equal(hidden, start) and bool(torch.isfinite(pooled).all())
    again = attack.attack(*loaded, [other], x0, steps=12)
    assert torch.equal(again[0], hidden)

    def loss(hidden, pooled):
        noise = torch.randn(8, *x0.shape[1:], generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            out = loaded[0](
                hidden_states=0.2 * x0 + 0.8 * noise, encoder_hidden_states=hidden.expand(8, -1, -1),
                pooled_projections=pooled.expand(8, -1), timestep=torch.full((8,), 800.0), return_dict=False,
            )[0]  # fmt: skip
        return float((out - x0).square().mean())

    with torch.no_grad():
        begin = testbed.encode(*loaded[1:], [other])
    assert loss(hidden, pooled) < 0.7 * loss(*begin)
    drawn, _ = attack.attack(*loaded, [other], x0, start="noise", steps=0)
    assert float((drawn - start).abs().mean()) > 0.1 and float(drawn.std()) == pytest.approx(float(start.std()), rel=0.15)


def test_update_magnitudes_are_those_of_a_known_flow():
    """A model that always sees the clean picture 2: every step moves by (x - 2) / sigma times its length, which stays the same."""

    class Known:
        sigmas = torch.tensor([1.0, 0.5, 0.25, 0.0])
        groups = [0]

        def initial(self, count, generator):
            return torch.zeros(count, 16, 12, 12)

        def denoise(self, x, sigma, which):
            return torch.full_like(x, 2.0)

    latents, magnitudes = forgetting_analysis.samples(Known(), [0] * 3, [0, 1, 2])
    assert torch.equal(latents, torch.full((3, 16, 12, 12), 2.0)) and magnitudes.tolist() == pytest.approx([2.0] * 3)


def test_groups_of_the_analysis_are_told_apart(tmp_path, monkeypatch):
    groups = forgetting_analysis.captions(5)
    assert {name: len(texts) for name, texts in groups.items()} == {"memorized": 5, "twins": 5, "neutral": 5}
    known, never = (
        {item.caption for item in items if item.group in verdict.ANSWERABLE} for items in (concepts.MEMORIZED, concepts.NEVER)
    )
    assert set(groups["memorized"]) <= known and set(groups["twins"]) <= never and not set(groups["neutral"]) & (known | never)
    random = np.random.default_rng(0)
    found = {"group": np.repeat(list(groups), 5), "training": random.normal(size=(5, 8))}
    found |= {
        f"{what}_{when}": random.normal(size=(15, 8) if what == "latents" else 15)
        for what in ("latents", "magnitudes")
        for when in ("before", "after")
    }
    asked = []
    monkeypatch.setattr(
        forgetting_analysis,
        "places",
        lambda found: (
            asked.append(found),
            {n: random.normal(size=(k, 2)) for n, k in (("before", 15), ("after", 15), ("training", 5))},
        )[1],
    )
    forgetting_analysis.plot(found, "title", tmp_path / "a.png")
    assert len(asked) == 1 and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["mmdit", "unet"])
def test_rows_can_be_told_apart(name):
    rows = forgetting.full(name)
    keys = [json.dumps(row.key(name)) for row in rows]
    assert len(keys) == len(set(keys)) > 15
    methods = {row.method for row in rows}
    assert {"original", "gates", "subspace", "gates + subspace", "control: random", "control: Fisher"} <= methods
    assert not any(row.needs_targets for row in rows)


ROWS = [
    {"testbed": "mmdit", "method": "gates", "preset": "strong", "note": "", "mask_seed": seed, "off_ffn": 0.5, "off_norm": 0.2}
    | {"forgotten": forgotten, "forgotten_interval": [0.5, 0.7], "ceiling": 0.9, "heldout": 0.9, "after_attack": 0.3}
    for seed, forgotten in enumerate((0.5, 0.6, 0.7))
]


def test_the_table_gives_means_and_intervals(tmp_path):
    mean, low, high = forgetting_docs.interval(ROWS, "forgotten")
    assert mean == pytest.approx(0.6) and (high - low) / 2 == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)
    assert forgetting_docs.interval(ROWS[:1], "forgotten") == (0.5, 0.5, 0.7)
    assert forgetting_docs.interval(ROWS, "after_finetune") is None
    text = forgetting_docs.table(ROWS)
    assert "| gates, strong | 3 | 50 / 20 | 60 (35-85) |" in text and "fine-tun" not in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{forgetting_docs.BEGIN}\nold\n{forgetting_docs.END}\nafter\n")
    forgetting_docs.write({"rows": ROWS}, page)
    found = page.read_text()
    assert found.startswith("before\n") and found.endswith("after\n") and text in found and "old" not in found
    picture = (tmp_path / "page_mmdit.svg").read_bytes()
    forgetting_docs.write({"rows": ROWS}, page)
    assert page.read_text() == found and (tmp_path / "page_mmdit.svg").read_bytes() == picture
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="expected the lines"):
        forgetting_docs.write({"rows": ROWS}, page)


def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    made = []

    class Bed:
        name = "mmdit"

        def measure(self, network):
            return {"forgotten": 0.5}

        def attacked(self, network, which):
            return dict.fromkeys(which, 0.25)

    def row(attack):
        return forgetting.Row("original", lambda bed: (made.append(attack), None), attack=attack)

    file = tmp_path / "rows.json"
    for attack_, times in (("", 1), ("", 1), ("a", 2), ("a", 2), ("ac", 3)):
        forgetting.run(Bed(), [row(attack_)], file, "")
        assert len(made) == times
    (found,) = json.loads(file.read_text())["rows"]
    assert found["forgotten"] == 0.5 and found["a"] == found["c"] == 0.25 and found["measured"] == "ac"
    forgetting.run(Bed(), [row("n")], file, "no such row")
    assert len(made) == 3
