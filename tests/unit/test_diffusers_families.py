"""Every model family on diffusers' own classes: all sites are found, fold exactly, and do something."""

import copy
import re

import diffusers
import pytest
import torch

from tests.unit import diffusers_zoo as zoo
from tests.unit.diffusers_zoo_newer import heads
from uniforget.errors import FamilyError, UniForgetError
from uniforget.hosts.diffusers.apply import find_modules, fold_
from uniforget.mask.gates import gated
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.model.families.schema import KINDS
from uniforget.model.sites import find_sites


class Loaded:
    """A small model, never changed by the tests, and what UniForget finds in it."""

    def __init__(self, name):
        self.name, self.model = name, zoo.small(name)
        self.family, self.sites, self.modules = find_modules(self.model)
        self.before = self.predict()

    def predict(self, model=None):
        return zoo.predict(self.name, model or self.model)

    def change(self, other):
        """Largest difference to the untouched prediction, relative to the size of that."""
        return ((other - self.before).abs().max() / self.before.abs().max()).item()

    def gates(self, scale):
        with gated(self.modules, self.sites, scale):
            return self.predict()

    def mask(self, kinds, seed=0):
        generator = torch.Generator().manual_seed(seed)
        gates = {s.name: torch.rand(s.units, generator=generator) for s in self.sites if s.kind in kinds}
        info = MaskInfo(family=self.family.name, base="", method="test")
        return GateMask(gates, {s.name: s.kind for s in self.sites if s.name in gates}, info)


@pytest.fixture(scope="module", params=zoo.SMALL)
def loaded(request):
    return Loaded(request.param)


def test_every_site_is_found(loaded):
    assert loaded.family.name == zoo.VARIANTS[loaded.name].family
    outline = zoo.outline(loaded.name, loaded.model)
    for kind in KINDS:
        living = [spot for spot in outline[kind] if not spot.dead]
        sites = [s for s in loaded.sites if s.kind == kind]
        assert living and sorted(s.units for s in sites) == sorted(spot.gates for spot in living)
        if kind != "norm":  # those may sit on what reads the norm
            assert {(s.places[0].path, s.units) for s in sites} == {(spot.path, spot.gates) for spot in living}
    assert len({s.name for s in loaded.sites}) == len(loaded.sites)


def test_a_linear_under_another_name_is_noticed(loaded):
    """The claim to know every Linear of every block is not empty: each kind of them is missed when it is called otherwise."""
    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    blocks = [n for n, p in loaded.modules.items() if isinstance(p, torch.nn.Linear) and re.match(r"(?:.*\.)?\d+\.[a-z]", n)]
    for path in {re.sub(r"\d+", "0", n): n for n in blocks}.values():
        parent, _, leaf = path.rpartition(".")
        other = {(f"{parent}.new_{leaf}.weight" if n == f"{path}.weight" else n): s for n, s in shapes.items()}
        with pytest.raises(UniForgetError, match=f"new_{leaf}|lacks|pieces|know this model"):
            find_sites(other)


def test_a_head_is_as_wide_as_the_modules_head(loaded):
    attentions = {path: module for path, module in loaded.modules.items() if heads(module)}
    for site in (s for s in loaded.sites if s.kind == "attn"):
        [place] = site.places
        parent = place.path.rpartition(".")[0]
        owner = next(
            attentions[path] for path in (parent, parent.removesuffix(".to_out"), f"{parent}.attn") if path in attentions
        )
        assert (place.axis, place.start, site.units) == ("in", 0, heads(owner))
        # what the module itself multiplies queries and keys in
        queries = next(m for n in ("to_qkv_mlp_proj", "to_q", "to_query") if (m := getattr(owner, n, None)) is not None)
        assert place.width * heads(owner) == queries.in_features


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids="+".join)
def test_hooks_equal_folding(loaded, kinds):
    mask = loaded.mask(kinds)
    for strength in (0.37, 1.0):
        by_hooks = loaded.gates(mask.factors(strength))
        assert loaded.change(by_hooks) > 1e-3, "the mask must change something"
        folded = copy.deepcopy(loaded.model)
        fold_(folded, mask, strength)
        size = by_hooks.abs().max().clamp(min=1)
        assert (loaded.predict(folded) - by_hooks).abs().max() < 1e-5 * size, strength


def test_strength_zero_is_bit_identical(loaded):
    mask = loaded.mask(KINDS)
    assert not torch.equal(loaded.gates(mask.factors(0.37)), loaded.before)
    assert torch.equal(loaded.gates(mask.factors(0.0)), loaded.before)
    folded = copy.deepcopy(loaded.model)
    fold_(folded, mask, 0.0)
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in folded.state_dict().items())
    assert torch.equal(loaded.predict(), loaded.before), "a hook was left behind"


def test_every_gate_does_something(loaded):
    scale = {s.name: torch.ones(s.units, requires_grad=True) for s in loaded.sites}
    weight = torch.randn(loaded.before.shape, generator=torch.Generator().manual_seed(4))
    with torch.enable_grad(), gated(loaded.modules, loaded.sites, scale):
        (zoo.forward(loaded.name, loaded.model) * weight).sum().backward()
    for site in loaded.sites:
        alive = (scale[site.name].grad != 0).float().mean()
        assert alive > 0.99, f"{site.name}: only {alive:.0%} of its gates do anything"


def test_only_dead_ends_have_no_site(loaded):
    outline = zoo.outline(loaded.name, loaded.model)
    used = {p.path for s in loaded.sites for p in s.places}
    for spot in dict.fromkeys((*outline["ffn"], *outline["attn"])):
        hook = loaded.modules[spot.path].register_forward_pre_hook(lambda module, args: (args[0] * 0, *args[1:]))
        changed = loaded.change(loaded.predict())
        hook.remove()
        assert spot.path in used if changed > 1e-6 else (spot.path not in used and spot.dead and changed == 0), spot


def test_closing_a_site_changes_the_prediction(loaded):
    # the first and the last of a kind; the rest is in the two tests above
    for kind in KINDS:
        sites = [s for s in loaded.sites if s.kind == kind]
        for site in (sites[0], sites[-1]):
            assert loaded.change(loaded.gates({site.name: torch.zeros(site.units)})) > 1e-6, f"{site.name} has no effect"


@pytest.mark.parametrize("name", ["flux_dev", "flux2", "chroma"])
def test_attention_and_neurons_share_the_columns_of_one_linear(name):
    loaded = Loaded(name)
    shared = [s for s in loaded.sites if s.name.endswith(".linear2.mlp")]
    assert len(shared) == 2
    for neurons in shared:
        heads = next(s for s in loaded.sites if s.name == neurons.name.removesuffix(".mlp") + ".attn")
        [one], [other] = heads.places, neurons.places
        assert (one.path, one.start, heads.units * one.width) == (other.path, 0, other.start)
        assert other.start + neurons.units == other.size == loaded.modules[other.path].in_features
        # closing all neurons is what it would be if the activation gave nothing
        parent = other.path.rpartition(".")[0]
        activation = next(m for n, m in loaded.modules.items() if n in (f"{parent}.act_mlp", f"{parent}.mlp_act_fn"))
        hook = activation.register_forward_hook(lambda module, args, output: output * 0)
        silent = loaded.predict()
        hook.remove()
        closed = loaded.gates({neurons.name: torch.zeros(neurons.units)})
        assert loaded.change(silent) > 1e-3 and torch.allclose(closed, silent, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    ["BriaTransformer2DModel", "BriaFiboTransformer2DModel", "LongCatImageTransformer2DModel", "OvisImageTransformer2DModel"],
)
def test_what_only_looks_like_flux_is_refused(kind):
    with torch.device("meta"):
        model = getattr(diffusers, kind)(num_layers=1, num_single_layers=1)
    with pytest.raises(FamilyError, match="does not know this model: found"):
        find_modules(model)
