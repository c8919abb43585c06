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
    """

    title: str
    key: str
    advice: str = ""


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
    Unsupported("HunyuanVideo or HunyuanImage", r"(?:txt_in\.individual_token_refiner|context_embedder\.token_refiner)\..*"),
    Unsupported("Hunyuan3D", r"latent_in\..*|blocks\.\d+\.moe\..*"),
    Unsupported("Chroma Radiance", r"nerf_blocks\..*"),
    Unsupported("OmniGen2", r"ref_image_refiner\..*"),
    Unsupported("Stable Cascade", r"clip_(?:txt_|img_|txt_pooled_)?mapper\..*"),
    Unsupported(
        "a video UNet (Stable Video Diffusion, AnimateDiff, ...)",
        r".*\.(?:time_stack|time_mix_blocks|temporal_transformer_blocks|motion_modules|temp_convs|temp_attentions)\..*",
    ),
    Unsupported("LTX-Video", r"patchify_proj\..*"),
    Unsupported("Mochi", r"t5_yproj\..*"),
    Unsupported("Cosmos or Anima", r"blocks\.block0\..*|blocks\.\d+\.(?:adaln_modulation_mlp|mlp\.layer1)\..*"),
    Unsupported("HiDream", r"double_stream_blocks\..*|x_embedder\.proj1\..*"),
    Unsupported("Krea 2", r"txtfusion\..*"),
    Unsupported("Ideogram 4", r"embed_image_indicator\..*"),
    Unsupported("Ernie-Image", r"layers\.\d+\.mlp\.linear_fc2\..*"),
    Unsupported("Lens", r"transformer_blocks\.\d+\.img_mlp\.w1\..*"),
    Unsupported("Kandinsky 5", r"visual_transformer_blocks\..*"),
    Unsupported("Boogu-Image", r"double_stream_layers\..*"),
    Unsupported("JoyImage", r"double_blocks\.\d+\.attn\.img_attn_qkv\..*"),
    Unsupported("PixelDiT", r"core\.pixel_embedder\..*|lq_proj\.latent_proj\..*"),
    Unsupported("Sana", r".*\.(?:mlp\.inverted_conv|ff\.conv_inverted)\..*"),
)
