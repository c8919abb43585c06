"""Every family that diffusers has, built from its own classes: small with random weights, or at real size without any.

Small configs have the sizes that their namesakes in ``tests/comfyui/inside/zoo.py`` have, wherever both hosts can build them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed

from tests.unit import diffusers_zoo_newer as newer

BATCH, TOKENS, SIZE = 2, 5, 8  # SIZE: of latents
PIXART_SIZE = 40  # ComfyUI counts PixArt's positions in units of 64


@dataclass(frozen=True)
class Variant:
    """A published model, its architecture made small (None where another variant has the same structure), and real."""

    family: str
    kind: type
    small: dict | None
    real: dict


def _unet(
    channels, down, heads, context, depth=1, added=None, linear=True, middle="UNetMidBlock2DCrossAttn", layers=2, reverse=None
):
    """`down` and `heads` per level; "C": a level with attention, "D": one without."""
    kinds = {"C": "CrossAttn", "D": ""}
    config = {
        "sample_size": 64, "block_out_channels": channels, "attention_head_dim": heads, "cross_attention_dim": context,
        "down_block_types": tuple(f"{kinds[x]}DownBlock2D" for x in down), "mid_block_type": middle,
        "up_block_types": tuple(f"{kinds[x]}UpBlock2D" for x in reversed(down)), "layers_per_block": layers,
        "transformer_layers_per_block": depth, "use_linear_projection": linear, "reverse_transformer_layers_per_block": reverse,
    }  # fmt: skip
    if added:
        config |= {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": added,
        }  # fmt: skip
    return config


def _sd3(heads, blocks, dual=(), qk_norm=None, context=4096, pooled=2048, positions=192, size=128):
    return {
        "sample_size": size, "num_layers": blocks, "num_attention_heads": heads, "joint_attention_dim": context,
        "caption_projection_dim": 64 * heads, "pooled_projection_dim": pooled, "pos_embed_max_size": positions,
        "dual_attention_layers": tuple(dual), "qk_norm": qk_norm,
    }  # fmt: skip


_SMALL_FLUX = {
    "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 32,
}  # fmt: skip


def _flux(guidance, small=False):
    return {
        "guidance_embeds": guidance,
        **(_SMALL_FLUX | {"pooled_projection_dim": 24, "axes_dims_rope": (8, 12, 12)} if small else {}),
    }


def _pixart(alpha, head=72, layers=28, context=4096, size=128):
    return {
        "attention_head_dim": head, "cross_attention_dim": 16 * head, "num_layers": layers, "caption_channels": context,
        "sample_size": size, "use_additional_conditions": alpha,
    }  # fmt: skip


def _hunyuan(first, small=False):
    sizes = {"attention_head_dim": 88, "hidden_size": 1408, "num_layers": 40, "mlp_ratio": 4.3637, "sample_size": 128}
    if small:
        sizes = {
            "num_attention_heads": 4, "attention_head_dim": 16, "hidden_size": 64, "num_layers": 4, "mlp_ratio": 4.0,
            "cross_attention_dim": 32, "cross_attention_dim_t5": 16, "text_len": TOKENS, "text_len_t5": 6, "sample_size": SIZE,
        }  # fmt: skip
    return {"in_channels": 4, "patch_size": 2, "use_style_cond_and_image_meta_size": first, **sizes}


_SMALL_CHANNELS = (64, 128)
_SDXL = {"channels": (320, 640, 1280), "down": "DCC", "heads": (5, 10, 20), "context": 2048, "added": 2816}
_SMALL_SDXL = {"channels": _SMALL_CHANNELS, "down": "DC", "heads": (1, 2), "context": 2048, "added": 2816}
_UNET, _SD3, _FLUX, _WAN = UNet2DConditionModel, SD3Transformer2DModel, FluxTransformer2DModel, WanTransformer3DModel
_SMALL_SD3 = {"context": 32, "pooled": 24, "positions": 8, "size": 16}

VARIANTS = {
    "sd1": Variant(
        "sd1", _UNET,
        _unet(_SMALL_CHANNELS, "CC", 8, 768, linear=False, layers=1),
        _unet((320, 640, 1280, 1280), "CCCD", 8, 768, linear=False),
    ),
    "sd2": Variant(
        "sd2", _UNET,
        _unet(_SMALL_CHANNELS, "CC", (1, 2), 1024, layers=1),
        _unet((320, 640, 1280, 1280), "CCCD", (5, 10, 20, 20), 1024),
    ),
    "sdxl": Variant(
        "sdxl", _UNET, _unet(_SMALL_CHANNELS, "CC", (1, 2), 2048, 1, 2816, layers=1), _unet(**_SDXL, depth=(1, 2, 10))
    ),
    "sdxl_refiner": Variant(
        "sdxl", _UNET,
        _unet(_SMALL_CHANNELS, "DC", (1, 2), 1280, 1, 2560, layers=1),
        _unet((384, 768, 1536, 1536), "DCCD", (6, 12, 24, 24), 1280, 4, 2560),
    ),
    "ssd_1b": Variant(
        "sdxl", _UNET,
        _unet(**_SMALL_SDXL, depth=(1, 2), middle="UNetMidBlock2D", reverse=[[2, 1, 1], 1]),
        _unet(**_SDXL, depth=(1, 2, 4), middle="UNetMidBlock2D", reverse=[[4, 4, 10], [2, 1, 1], 1]),
    ),
    "segmind_vega": Variant("sdxl", _UNET, None, _unet(**_SDXL, depth=(1, 1, 2), middle="UNetMidBlock2D")),
    "koala_700m": Variant(
        "sdxl", _UNET,
        _unet(**_SMALL_SDXL, depth=(1, 2), middle=None, layers=1),
        _unet(**_SDXL, depth=(1, 2, 5), middle=None, layers=1),
    ),
    "sd3": Variant("sd3", _SD3, _sd3(2, 2, **_SMALL_SD3), _sd3(24, 24)),
    "sd35_medium": Variant(
        "sd3", _SD3, _sd3(2, 3, (0, 1), "rms_norm", **_SMALL_SD3), _sd3(24, 24, range(13), "rms_norm", positions=384)
    ),
    "sd35_large": Variant("sd3", _SD3, _sd3(2, 2, (), "rms_norm", **_SMALL_SD3), _sd3(38, 38, (), "rms_norm")),
    "flux_dev": Variant("flux", _FLUX, _flux(True, small=True), _flux(True)),
    "flux_schnell": Variant("flux", _FLUX, _flux(False, small=True), _flux(False)),
    "flux2": Variant("flux2", Flux2Transformer2DModel, {**_SMALL_FLUX, "axes_dims_rope": (8, 8, 8, 8)}, {}),
    "chroma": Variant(
        "chroma", ChromaTransformer2DModel,
        {**_SMALL_FLUX, "axes_dims_rope": (8, 12, 12), "approximator_hidden_dim": 48, "approximator_layers": 2}, {},
    ),
    "pixart_alpha": Variant("pixart", PixArtTransformer2DModel, _pixart(True, 6, 2, 32, 64), _pixart(True)),
    "pixart_sigma": Variant("pixart", PixArtTransformer2DModel, _pixart(False, 6, 2, 32, 64), _pixart(False)),
    "hunyuandit": Variant("hunyuandit", HunyuanDiT2DModel, _hunyuan(False, small=True), _hunyuan(False)),
    "hunyuandit1": Variant("hunyuandit", HunyuanDiT2DModel, _hunyuan(True, small=True), _hunyuan(True)),
    "lumina2": Variant(
        "lumina2", Lumina2Transformer2DModel,
        {
            "sample_size": SIZE, "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2,
            "axes_dim_rope": (8, 4, 4), "cap_feat_dim": 32,
        },
        {"cap_feat_dim": 2304},
    ),
    "z_image": Variant(
        "z_image", ZImageTransformer2DModel,
        {"dim": 288, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "cap_feat_dim": 32, "axes_dims": [32, 32, 32]}, {},
    ),
    "qwen_image": Variant(
        "qwen_image", QwenImageTransformer2DModel,
        {
            "num_layers": 3, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 32,
            "axes_dims_rope": (8, 12, 12),
        }, {},
    ),
    "auraflow": Variant(
        "auraflow", AuraFlowTransformer2DModel,
        {
            "sample_size": SIZE, "num_mmdit_layers": 2, "num_single_dit_layers": 2, "attention_head_dim": 8,
            "joint_attention_dim": 32, "caption_projection_dim": 96, "pos_embed_max_size": 64,
        },
        {"pos_embed_max_size": 9216},
    ),
    "wan21_t2v_1.3b": Variant(
        "wan", _WAN,
        {"num_attention_heads": 2, "ffn_dim": 96, "num_layers": 2, "text_dim": 32},
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    "wan21_t2v_14b": Variant("wan", _WAN, None, {}),
    "wan21_i2v_14b": Variant("wan", _WAN, None, {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}),
    "wan22_ti2v_5b": Variant(
        "wan", _WAN, None,
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
    ),
}  # fmt: skip
VARIANTS |= {name: Variant(*entry) for name, entry in newer.VARIANTS.items()}
SMALL = tuple(name for name, variant in VARIANTS.items() if variant.small is not None)


def real(name):
    """The published model on the meta device."""
    with torch.device("meta"):
        return VARIANTS[name].kind(**VARIANTS[name].real)


def small(name, seed=0):
    """The small model with random weights (fp32), in which every weight matters."""
    torch.manual_seed(seed)
    model = VARIANTS[name].kind(**VARIANTS[name].small)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim > 1:
                parameter.copy_(0.08 * noise)
            else:
                parameter.copy_(0.1 * noise + (1 if key.endswith("weight") else 0))
    model.eval().requires_grad_(False)
    for module in model.modules():
        module.training = hasattr(module, "moe_infer")  # as learning does it
    return model


def _grid(columns, axes):
    """Positions (SIZE/2 squared, columns) of image tokens, on the given two columns."""
    ids = torch.zeros(SIZE // 2, SIZE // 2, columns)
    for column, shape in zip(axes, ((-1, 1), (1, -1)), strict=True):
        ids[..., column] = torch.arange(SIZE // 2.0).view(shape)
    return ids.flatten(0, 1)


def _flux_inputs(config, draw, family):
    columns = 4 if family == "flux2" else 3
    text = torch.zeros(TOKENS, columns)
    if family == "flux2":
        text[:, 3] = torch.arange(TOKENS)
    out = {
        "hidden_states": draw(BATCH, SIZE**2 // 4, config.in_channels), "timestep": torch.tensor([0.9, 0.4]),
        "encoder_hidden_states": draw(BATCH, TOKENS, config.joint_attention_dim), "img_ids": _grid(columns, (1, 2)), "txt_ids": text,
    }  # fmt: skip
    if family == "flux":
        out["pooled_projections"] = draw(BATCH, config.pooled_projection_dim)
    if getattr(config, "guidance_embeds", False):
        out["guidance"] = torch.full((BATCH,), 3.5)
    return out


def _unet_inputs(config, draw, family):
    out = {
        "sample": draw(BATCH, 4, SIZE, SIZE), "timestep": torch.tensor([700, 300]),
        "encoder_hidden_states": draw(BATCH, TOKENS, config.cross_attention_dim),
    }  # fmt: skip
    if config.addition_embed_type:
        numbers = (config.projection_class_embeddings_input_dim - 1280) // 256
        out["added_cond_kwargs"] = {"text_embeds": draw(BATCH, 1280), "time_ids": 64 * torch.ones(BATCH, numbers)}
    return out


def _latent_inputs(width, channels=4, scale=1000.0, size=SIZE, **more):
    """Inputs of the transformers that take a picture of latents; `width` names the setting with the size of text tokens."""

    def inputs(config, draw, family):
        return {
            "hidden_states": draw(BATCH, channels, size, size), "timestep": scale * torch.tensor([0.9, 0.4]),
            "encoder_hidden_states": draw(BATCH, TOKENS, config[width]),
            **{key: value(config, draw) for key, value in more.items()},
        }  # fmt: skip

    return inputs


def _hunyuan_inputs(config, draw, family):
    # positions as if the picture had the 32 x 32 tokens that the model was trained on
    rotary = get_2d_rotary_pos_embed(config.attention_head_dim, ((0, 0), (32, 32)), (SIZE // 2, SIZE // 2), output_type="pt")
    out = _latent_inputs("cross_attention_dim")(config, draw, family)
    return out | {
        "text_embedding_mask": torch.ones(BATCH, TOKENS), "text_embedding_mask_t5": torch.ones(BATCH, config.text_len_t5),
        "encoder_hidden_states_t5": draw(BATCH, config.text_len_t5, config.cross_attention_dim_t5),
        "image_meta_size": torch.tensor([64.0, 64, 64, 64, 0, 0]).repeat(BATCH, 1), "image_rotary_emb": rotary,
        "style": torch.zeros(BATCH, dtype=torch.long),
    }  # fmt: skip


def _pixart_sizes(config, draw):
    if not config.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    return {"resolution": 8.0 * PIXART_SIZE * torch.ones(BATCH, 2), "aspect_ratio": torch.ones(BATCH, 1)}


def _z_image_inputs(config, draw, family):
    return {
        "x": list(draw(BATCH, 16, 1, SIZE, SIZE)), "t": torch.tensor([0.1, 0.6]),
        "cap_feats": list(draw(BATCH, TOKENS, config.cap_feat_dim)),
    }  # fmt: skip


def _qwen_inputs(config, draw, family):
    return {
        "hidden_states": draw(BATCH, SIZE**2 // 4, config.in_channels), "timestep": torch.tensor([0.9, 0.4]),
        "encoder_hidden_states": draw(BATCH, TOKENS, config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(BATCH, TOKENS, dtype=torch.bool), "img_shapes": [[(1, SIZE // 2, SIZE // 2)]] * BATCH,
    }  # fmt: skip


def _wan_inputs(config, draw, family):
    return _latent_inputs("text_dim", 16)(config, lambda *s: draw(*s[:2], 1, *s[2:]) if len(s) == 4 else draw(*s), family)


_INPUTS: dict[str, Callable] = {
    **dict.fromkeys(("sd1", "sd2", "sdxl"), _unet_inputs),
    **dict.fromkeys(("flux", "flux2", "chroma"), _flux_inputs),
    "sd3": _latent_inputs("joint_attention_dim", 16, pooled_projections=lambda c, draw: draw(BATCH, c.pooled_projection_dim)),
    "pixart": _latent_inputs("caption_channels", size=PIXART_SIZE, added_cond_kwargs=_pixart_sizes),
    "hunyuandit": _hunyuan_inputs,
    "lumina2": _latent_inputs(
        "cap_feat_dim", 16, 1.0, encoder_attention_mask=lambda c, draw: torch.ones(BATCH, TOKENS, dtype=torch.bool)
    ),
    "z_image": _z_image_inputs,
    "qwen_image": _qwen_inputs,
    "auraflow": _latent_inputs("joint_attention_dim", scale=1.0),
    "wan": _wan_inputs,
}


def inputs(name, model, seed=1):
    """Keyword arguments of the small model's forward, for a batch of two different latents, prompts and timesteps."""
    generator = torch.Generator().manual_seed(seed)
    family = VARIANTS[name].family
    if family in newer.INPUTS:
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        return newer.INPUTS[family](model.config, draw, BATCH, SIZE, TOKENS)
    return _INPUTS[family](model.config, lambda *shape: torch.randn(*shape, generator=generator), family)


def forward(name, model, given=None):
    """The small model's output (batch first), for `given` or its :func:`inputs`."""
    out = model(**(given or inputs(name, model)), return_dict=False)
    out = out if torch.is_tensor(out) else out[0]  # Kandinsky's class gives no tuple
    return torch.stack(out) if isinstance(out, list) else out


@torch.no_grad()
def predict(name, model, given=None):
    """:func:`forward` without gradients."""
    return forward(name, model, given)


# What diffusers' classes say about where gates belong, without a look at our tables.

# Families whose blocks compute their own modulation: gates on its rows. The others have them on their norms' channels.
_ROWS = ("sd3", "flux", "qwen_image", "auraflow", "hunyuan_image")
_BLOCK = re.compile(r"(?:\w*_blocks|mid_block|blocks|layers|noise_refiner|context_refiner)\..*")
_OTHER_NORMS = re.compile(r".*\.(?:norm_(?:added_)?[qk]|skip_norm)")


@dataclass(frozen=True)
class Spot:
    """`gates` on the module `path`; `dead`: reading the code says that nothing reads what it computes."""

    path: str
    gates: int
    dead: bool = False


def outline(name, model):
    """Kind -> where its gates belong."""
    if VARIANTS[name].family in newer.OUTLINES:
        found = newer.outline(VARIANTS[name].family, model)
        return {kind: [Spot(*spot) for spot in spots] for kind, spots in found.items()}
    family, modules = VARIANTS[name].family, {k: m for k, m in model.named_modules() if _BLOCK.fullmatch(k)}
    out = {"ffn": [], "norm": [], "attn": []}
    # The last text is only read by the attention beside it.
    last = rf"transformer_blocks\.{model.config.num_layers - 1}\." if family == "qwen_image" else "none"
    for path, module in modules.items():
        kind, parent = type(module).__name__, path.rpartition(".")[0]
        linears = [(k, m) for k, m in module.named_modules() if isinstance(m, torch.nn.Linear)]
        if "FeedForward" in kind:
            [(key, down)] = [(k, m) for k, m in linears if m.in_features != linears[0][1].in_features]
            out["ffn"].append(Spot(f"{path}.{key}", down.in_features, bool(re.match(last + "txt", path))))
        elif "Attention" in kind:
            # Some blocks have attention and feed-forward side by side, and one Linear behind both.
            shared = f"{path}.to_out" if hasattr(module, "to_qkv_mlp_proj") else f"{parent}.proj_out"
            if shared in modules and (shared.startswith(path) or f"{parent}.proj_mlp" in modules):
                out["attn"].append(Spot(shared, module.heads))
                out["ffn"].append(Spot(shared, modules[shared].in_features - modules[shared].out_features))
            else:
                out["attn"].append(Spot(f"{path}.to_out.0", module.heads))
            if getattr(module, "to_add_out", None) is not None:
                out["attn"].append(Spot(f"{path}.to_add_out", module.heads, bool(re.match(last, path))))
        elif family in _ROWS:
            if linears and (kind.startswith(("AdaLayerNorm", "SD35AdaLayerNorm")) or path.endswith("_mod")):
                [(key, linear)] = linears
                rows = linear.out_features // (3 if re.match(last + "txt", path) else 1)
                out["norm"].append(Spot(f"{path}.{key}", rows))
        elif "Norm" in kind and kind != "GroupNorm" and not _OTHER_NORMS.fullmatch(path) and "Norm" not in _kind(modules, parent):
            [inner] = [m for m in module.modules() if hasattr(m, "normalized_shape") or hasattr(m, "dim")]
            out["norm"].append(Spot(path, (inner.normalized_shape if hasattr(inner, "normalized_shape") else inner.dim)[-1]))
    return out


def _kind(modules, path):
    return type(modules[path]).__name__ if path in modules else ""
