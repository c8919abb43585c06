"""Forge's patches: what they are called, when they are made, and what they do to weights."""

import sys

import pytest
import torch
from torch import nn

from tests.unit.webui_host import PACKAGE, Host, half, subspace, unet
from uniforget.mask.edit import merge
from uniforget.mask.subspace import SubspaceMask
from uniforget.model.names import plain


class Packed(nn.Parameter):
    """A weight in a format of its own, whose bytes have another shape than what it computes with."""

    @property
    def shape(self):
        return torch.Size((16, 64))


@pytest.fixture
def host(monkeypatch, tmp_path):
    yield Host(monkeypatch, tmp_path, True)
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


@pytest.fixture
def forge(host):
    return __import__(f"{PACKAGE}.hosts.webui.forge", fromlist=["forge"])


def run(forge, learned, **request):
    """A Run of the extension's own package, with `learned` made over into its classes."""
    maskset = sys.modules[f"{PACKAGE}.mask.info"]
    info = maskset.MaskInfo(learned.info.family, learned.info.base)
    if isinstance(learned, SubspaceMask):
        own = sys.modules[f"{PACKAGE}.mask.subspace"]
        bases = {n: own.Basis(b.vectors, b.energy, b.first, b.missed) for n, b in learned.bases.items()}
        made = own.SubspaceMask(bases, learned.shared, learned.kinds, learned.threshold, info)
    else:
        made = maskset.GateMask(learned.gates, learned.kinds, info)
    return forge.Run(sys.modules[f"{PACKAGE}.hosts.webui"].Request(enabled=True, **request), made)


@pytest.fixture
def patcher(host):
    return host.shared.sd_model.forge_objects.unet


def patched(host, clone):
    return {name.removeprefix("diffusion_model."): weight for name, weight in clone.weights(host.calculators).items()}


def test_patched_weights_are_merged_weights(host, forge, patcher):
    mask, before = half(host.network()), {n: w.clone() for n, w in patcher.model.named_parameters()}
    clone, landed = forge.apply(patcher, run(forge, mask, strength=0.5))
    expected = merge(dict(host.network().named_parameters()), mask, 0.5)
    found = patched(host, clone)
    assert any(not torch.equal(found[name], weight) for name, weight in host.network().named_parameters())
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in expected.items())
    assert (landed.sites, str(landed)) == (12, "12 of 12")
    assert not patcher.lora_patches and all(torch.equal(before[n], w) for n, w in patcher.model.named_parameters())


@pytest.mark.parametrize("what", ["blocks", "all"])
def test_compiled_models_are_patched_under_the_names_that_they_have(host, forge, patcher, what):
    network = host.network()
    mask, expected = half(network), merge(dict(network.named_parameters()), half(network), 1.0)
    plain_base = forge.apply(patcher, run(forge, mask))[1].base
    if what == "all":
        patcher.model.diffusion_model = torch.compile(network, backend="eager")
    else:
        for blocks in (network.input_blocks[1][1].transformer_blocks, network.output_blocks[1][1].transformer_blocks):
            blocks[0] = torch.compile(blocks[0], backend="eager")
    clone, landed = forge.apply(patcher, run(forge, mask))
    found = {plain(name): weight for name, weight in patched(host, clone).items()}
    assert any("_orig_mod" in key for keys in clone.lora_patches.values() for key in keys)
    assert all(torch.allclose(found[name], weight, atol=1e-6) for name, weight in expected.items())
    assert (str(landed), landed.base) == ("12 of 12", plain_base) and plain_base


def test_patches_are_called_by_what_they_do(host, forge, patcher):
    mask, other = half(host.network()), half(host.network(), seed=4)
    names = [
        forge.applied(forge.apply(patcher, run(forge, learned, **request))[0])
        for learned, request in [
            *((mask, {}), (mask, {"mask": "renamed"}), (other, {}), (mask, {"strength": 0.5})),
            *((mask, {"strength_ffn": 0.5}), (mask, {"strength_norm": 0.5}), (mask, {"strength_attn": 0.5})),
        ]
    ]
    assert names[0] == names[1] and len(names[0]) == 1
    assert len({tuple(n) for n in names}) == len(names) - 1
    assert forge.applied(forge.apply(patcher, run(forge, mask, strength=0.0))[0]) == []
    once, _ = forge.apply(patcher, run(forge, mask))
    twice, _ = forge.apply(once, run(forge, mask))  # hires fix calls scripts twice
    assert twice.lora_patches.keys() == once.lora_patches.keys()


def test_loras_before_a_mask_are_masked_in_either_mode(host, forge, patcher):
    path = "input_blocks.1.1.transformer_blocks.0.ff.net.2"
    key = f"diffusion_model.{path}.weight"
    host.calculators["diff"] = lambda weight, strength, value: weight + strength * value[0]
    mask, change = half(host.network()), torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    gates = mask.gates[path]
    for online in (False, True):
        unet_with_lora = patcher.clone()
        unet_with_lora.add_patches(filename="style", patches={key: ("diff", [change])}, online_mode=online)
        clone, _ = forge.apply(unet_with_lora, run(forge, mask))
        weight = host.network().get_parameter(f"{path}.weight")
        assert torch.allclose(patched(host, clone)[f"{path}.weight"], (weight + change) * gates, atol=1e-6)
        modes = {mode for (name, _, _, mode), keys in clone.lora_patches.items() if name != "style" for k in keys if k == key}
        assert modes == {online}


def test_quantized_weights_are_patched_at_every_use_and_norms_never(host, forge, patcher):
    block = host.network().input_blocks[1][1].transformer_blocks[0]
    block.ff.net[2].weight = nn.Parameter(block.ff.net[2].weight.to(torch.float8_e4m3fn), requires_grad=False)
    packed = Packed(torch.zeros(16 * 64 // 2, 1), requires_grad=False)
    host.network().output_blocks[1][1].transformer_blocks[0].ff.net[2].weight = packed
    clone, landed = forge.apply(patcher, run(forge, half(host.network())))
    online = {key for (*_, mode), keys in clone.lora_patches.items() if mode for key in keys}
    assert online == {f"diffusion_model.{b}_blocks.1.1.transformer_blocks.0.ff.net.2.weight" for b in ("input", "output")}
    assert str(landed) == "12 of 12" and landed.base == ""  # a format whose values cannot be compared


def test_four_bit_weights_have_the_shape_that_they_compute_with(host, forge, patcher):
    layer = host.network().input_blocks[1][1].transformer_blocks[0].ff.net[2]
    layer.weight = nn.Parameter(torch.zeros(512, 1, dtype=torch.uint8), requires_grad=False)
    layer.weight.quant_state = type("State", (), {"shape": torch.Size((16, 64))})()
    clone, _ = forge.apply(patcher, run(forge, half(unet())))
    [key] = [k for (*_, mode), keys in clone.lora_patches.items() if mode for k in keys]
    [[_, (kind, [_, columns, rows]), *_]] = clone.lora_patches[next(k for k in clone.lora_patches if k[-1])][key]
    assert (kind, columns.shape, rows) == ("uniforget", (64,), None)


def test_a_patch_that_is_not_taken_is_an_error(host, forge, patcher, monkeypatch):
    monkeypatch.setattr(type(patcher), "add_patches", lambda self, **given: set(list(given["patches"])[1:]))
    with pytest.raises(forge.MismatchError, match=r"Forge took \d+ of the mask's \d+ weight patches; refused: diffusion_model"):
        forge.apply(patcher, run(forge, half(host.network())))


def test_a_subspace(host, forge, patcher):
    learned = subspace()
    clone, landed = forge.apply(patcher, run(forge, learned, strength=0.5, strength_attn=0.0))
    found = patched(host, clone)
    for name, weight in host.network().named_parameters():
        layer = name.removesuffix(".weight")
        expected = weight
        if learned.kinds.get(layer) == "ffn":
            expected = learned.bases[layer].edit(learned.threshold).at(0.5).weight(weight)
            assert not torch.equal(expected, weight)
        assert torch.allclose(found[name], expected, atol=1e-6)
    assert str(landed) == "2 of 2" and forge.applied(clone)
