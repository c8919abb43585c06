"""Learning on diffusers pipelines: sampling as they do themselves, every family; learning, folding, loading, and what is refused."""

import functools
import re
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from tests.unit.tiny import info
from tests.unit.tiny_pipelines import NEGATIVE, PIPELINES, PROMPTS, SIZE, apart, noise_like, own_latents, pipeline, single_file
from uniforget.errors import FamilyError, LearnError, ModelFileError
from uniforget.hosts.diffusers import pipeline as module
from uniforget.hosts.diffusers.apply import fold_
from uniforget.hosts.diffusers.listener import growth, join, joinable, row
from uniforget.hosts.diffusers.load import load_pipeline
from uniforget.hosts.diffusers.pipeline import PipelineModel, denoiser
from uniforget.learn import Settings, euler, learn
from uniforget.mask.gates import gated

STEPS = 3


def model_of(pipe, name, prompts=PROMPTS, steps=STEPS, **more):
    negative = {"negative": PIPELINES[name].negative.get("negative_prompt", "")}
    return PipelineModel(pipe, prompts, steps=steps, **negative | SIZE | PIPELINES[name].call | more)


@torch.no_grad()
def sampled(model, noise, which, cfg=1.0):
    """Final latents by the Euler steps of learning."""
    x = noise
    for k in range(len(model.sigmas) - 1):
        x = euler(model, x, k, [which], cfg)[0]
    return x


@pytest.fixture(scope="module", params=PIPELINES)
def made(request):
    """One pipeline, and the model over it."""
    pipe = pipeline(request.param)
    return SimpleNamespace(name=request.param, pipe=pipe, model=model_of(pipe, request.param))


# --- every family


def test_sampling_is_the_pipelines_own(made):
    start = made.model.initial(1, torch.Generator().manual_seed(5))
    noise = noise_like(start)
    assert torch.allclose(start, noise * (start / noise).mean()), "noise is scaled, nothing else"
    tiny = PIPELINES[made.name]
    off = tiny.guidance(1.0) if tiny.guidance else {"true_cfg_scale": 1.0} if made.name == "qwen_image" else {}
    own = own_latents(made.pipe, made.name, noise, PROMPTS[1], STEPS, **off)
    assert apart(sampled(made.model, start, 1), own) < 1e-4
    assert apart(sampled(made.model, start, 0), own) > 1e-3, "another prompt gives another picture"


def test_guided_sampling_is_the_pipelines_own(made):
    start = made.model.initial(1, torch.Generator().manual_seed(5))
    tiny = PIPELINES[made.name]
    if tiny.guidance:
        own = own_latents(made.pipe, made.name, noise_like(start), PROMPTS[1], STEPS, **tiny.negative, **tiny.guidance(3.0))
        found = sampled(made.model, start, 1, 3.0)
    else:
        off = {"true_cfg_scale": 1.0} if made.name == "qwen_image" else {}
        own = own_latents(made.pipe, made.name, noise_like(start), NEGATIVE, STEPS, **off)
        found = sampled(made.model, start, -1)
    assert apart(found, own) < 1e-4
    assert apart(sampled(made.model, start, 1), own) > 1e-3, "guidance changes the picture"


@torch.no_grad()
def test_rows_do_not_depend_on_what_they_are_batched_with(made):
    model, which = made.model, [2, -1, 0, 1]
    x = model.initial(4, torch.Generator().manual_seed(1))
    sigma = model.sigmas[[0, 1, 2, 1]]
    together = model.denoise(x, sigma, which)
    alone = torch.cat([model.denoise(x[i : i + 1], sigma[i : i + 1], which[i : i + 1]) for i in range(4)])
    assert together.dtype == torch.float32 and together.shape == x.shape
    assert apart(together, alone) < 1e-5
    assert apart(together, alone.flip(0)) > 1e-2


def test_gates_change_predictions_and_get_gradients(made):
    model = made.model
    gates = {s.name: torch.full((s.units,), 0.9, requires_grad=True) for s in model.sites}
    sigma = model.sigmas[1:2]
    x = (model.initial(1, torch.Generator().manual_seed(1)) * sigma / model.sigmas[0]).requires_grad_()
    with torch.no_grad():
        plain = model.denoise(x, sigma, [0])
    with gated(model.modules, model.sites, gates):
        out = model.denoise(x, sigma, [0])
    assert apart(out, plain) > 1e-4
    found = torch.autograd.grad(out.square().sum(), [x, *gates.values()])
    assert all(g.abs().sum() > 0 for g in found), "every site matters, and so do the latents"
    assert not any(p.requires_grad for p in model.denoiser.parameters())


# --- learning and folding


@pytest.mark.parametrize(("name", "objective"), [("sd1", "stepwise"), ("flux_dev", "trajectory")])
def test_a_learned_mask_folds_into_the_pipeline(name, objective):
    pipe = pipeline(name)
    model = model_of(pipe, name, prompts=PROMPTS[:2], steps=2)
    pipe.text_encoder = pipe.text_encoder_2 = pipe.vae = None  # not needed any more
    settings = Settings(beta=1000.0, steps=3, batch=2, cfg=2.0, learning_rate=2.0, noises=1, objective=objective)
    mask = learn(model, settings, info(family=model.family.name)).mask
    assert set(mask.kinds.values()) == {"ffn", "norm"}
    assert 0 < sum(int((g == 0).sum()) for g in mask.gates.values()) <= sum(g.numel() for g in mask.gates.values())
    x = model.initial(2, torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.denoise(x, model.sigmas[[0, 1]], [0, -1])
        with gated(model.modules, model.sites, mask.factors()):
            wanted = model.denoise(x, model.sigmas[[0, 1]], [0, -1])
        fold_(denoiser(pipe)[1], mask)
        after = model.denoise(x, model.sigmas[[0, 1]], [0, -1])
    assert apart(wanted, before) > 1e-3
    assert apart(after, wanted) < 1e-5


# --- schedulers, guidance, what stays as it was


def test_the_pipelines_own_noise_levels_are_used_and_its_parts_stay():
    pipe = pipeline("sd1")
    pipe.scheduler = diffusers.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True
    )
    pipe.set_progress_bar_config(disable=True, leave=False)
    before = dict(pipe.components)
    model = model_of(pipe, "sd1", prompts=PROMPTS[:1], steps=4)
    euler_scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    euler_scheduler.set_timesteps(4)
    assert torch.equal(model.sigmas, euler_scheduler.sigmas)
    assert pipe.components == before
    assert "forward" not in pipe.unet.__dict__
    assert pipe._progress_bar_config == {"disable": True, "leave": False}


def test_flow_schedulers_of_other_names_keep_their_shift():
    pipe = pipeline("wan")
    pipe.scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    model = model_of(pipe, "wan", prompts=PROMPTS[:1], steps=2)
    # The last of two evenly spaced levels is the smallest one that was trained, 0.001 shifted: 3 * s / (1 + 2 * s), twice.
    smallest = 3 * 0.001 / (1 + 2 * 0.001)
    assert model.sigmas.tolist() == pytest.approx([1.0, 3 * smallest / (1 + 2 * smallest), 0.0], abs=1e-6)


def test_distilled_guidance_is_the_pipelines_default_or_what_is_asked_for():
    pipe = pipeline("flux_dev")
    found = {}
    for cfg in (None, 1.5):
        model = model_of(pipe, "flux_dev", prompts=PROMPTS[:1], cfg=cfg)
        start = model.initial(1, torch.Generator().manual_seed(5))
        found[cfg] = sampled(model, start, 0)
    noise = noise_like(start)
    assert apart(found[None], own_latents(pipe, "flux_dev", noise, PROMPTS[0], STEPS)) < 1e-4
    assert apart(found[1.5], own_latents(pipe, "flux_dev", noise, PROMPTS[0], STEPS, guidance_scale=1.5)) < 1e-4
    assert apart(found[1.5], found[None]) > 1e-4


def test_no_negative_prompt_is_what_the_pipeline_makes_of_it():
    pipe = pipeline("sdxl")  # zeros, unlike the empty prompt
    model = model_of(pipe, "sdxl", prompts=PROMPTS[:1], negative=None)
    start = model.initial(1, torch.Generator().manual_seed(5))
    found = sampled(model, start, 0, 3.0)
    assert apart(found, own_latents(pipe, "sdxl", noise_like(start), PROMPTS[0], STEPS, guidance_scale=3.0)) < 1e-4
    empty = own_latents(pipe, "sdxl", noise_like(start), PROMPTS[0], STEPS, guidance_scale=3.0, negative_prompt="")
    assert apart(found, empty) > 1e-3


def test_text_encoders_leave_before_the_denoiser_comes(monkeypatch):
    pipe = pipeline("flux_dev")
    name, network = denoiser(pipe)
    assert (name, network) == ("transformer", pipe.transformer)
    events = []
    names = {id(part): name for name, part in pipe.components.items()}
    monkeypatch.setattr(module, "_place", lambda parts, device: events.append(({names[id(p)] for p in parts}, device.type)))
    forward = network.forward

    @functools.wraps(forward)
    def watched(*args, **kwargs):
        events.append("denoiser runs")
        return forward(*args, **kwargs)

    network.forward = watched
    for part in (pipe.text_encoder, pipe.text_encoder_2):
        part.register_forward_pre_hook(lambda *_: events.append("encoder runs"))
    model_of(pipe, "flux_dev", prompts=PROMPTS[:1], device="cpu")
    others = {"text_encoder", "text_encoder_2", "vae"}
    assert events[0] == (others, "cpu")
    leave = events.index((others, "cpu"), 1)
    assert set(events[1:leave]) == {"encoder runs"}
    assert events[leave + 1] == ({"transformer"}, "cpu")
    assert set(events[leave + 2 :]) == {"denoiser runs"}
    assert network.forward is watched


# --- refused


def refused(pipe, name, **more):
    with pytest.raises(LearnError) as caught:
        model_of(pipe, name, **more)
    return str(caught.value)


def change_latents(pipe, k, time, kept):
    return {"latents": kept["latents"] * 0.9}


def change_prompt(pipe, k, time, kept):
    return {"prompt_embeds": kept["prompt_embeds"] * 0.9}


@pytest.mark.parametrize(
    ("callback", "told"),
    [(change_latents, "changes its latents between steps 1 and 2"), (change_prompt, "hands over other arguments in step 2")],
)
def test_sampling_that_cannot_be_repeated_is_refused(callback, told):
    more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    message = refused(pipeline("flux_schnell"), "flux_schnell", **more)
    assert told in message and message.startswith("FluxPipeline") and "learn in ComfyUI" in message


def test_a_scheduler_that_is_handed_something_else_is_refused():
    class Odd(diffusers.FluxPipeline):
        def __call__(self, **call):
            step = self.scheduler.step
            self.scheduler.step = lambda prediction, *args, **kwargs: step(0.9 * prediction, *args, **kwargs)
            try:
                return super().__call__(**call)
            finally:
                self.scheduler.step = step

    pipe = pipeline("flux_schnell")
    pipe.__class__ = Odd
    assert "its predictions are not" in refused(pipe, "flux_schnell")


def test_what_no_mask_can_be_learned_on_is_refused():
    pipe = pipeline("sd1")
    assert "at least one prompt" in refused(pipe, "sd1", prompts=[])
    assert "does not take the call" in refused(pipe, "sd1", width=65)
    parts = {name: part for name, part in pipe.components.items()} | {"requires_safety_checker": False}
    edit = diffusers.StableDiffusionImg2ImgPipeline(**parts)
    assert "from prompts alone" in refused(edit, "sd1")
    own, pipe.scheduler = pipe.scheduler, diffusers.EDMEulerScheduler()
    assert "samples with EDMEulerScheduler" in refused(pipe, "sd1")
    pipe.scheduler, pipe.unet._hf_hook = own, object()
    assert "is offloaded" in refused(pipe, "sd1")
    wan = pipeline("wan")
    wan.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert "is offloaded" in refused(wan, "wan")
    wan.transformer_2 = wan.transformer
    assert "two networks that take turns (transformer, transformer_2)" in refused(wan, "wan")
    inverted = pipeline("flux_schnell")
    assert "unknown_setting" in refused(inverted, "flux_schnell", unknown_setting=1)
    inverted.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    assert "do not lead down" in refused(inverted, "flux_schnell")
    strange = pipeline("flux_schnell")
    strange.transformer = diffusers.DiTTransformer2DModel(1, 4, in_channels=4, num_layers=1, norm_num_groups=1, sample_size=4)
    with pytest.raises(FamilyError, match="UniForget does not know this model"):
        model_of(strange, "flux_schnell")


def test_other_noise_levels_are_refused_and_encoding_is_reported():
    seen = []
    model = model_of(pipeline("flux_schnell"), "flux_schnell", report=lambda done, count: seen.append((done, count)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    x = model.initial(1, torch.Generator().manual_seed(0))
    with pytest.raises(LearnError, match="expected sigma out of its sigmas"):
        model.denoise(x, model.sigmas[:1] * 0.99, [0])


# --- arguments


def test_what_grows_with_pictures_is_told_joined_and_taken_apart_again():
    a = {"text": torch.zeros(1, 2), "ids": torch.ones(3), "sizes": [(4, 5)], "none": None, "pair": (torch.ones(1), 2), "more": {}}
    b = {**a, "text": torch.ones(1, 2), "sizes": [(6, 7)]}
    grows = {"text": True, "ids": False, "sizes": True, "none": False, "pair": [False, False], "more": {}}
    two = {**a, "text": torch.zeros(2, 2), "sizes": [(4, 5), (4, 5)]}
    assert growth(a, two) == grows
    both = join([a, b], grows)
    assert both["text"].tolist() == [[0, 0], [1, 1]] and both["sizes"] == [(4, 5), (6, 7)]
    assert both["ids"].tolist() == [1, 1, 1] and type(both["pair"]) is tuple
    assert row(both, grows, 1)["text"].tolist() == [[1, 1]] and row(both, grows, 1)["sizes"] == [(6, 7)]
    assert joinable(a, b, grows)
    assert not joinable(a, {**b, "text": torch.ones(1, 3)}, grows), "prompts of other lengths"
    assert not joinable(a, {**b, "ids": torch.zeros(3)}, grows)
    assert not joinable(a, {**b, "none": torch.zeros(3)}, grows)


@pytest.mark.parametrize(
    ("one", "two", "told"),
    [
        (torch.zeros(1, 2), torch.zeros(2, 3), "a tensor (1, 2) for one picture is a tensor (2, 3) for two"),
        (torch.zeros(3), torch.zeros(6), "a tensor (3,) for one picture is a tensor (6,) for two"),
        ([1, 2], [1, 2, 3], "a list for one picture is a list for two"),
        (None, torch.zeros(1), "a NoneType for one picture is a tensor (1,) for two"),
    ],
)
def test_growth_in_another_way_is_an_error(one, two, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        growth({"x": one}, {"x": two})


# --- loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The Flux pipeline as a diffusers folder."""
    out = tmp_path_factory.mktemp("pipelines") / "flux"
    pipeline("flux_schnell").save_pretrained(out)
    return out


def test_a_folder_is_loaded_in_the_wished_precision(folder):
    x = noise_like(torch.empty(1, 24, 64))
    found = []
    for pipe in (pipeline("flux_schnell"), load_pipeline(str(folder), torch.float32), load_pipeline(str(folder))):
        pipe.set_progress_bar_config(disable=True)
        model = model_of(pipe, "flux_schnell")
        with torch.no_grad():
            found.append(model.denoise(x, model.sigmas[:1], [1]))
    assert pipe.transformer.dtype == torch.bfloat16 and found[2].dtype == torch.float32
    assert apart(found[0], found[1]) < 1e-5
    assert 1e-4 < apart(found[2], found[0]) < 0.05


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2", "vae"])
def test_pickles_are_refused(part, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "flux")
    (weights,) = (copy / part).glob("*.safetensors")
    pickled = "pytorch_model.bin" if part == "text_encoder_2" else "diffusion_pytorch_model.bin"
    torch.save({}, copy / part / pickled)
    weights.unlink()
    with pytest.raises(LearnError, match=r"cannot load .*flux .*Expected all its weights as \.safetensors"):
        load_pipeline(str(copy))


def test_a_single_file_is_loaded_with_settings_from_a_folder(tmp_path):
    pipe = pipeline("sd1")
    pipe.save_pretrained(tmp_path / "folder")
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(2)  # so that the folder's weights would be wrong ones
    save_file(single_file(pipe), tmp_path / "model.safetensors")
    loaded = load_pipeline(str(tmp_path / "model.safetensors"), torch.float32, config=str(tmp_path / "folder"))
    assert type(loaded) is diffusers.StableDiffusionPipeline and loaded.vae is None
    models = [model_of(p, "sd1", prompts=PROMPTS[:1]) for p in (pipe, loaded)]
    x = models[0].initial(1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, found = (m.denoise(x, m.sigmas[:1], [0]) for m in models)
    assert apart(found, wanted) < 1e-5
    for weights in (tmp_path / "folder" / "text_encoder").glob("*.safetensors"):
        weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(LearnError, match="can run code"):
        load_pipeline(str(tmp_path / "model.safetensors"), config=str(tmp_path / "folder"))
    with pytest.raises(
        LearnError, match=r"diffusers cannot load model\.safetensors as StableDiffusionPipeline .*given as config"
    ):
        load_pipeline(str(tmp_path / "model.safetensors"), config=str(tmp_path / "folder" / "unet"))


def test_what_is_no_pipeline_is_named(tmp_path):
    def told(path, kind=LearnError):
        with pytest.raises(kind) as caught:
            load_pipeline(str(path))
        return str(caught.value)

    assert "expected a model_index.json in it, found none" in told(tmp_path)
    assert "There is no file or folder" in told(tmp_path / "missing")
    assert "There is no file or folder" in told("folder/missing.safetensors")
    pickle = tmp_path / "model.ckpt"
    torch.save({}, pickle)
    assert "model.ckpt: this is a pickle" in told(pickle, ModelFileError)
    assert "There is no file or folder" in told("folder/missing.SFT")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not one")
    assert "broken.safetensors: expected a complete .safetensors file" in told(broken, ModelFileError)
    bare = tmp_path / "bare.safetensors"
    save_file(
        {
            n: torch.zeros(2, 2)
            for n in ("img_in.weight", "double_blocks.0.img_mod.lin.weight", "single_blocks.0.modulation.lin.weight")
        },
        bare,
    )
    assert "needs the text encoders of FLUX.1 too" in told(bare)
