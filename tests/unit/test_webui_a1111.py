"""Automatic1111's hooks: the same as folded weights, with LoRAs, in any dtype, and nothing left behind."""

import pytest
import torch

from tests.unit.webui_host import INPUT, half, subspace, unet
from uniforget.errors import MismatchError
from uniforget.hosts.webui import Request, Run
from uniforget.hosts.webui.a1111 import applied
from uniforget.mask.edit import merge


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def folded(model, mask, *given):
    return torch.func.functional_call(model, merge(dict(model.named_parameters()), mask, *given), INPUT)


def test_hooks_do_what_folding_does_and_leave(monkeypatch):
    model = unet()
    mask, before = half(model), model(*INPUT)
    with applied(model, Run(Request(True), mask)) as landed:
        assert str(landed) == "12 of 12" and hooks(model) == 2 * 12
        masked = model(*INPUT)
    assert not torch.allclose(masked, before, atol=0.01)
    assert torch.allclose(masked, folded(model, mask), atol=1e-5)
    assert hooks(model) == 0 and torch.equal(model(*INPUT), before)


def test_strength_zero_has_no_hooks_and_an_error_leaves_none():
    model = unet()
    with applied(model, Run(Request(True, strength=0.0), half(model))):
        assert hooks(model) == 0
    with pytest.raises(KeyError), applied(model, Run(Request(True, strength=0.5), half(model))):
        assert hooks(model) == 2 * 12
        raise KeyError
    assert hooks(model) == 0
    with pytest.raises(MismatchError), applied(model, Run(Request(True), half(unet(width=32)))):
        pass
    assert hooks(model) == 0


def test_a_lora_that_changes_or_restores_weights_meanwhile_is_masked():
    model = unet()
    mask = half(model)
    layer = model.input_blocks[1][1].transformer_blocks[0].ff.net[2]
    original = layer.weight.clone()
    layer.network_weights_backup = original
    with applied(model, Run(Request(True), mask)):
        layer.weight += 0.1
        assert torch.allclose(model(*INPUT), folded(model, mask), atol=1e-5)
        layer.weight.copy_(original)
        assert torch.allclose(model(*INPUT), folded(model, mask), atol=1e-5)


def test_the_fingerprint_is_the_unpatched_models():
    model = unet()
    with applied(model, Run(Request(True), half(model))) as plain:
        pass
    layer = model.input_blocks[1][1].transformer_blocks[0].ff.net[2]
    layer.network_weights_backup = layer.weight.clone()
    layer.weight.mul_(-1)
    with applied(model, Run(Request(True), half(model))) as with_lora:
        pass
    assert plain.base and with_lora.base == plain.base


def test_factors_follow_the_input():
    model, mask = unet().double(), half(unet())
    inputs = tuple(x.double() for x in INPUT)
    with applied(model, Run(Request(True), mask)):
        assert model(*inputs).dtype == torch.float64
        assert model.half()(*(x.half() for x in inputs)).dtype == torch.float16


def test_a_subspace():
    model, learned = unet(), subspace()
    weights = dict(model.named_parameters())
    for name, basis in learned.bases.items():
        weights[f"{name}.weight"] = basis.edit(learned.threshold).at(0.5).weight(weights[f"{name}.weight"])
    expected = torch.func.functional_call(model, weights, INPUT)
    assert not torch.allclose(expected, model(*INPUT), atol=0.01)
    with applied(model, Run(Request(True, strength=0.5), learned)) as landed:
        assert torch.allclose(model(*INPUT), expected, atol=1e-5)
    assert str(landed) == "2 of 2"


def test_switching_off_twice_is_the_same_as_once():
    # gates of 0 and 1 do nothing the second time
    model = unet()
    mask = half(model)
    with applied(model, Run(Request(True), mask)), applied(model, Run(Request(True), mask)):
        masked = model(*INPUT)
    assert torch.allclose(masked, folded(model, mask), atol=1e-5)
