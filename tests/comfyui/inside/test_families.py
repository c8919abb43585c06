"""Every model family on ComfyUI's own classes: exact folding, right gradients, living sites, real sizes, learning."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from uniforget_pack.uniforget.errors import SettingError
from uniforget_pack.uniforget.hosts.comfy.apply import applied, apply_mask, base_fingerprint, sites_of
from uniforget_pack.uniforget.hosts.comfy.learn import Lesson, differentiable, empty_latent, loaded, plain_kitchen
from uniforget_pack.uniforget.hosts.comfy.learn import _thaw as thaw
from uniforget_pack.uniforget.learn import Settings, learn, memory
from uniforget_pack.uniforget.mask.edit import merge
from uniforget_pack.uniforget.mask.gates import gated
from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo
from uniforget_pack.uniforget.model import families
from uniforget_pack.uniforget.model.families.schema import KINDS
from uniforget_pack.uniforget.model.sites import find_sites

from tests.comfyui.inside import zoo
from tests.unit import diffusers_zoo

# What this file tests on small models, as `python -m uniforget families` lists it.
TESTED_SMALL = ("folding", "gradients", "living sites", "learning")  # and "both namings": tests over diffusers' zoo
CHOICES = [*((kind,) for kind in KINDS), KINDS]


def random_mask(sites, family, kinds=KINDS, seed=0):
    """Soft gates for the sites of `kinds`."""
    generator = torch.Generator().manual_seed(seed)
    gates = {s.name: torch.rand(s.units, generator=generator) for s in sites if s.kind in kinds}
    return GateMask(
        gates, {s.name: s.kind for s in sites if s.name in gates}, MaskInfo(family=family.name, base="", method="test")
    )


def modules(model):
    return dict(model.diffusion_model.named_modules())


def close(a, b, tolerance=1e-5):
    """Whether two predictions agree, relative to their size where that is above 1."""
    return (a - b).abs().max() <= tolerance * max(1.0, a.abs().max())


@pytest.mark.parametrize("name", zoo.SMALL)
def test_family_is_recognised(name):
    family, sites = sites_of(zoo.patcher(name))
    assert family.name == zoo.ARCHITECTURES[name][0]
    assert {s.kind for s in sites} == set(KINDS)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_hooks_equal_folding_equal_patches(name):
    model = zoo.patcher(name)
    family, sites = sites_of(model)
    before = zoo.predict(name, model.model)
    state = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    for kinds in CHOICES:
        mask = random_mask(sites, family, kinds)
        for strength in (0.0, 0.37, 1.0):
            scale = mask.factors(strength)
            with gated(modules(model.model), sites, scale):
                by_hooks = zoo.predict(name, model.model)
            assert torch.equal(by_hooks, before) == (strength == 0), "only strength 0 changes nothing"
            folded = merge(state, mask, strength)
            assert sum(folded[k] is not state[k] for k in state) == 0 or strength > 0
            patched = apply_mask(model, mask, strength)
            patched.patch_model()
            computed = model.model.diffusion_model.state_dict()
            assert all(torch.equal(computed[k], v) for k, v in folded.items()), "patches must equal folding, bit for bit"
            assert close(zoo.predict(name, model.model), by_hooks), (kinds, strength)
            patched.unpatch_model()
    assert all(torch.equal(v, state[k]) for k, v in model.model.diffusion_model.state_dict().items())
    assert torch.equal(zoo.predict(name, model.model), before)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_gradient_equals_finite_differences_and_every_gate_is_alive(name, monkeypatch):
    network = zoo.small(name).diffusion_model.double()
    for module in network.modules():
        if isinstance(getattr(module, "dtype", None), torch.dtype):
            module.dtype = torch.float64
    if hasattr(network, "patch_embedding"):
        network.patch_embedding.float()  # Wan casts its input
    _, sites = find_sites({k: tuple(v.shape) for k, v in network.named_parameters()})
    units = [s.units for s in sites]
    x, sigma = zoo.inputs(name)
    conditions = {k: v.double() if torch.is_tensor(v) else v for k, v in zoo.conditions(name).items()}
    conditions["context"] = conditions.pop("c_crossattn")
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(zoo.predict(name, zoo.small(name)).shape, generator=generator)

    def loss(gates):
        scale = dict(zip((s.name for s in sites), gates.split(units), strict=True))
        with gated(dict(network.named_modules()), sites, scale):
            return (network(x.double(), sigma.double(), transformer_options={}, **conditions) * weight).sum()

    with torch.inference_mode(False), torch.enable_grad():
        # Ordinary tensors: those made under inference mode cannot be differentiated through.
        x, sigma, weight = x.clone(), sigma.clone(), weight.clone()
        conditions = {k: v.clone() if torch.is_tensor(v) else v for k, v in conditions.items()}
        thaw(network)
        gates = (0.3 + 0.6 * torch.rand(sum(units), generator=generator, dtype=torch.float64)).clone().requires_grad_()
        with differentiable():
            value = loss(gates)
            (gradient,) = torch.autograd.grad(value, gates)
        # The fused operations of newer versions, used while nothing trains, refuse float64.
        monkeypatch.setattr(comfy.model_management, "in_training", True, raising=False)
        with torch.no_grad(), plain_kitchen():
            assert value == pytest.approx(loss(gates).item(), rel=1e-9), "what makes it differentiable must change nothing"
            h = 0.02  # large, because parts of some models compute in float32; the five-point rule is exact to h^4
            for site, piece in zip(sites, gradient.split(units), strict=True):
                direction = torch.zeros_like(gates)
                own = slice(first := sum(units[: sites.index(site)]), first + site.units)
                direction[own] = torch.randn(site.units, generator=generator, dtype=torch.float64)
                at = [loss(gates + k * h * direction) for k in (-2, -1, 1, 2)]
                expected = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
                found = (gradient * direction).sum()
                scale = (piece.abs() * direction[own].abs()).sum()
                assert abs(expected - found) < 2e-3 * scale, f"{site.name}: {found} instead of {expected}"
                alive = (piece != 0).double().mean()
                assert alive > 0.99, f"{site.name}: only {alive:.0%} of its gates do anything"


@pytest.mark.parametrize("name", zoo.SMALL)
def test_zeroing_any_site_changes_the_prediction(name):
    model = zoo.small(name)
    _, sites = find_sites({k: tuple(v.shape) for k, v in model.diffusion_model.named_parameters()})
    before = zoo.predict(name, model)
    for site in sites:
        with gated(modules(model), sites, {site.name: torch.zeros(site.units)}):
            assert (zoo.predict(name, model) - before).abs().max() > 1e-5, f"{site.name} has no effect"


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_counts_at_real_size(name):
    network = zoo.real(name)
    family, sites = find_sites({k: tuple(v.shape) for k, v in network.named_parameters()})
    counts = {k: {"sites": len(c), "gates": sum(s.units for s in c)} for k in KINDS if (c := [s for s in sites if s.kind == k])}
    listed = families.sizes()[name]
    assert {"family": family.name, **counts} == {k: v for k, v in listed.items() if k not in ("title", "tested", "like")}, counts
    both = ["both namings"] if name in diffusers_zoo.SMALL else []
    assert listed["tested"] == [*(TESTED_SMALL if name in zoo.SMALL else ()), *both, "real size"]
    found = modules_of(network)
    for site in sites:
        module = found[site.places[0].path]
        if site.kind == "attn":
            owner = found[site.places[0].path.rpartition(".")[0].removesuffix(".to_out")]
            heads = next(getattr(owner, n) for n in ("num_heads", "heads", "n_local_heads", "n_heads") if hasattr(owner, n))
            assert site.units == heads, site.name
        elif site.kind == "ffn":
            assert site.units <= module.in_features


def modules_of(network):
    return dict(network.named_modules())


def conditioning(name, seed):
    """What a text encoder would hand out for one prompt."""
    conditions = zoo.conditions(name, batch=1, seed=seed)
    extra = {"guidance": 3.5, "pooled_output": torch.zeros(1, 8)}
    if "y" in conditions:
        family, _, config, _ = zoo.ARCHITECTURES[name]
        width = (
            config["adm_in_channels"] - 256 * {"sdxl": 6, "sdxl_refiner": 5}.get(name, 6)
            if family == "sdxl"
            else conditions["y"].shape[1]
        )
        extra["pooled_output"] = conditions["y"][:, :width]
    if "encoder_hidden_states_t5" in conditions:
        extra |= {
            "conditioning_mt5xl": conditions["encoder_hidden_states_t5"],
            "attention_mask": conditions["text_embedding_mask"],
            "attention_mask_mt5xl": conditions["text_embedding_mask_t5"],
        }
    if "encoder_hidden_states_llama3" in conditions:
        extra["conditioning_llama3"] = conditions["encoder_hidden_states_llama3"]
    if "num_tokens" in conditions:
        extra["attention_mask"] = torch.ones(1, conditions["num_tokens"], dtype=torch.long)
    return [[conditions["c_crossattn"], extra]]


@pytest.mark.parametrize("name", zoo.SMALL)
def test_the_learn_node_makes_latents_that_fit(name):
    model = zoo.patcher(name)
    form = model.get_model_object("latent_format")
    x, _ = zoo.inputs(name)
    # older versions of ComfyUI do not say it
    told = {"chroma_radiance": 1, "hunyuan_image": 32}.get(zoo.ARCHITECTURES[name][0], 8)
    shrink = getattr(form, "spacial_downscale_ratio", None) or told
    pixels = x.shape[-1] * shrink
    assert empty_latent(model, pixels, pixels).shape[1:] == x.shape[1:]
    if shrink == 1:
        return  # every size fits
    with pytest.raises(SettingError, match=f"multiples of.*{pixels + 4}"):
        empty_latent(model, pixels, pixels + 4)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_learns_a_mask_and_applies_it(name):
    model = zoo.patcher(name)
    family, sites = sites_of(model)
    before = zoo.predict(name, model.model)
    info = MaskInfo(family=family.name, base=base_fingerprint(model))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    settings = Settings(beta=50, steps=3, learning_rate=3.0, batch=2, cfg=2.0, noises=1)
    latent = torch.zeros_like(zoo.inputs(name)[0][:1])
    positive = [conditioning(name, seed) for seed in (1, 2)]
    lesson = Lesson(positive, conditioning(name, 3), latent, sigmas)
    result = loaded(model, sites, lesson, settings.batch, lambda found: learn(found, settings, info))
    assert all(p.reconstruction > 0 for p in result.curve)
    assert list(result.mask.gates) == [s.name for s in sites] and 0 < result.mask.off_share() < 1
    assert torch.equal(zoo.predict(name, model.model), before)
    masked = apply_mask(model, result.mask)
    assert applied(masked)[0]["mask"] == result.mask.digest()
    comfy.model_management.load_models_gpu([masked])
    assert not torch.equal(zoo.predict(name, model.model), before)


@pytest.mark.parametrize("name", zoo.SMALL)
def test_recomputing_blocks_gives_the_same_gradient(name):
    """FLUX-type blocks change their input in place: re-computing them naively runs and is wrong."""
    model = zoo.small(name)
    x, sigma = zoo.inputs(name)
    conditions = zoo.conditions(name)
    with torch.inference_mode(False), torch.enable_grad():
        thaw(model)
        x, sigma = x.clone(), sigma.clone()
        conditions = {k: v.clone() if torch.is_tensor(v) else v for k, v in conditions.items()}
        _, sites = find_sites({k: tuple(v.shape) for k, v in model.diffusion_model.named_parameters()})
        generator = torch.Generator().manual_seed(5)
        gates = {s.name: (0.3 + 0.6 * torch.rand(s.units, generator=generator)).requires_grad_() for s in sites}
        found = []
        for blocks in ({}, memory.blocks_in(modules(model), sites)):
            with gated(modules(model), sites, gates), differentiable(), memory.checkpointed(blocks):
                loss = model.apply_model(x, sigma, **conditions, transformer_options={}).square().sum()
                found.append(torch.cat(torch.autograd.grad(loss, list(gates.values()))))
        assert blocks and found[0].abs().max() > 0
        assert (found[1] - found[0]).abs().max() < 1e-4 * found[0].abs().max()
