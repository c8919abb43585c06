"""What users also try and no family covers: to say what it is, and because some of it has all the weights that tell a family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unsupported:
    """Something that no mask fits.

    Attributes:
        title: what users call it.
        key: regular expression of a whole weight name that tells it.
        advice: what to do, when it is no diffusion model at all; "" for a model of another family.
        ndim: number of dimensions of that weight; 0: any.
    """

    title: str
    key: str
    advice: str = ""
    ndim: int = 0


# What other programs add to models of any family, and no gate sits on: adapters for pictures as prompts, and diffusers' fused copies of
# projections (:mod:`uniforget.model.sites` refuses those where gates would be lost).
ATTACHED = (
    r".*\.processor\..*",
    r"(?:encoder_hid_proj|pulid_\w+|ip_adapter\w*)\..*",
    r".*\.to_(?:added_qkv|qkv|kv)",
)

_MODEL_ITSELF = "Load the diffusion model itself."

# The first that matches counts.
UNSUPPORTED = (
    Unsupported(
        "a whole checkpoint",
        r"model\.diffusion_model\..*",
        "Take its diffusion model only: the weights whose names start with 'model.diffusion_model.', given as the prefix.",
    ),
    Unsupported(
        "a LoRA, or a model with one attached",
        r".*(?:[._]lora[._](?:up|down|mid|A|B)\b|[._](?:hada|lokr)_w[12]).*",
        "Load the model itself, and fuse the LoRA into it first.",
    ),
    Unsupported(
        "a ControlNet",
        r"(?:control_model|input_hint_block|controlnet_\w+)\..*|.*\.(?:base_to_ctrl|ctrl_to_base)\..*",
        "Load the model that it steers.",
    ),
    Unsupported("a VAE", r"(?:first_stage_model\.|vae\.)?decoder\.(?:conv_in|conv1|layers\.\d+)\..*", _MODEL_ITSELF),
    Unsupported(
        "a text encoder",
        r"(?:.*\.)?(?:text_model\.encoder|transformer\.resblocks|encoder\.block\.0\.layer|model\.layers\.0\.self_attn)\..*",
        _MODEL_ITSELF,
    ),
    Unsupported("Hunyuan3D", r"latent_in\..*|blocks\.\d+\.moe\..*"),
    Unsupported("Stable Cascade", r"clip_(?:txt_|img_|txt_pooled_)?mapper\..*"),
    Unsupported(
        "a video UNet (Stable Video Diffusion, AnimateDiff, ...)",
        r".*\.(?:time_stack|time_mix_blocks|temporal_transformer_blocks|motion_modules|temp_convs|temp_attentions)\..*",
    ),
    Unsupported("LTX-Video", r"patchify_proj\..*"),
    Unsupported("Mochi", r"t5_yproj\..*"),
    Unsupported("the first Cosmos, for videos", r"blocks\.block0\..*|learnable_pos_embed\..*"),
    Unsupported("HiDream-O1", r"x_embedder\.proj1\..*"),
    Unsupported("Boogu-Image", r"double_stream_layers\..*"),
    Unsupported("JoyImage", r"double_blocks\.\d+\.attn\.img_attn_qkv\..*"),
    Unsupported("PixelDiT", r"core\.pixel_embedder\..*|lq_proj\.latent_proj\..*"),
    Unsupported("Sana", r".*\.(?:mlp\.inverted_conv|ff\.conv_inverted)\..*"),
    Unsupported("HunyuanVideo, or the refiner of HunyuanImage", r"img_in\.proj\.weight|x_embedder\.proj\.weight", ndim=5),
)
