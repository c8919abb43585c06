"""The benchmark of applying measures what it says; how long anything takes is not tested."""

import json

import pytest
import torch
import uniforget_pack.uniforget.hosts.comfy.apply as host

from bench import apply, common, docs, patching

BLOCK = 1024  # values that are edited at a time, here
SMALL = patching.FLUX_DEV | {
    "hidden_size": 64, "num_heads": 2, "depth": 2, "depth_single_blocks": 3, "axes_dim": [8, 12, 12], "context_in_dim": 32,
    "vec_in_dim": 24,
}  # fmt: skip
CONTRACT = {"ratio_to_lora", "extra_bytes", "largest_layer_bytes"}


@pytest.fixture(scope="module")
def figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patching.host, "BLOCK", BLOCK)
        return patching.measure(SMALL, repeats=2)


def test_figures_are_complete_and_go_into_a_file(figures, tmp_path):
    assert figures.keys() >= CONTRACT
    assert len(figures["seconds_each"]) == len(figures["lora_seconds_each"]) == figures["repeats"] == 2
    assert all(value is None or value >= 0 for value in figures.values() if isinstance(value, int | float))
    common.write_json(tmp_path / "new" / "apply.json", figures)
    assert json.loads((tmp_path / "new" / "apply.json").read_text(encoding="utf-8")) == figures
    assert f"ratio_to_lora {figures['ratio_to_lora']:.3f}" in apply.report(figures)


def test_the_command_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(apply.inside, "load", lambda folder: None)  # this process has ComfyUI already
    monkeypatch.setattr(patching, "FLUX_DEV", SMALL)
    assert apply.main(["--repeats", "1", "--json", str(tmp_path / "apply.json")]) == 0
    found = json.loads((tmp_path / "apply.json").read_text(encoding="utf-8"))
    assert found.keys() >= CONTRACT and found["machine"]["date"] and "ratio_to_lora" in capsys.readouterr().out
    assert "| patch |" in docs.apply(found)


def test_memory_is_counted(figures):
    modulation = 6 * 64 * 64 * 2
    assert figures["largest_layer_bytes"] == modulation
    assert figures["core_temp_bytes"] == 3 * modulation, "an fp32 copy and the bf16 result"
    assert figures["peak_bytes"] == 3 * modulation, "and none of the mask: its blocks are gone before the result is made"
    assert figures["temporary_bytes"] <= 3 * 4 * BLOCK < modulation, "a few rows at a time"
    assert figures["lora_temporary_bytes"] >= 4 * modulation, "the product of its matrices and that product scaled, fp32"
    factors = 4 * (2 * 2 * (256 + 384) + 3 * (320 + 192))
    assert figures["held_bytes"] >= factors


def test_mask_and_lora_patch_the_same_weights_and_leave_the_model_as_it_was(inference_mode):
    model = patching.flux(SMALL)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    masked = patching.attach_mask(model, patching.random_mask(model))
    loaded = patching.attach_lora(model, patching.random_lora(model, list(masked.patches)))
    ffn = {f"double_blocks.{i}.{x}_mlp.2.weight" for i in range(2) for x in ("img", "txt")}
    ffn |= {f"single_blocks.{i}.linear2.weight" for i in range(3)}
    norm = {f"double_blocks.{i}.{x}_mod.lin.{leaf}" for i in range(2) for x in ("img", "txt") for leaf in ("weight", "bias")}
    norm |= {f"single_blocks.{i}.modulation.lin.{leaf}" for i in range(3) for leaf in ("weight", "bias")}
    assert set(masked.patches) == set(loaded.patches) == {host.PREFIX + key for key in ffn | norm}
    weights = patching.Weights()
    for key in masked.patches:
        for arm in (masked, loaded):
            weights.run(arm, key, lambda patch: patch())
    assert not masked.backup and not loaded.backup
    assert all(torch.equal(v, before[k]) for k, v in model.model.state_dict().items())


def test_a_weight_that_is_not_patched_is_noticed():
    model = patching.flux(SMALL)
    masked = patching.attach_mask(model, patching.random_mask(model))
    other = f"{host.PREFIX}img_in.weight"
    with pytest.raises(AssertionError, match="img_in"):
        patching.Weights().run(masked, other, lambda patch: patch())


def test_the_model_is_flux_at_its_real_size():
    model = patching.flux(patching.FLUX_DEV)
    state = model.model.diffusion_model.state_dict()
    assert {v.dtype for v in state.values()} == {torch.bfloat16}
    assert sum(v.numel() for v in state.values()) == 11_901_408_320
    assert sum(v.untyped_storage().nbytes() for v in state.values()) == 2 * len(state), "one value each"
    masked = patching.attach_mask(model, patching.random_mask(model))
    assert len(masked.patches) == 2 * 19 * 3 + 38 * 3


def test_allocations_are_counted_at_their_peak():
    def run():
        temporary = torch.ones(1000)
        return temporary[:10].clone()

    assert common.allocated(run) == (4000 + 40, 40)
