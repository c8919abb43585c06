"""Learning on single files: denoisers beside a folder's text encoders, what the file says about its training, any name, wrapped names."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from tests.unit.test_pipeline import model_of
from tests.unit.tiny_pipelines import PROMPTS, apart, pipeline, single_file
from uniforget.errors import LearnError, ModelFileError
from uniforget.hosts.diffusers.load import load_pipeline


def saved(tmp_path, name, change=1.0):
    """A pipeline, whose settings and encoders are in a folder with another denoiser."""
    pipe = pipeline(name)
    pipe.save_pretrained(tmp_path / "folder")
    part = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    with torch.no_grad():
        for weight in part.parameters():
            weight.mul_(change)
    return pipe, part


def load(tmp_path, name="model.safetensors"):
    return load_pipeline(str(tmp_path / name), torch.float32, config=str(tmp_path / "folder"))


def prediction(pipe, name):
    model = model_of(pipe, name, prompts=PROMPTS[:1])
    with torch.no_grad():
        return model.denoise(model.initial(1, torch.Generator().manual_seed(0)), model.sigmas[:1], [0])


@pytest.mark.parametrize(
    ("naming", "wrapper"),
    [("original", ""), ("diffusers", ""), ("original", "module._orig_mod."), ("diffusers", "unet.")],
)
def test_a_denoiser_alone_gets_the_folders_text_encoders(tmp_path, naming, wrapper, caplog):
    pipe, unet = saved(tmp_path, "sd1", 1.1)
    whole = single_file(pipe)
    inner = "model.diffusion_model."
    state = {k.removeprefix(inner): v for k, v in whole.items() if k.startswith(inner)}
    state = state if naming == "original" else {k: v.contiguous() for k, v in unet.state_dict().items()}
    save_file({wrapper + k: v for k, v in state.items()}, tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    assert type(loaded) is diffusers.StableDiffusionPipeline
    assert apart(prediction(loaded, "sd1"), prediction(pipe, "sd1")) < 1e-5
    assert ("around them" in caplog.text) == (wrapper in ("unet.", "module._orig_mod."))


@pytest.mark.parametrize("name", ["flux_dev", "sd3"])
def test_transformers_alone(tmp_path, name):
    pipe, transformer = saved(tmp_path, name, 1.1)
    save_file({k: v.contiguous() for k, v in transformer.state_dict().items()}, tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    assert type(loaded) is type(pipe)
    assert apart(prediction(loaded, name), prediction(pipe, name)) < 1e-5


def test_without_encoders_anywhere_it_is_said_what_to_give(tmp_path):
    _, unet = saved(tmp_path, "sd1")
    save_file({k: v.contiguous() for k, v in unet.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(LearnError, match=r"needs the text encoders of Stable Diffusion 1\.x too.*they are not in this file"):
        load_pipeline(str(tmp_path / "model.safetensors"), torch.float32)
    with pytest.raises(LearnError, match=r"unet holds no whole pipeline: expected a model_index\.json"):
        load_pipeline(str(tmp_path / "model.safetensors"), torch.float32, config=str(tmp_path / "folder" / "unet"))
    del (state := {k: v.contiguous() for k, v in unet.state_dict().items()})["conv_out.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LearnError, match=r"model\.safetensors.*(conv_out\.weight|missing)"):
        load(tmp_path)


@pytest.mark.parametrize("ending", [".sft", ".SAFETENSORS", ""])
def test_what_is_in_a_file_decides_and_not_its_name(tmp_path, ending):
    pipe, _ = saved(tmp_path, "sd1", 1.1)
    save_file(single_file(pipe), tmp_path / f"model{ending}")
    loaded = load(tmp_path, f"model{ending}")
    assert apart(prediction(loaded, "sd1"), prediction(pipe, "sd1")) < 1e-5
    (tmp_path / f"pickle{ending}").write_bytes(b"PK\x03\x04" + b"\0" * 50)
    with pytest.raises(ModelFileError, match=rf"pickle{ending}: this is a pickle.*could run code"):
        load(tmp_path, f"pickle{ending}")


MARKS = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


@pytest.mark.parametrize("marks", [("v_pred",), ("v_pred", "ztsnr"), ("metadata",), ()])
def test_an_sdxl_file_that_says_v_prediction_is_learned_as_that(tmp_path, marks):
    pipe, unet = saved(tmp_path, "sdxl", 1.1)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    state = {k: v.contiguous() for k, v in unet.state_dict().items()} | {m: MARKS[m] for m in marks if m in MARKS}
    said = {"modelspec.prediction_type": "v"} if "metadata" in marks else None
    save_file(state, tmp_path / "model.safetensors", said)
    loaded = load(tmp_path)
    settings = {"prediction_type": "v_prediction"} if marks else {}
    if "ztsnr" in marks:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, **settings)
    model = model_of(loaded, "sdxl", prompts=PROMPTS[:1])
    assert model._predicts == ("v_prediction" if marks else "epsilon")
    assert (float(model.sigmas[0]) > 1000) == ("ztsnr" in marks)
    assert apart(prediction(loaded, "sdxl"), prediction(pipe, "sdxl")) < 1e-5


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_edm_is_refused_by_name(tmp_path, mark):
    _, unet = saved(tmp_path, "sdxl")
    state = {k: v.contiguous() for k, v in unet.state_dict().items()} | {mark: torch.ones(4)}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(LearnError, match=rf"EDM's noise levels \({mark}\)"):
        load(tmp_path)


def test_packed_weights_are_named(tmp_path):
    _, unet = saved(tmp_path, "sd1")
    state = {k: v.contiguous() for k, v in unet.state_dict().items()}
    name = next(k for k, v in state.items() if v.ndim == 2 and "ff.net.2" in k)
    state[name] = torch.zeros(state[name].numel() // 2, 1, dtype=torch.uint8)
    state[f"{name}.quant_state.bitsandbytes__nf4"] = torch.zeros(4, dtype=torch.uint8)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"packed \("):
        load(tmp_path)
