"""Learning inside real ComfyUI: it works under inference mode, can be cancelled, and leaves nothing behind."""

from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import pytest
import torch
from uniforget_pack.nodes import learn as node
from uniforget_pack.nodes.learn import LearnMask
from uniforget_pack.nodes.progress import LOOKING
from uniforget_pack.testbed import model as tb
from uniforget_pack.uniforget import config
from uniforget_pack.uniforget.errors import SettingError
from uniforget_pack.uniforget.hosts.comfy import learn as host
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask
from uniforget_pack.uniforget.learn import Settings
from uniforget_pack.uniforget.learn.spill import Spill
from uniforget_pack.uniforget.mask import file as maskfile

PROMPTS = "soft cat top left on blue\n# a comment\n\nsoft frog top right on green\nsoft cat top left on blue\nphoto of coffee"


def learn(demo, **changes):
    values = {name: p.default for name, p in config.LEARN.items()}
    small = {"prompts": PROMPTS, "steps": 6, "batch": 4, "width": 96, "height": 96, "sampling_steps": 3, "learning_rate": 2.0}
    return LearnMask.execute(demo.model, demo.clip, **{**values, **small, "preset": "custom", "beta": 50.0, **changes}).args


@pytest.mark.parametrize("objective", ["stepwise", "trajectory"])
def test_learns_a_mask_and_leaves_the_model_as_it_was(demo, objective):
    before = demo.sample(demo.model)
    state = {k: v.clone() for k, v in demo.model.model.state_dict().items()}
    mask, curve, table = learn(demo, objective=objective)
    assert mask.hard and 0 < mask.off_share() < 1
    assert mask.info.method == objective and mask.info.family == "sd3" and mask.info.steps == 6
    assert curve.shape[0] == 1 and curve.shape[-1] == 3 and curve.min() >= 0 and curve.max() <= 1 and curve.std() > 0.05
    assert (
        table.splitlines()[0] == "step,reconstruction,off,off_ffn,off_norm,loss_soft,loss_hard" and len(table.splitlines()) == 7
    )
    assert all(torch.equal(state[k], v) for k, v in demo.model.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in demo.model.model.modules())
    assert torch.equal(demo.sample(demo.model), before)
    assert not torch.equal(demo.sample(apply_mask(demo.model, mask)), before)


def test_scores_need_no_training(demo):
    mask, _, table = learn(demo, objective="scores", preset="strong")
    assert mask.info.method == "scores" and mask.off_share("ffn") == pytest.approx(0.453, abs=0.001)
    assert mask.hard and len(table.splitlines()) == 1


def test_a_cancelled_run_goes_on(demo, monkeypatch):
    expected = learn(demo)[0]
    calls, real = [], host._Loaded.denoise

    def denoise(self, *args):
        calls.append(1)
        if len(calls) == 30:
            raise comfy.model_management.InterruptProcessingException
        return real(self, *args)

    monkeypatch.setattr(host._Loaded, "denoise", denoise)
    unfinished = Path(folder_paths.get_output_directory(), "uniforget", "unfinished")
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn(demo)
    assert len(list(unfinished.glob("*.unfinished.safetensors"))) == 1
    calls[:] = [1] * 30
    assert learn(demo)[0].digest() == expected.digest()
    assert not list(unfinished.iterdir())


def test_neither_a_curve_nor_a_full_disk_costs_the_mask(demo, monkeypatch):
    """Drawing fails and nothing can be written beside the mask: the mask is there all the same, and what went wrong is said."""
    expected = learn(demo, seed=5)[0]
    copy = Path(folder_paths.get_output_directory(), "uniforget", "learned", f"{expected.digest()}.safetensors")
    assert maskfile.load(copy).digest() == expected.digest()

    def fail(*given, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uniforget_pack.nodes.progress.curve_picture", fail)
    monkeypatch.setattr("uniforget_pack.nodes.learn.atomic", SimpleNamespace(replace=fail))
    mask, picture, table = learn(demo, seed=5)[:3]
    assert mask.digest() == expected.digest() and picture.shape[-1] == 3 and table.startswith("step,")


def test_a_seed_gives_the_same_mask_twice(demo):
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    first = learn(demo, seed=3)[0]
    assert torch.equal(torch.rand(2), expected), "the user's random state was used"
    assert learn(demo, seed=3)[0].digest() == first.digest()
    assert learn(demo, seed=4)[0].digest() != first.digest()


def test_cancel_in_the_middle(demo, monkeypatch):
    before = demo.sample(demo.model)
    calls = []

    def update(self, value, total=None, preview=None):
        calls.append(value)
        if value == LOOKING + 3:
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.ProgressBar.update_absolute", update)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn(demo)
    assert max(calls) == LOOKING + 3, "stopped at once"
    comfy.model_management.interrupt_current_processing(False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in demo.model.model.modules())
    assert torch.equal(demo.sample(demo.model), before)


def test_same_predictions_as_diffusers(demo):
    transformer, encoder, tokenizer = tb.load()
    prompts = ["soft cat top left on blue", "photo of coffee"]
    hidden, pooled = tb.encode(encoder, tokenizer, prompts)
    x, sigma = torch.randn(2, 16, 12, 12), torch.tensor([0.9, 0.3])
    theirs = transformer(
        hidden_states=x, encoder_hidden_states=hidden, pooled_projections=pooled, timestep=sigma * 1000, return_dict=False
    )
    ours = demo.model.model.diffusion_model(x, sigma * 1000, context=hidden, y=pooled)
    assert (ours - theirs[0]).abs().max() < 1e-4
    encoded = demo.encode(prompts[0])[0]
    assert (encoded[0] - hidden[:1]).abs().max() < 1e-4 and (encoded[1]["pooled_output"] - pooled[:1]).abs().max() < 1e-4


def test_wrong_settings_are_named(demo):
    with pytest.raises(SettingError, match="steps.*found 0"):
        learn(demo, steps=0)
    with pytest.raises(SettingError, match="96 x 96 pictures only; found 512 x 512"):
        learn(demo, width=512, height=512)
    with pytest.raises(Exception, match="'elephant'"):
        learn(demo, prompts="soft elephant on blue")


def test_prompts_of_different_lengths_are_learned_together(demo, monkeypatch):
    encode = demo.clip.encode_from_tokens_scheduled
    longer = demo.clip.tokenize("photo of coffee")["words"][0]

    def some_longer(tokens):
        [[hidden, extra]] = encode(tokens)
        return [[hidden.repeat(1, 2, 1) if tokens["words"][0] == longer else hidden, extra]]

    monkeypatch.setattr(demo.clip, "encode_from_tokens_scheduled", some_longer)
    checked = []

    def check(model, *rest, **more):
        """The model that learning got: a mixed batch must be what its pictures are alone."""
        x, sigma = torch.randn(4, 16, 12, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([0.9, 0.7, 0.5, 0.3])
        which = [0, 2, -1, 1]
        with torch.no_grad():
            alone = torch.cat([model.denoise(x[i : i + 1], sigma[i : i + 1], [w]) for i, w in enumerate(which)])
            checked.append((model.denoise(x, sigma, which) - alone).abs().max().item())
        return real(model, *rest, **more)

    real = node.learn
    monkeypatch.setattr(node, "learn", check)
    assert learn(demo)[0].off_share() > 0
    assert len(checked) == 1 and checked[0] < 1e-4


def test_a_long_run_says_first_what_it_takes_and_keeps_its_mask(demo, monkeypatch):
    said = []
    monkeypatch.setattr(node, "say", lambda _, text: said.append(text))
    mask = learn(demo, steps=50, batch=2)[0]
    assert said[0].startswith("learning takes about ") and "for each update" in said[0] and "memory" in said[0]
    kept = Path(folder_paths.get_output_directory(), "uniforget", "learned", f"{mask.digest()}.safetensors")
    assert maskfile.load(kept).digest() == mask.digest() and (kept.parents[1] / "curves" / f"{mask.digest()}.csv").is_file()


def test_encodings_are_not_cloned_back_into_memory(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "Spill", lambda folder: Spill(tmp_path, limit=0))
    settings = Settings(width=96, height=96, sampling_steps=3)
    lesson = host.prepare(demo.model, demo.clip, ["soft cat top left on blue"], settings, tmp_path)
    spilled = lesson.positive[0][0][0]
    found = host.loaded(demo.model, [], lesson, 1, lambda model: model.conditions[0]["c_crossattn"].cond)
    assert found.untyped_storage().data_ptr() == spilled.untyped_storage().data_ptr()
