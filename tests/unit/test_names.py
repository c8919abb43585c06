"""Networks that torch has wrapped: masks are keyed by the names that the network was built with."""

import pytest
import torch
from torch import nn

from tests.unit.tiny import TinyModel, random_mask, tiny_transformer
from uniforget.hosts.diffusers.apply import base_fingerprint, find_modules, fold_, layers_of
from uniforget.model.names import eager, modules_of, plain, weights_of


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("_orig_mod.a.weight", "a.weight"),
        ("blocks.0._orig_mod._fsdp_wrapped_module.a.weight", "blocks.0.a.weight"),
        ("my_orig_mod.a", "my_orig_mod.a"),
        ("", ""),
    ],
)
def test_wrappers_are_left_out_of_names(name, wanted):
    assert plain(name) == wanted


@pytest.mark.parametrize("what", ["blocks", "all"])
def test_masks_merge_into_compiled_networks(what):
    network, other = tiny_transformer(), tiny_transformer()
    mask = random_mask(TinyModel(("ffn", "norm", "attn")))
    if what == "all":
        wrapped = torch.compile(network, backend="eager")
    else:
        wrapped = network
        network.transformer_blocks = nn.ModuleList(torch.compile(b, backend="eager") for b in network.transformer_blocks)
    assert modules_of(wrapped).keys() == modules_of(other).keys() and weights_of(wrapped).keys() == weights_of(other).keys()
    assert [site.name for site in find_modules(wrapped)[1]] == [site.name for site in find_modules(other)[1]]
    assert layers_of(wrapped)[1] == layers_of(other)[1] and base_fingerprint(wrapped) == base_fingerprint(other)
    before = {name: weight.clone() for name, weight in weights_of(wrapped).items()}
    fold_(wrapped, mask)
    fold_(other, mask)
    merged, wanted = weights_of(wrapped), weights_of(other)
    assert all(torch.equal(merged[name], weight) for name, weight in wanted.items())
    assert any(not torch.equal(merged[name], before[name]) for name in before)


def test_hooks_are_seen_within_eager_by_what_was_compiled_before():
    torch._dynamo.reset()
    layer = nn.Linear(2, 2)
    run = torch.compile(layer, backend="eager")
    x = torch.ones(1, 2)
    before = run(x)
    with eager():
        handle = layer.register_forward_hook(lambda module, args, output: output * 0)
        assert torch.equal(run(x), torch.zeros(1, 2))
        handle.remove()
        assert torch.equal(run(x), before)
