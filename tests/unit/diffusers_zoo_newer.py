"""Architectures of 2025 and 2026 for :mod:`tests.unit.diffusers_zoo`: diffusers' classes, their inputs, and where gates belong."""

import re

import torch
from diffusers import (
    CosmosTransformer3DModel,
    ErnieImageTransformer2DModel,
    Flux2Transformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanImageTransformer2DModel,
    Ideogram4Transformer2DModel,
    Kandinsky5Transformer3DModel,
    Krea2Transformer2DModel,
)


def _cosmos(heads, head, layers, text=1024, adaln=256):
    return {
        "in_channels": 16, "out_channels": 16, "num_attention_heads": heads, "attention_head_dim": head, "num_layers": layers,
        "mlp_ratio": 4.0, "text_embed_dim": text, "adaln_lora_dim": adaln, "max_size": (128, 240, 240), "patch_size": (1, 2, 2),
        "rope_scale": (1.0, 4.0, 4.0), "concat_padding_mask": True, "extra_pos_embed_type": None,
    }  # fmt: skip


def _kandinsky5(dim, ffn, blocks, axes, video=False, **changes):
    return {
        "in_visual_dim": 16, "out_visual_dim": 16, "model_dim": dim, "ff_dim": ffn, "num_visual_blocks": blocks, "axes_dims": axes,
        "time_dim": 512, "visual_cond": video,
    } | changes  # fmt: skip


def _hidream(heads, double, single, experts, active, text, pooled, layers):
    return {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": double, "num_single_layers": single,
        "attention_head_dim": 128, "num_attention_heads": heads, "caption_channels": [text, text], "text_emb_dim": pooled,
        "num_routed_experts": experts, "num_activated_experts": active, "axes_dims_rope": (64, 32, 32),
        "max_resolution": (128, 128), "llama_layers": layers,
    }  # fmt: skip


def _klein(heads, double, single, text):
    return {
        "num_layers": double, "num_single_layers": single, "num_attention_heads": heads, "joint_attention_dim": text,
        "guidance_embeds": False,
    }  # fmt: skip


# name -> (family, class, small config or None, published config)
VARIANTS = {
    "flux2_klein_4b": ("flux2", Flux2Transformer2DModel, None, _klein(24, 5, 20, 7680)),
    "flux2_klein_9b": ("flux2", Flux2Transformer2DModel, None, _klein(32, 8, 24, 12288)),
    "cosmos_predict2_2b": ("cosmos", CosmosTransformer3DModel, _cosmos(2, 32, 2, 32, 16), _cosmos(16, 128, 28)),
    "cosmos_predict2_14b": ("cosmos", CosmosTransformer3DModel, None, _cosmos(40, 128, 36)),
    "krea2": (
        "krea2", Krea2Transformer2DModel,
        {
            "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 256,
            "text_hidden_dim": 32, "num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 2,
            "text_intermediate_size": 128, "axes_dims_rope": (8, 12, 12),
        }, {},
    ),
    "ideogram4": (
        "ideogram4", Ideogram4Transformer2DModel,
        {
            "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "intermediate_size": 96, "adaln_dim": 24,
            "llm_features_dim": 40, "mrope_section": (8, 4, 4),
        }, {},
    ),
    "ernie_image": (
        "ernie", ErnieImageTransformer2DModel,
        {
            "hidden_size": 64, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 96, "in_channels": 128,
            "out_channels": 128, "patch_size": 1, "text_in_dim": 32, "rope_axes_dim": (8, 12, 12),
        },
        {"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12288, "text_in_dim": 3072},
    ),
    "hunyuan_image21": (
        "hunyuan_image", HunyuanImageTransformer2DModel,
        {
            "num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 1, "num_single_layers": 1, "text_embed_dim": 32,
            "rope_axes_dim": (16, 16),
        },
        {"text_embed_2_dim": 1472},
    ),
    "kandinsky5_image": (
        "kandinsky5", Kandinsky5Transformer3DModel,
        _kandinsky5(64, 96, 2, (8, 12, 12), time_dim=32, in_text_dim=32, in_text_dim2=24),
        _kandinsky5(2560, 10240, 50, (32, 48, 48)),
    ),
    "kandinsky5_video_lite": (
        "kandinsky5", Kandinsky5Transformer3DModel, None, _kandinsky5(1792, 7168, 32, (16, 24, 24), video=True),
    ),
    "hidream_i1": (
        "hidream", HiDreamImageTransformer2DModel, _hidream(2, 1, 1, 2, 2, 32, 24, [0, 1]),
        _hidream(20, 16, 32, 4, 2, 4096, 2048, [*range(32), *[31] * 16]),
    ),
}  # fmt: skip


def _picture(config, draw, batch, size, tokens, channels, text, scale=1.0):
    return {
        "hidden_states": draw(batch, channels, size, size), "timestep": scale * torch.tensor([0.9, 0.4]),
        "encoder_hidden_states": draw(batch, tokens, text),
    }  # fmt: skip


def _cosmos_inputs(config, draw, batch, size, tokens):
    out = _picture(config, draw, batch, size, tokens, 16, config.text_embed_dim)
    return out | {"hidden_states": out["hidden_states"][:, :, None], "padding_mask": torch.zeros(1, 1, size, size)}


def _krea2_inputs(config, draw, batch, size, tokens):
    side = size // 2
    grid = torch.cartesian_prod(torch.zeros(1), torch.arange(side * 1.0), torch.arange(side * 1.0))
    return {
        "hidden_states": draw(batch, side**2, 64), "timestep": torch.tensor([0.9, 0.4]),
        "encoder_hidden_states": draw(batch, tokens, config.num_text_layers, config.text_hidden_dim),
        "position_ids": torch.cat([torch.zeros(tokens, 3), grid]),
    }  # fmt: skip


def _ideogram4_inputs(config, draw, batch, size, tokens):
    """Text, then the picture, in one row of tokens."""
    grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(size), torch.arange(size))
    text = torch.arange(tokens).view(-1, 1).expand(tokens, 3)
    length = tokens + size**2
    return {
        "hidden_states": draw(batch, length, 128), "timestep": torch.tensor([0.1, 0.6]),
        "encoder_hidden_states": draw(batch, length, config.llm_features_dim),
        "position_ids": torch.cat([text, grid + 65536]).expand(batch, length, 3),
        "segment_ids": torch.ones(batch, length, dtype=torch.long),
        "indicator": torch.tensor([3] * tokens + [2] * size**2).expand(batch, length),
    }  # fmt: skip


def _ernie_inputs(config, draw, batch, size, tokens):
    return {
        "hidden_states": draw(batch, 128, size, size), "timestep": torch.tensor([900.0, 400.0]),
        "text_bth": draw(batch, tokens, config.text_in_dim), "text_lens": torch.full((batch,), tokens),
    }  # fmt: skip


def _hunyuan_image_inputs(config, draw, batch, size, tokens):
    out = _picture(config, draw, batch, size, tokens, 64, config.text_embed_dim, 1000.0)
    return out | {"encoder_attention_mask": torch.ones(batch, tokens)}


def _kandinsky5_inputs(config, draw, batch, size, tokens):
    side = torch.arange(size // 2)
    return {
        "hidden_states": draw(batch, 1, size, size, 16), "timestep": torch.tensor([900.0, 400.0]),
        "encoder_hidden_states": draw(batch, tokens, config.in_text_dim),
        "pooled_projections": draw(batch, config.in_text_dim2), "visual_rope_pos": (torch.arange(1), side, side),
        "text_rope_pos": torch.arange(tokens),
    }  # fmt: skip


def _hidream_inputs(config, draw, batch, size, tokens):
    return {
        "hidden_states": draw(batch, 16, size, size), "timesteps": torch.tensor([900.0, 400.0]),
        "encoder_hidden_states_t5": draw(batch, tokens, config.caption_channels[0]),
        "encoder_hidden_states_llama3": draw(max(config.llama_layers) + 1, batch, tokens, config.caption_channels[1]),
        "pooled_embeds": draw(batch, config.text_emb_dim),
    }  # fmt: skip


INPUTS = {
    "cosmos": _cosmos_inputs,
    "krea2": _krea2_inputs,
    "ideogram4": _ideogram4_inputs,
    "ernie": _ernie_inputs,
    "hunyuan_image": _hunyuan_image_inputs,
    "kandinsky5": _kandinsky5_inputs,
    "hidream": _hidream_inputs,
}
# Where reading diffusers' classes says that gates belong: kind -> modules, and how many each has.
_COLUMNS, _ROWS = (lambda module, heads: module.in_features), (lambda module, heads: module.out_features)
_HEADS = lambda module, heads: heads  # noqa: E731
_NORM = lambda module, heads: module.weight.shape[0]  # noqa: E731
_PLAIN_NORM = lambda module, heads: module.normalized_shape[0]  # noqa: E731
_BLOCKS = {"cosmos": "transformer_blocks", "krea2": "transformer_blocks", "kandinsky5": "visual_transformer_blocks"}
OUTLINES = {
    "cosmos": {
        "ffn": (r"ff\.net\.2", _COLUMNS), "norm": (r"norm[123]\.norm", _PLAIN_NORM), "attn": (r"attn[12]\.to_out\.0", _HEADS),
    },
    "krea2": {"ffn": (r"ff\.down", _COLUMNS), "norm": (r"norm[12]", _NORM), "attn": (r"attn\.to_out\.0", _HEADS)},
    "ideogram4": {
        "ffn": (r"feed_forward\.w2", _COLUMNS), "norm": (r"adaln_modulation", _ROWS), "attn": (r"attention\.to_out\.0", _HEADS),
    },
    "ernie": {
        "ffn": (r"mlp\.linear_fc2", _COLUMNS), "norm": (r"adaLN_(?:sa|mlp)_ln", _NORM),
        "attn": (r"self_attention\.to_out\.0", _HEADS),
    },
    "kandinsky5": {
        "ffn": (r"feed_forward\.out_layer", _COLUMNS), "norm": (r"visual_modulation\.out_layer", _ROWS),
        "attn": (r"(?:self|cross)_attention\.out_layer", _HEADS),
    },
    "hidream": {
        "ffn": (r"block\.ff_[it]\.(?:.*\.)?w2", _COLUMNS), "norm": (r"block\.adaLN_modulation\.1", _ROWS),
        "attn": (r"block\.attn1\.to_out(?:_t)?", _HEADS),
    },
}  # fmt: skip


def heads(module):
    """Of an attention, None for any other module."""
    return getattr(module, "heads", None) or getattr(module, "num_heads", None)


def outline(family, model):
    """Kind -> [(path, gates)]."""
    row = {"hidream": r"(?:double|single)_stream_blocks"}.get(family, _BLOCKS.get(family, "layers"))
    attention = next(heads(m) for path, m in model.named_modules() if re.match(row, path) and heads(m))
    return {
        kind: [
            (path, count(module, attention))
            for path, module in model.named_modules()
            if re.fullmatch(rf"{row}\.\d+\.{pattern}", path)
        ]
        for kind, (pattern, count) in OUTLINES[family].items()
    }
