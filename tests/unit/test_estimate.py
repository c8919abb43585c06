"""What learning is estimated to need, against what is measured and counted by hand."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from bench.common import allocated
from bench.learn import flux
from tests.unit import diffusers_zoo as zoo
from uniforget.cli import estimate as engine
from uniforget.cli.app import app
from uniforget.errors import SettingError
from uniforget.hosts.diffusers.apply import find_modules
from uniforget.learn import Settings, memory
from uniforget.learn.footprint import footprint, fused_attention, on_meta
from uniforget.mask.gates import gated


@pytest.fixture(scope="module")
def pair():
    """The benchmark's FLUX-type model, real and on the meta device, each with the sites and a way to run it."""
    real = flux()
    with on_meta(torch.float32):
        shapes = type(real.network)(**dict(real.network.config)).eval().requires_grad_(False)
    _, _, modules = find_modules(shapes)

    def on(device, network):
        given = {n: v[:1].to(device) for n, v in real.conditions.items()}
        ids = [i.to(device) for i in real.ids]
        at = torch.ones(1, device=device)
        return lambda x: network(
            hidden_states=x, timestep=at, img_ids=ids[0], txt_ids=ids[1], return_dict=False, **given
        )[0]  # fmt: skip

    x = torch.empty(1, *real.shape, device="meta")
    return real, on("cpu", real.network), footprint(shapes, modules, real.sites, x, on("meta", shapes))


@pytest.mark.parametrize("mode", ["keep", "block"])
def test_bytes_are_those_of_a_real_run(pair, mode):
    real, run, counted = pair
    x = torch.randn(1, *real.shape).requires_grad_()
    factors = {s.name: torch.ones(s.units, requires_grad=True) for s in real.sites}
    blocks = memory.blocks_in(real.modules, real.sites) if mode == "block" else {}

    def both():
        y = run(x)
        torch.autograd.grad(y, [*factors.values(), x], torch.ones_like(y), allow_unused=True)

    with gated(real.modules, real.sites, factors), memory.checkpointed(blocks):
        both()
        measured = allocated(both)[0]
    assert (counted.block_bytes if blocks else counted.peak_bytes) == pytest.approx(measured, rel=0.1)


def test_bytes_without_a_gradient(pair):
    real, run, counted = pair
    x = torch.randn(1, *real.shape)
    with torch.no_grad():
        run(x)
        measured = allocated(lambda: run(x))[0]
    # Counted from Python, which holds an operation's inputs a moment longer than it must.
    assert 0.95 < counted.forward_bytes / measured < 1.35


def test_flops_are_those_of_the_matrix_products(pair):
    real, run, counted = pair
    flops = 0

    def linear(module, args, out):
        nonlocal flops
        flops += 2 * out.numel() * module.in_features

    handles = [m.register_forward_hook(linear) for m in real.network.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        run(torch.randn(1, *real.shape))
    for handle in handles:
        handle.remove()
    tokens, width, blocks = 256 + 64, 512, 6
    assert counted.forward_flops == flops + blocks * 4 * tokens**2 * width
    # Only what lies between the loss and a gate is differentiated, and no weights.
    assert 0.8 < counted.backward_flops / counted.forward_flops < 1.3


def test_attention_is_put_back():
    before = nn.functional.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), fused_attention():
        assert nn.functional.scaled_dot_product_attention is not before
        raise ZeroDivisionError
    assert nn.functional.scaled_dot_product_attention is before


@pytest.mark.parametrize("name, variant", [("sd1", "sd1"), ("sdxl", "sdxl"), ("flux", "flux_dev")])
def test_models_are_the_published_ones(name, variant):
    made = engine.MODELS[name].build()
    shapes = lambda m: {n: tuple(p.shape) for n, p in m.named_parameters()}  # noqa: E731
    assert shapes(made) == shapes(zoo.real(variant))


@pytest.fixture(scope="module")
def sd1():
    return engine.Estimator("sd1", 512, 512)


def test_more_memory_never_takes_longer_or_fits_less(sd1):
    cards = [engine.Card("a card", size, 30.0) for size in (1.5, 4, 6, 8, 12, 16, 24, 80)]
    for objective in ("stepwise", "trajectory", "scores"):
        found = [sd1.ask(card, Settings(objective=objective, cfg=3.0), 8) for card in cards]
        assert [e.fits for e in found] == sorted(e.fits for e in found) and found[-1].fits
        fitting = [e for e in found if e.fits]
        assert [e.batch for e in fitting] == sorted(e.batch for e in fitting)
        assert all(e.vram < e.card_memory - engine.RESERVED for e in fitting)
        assert found[-1].weights == "bf16" and found[-1].batch == 16
    trajectory, stepwise, scores = (
        sd1.ask(cards[-1], Settings(objective=o, cfg=3.0), 8) for o in ("trajectory", "stepwise", "scores")
    )
    assert trajectory.minutes - trajectory.teacher_minutes > 7 * (stepwise.minutes - stepwise.teacher_minutes)
    assert scores.minutes < stepwise.minutes / 3


def test_the_table_in_the_docs(sd1):
    cards = engine.cards("8,12,16,24", None)
    table = engine.markdown([sd1.ask(card, Settings(cfg=3.0), 8) for card in cards])
    text = (Path(__file__).parents[2] / "docs" / "learning.md").read_text(encoding="utf-8")
    for line in table.splitlines():
        assert line in text, "renew the table: python -m uniforget estimate --markdown"


def test_command(monkeypatch, sd1):
    monkeypatch.setattr(engine, "Estimator", lambda name, width, height: sd1)
    run = CliRunner().invoke(app, ["estimate", "sd1", "--vram", "8", "--json"])
    (found,) = json.loads(run.stdout)
    assert found["model"] == "sd1" and found["card_memory"] == 8 and found["minutes"] > 0 and found["fits"]
    table = CliRunner().invoke(app, ["estimate", "sd1", "--vram", "8", "--markdown"]).stdout
    assert "| Stable Diffusion 1.5 | RTX 4060 8 GB |" in table
    faster = json.loads(CliRunner().invoke(app, ["estimate", "sd1", "--vram", "8", "--tflops", "60.4", "--json"]).stdout)[0]
    assert faster["minutes"] == pytest.approx(found["minutes"] / 2)


@pytest.mark.parametrize(
    "arguments, message", [(["other"], "expected one of sd1, sdxl, flux"), (["sd1", "--vram", "8,x"], "8,12,16,24")]
)
def test_wrong_words_are_named(arguments, message):
    error = CliRunner().invoke(app, ["estimate", *arguments]).exception
    assert isinstance(error, SettingError) and message in str(error)
