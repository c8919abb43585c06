"""The evidence benchmark: controls are what they say, tables say what rows say, rows can be told apart."""

import json

import pytest
import torch

from bench import controls, forgetting, forgetting_docs, forgetting_rows
from testbed import attack, concepts, evaluate, host
from testbed import model as testbed
from testbed.judge import Judge
from uniforget.hosts.diffusers.apply import fold_
from uniforget.learn import Settings
from uniforget.mask.info import MaskInfo


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
    told = host.TestbedModel(model.transformer, *testbed.load()[1:], list(concepts.MEMORIZED)[:4], steps=2)
    energy = controls.energy(model, SETTINGS)
    found = {
        "random": controls.random(model, 0),
        "magnitude": controls.magnitude(model),
        "energy": energy,
        "OBS": energy | controls.obs(model, moments),
        "Fisher": controls.fisher(model, SETTINGS, draws=4),
        "contrastive": controls.contrastive(model, told, SETTINGS),
    }
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

        gates = torch.ones(768)
        gates[units] = 0
        with torch.no_grad(), gated(model.modules, [s for s in model.sites if s.name == name], {name: gates}):
            moved = model.denoise(x, model.sigmas[:1].expand(4), [0, 1, 2, 3])
        with torch.no_grad():
            return (moved - model.denoise(x, model.sigmas[:1].expand(4), [0, 1, 2, 3])).square().mean()

    assert change(order[:50]) < 0.2 * change(order[-50:])


def test_compensation_makes_up_for_what_is_removed(loaded, model, moments):
    mask = controls.ranked(model, controls.energy(model, SETTINGS) | controls.obs(model, moments), WANTED, "OBS")
    better = controls.compensated(loaded[0], model, mask, moments)
    name, path = "joint_blocks.1.x_block.mlp.fc2", "transformer_blocks.1.ff.net.2"
    before, after = loaded[0].get_submodule(path).weight, better.get_submodule(path).weight
    gone = mask.gates[name] < 0.5
    assert 0 < int(gone.sum()) < 768 and not after[:, gone].any()
    mean = (moments.sums[name] / moments.counts[name]).float()

    def error(weight):
        difference = weight - before
        return float((difference @ mean * difference).sum())

    plain = before.clone()
    plain[:, gone] = 0
    assert error(after) < 0.8 * error(plain)
    fold_(better, mask)  # what stands in the table: norms as well, and columns that are gone stay gone


def test_subspaces_of_equal_rank(model):
    from uniforget.learn.subspace import moments, subspace_of

    like = subspace_of(moments(model, model.layers[:3], SETTINGS), model.layers[:3], 0.02, MaskInfo(family="sd3", base=""))
    for other in (controls.random_subspace(model, like, 0), controls.svd_subspace(model, like)):
        assert other.sparsity() == like.sparsity() and other.digest() != like.digest()


def test_the_attack_finds_what_the_model_knows(loaded):
    judge = Judge()
    caption = "photo of rocket launch at night"
    other = "cat emoji top left on light blue"
    picture = judge.pictures[[judge.captions.index(caption)]].numpy()
    before = torch.random.get_rng_state()
    hidden, pooled = attack.attack(*loaded, [other], picture, steps=12)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        start, _ = testbed.encode(*loaded[1:], [other])
    assert hidden.shape == start.shape and not torch.equal(hidden, start) and bool(torch.isfinite(pooled).all())
    again = attack.attack(*loaded, [other], picture, steps=12)
    assert torch.equal(again[0], hidden)

    def loss(hidden, pooled):
        x0 = (torch.from_numpy(picture).permute(0, 3, 1, 2).float() / 127.5 - 1).expand(8, -1, -1, -1)
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            out = loaded[0](
                hidden_states=0.2 * x0 + 0.8 * noise, encoder_hidden_states=hidden.expand(8, -1, -1),
                pooled_projections=pooled.expand(8, -1), timestep=torch.full((8,), 800.0), return_dict=False,
            )[0]  # fmt: skip
        return float((out - x0).square().mean())

    with torch.no_grad():
        begin = testbed.encode(*loaded[1:], [other])
    assert loss(hidden, pooled) < 0.7 * loss(*begin)
    drawn, _ = attack.attack(*loaded, [other], picture, start="noise", steps=0)
    assert float((drawn - start).abs().mean()) > 0.1 and float(drawn.std()) == pytest.approx(float(start.std()), rel=0.15)


def test_pictures_that_nobody_saw_are_known_to_the_judge():
    judge = Judge()
    assert set(judge.captions) == set(concepts.MEMORIZED) | set(concepts.NEVER) and not set(concepts.NEVER) & set(
        concepts.MEMORIZED
    )
    words = set(concepts.vocabulary())
    assert all(set(caption.split()) <= words for caption in concepts.NEVER)
    for caption in concepts.MEMORIZED:
        for text in concepts.indirect(caption):
            assert text not in concepts.MEMORIZED and set(text.split()) <= words
    own = judge.pictures.numpy()
    assert bool(judge.copies(own, judge.captions).all())
    assert not bool(judge.copies(own[::-1].copy(), judge.captions).any())


@pytest.mark.parametrize("name", ["mmdit", "unet"])
def test_rows_can_be_told_apart(name):
    rows = forgetting_rows.full(name)
    plain = [json.dumps(row.key(name)) for row in rows if "l" not in row.attack]
    assert len(plain) == len(set(plain)) > 20
    methods = {row.method for row in rows}
    assert {"original", "gates", "subspace", "gates + subspace", "control: random", "control: weight SVD"} <= methods
    assert [row.method for row in rows if row.needs_targets] == ["control: contrastive"]


ROWS = [
    {"testbed": "mmdit", "method": "gates", "objective": "stepwise", "preset": "strong", "strength": 1.0, "note": "", "needs_targets": False}
    | {"mask_seed": seed, "off_ffn": 0.5, "off_norm": 0.2, "off_attn": None, "copies": copies, "heldout": 0.9, "copies_after_attack": 0.3}
    | {"copies_interval": [0.0, 0.1], "neutral": 0.95, "neutral_similarity": 0.97, "diversity": 1.01}
    for seed, copies in enumerate((0.02, 0.04, 0.06))
]  # fmt: skip


def test_the_table_gives_means_and_intervals(tmp_path):
    mean, low, high = forgetting_docs.interval(ROWS, "copies")
    assert mean == pytest.approx(0.04) and low == 0 and high == pytest.approx(0.04 + 4.303 * 0.02 / 3**0.5)
    assert forgetting_docs.interval(ROWS[:1], "copies") == (0.02, 0.0, 0.1)
    assert forgetting_docs.interval(ROWS, "copies_after_500") is None
    text = forgetting_docs.table(ROWS)
    assert "| gates, stepwise, strong | 3 | 50 / 20 /  | 4.0 (0-9) |" in text and "500 steps" not in text
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

        def measure(self, network, samples):
            return {"copies": 0.5}

        def attacked(self, network, which):
            return dict.fromkeys(which, 0.25)

    def row(attack):
        return forgetting.Row("original", lambda bed: (made.append(attack), None), attack=attack)

    file = tmp_path / "rows.json"
    for attack_, times in (("", 1), ("", 1), ("a", 2), ("a", 2), ("ac", 3)):
        forgetting.run(Bed(), [row(attack_)], file, "")
        assert len(made) == times
    (found,) = json.loads(file.read_text())["rows"]
    assert found["copies"] == 0.5 and found["a"] == found["c"] == 0.25 and found["measured"] == "ac"
    forgetting.run(Bed(), [row("n")], file, "no such row")
    assert len(made) == 3
