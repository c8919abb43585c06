"""Compaction: the masked model's very outputs, from smaller weights."""

import copy

import pytest
import torch

from tests.unit import diffusers_zoo as zoo
from uniforget import compact
from uniforget.compact import Cut, plan
from uniforget.errors import MismatchError, SettingError
from uniforget.hosts.compact import compact_
from uniforget.hosts.diffusers import find_modules, fold_
from uniforget.maskset import MaskInfo, MaskSet


def shapes_of(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def hard_mask(model, seed=0, extremes=True):
    """60 % of everything off; of the first FFN nothing is left, of the second one unit."""
    family, sites, _ = find_modules(model)
    generator = torch.Generator().manual_seed(seed)
    gates = {s.name: (torch.rand(s.units, generator=generator) > 0.6).float() for s in sites}
    neurons = [s.name for s in sites if s.kind == "ffn"]
    if extremes:
        gates[neurons[0]][:] = 0
        gates[neurons[1]][:] = 0
        gates[neurons[1]][3] = 1
    return MaskSet(gates, {s.name: s.kind for s in sites}, MaskInfo(family=family.name, base=""))


@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("name", zoo.SMALL)
def test_the_output_is_the_masked_models(name, multiple):
    model = zoo.small(name)
    mask = hard_mask(model)
    masked, small = copy.deepcopy(model), copy.deepcopy(model)
    fold_(masked, mask)
    found = compact_(small, mask, multiple)
    wanted, before = zoo.predict(name, masked), zoo.predict(name, model)
    assert (wanted - before).abs().max() > 1e-3 * before.abs().max()
    torch.testing.assert_close(zoo.predict(name, small), wanted, atol=1e-5, rtol=1e-5)
    family = zoo.VARIANTS[name].family
    assert found.hidden and "ffn" not in found.whole
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(hidden % multiple == 0 for hidden in found.hidden.values()) or family.startswith("sd")
    assert bool(found.heads) == (family in ("sd1", "sd2", "sdxl"))
    assert set(found.hidden.values()) >= {multiple}


def test_soft_gates_are_folded_and_not_cut():
    model = zoo.small("sd1")
    mask = hard_mask(model, extremes=False)
    soft = MaskSet({n: g.clamp(min=0.25) for n, g in mask.gates.items()}, mask.kinds, mask.info)
    masked, small = copy.deepcopy(model), copy.deepcopy(model)
    fold_(masked, soft)
    found = compact_(small, soft)
    assert not found.cuts and "nothing is switched off completely" in compact.report(found)[0]
    assert torch.equal(zoo.predict("sd1", small), zoo.predict("sd1", masked))


def test_a_cut_gathers_and_scatters():
    cut = Cut("layer", (4, 3), torch.tensor([0, 2]), torch.tensor([1]))
    weight = torch.arange(12.0).view(4, 3)
    part = cut.gather(weight)
    assert part.tolist() == [[1], [7]] and cut.kept == (2, 1)
    assert cut.scatter(part).tolist() == [[0, 1, 0], [0, 0, 0], [0, 7, 0], [0, 0, 0]]
    assert cut.scatter_bias(cut.gather_bias(torch.arange(4.0))).tolist() == [0, 0, 2, 0]
    assert Cut("layer", (4, 3), rows=torch.tensor([3])).scatter(torch.ones(1, 3)).sum(1).tolist() == [0, 0, 0, 3]
    columns = Cut("layer", (4, 3), columns=torch.tensor([0, 2]))
    assert torch.equal(columns.scatter(columns.gather(weight)), weight * torch.tensor([1, 0, 1]))


def test_widths_are_rounded_up():
    gates = torch.zeros(32)
    gates[[5, 9, 30]] = 1
    assert compact._keep(gates, 1).tolist() == [5, 9, 30]
    assert compact._keep(gates, 8).tolist() == [0, 1, 2, 3, 4, 5, 9, 30]
    assert len(compact._keep(gates, 64)) == 32 and compact._keep(torch.zeros(4), 1).tolist() == [0]


def test_errors_say_what_to_do():
    model = zoo.small("sd1")
    mask = hard_mask(model)
    with pytest.raises(SettingError, match="expected one of 1, 8"):
        plan(shapes_of(model), mask, 7)
    with pytest.raises(MismatchError):
        plan(shapes_of(zoo.small("sdxl")), mask)
