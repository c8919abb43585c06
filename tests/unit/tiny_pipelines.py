"""diffusers pipelines of every family with random weights: small denoisers of the zoo, tiny text encoders, local tokenizers.

The VAEs are there for their sizes only; nothing is decoded.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import diffusers
import torch
import transformers
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.unit.diffusers_zoo import VARIANTS

WORDS = [
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "a",
    "of",
    "in",
    "the",
    "red",
    "small",
    "dog",
    "cat",
    "house",
    "tree",
    "photo",
    "sea",
]
PROMPTS = ["a photo of a red house", "the sea", "a small dog in the tree"]
NEGATIVE = "red cat"
# Of the last message, so that prompts are not cut off behind long system messages.
_CHAT = "{% set said = messages[-1].content %}{{ said if said is string else said[0].text }}"
_IDS = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_DECODER = {
    **_IDS, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def tokenizer(length=77):
    """One id per word, <bos> and <eos> around each text, padding on the right."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)])
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "bos", "eos")}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=length, chat_template=_CHAT, padding_side="right", **special
    )


def _clip(width, projection=0):
    config = transformers.CLIPTextConfig(
        **_IDS, hidden_size=width, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=projection or width
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def _t5(width=32, kind="T5"):
    sizes = {"vocab_size": len(WORDS), "d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return getattr(transformers, f"{kind}EncoderModel")(getattr(transformers, f"{kind}Config")(pad_token_id=0, **sizes))


def _bert():
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), pad_token_id=0, **sizes))


def _qwen3():
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_DECODER))


def _qwen_vl():
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(text_config={**_DECODER, "rope_parameters": rope}, vision_config=vision)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _vae(channels=4, kind="AutoencoderKL", **more):
    return getattr(diffusers, kind)(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=1,
        block_out_channels=(2,) * 4, layers_per_block=1, latent_channels=channels, mid_block_add_attention=False, **more
    )  # fmt: skip


def _video_vae(kind):
    return getattr(diffusers, f"AutoencoderKL{kind}")(base_dim=2, num_res_blocks=1, dim_mult=[1, 1, 1, 1])


@dataclass(frozen=True)
class Tiny:
    """How to make one pipeline.

    Attributes:
        kind: its class; ``denoiser``: of the zoo, with ``changes``.
        scheduler: settings of an Euler scheduler; flow matching unless a beta_schedule is among them.
        encoders: makes the text encoders; ``vae`` the VAE.
        call: further arguments of its call, which keep it small.
        guidance: what its call's guidance is for cfg, None: it has none that adds up to cfg.
        negative: the negative prompt as its call takes it.
        unpack: latents as learning sees them -> as its call takes them; ``pack``: as its call returns them -> as learning sees them.
    """

    kind: str
    denoiser: str
    scheduler: dict
    encoders: tuple[Callable, ...]
    vae: Callable = _vae
    changes: dict = field(default_factory=dict)
    call: dict = field(default_factory=dict)
    guidance: Callable | None = lambda cfg: {"guidance_scale": cfg}
    negative: dict = field(default_factory=lambda: {"negative_prompt": NEGATIVE})
    unpack: Callable = lambda x: x
    pack: Callable = lambda x: x


def _vae16():
    return _vae(16)


def _flux2_vae():
    out = _vae(32, "AutoencoderKLFlux2")
    out.bn.running_var.fill_(1 - out.config.batch_norm_eps)  # so that it scales by 1
    return out


def _packed(x):
    """(1, tokens, channels) of pictures 64 x 96 -> (1, channels, 6, 4)."""
    return x.transpose(1, 2).unflatten(2, (6, 4))


def _patches(x):
    """(1, channels, 12, 8) -> (1, tokens, channels * 4)."""
    return x.unflatten(3, (4, 2)).unflatten(2, (6, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


SIZE = {"width": 64, "height": 96}
_SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_LINEAR = {"beta_schedule": "linear"}
_SHIFT = {"shift": 3.0}
_DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True}
_SHORT = {"max_sequence_length": 12}
_PIXART = {**_SHORT, "use_resolution_binning": False, "clean_caption": False}
_TRUE_CFG = {"guidance": lambda cfg: {"true_cfg_scale": cfg}}
_FLUX2 = {"call": {**_SHORT, "text_encoder_out_layers": (1,)}, "unpack": _packed, "vae": _flux2_vae}

PIPELINES = {
    "sd1": Tiny("StableDiffusionPipeline", "sd1", {**_SD, "timestep_spacing": "leading", "steps_offset": 1}, (lambda: _clip(768),)),
    "sd2": Tiny(
        "StableDiffusionPipeline", "sd2",
        {**_SD, "prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "steps_offset": 1},
        (lambda: _clip(1024),),
    ),
    "sdxl": Tiny(
        "StableDiffusionXLPipeline", "sdxl", {**_SD, "use_karras_sigmas": True}, (lambda: _clip(768), lambda: _clip(1280, 1280))
    ),
    "sd3": Tiny(
        "StableDiffusion3Pipeline", "sd35_medium", _SHIFT, (lambda: _clip(8, 8), lambda: _clip(16, 16), _t5), _vae16, call=_SHORT
    ),
    "flux_dev": Tiny("FluxPipeline", "flux_dev", _DYNAMIC, (lambda: _clip(24), _t5), _vae16, call=_SHORT, **_TRUE_CFG),
    "flux_schnell": Tiny("FluxPipeline", "flux_schnell", {}, (lambda: _clip(24), _t5), _vae16, call=_SHORT, **_TRUE_CFG),
    "flux2": Tiny("Flux2Pipeline", "flux2", _DYNAMIC, (_qwen3,), guidance=None, **_FLUX2),
    "flux2_klein": Tiny("Flux2KleinPipeline", "flux2", _DYNAMIC, (_qwen3,), changes={"guidance_embeds": False}, negative={}, pack=_patches, **_FLUX2),
    "chroma": Tiny("ChromaPipeline", "chroma", {}, (_t5,), _vae16, call=_SHORT),
    "pixart_alpha": Tiny("PixArtAlphaPipeline", "pixart_alpha", _LINEAR, (_t5,), changes={"sample_size": 128}, call=_PIXART),
    "pixart_sigma": Tiny("PixArtSigmaPipeline", "pixart_sigma", _LINEAR, (_t5,), call=_PIXART),
    "hunyuandit": Tiny(
        "HunyuanDiTPipeline", "hunyuandit1", {**_SD, "prediction_type": "v_prediction", "beta_end": 0.03}, (_bert, lambda: _t5(16)),
        changes={"text_len": 77, "text_len_t5": 256}, call={"use_resolution_binning": False},
    ),
    "lumina2": Tiny(
        "Lumina2Pipeline", "lumina2", {"shift": 6.0}, (lambda: transformers.Gemma2Model(transformers.Gemma2Config(**_DECODER)),),
        _vae16, call={**_SHORT, "system_prompt": "a", "cfg_normalization": False},
    ),
    "z_image": Tiny(
        "ZImagePipeline", "z_image", _SHIFT, (_qwen3,), _vae16, call=_SHORT, guidance=lambda cfg: {"guidance_scale": cfg - 1}
    ),
    # Its guidance keeps the norm of each prediction.
    "qwen_image": Tiny(
        "QwenImagePipeline", "qwen_image", {**_DYNAMIC, "max_shift": 0.9, "shift_terminal": 0.02}, (_qwen_vl,),
        lambda: _video_vae("QwenImage"), guidance=None,
    ),
    "auraflow": Tiny("AuraFlowPipeline", "auraflow", {"shift": 1.73}, (lambda: _t5(32, "UMT5"),), call=_SHORT),
    "wan": Tiny(
        "WanPipeline", "wan21_t2v_1.3b", _SHIFT, (lambda: _t5(32, "UMT5"),), lambda: _video_vae("Wan"), call={**_SHORT, "num_frames": 1}
    ),
}  # fmt: skip


def pipeline(name):
    """The pipeline on the CPU, fp32, with the same weights at every call."""
    tiny = PIPELINES[name]
    torch.manual_seed(0)
    variant = VARIANTS[tiny.denoiser]
    part = "unet" if variant.kind is diffusers.UNet2DConditionModel else "transformer"
    components = {part: variant.kind(**variant.small | tiny.changes), "vae": tiny.vae()}
    for i, make in enumerate(tiny.encoders):
        number = f"_{i + 1}" if i else ""
        components[f"text_encoder{number}"] = make()
        components[f"tokenizer{number}"] = tokenizer(256 if name == "hunyuandit" and i else 77)
    for module in components.values():
        if isinstance(module, torch.nn.Module):
            _randomize(module)
    if tiny.kind in ("StableDiffusionPipeline", "HunyuanDiTPipeline"):
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = EulerDiscreteScheduler if "beta_schedule" in tiny.scheduler else FlowMatchEulerDiscreteScheduler
    out = getattr(diffusers, tiny.kind)(scheduler=scheduler(**tiny.scheduler), **components)
    out.set_progress_bar_config(disable=True)
    return out


@torch.no_grad()
def _randomize(module):
    """Weights in which everything matters: fresh adaLN layers would ignore the prompt."""
    for name, parameter in module.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.ndim > 1:
            parameter.copy_((0.5 if "token" in name or "shared" in name else 0.08) * noise)
        else:
            parameter.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
    module.eval().requires_grad_(False)


def noise_like(x, seed=5):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def apart(a, b):
    """Largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def own_latents(pipe, name, noise, prompt, steps, **call):
    """Final latents of the pipeline's own sampling from `noise` (as learning sees it, unscaled)."""
    tiny = PIPELINES[name]
    call = {**SIZE, **tiny.call, "latents": tiny.unpack(noise.clone()), "num_inference_steps": steps, **call}
    return tiny.pack(pipe(prompt=prompt, output_type="latent", return_dict=False, **call)[0])


# diffusers' names in a UNet with one layer per block -> the original ones; numbers go through the functions.
_ORIGINAL = [
    (r"^down_blocks\.(\d)\.resnets\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0"),
    (r"^down_blocks\.(\d)\.attentions\.0", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1"),
    (r"^up_blocks\.(\d)\.upsamplers\.0", lambda m: f"output_blocks.{2 * int(m[1]) + 1}.2"),
    (r"^time_embedding\.linear_([12])", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    *(
        (rf"^((?:input_blocks|output_blocks)\.\d+\.0|middle_block\.[02])\.{theirs}\.", rf"\1.{original}.")
        for theirs, original in (
            *(("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1")),
            *(("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")),
        )
    ),
]


def single_file(pipe):
    """UNet and text encoder of the sd1 pipeline as one checkpoint in the original naming."""
    text = {name.removeprefix("text_model."): tensor for name, tensor in pipe.text_encoder.state_dict().items()}
    out = {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}
    for name, tensor in pipe.unet.state_dict().items():
        for pattern, new in _ORIGINAL:
            name = re.sub(pattern, new, name)
        out[f"model.diffusion_model.{name}"] = tensor
    return {name: tensor.contiguous() for name, tensor in out.items()}
