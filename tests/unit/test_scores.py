"""Scores without gradients: golden numbers, exact sums, and any weight that runs."""

import pytest
import torch
from torch import nn

from tests.unit.tiny import TinyModel, info
from uniforget.config import METHODS
from uniforget.errors import LearnError
from uniforget.learn import Settings, learn
from uniforget.learn.scores import _product, columns, energies, rank, squares
from uniforget.learn.sums import Collector, Sums, Watched
from uniforget.model.sites import Place, Site

SETTINGS = Settings(batch=4, noises=1, cfg=2.0, objective="scores")


class One:
    """A single Linear as a model."""

    def __init__(self, weight, *places, kind="ffn", units=2):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight
        self.sites = [Site("layer", kind, units, places)]
        self.modules = {"layer": layer}
        self.sigmas = torch.tensor([1.0, 0.0])


def energy_of(model, inputs):
    found = Sums()
    place = model.sites[0].places[0]
    with Collector(model, {"layer": Watched(place.path, place.axis, _product(model.sites[0]))}, found, share=False).watching():
        out = model.modules["layer"](inputs)
    return energies(model, found)["layer"], out


def test_golden_energies_of_neurons():
    weight = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    inputs = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    # mean squares 5 and 2; column norms 10 and 4
    assert energy_of(One(weight, Place("layer", "in", 2)), inputs)[0].tolist() == [50.0, 8.0]
    assert energy_of(One(weight, Place("layer", "out", 2)), inputs)[0].tolist() == [(25 + 9) / 2, (9 + 81) / 2]


def test_energy_is_the_output_lost_when_a_head_goes():
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(5, 6, generator=generator), torch.randn(40, 6, generator=generator)
    found, out = energy_of(One(weight, Place("layer", "in", 6, width=3), kind="attn"), inputs)
    for head in (0, 1):
        without = inputs.clone()
        without[:, 3 * head : 3 * head + 3] = 0
        lost = (out - without @ weight.T).square().sum(1).mean()
        assert found[head].item() == pytest.approx(lost.item(), rel=1e-4)


def test_shards_add_up_exactly_and_survive_a_file(tmp_path):
    model = TinyModel(("ffn", "norm", "attn"))
    settings = Settings(**{**vars(SETTINGS), "batch": 1})
    whole = squares(model, settings, rows=range(6))
    parts = [squares(model, settings, rows=rows) for rows in ([0, 1], [2, 3, 4], [5])]
    parts[0].save(tmp_path / "a.safetensors")
    total = Sums.load(tmp_path / "a.safetensors") + parts[1] + parts[2]
    assert total.counts == whole.counts and min(whole.counts.values()) > 0
    for name, sums in whole.sums.items():
        assert torch.allclose(total.sums[name], sums, rtol=1e-12, atol=0) and sums.abs().sum() > 0
    kinds = {s.name: s.kind for s in model.sites}
    masks = [rank(energies(model, s), kinds, METHODS["scores"].amount("strong"), info()) for s in (whole, total)]
    assert masks[0].digest() == masks[1].digest()
    with pytest.raises(LearnError, match="other|different"):
        whole + Sums()


def test_shares_are_met_per_kind_and_the_lowest_go():
    scores = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([3.0, 2.0]), "c": torch.tensor([1.0, 9.0])}
    mask = rank(scores, {"a": "ffn", "b": "ffn", "c": "norm"}, {"ffn": 0.5, "norm": 0.0}, info())
    assert {n: g.tolist() for n, g in mask.gates.items()} == {"a": [1, 0], "b": [1, 0], "c": [1, 1]}


def test_learning_by_scores_is_deterministic_and_beats_nothing_left_behind():
    model = TinyModel()
    first = learn(model, SETTINGS, info(preset="strong"))
    assert first.mask.digest() == learn(TinyModel(), SETTINGS, info(preset="strong")).mask.digest()
    assert first.mask.hard and first.mask.info.method == "scores"
    assert first.mask.off_share("ffn") == pytest.approx(0.453, abs=1e-3)
    assert first.mask.off_share("norm") == pytest.approx(0.191, abs=1e-3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules.values())
    half = learn(TinyModel(), Settings(**{**vars(SETTINGS), "target_sparsity": 0.5}), info())
    assert half.mask.off_share() == pytest.approx(0.5, abs=1e-3)


def test_columns_of_a_weight_that_only_runs():
    class Quantized(nn.Module):
        """Holds its weight as int8 and a scale, with a bias."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randint(-127, 127, (7, 600), dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return x @ (self.weight.float() * 0.01).T + 3.0

    module = Quantized()
    assert torch.allclose(columns(module, 600, torch.device("cpu")), module.weight.float() * 0.01, atol=1e-5)
    plain = nn.Linear(4, 3)
    assert torch.equal(columns(plain, 4, torch.device("cpu")), plain.weight.detach())
