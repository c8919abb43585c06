"""Recovery: a LoRA that brings the masked model's predictions back to the original's, and never through what is off."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.test_cli import folder, here, learning
from tests.unit.tiny import TinyModel, random_mask
from uniforget.checkpoint import lora as lorafile
from uniforget.errors import LearnError, MismatchError, ModelFileError, SettingError
from uniforget.hosts.diffusers.apply import fold_, layers_of, lora_, project_
from uniforget.learn import Session, Settings
from uniforget.learn.recover import one_of_each
from uniforget.learn.recover import recover as engine
from uniforget.mask.info import MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask, effective

__all__ = ["folder"]
SETTINGS = Settings(steps=30, batch=4, noises=1, cfg=2.0, learning_rate=0.02)


def recover(model, mask, settings, rank=16, report=lambda p: None, folder=None, subspace=None, about=""):
    return engine(model, mask, settings, rank, subspace, about, Session(report, folder))


def small():
    model = TinyModel(prompts=4, steps=2)
    model.layers = layers_of(model.transformer)[1]
    return model


@pytest.fixture(scope="module")
def mask():
    return random_mask(small())


@pytest.fixture(scope="module")
def lora(mask):
    return recover(small(), mask, SETTINGS, rank=4)


def predict(model):
    x = model.initial(3, torch.Generator().manual_seed(7))
    with torch.no_grad():
        return model.denoise(x, model.sigmas[:1].expand(3), [0, 1, -1])


def test_it_brings_predictions_back(lora, mask):
    original, masked, recovered = small(), small(), small()
    fold_(masked.transformer, mask)
    fold_(recovered.transformer, mask)
    lora_(recovered.transformer, lora)
    wanted = predict(original)
    before, after = ((predict(m) - wanted).square().mean() for m in (masked, recovered))
    assert after < 0.5 * before
    assert lora.curve[-1].reconstruction < 0.6 * lora.curve[0].reconstruction
    assert lora.rank == 4 and lora.info.extra["recovered"] == mask.digest()


def test_it_reads_nothing_that_is_off(lora, mask):
    """So applied before the mask or after it, it is the same, and no neuron comes back."""
    for name, gates in mask.gates.items():
        if mask.kinds[name] == "ffn":
            assert not lora.down[name][:, gates == 0].any() and lora.down[name][:, gates == 1].any()
    first, second = small(), small()
    lora_(first.transformer, lora)
    fold_(first.transformer, mask)
    fold_(second.transformer, mask)
    lora_(second.transformer, lora)
    for name in ("transformer_blocks.0.ff.net.2.weight", "transformer_blocks.1.attn.to_q.weight"):
        torch.testing.assert_close(first.transformer.state_dict()[name], second.transformer.state_dict()[name])


def test_the_hooks_are_what_is_saved(lora, mask, tmp_path):
    """The loss of the last update is about that of the folded model: nothing is lost on the way into the file."""
    path = tmp_path / "lora.safetensors"
    lorafile.save(lora, path)
    state = load_file(path)
    name = "joint_blocks.0.x_block.attn.qkv"
    key = "lora_unet_" + name.replace(".", "_")
    assert state[f"{key}.alpha"] == 4 and state[f"{key}.lora_down.weight"].shape == (4, 128)
    torch.testing.assert_close(state[f"{key}.lora_up.weight"].float(), lora.up[name], atol=1e-3, rtol=1e-3)
    assert {k.rpartition(".lora")[0] for k in state if ".lora_up" in k} == {"lora_unet_" + n.replace(".", "_") for n in lora.down}


def test_the_model_and_the_random_state_stay_as_they_were(mask):
    model = small()
    before, state = copy.deepcopy(model.transformer.state_dict()), torch.get_rng_state()
    again = recover(model, mask, Settings(**vars(SETTINGS) | {"steps": 2}), rank=2)
    assert all(torch.equal(v, before[k]) for k, v in model.transformer.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules.values())
    other = recover(small(), mask, Settings(**vars(SETTINGS) | {"steps": 2}), rank=2)
    assert all(torch.equal(v, other.up[k]) for k, v in again.up.items()), "a seed gives the same LoRA twice"


class Cancelled(Exception):
    pass


@pytest.mark.parametrize("memory", ["keep", "block"])
def test_going_on_gives_the_very_same_lora(mask, tmp_path, memory):
    settings = Settings(**vars(SETTINGS) | {"steps": 6, "memory": memory})
    wanted = recover(small(), mask, settings, rank=2)

    def report(progress):
        if progress.stage == "learning" and progress.step == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        recover(small(), mask, settings, 2, report, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    seen = []
    found = recover(small(), mask, settings, 2, lambda p: seen.append(p.step) if p.stage == "learning" else None, tmp_path)
    assert seen == [4, 5, 6] and not list(tmp_path.iterdir())
    assert all(torch.equal(v, wanted.down[k]) and torch.equal(found.up[k], wanted.up[k]) for k, v in found.down.items())


def test_block_memory_gives_the_same_lora(mask):
    found = [recover(small(), mask, Settings(**vars(SETTINGS) | {"steps": 3, "memory": m}), 2) for m in ("keep", "block")]
    for name, up in found[0].up.items():
        torch.testing.assert_close(up, found[1].up[name], atol=1e-5, rtol=1e-3)


def test_errors_say_what_to_do(mask, lora, tmp_path):
    model = small()
    model.layers = []
    with pytest.raises(LearnError, match="nothing that a LoRA could change"):
        recover(model, mask, SETTINGS)
    with pytest.raises(LearnError, match="at least 1"):
        recover(small(), mask, SETTINGS, 0)
    with pytest.raises(LearnError, match="not a number at step 2"):
        recover(small(), mask, Settings(**vars(SETTINGS) | {"learning_rate": 1e30}))
    with pytest.raises(SettingError, match="ends in .safetensors"):
        lorafile.save(lora, tmp_path / "lora.pt")
    with pytest.raises(ModelFileError, match="could not be saved"):
        lorafile.save(lora, tmp_path / "no" / "lora.safetensors")
    other = small()
    del other.transformer.transformer_blocks[1]
    with pytest.raises(MismatchError):
        lora_(other.transformer, lora)


def test_the_command_line_trains_on_a_pipeline(folder, tmp_path):
    mask, prompts = tmp_path / "mask.safetensors", tmp_path / "prompts.txt"
    done = here(*learning(folder, mask))
    assert done.returncode == 0, done.stderr
    small = (
        "--prompts",
        str(prompts),
        "--dtype",
        "fp32",
        "--steps",
        "10",
        "--batch",
        "8",
        "--sampling-steps",
        "2",
        "--width",
        "64",
        "--height",
        "64",
    )
    out = tmp_path / "lora.safetensors"
    told = here("recover", str(folder), str(mask), "-o", str(out), "--rank", "4", *small, "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["rank"] == 4 and found["loss_last"] < found["loss_first"]
    names = {k.partition(".")[0] for k in load_file(out)}
    assert any(n.endswith("transformer_blocks_0_attn2_to_k") for n in names) and all(n.startswith("lora_unet_") for n in names)
    wrong = here("recover", str(folder), str(mask), "-o", str(tmp_path / "lora.pt"), *small)
    assert wrong.returncode == 1 and ".safetensors" in wrong.stderr


def random_subspace(model):
    """Random directions for every layer, the last tenth removed."""
    generator = torch.Generator().manual_seed(2)
    bases = {}
    for layer in model.layers:
        vectors = torch.linalg.qr(torch.randn(layer.width, layer.width, generator=generator))[0]
        energy = torch.zeros(layer.width)
        energy[: layer.width * 9 // 10] = 1 / (layer.width * 9 // 10)
        bases[layer.name] = Basis(vectors.contiguous(), energy)
    info = MaskInfo(family="sd3", base="", method="subspace")
    return SubspaceMask(bases, {n: n for n in bases}, {x.name: x.kind for x in model.layers}, 1e-6, info)


@pytest.mark.parametrize("with_mask", [True, False])
def test_through_a_subspace(mask, with_mask):
    """Learned through it, and unable to read what it removes; loaded before or behind it, the LoRA is the same."""
    original = small()
    found = random_subspace(original)
    gates = mask if with_mask else None
    lora = recover(small(), gates, SETTINGS, rank=4, subspace=found)
    edited, before, behind = small(), small(), small()

    def edit(model):
        if gates:
            fold_(model.transformer, gates)
        project_(model.transformer, found)

    edit(edited)
    edit(behind)
    lora_(behind.transformer, lora)
    lora_(before.transformer, lora)
    edit(before)
    wanted = predict(original)
    assert (predict(behind) - wanted).square().mean() < 0.7 * (predict(edited) - wanted).square().mean()
    name = "joint_blocks.0.x_block.mlp.fc1"
    basis, complement, _ = effective(found)[name]
    assert not complement and (lora.down[name] @ basis).abs().max() < 1e-4 * lora.down[name].abs().max()
    for key in ("transformer_blocks.0.ff.net.0.proj.weight", "transformer_blocks.1.attn.to_q.weight"):
        torch.testing.assert_close(
            before.transformer.state_dict()[key], behind.transformer.state_dict()[key], atol=1e-5, rtol=1e-4
        )
    # The loss it was trained on is that of the edited model: hooks and folding agree.
    if with_mask:
        first = recover(
            small(), gates, Settings(**vars(SETTINGS) | {"steps": 1, "learning_rate": 1e-12}), 1, subspace=found
        ).curve[0]
        plain = recover(small(), gates, Settings(**vars(SETTINGS) | {"steps": 1, "learning_rate": 1e-12}), 1).curve[0]
        assert first.reconstruction > plain.reconstruction


def test_one_of_each(mask):
    found = random_subspace(small())
    assert one_of_each([found, mask]) == (mask, found) and one_of_each([mask]) == (mask, None)
    for wrong in ([], [mask, mask], [found, found]):
        with pytest.raises(LearnError, match="one of each"):
            one_of_each(wrong)
    with pytest.raises(LearnError, match="neither a mask nor a subspace"):
        recover(small(), None, SETTINGS)


def test_under_autocast(mask):
    """As on a GPU: whatever dtype the model runs in, the LoRA is float32, and what is off stays unread."""
    found = random_subspace(small())
    with torch.autocast("cpu", torch.bfloat16):
        lora = recover(small(), mask, Settings(**vars(SETTINGS) | {"steps": 2}), 2, subspace=found)
    name = "joint_blocks.0.x_block.mlp.fc1"
    basis, _, _ = effective(found)[name]
    assert lora.down[name].dtype == torch.float32 and (lora.down[name] @ basis).abs().max() < 1e-4 * lora.down[name].abs().max()
    complements = effective(found.at(0.5))
    assert all(complement for _, complement, _ in complements.values())
    with torch.autocast("cpu", torch.bfloat16):
        recover(small(), mask, Settings(**vars(SETTINGS) | {"steps": 2}), 2, subspace=found.at(0.5))


def test_other_prompts_do_not_go_on_with_this_run(mask, tmp_path):
    settings = Settings(**vars(SETTINGS) | {"steps": 4})

    def report(progress):
        if progress.stage == "learning" and progress.step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        recover(small(), mask, settings, 2, report, tmp_path, about="these prompts")
    seen = []
    note = lambda p: seen.append(p.step) if p.stage == "learning" else None  # noqa: E731
    recover(small(), mask, settings, 2, note, tmp_path, about="other prompts")
    assert seen == [1, 2, 3, 4]
    recover(small(), mask, settings, 2, note, tmp_path, about="these prompts")
    assert seen[4:] == [3, 4]
