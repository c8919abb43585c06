"""Preview Comparison on real ComfyUI: same noise, the original remembered exactly as long as it is the same, and nothing kept alive."""

import gc
import weakref
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.sample
import folder_paths
import pytest
import torch
from uniforget_pack.nodes.learn import LearnMask
from uniforget_pack.nodes.preview import PreviewComparison
from uniforget_pack.nodes.sampling import nothing
from uniforget_pack.uniforget import config
from uniforget_pack.uniforget.errors import MismatchError, SettingError
from uniforget_pack.uniforget.hosts.comfy import sample as comfy_sampling
from uniforget_pack.uniforget.hosts.comfy.originals import Originals, Unkeyable, key

PROMPT = "soft cat top left on blue"
KEY = "diffusion_model.joint_blocks.1.x_block.mlp.fc2.weight"
STEPS = 3


@pytest.fixture(autouse=True)
def nothing_remembered():
    comfy_sampling._originals.clear()


@pytest.fixture
def sampled(monkeypatch):
    """The ModelPatchers that ComfyUI has sampled with, in order."""
    real, seen = comfy.sample.sample, []

    def sample(model, *args, **kwargs):
        seen.append(model)
        return real(model, *args, **kwargs)

    monkeypatch.setattr(comfy.sample, "sample", sample)
    return seen


def settings(**changes):
    strengths = {"strength": 1.0, "strength_ffn": 1.0, "strength_norm": 1.0, "strength_attn": 1.0}
    sampler = {"seed": 5, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return {**strengths, **sampler, "save": False, "filename_prefix": "uniforget/preview", **changes}


def empty(count=1):
    return {"samples": torch.zeros(count, 16, 12, 12)}


def run(demo, model=None, mask=None, text=PROMPT, latent=None, **changes):
    """Runs the node: ``(original, forgotten, patched model, ui)``."""
    changes = {"negative": demo.encode(""), **changes}
    out = PreviewComparison.execute(
        model or demo.model, mask or demo.mask(), demo.encode(text), latent or empty(), demo.vae, **settings(**changes)
    )
    return *out.args, out.ui


def lora(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    up, down = 0.3 * torch.randn(256, 4, generator=generator), 0.3 * torch.randn(4, 1024, generator=generator)
    name = KEY.removesuffix(".weight")
    clone = model.clone()
    clone.add_patches(comfy.lora.load_lora({f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}, {name: KEY}), 1.0)
    return clone


def test_both_sides_are_what_the_stock_sampler_draws_from_the_same_noise(demo):
    import nodes  # ComfyUI's

    mask = demo.mask()
    original, forgotten, patched, ui = run(demo, mask=mask, latent=empty(2))
    assert original.shape == forgotten.shape == (2, 96, 96, 3)
    for model, drawn in ((demo.model, original), (patched, forgotten)):
        args = (model, 5, STEPS, 3.0, "euler", "simple", demo.encode(PROMPT), demo.encode(""), empty(2))
        assert torch.equal(demo.vae.decode(nodes.common_ksampler(*args)[0]["samples"]), drawn)
    assert (original - forgotten).abs().max() > 0.05, "the mask must change something"
    assert len(ui["a_images"]) == len(ui["b_images"]) == 2 and ui["labels"] == ["original", "strength 1"]


def test_strength_zero_is_the_original_to_the_bit(demo, sampled):
    original, forgotten, _, ui = run(demo, strength=0.0)
    assert len(sampled) == 2 and torch.equal(original, forgotten)
    assert "unchanged" in " ".join(ui["notes"]) and "recognizable (alike 1.00)" in " ".join(ui["notes"])


def test_the_original_is_not_drawn_again_for_another_strength_or_mask(demo, sampled):
    first = run(demo)
    again = run(demo, strength=0.4)
    other = run(demo, mask=demo.mask(seed=3), model=demo.model.clone())
    assert [model.patches == {} for model in sampled] == [True, False, False, False]
    assert torch.equal(first[0], again[0]) and torch.equal(first[0], other[0])
    assert not torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize(
    "change",
    [
        {"text": "soft frog top left on blue"},
        {"negative": None},
        {"seed": 6},
        {"steps": 2},
        {"cfg": 2.0},
        {"sampler_name": "heun"},
        {"scheduler": "normal"},
        {"denoise": 0.5},
        {"latent": empty(2)},
        {"latent": {"samples": torch.full((1, 16, 12, 12), 0.1)}, "denoise": 0.5},
        {"latent": {**empty(), "batch_index": [1]}},
    ],
    ids=lambda change: "-".join(change),
)
def test_the_original_is_drawn_again_when_anything_else_changes(demo, sampled, change):
    before = run(demo)[0]
    sampled.clear()
    after = run(demo, **change)[0]
    assert len(sampled) == 2
    assert after.shape != before.shape or not torch.equal(before, after)
    run(demo, **change, strength=0.5)
    assert len(sampled) == 3, "and it is remembered, too"


def test_the_original_is_drawn_again_with_a_lora_another_option_or_another_model(demo, sampled):
    def calmed(scale):
        model = demo.model.clone()
        model.set_model_sampler_cfg_function(lambda args: args["uncond"] + scale * (args["cond"] - args["uncond"]))
        return model

    run(demo)
    loaded = [lora(demo.model), lora(demo.model, seed=4), type(demo)().model]
    for i, model in enumerate(loaded, 1):
        run(demo, model=model)
        assert len(sampled) == 2 + 2 * i, f"model {i} must be sampled anew"
    run(demo, model=loaded[0].clone())
    assert len(sampled) == 2 + 2 * len(loaded) + 1, "the same LoRA is known"
    sampled.clear()
    option = calmed(0.5)
    run(demo, model=option)
    run(demo, model=option)
    assert len(sampled) == 4, "functions cannot be told apart"


def test_what_cannot_be_told_by_its_content_is_not_remembered(demo, sampled):
    class Control:
        pass

    class Wrapper:
        def __call__(self, apply_model, args):
            return apply_model(args["input"], args["timestep"], **args["c"])

    wrapped = demo.model.clone()
    wrapped.set_model_unet_function_wrapper(Wrapper())
    run(demo, model=wrapped)
    run(demo, model=wrapped, strength=0.5)
    assert len(sampled) == 4
    for value in (Control(), [{"control": Control()}], torch.zeros(2, 2).to_sparse(), {Control: Control()}):
        with pytest.raises(Unkeyable):
            key(demo.model, value)


def test_keys_tell_values_apart_and_know_the_same_again(demo):
    values = [1, 1.0, True, "1", b"1", None, [1], (1,), [[1]], [1, [2]], [[1], 2], {1: 2}, {"1": 2}, [], {}, torch.float32]
    values += [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float16), torch.tensor([0, -0.0]), torch.zeros(0)]
    keys = [key(demo.model, value) for value in values]
    assert len(set(keys)) == len(values)
    assert [key(demo.model.clone(), value) for value in values] == keys
    loop = []
    loop.append(loop)
    with pytest.raises(Unkeyable):
        key(demo.model, loop)


def test_memory_is_bounded_and_models_are_not_kept_alive(demo):
    latent = torch.zeros(1, 3, 8, 8)
    kept = Originals(entries=3, size=2 * latent.numel() * 4)
    drawn = []

    def get(value, model=demo.model, size=1):
        return kept.get(model, value, lambda: drawn.append(value) or latent.repeat(size, 1, 1, 1))

    for value in (1, 2, 1, 3):
        get(value)
    assert (len(kept), kept.bytes, drawn) == (2, 2 * latent.numel() * 4, [1, 2, 3])
    get(1)
    get(2)
    assert drawn == [1, 2, 3, 2], "the least used one had to go"
    get(4, size=3)
    assert kept.bytes <= kept.size, "what is too large alone is not kept"
    get(5).fill_(7)
    assert get(5).abs().max() == 0, "what callers do with theirs does not matter"
    other = type(demo)()
    get(5, other.model)
    gone, before = weakref.ref(other.model.model), len(kept)
    del other
    gc.collect()
    assert gone() is None and len(kept) == before - 1


def test_live_previews_and_one_bar_for_both(demo, monkeypatch):
    from comfy.cli_args import LatentPreviewMethod, args
    from comfy.utils import ProgressBar

    seen = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(
        ProgressBar, "update_absolute", lambda bar, value, total=None, preview=None: seen.append((value, bar.total, preview))
    )
    run(demo)
    assert [value for value, _, preview in seen if preview] == list(range(1, 2 * STEPS + 1))
    assert {total for _, total, _ in seen} == {2 * STEPS} and seen[-1][0] == 2 * STEPS
    kind, picture, _ = seen[0][2]
    assert kind == "JPEG" and picture.size == (12, 12)
    seen.clear()
    run(demo, strength=0.5)
    assert [value for value, _, preview in seen if preview] == list(range(STEPS + 1, 2 * STEPS + 1))


def test_the_random_state_is_left_as_it_was_and_ancestral_noise_is_the_same(demo):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = run(demo, sampler_name="euler_ancestral", strength=0.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], first[1])
    again = run(demo, sampler_name="euler_ancestral", strength=0.0)
    assert torch.equal(first[1], again[1]), "whether the original is remembered must not change the forgotten picture"


def test_an_interrupt_leaves_nothing_behind(demo, monkeypatch):
    torch.manual_seed(9)
    state = torch.get_rng_state()

    def interrupt(*args):
        raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy_sampling.Bar, "step", interrupt)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(demo)
    assert torch.equal(torch.get_rng_state(), state) and len(comfy_sampling._originals) == 0


def test_without_a_negative_prompt_it_is_zero(demo):
    positive = demo.encode(PROMPT)
    [(values, extra)] = nothing(positive)
    assert values.shape == positive[0][0].shape and values.abs().max() == 0
    assert extra["pooled_output"].abs().max() == 0 and positive[0][1]["pooled_output"].abs().max() > 0
    assert run(demo, negative=None)[0].shape == (1, 96, 96, 3)


def test_wrong_settings_are_refused_before_anything_is_drawn(demo, sampled):
    mask = demo.mask()
    for change in (
        {"strength": 1.5},
        {"strength_ffn": -1},
        {"sampler_name": "nope"},
        {"scheduler": 3},
        {"steps": 0},
        {"cfg": "x"},
    ):
        with pytest.raises(SettingError, match=next(iter(change))):
            run(demo, mask=mask, **change)
    with pytest.raises(MismatchError, match="'flux'"):
        run(demo, mask=type(mask)(mask.gates, mask.kinds, mask.info.__class__(**{**vars(mask.info), "family": "flux"})))
    with pytest.raises(Exception, match="outside"):
        run(demo, mask=mask, save=True, filename_prefix="../../outside")
    assert sampled == []


def test_saved_pictures_are_in_the_output_folder(demo):
    *_, ui = run(demo, save=True, filename_prefix="uniforget/kept")
    [sheet] = ui["comparison"]
    assert sheet["type"] == "output" and sheet["filename"].startswith("kept_side_by_side")
    path = Path(folder_paths.get_output_directory(), "uniforget", ui["a_images"][0]["filename"])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_subspace_is_previewed_as_a_mask_is(demo, sampled):
    values = {name: param.default for name, param in config.LEARN.items()}
    small = {"prompts": PROMPT, "batch": 2, "width": 96, "height": 96, "sampling_steps": 2, "objective": "subspace"}
    subspace = LearnMask.execute(demo.model, demo.clip, **(values | small)).args[0]
    sampled.clear()
    original, forgotten, patched, ui = run(demo, mask=subspace, text="dark photo of coffee")
    assert (
        (original - forgotten).abs().max() > 0.05
        and patched.patches
        and [note[:23] for note in ui["notes"]] == ["The original's picture:"]
    )
    assert subspace.digest() in ui["settings"][1][1]
    same, equal, *_ = run(demo, mask=subspace, text="dark photo of coffee", strength=0.0)
    assert torch.equal(same, original) and torch.equal(equal, original) and len(sampled) == 3
