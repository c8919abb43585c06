"""Architectures of 2025 and 2026 for :mod:`tests.comfyui.inside.zoo`: settings of ComfyUI's classes, small and as published."""

# What Chroma Radiance has beside Chroma's settings.
RADIANCE = {
    "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16, "nerf_hidden_size": 64,
    "nerf_mlp_ratio": 4, "nerf_depth": 4, "nerf_max_freqs": 8, "nerf_tile_size": 512, "nerf_final_head_type": "conv",
    "nerf_embedder_dtype": None, "use_x0": False, "use_sequential_txt_ids": False,
}  # fmt: skip


def cosmos(dim=2048, blocks=28, heads=16, text=1024, adaln=256):
    return {
        "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
        "patch_temporal": 1, "model_channels": dim, "concat_padding_mask": True, "crossattn_emb_channels": text,
        "pos_emb_cls": "rope3d", "pos_emb_learnable": True, "pos_emb_interpolation": "crop", "min_fps": 1, "max_fps": 30,
        "use_adaln_lora": True, "adaln_lora_dim": adaln, "num_blocks": blocks, "num_heads": heads,
        "extra_per_block_abs_pos_emb": False, "rope_h_extrapolation_ratio": 4.0, "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0, "rope_enable_fps_modulation": False,
    }  # fmt: skip


def krea2(features=6144, heads=48, kv=12, layers=28, text=2560, taps=12, text_heads=20):
    return {
        "image_model": "krea2", "features": features, "channels": 16, "patch": 2, "layers": layers, "heads": heads, "kvheads": kv,
        "txtlayers": taps, "txtdim": text, "txtheads": text_heads, "txtkvheads": text_heads,
    }  # fmt: skip


def ideogram4(layers=34, heads=18, head=256, ffn=12288, adaln=512, text=53248, axes=(24, 20, 20)):
    return {
        "image_model": "ideogram4", "in_channels": 128, "num_layers": layers, "num_attention_heads": heads,
        "attention_head_dim": head, "intermediate_size": ffn, "adaln_dim": adaln, "llm_features_dim": text,
        "mrope_section": list(axes),
    }  # fmt: skip


def ernie(hidden=4096, heads=32, layers=36, ffn=12288, text=3072, axes=(32, 48, 48)):
    return {
        "image_model": "ernie", "hidden_size": hidden, "num_attention_heads": heads, "num_layers": layers,
        "ffn_hidden_size": ffn, "text_in_dim": text, "rope_axes_dim": axes,
    }  # fmt: skip


def lens(layers=48, heads=24, text=2880, taps=4):
    return {
        "image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": layers, "num_attention_heads": heads,
        "enc_hidden_dim": text, "multi_layer_encoder_feature": True, "selected_layer_index": tuple(range(taps)),
    }  # fmt: skip


def hunyuan_image(hidden=3584, heads=28, double=20, single=40, text=3584, byt5=True):
    return {
        "image_model": "hunyuan_video", "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "context_in_dim": text,
        "hidden_size": hidden, "mlp_ratio": 4.0, "num_heads": heads, "depth": double, "depth_single_blocks": single,
        "axes_dim": [hidden // heads // 2] * 2, "theta": 256, "patch_size": [1, 1], "qkv_bias": True, "guidance_embed": False,
        "byt5": byt5, "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
    }  # fmt: skip


def kandinsky5(dim=2560, ffn=10240, time=512, blocks=50, axes=(32, 48, 48), text=3584, pooled=768, video=False):
    return {
        "image_model": "kandinsky5", "model_dim": dim, "ff_dim": ffn, "time_dim": time, "axes_dims": axes, "in_text_dim": text,
        "in_text_dim2": pooled, "visual_embed_dim": 132 if video else 64, "num_text_blocks": 2, "num_visual_blocks": blocks,
    } | ({} if video else {"rope_scale_factor": (1.0, 1.0, 1.0)})  # fmt: skip


def hidream(heads=20, double=16, single=32, experts=4, active=2, text=4096, pooled=2048, layers=None):
    return {
        "image_model": "hidream", "attention_head_dim": 128, "axes_dims_rope": [64, 32, 32], "caption_channels": [text, text],
        "max_resolution": [128, 128], "in_channels": 16, "llama_layers": layers or [*range(32), *[31] * 16],
        "num_attention_heads": heads, "num_routed_experts": experts, "num_activated_experts": active, "num_layers": double,
        "num_single_layers": single, "out_channels": 16, "patch_size": 2, "text_emb_dim": pooled,
    }  # fmt: skip


def mage_flow(layers=12, heads=24, head=128, text=2560, axes=(16, 56, 56)):
    return {
        "image_model": "mage_flow", "in_channels": 128, "num_layers": layers, "num_attention_heads": heads,
        "attention_head_dim": head, "joint_attention_dim": text, "axes_dims_rope": axes,
    }  # fmt: skip


def omnigen2(hidden=2520, heads=21, kv=7, layers=32, refiners=2, multiple=256, text=2048, axes=(40, 40, 40)):
    return {
        "image_model": "omnigen2", "axes_dim_rope": list(axes), "axes_lens": [1024, 1664, 1664], "ffn_dim_multiplier": None,
        "hidden_size": hidden, "in_channels": 16, "multiple_of": multiple, "norm_eps": 1e-05, "num_attention_heads": heads,
        "num_kv_heads": kv, "num_layers": layers, "num_refiner_layers": refiners, "out_channels": None, "patch_size": 2,
        "text_feat_dim": text, "timestep_scale": 1000.0,
    }  # fmt: skip


# name -> (family, name of ComfyUI's class, small config, published config or None)
ARCHITECTURES = {
    # Anima's own text transformer cannot be made small.
    "anima": ("cosmos", "Anima", None, {"image_model": "anima", **cosmos()}),
    "cosmos_predict2_2b": (
        "cosmos", "CosmosT2IPredict2", {"image_model": "cosmos_predict2", **cosmos(64, 2, 2, 32, 16)},
        {"image_model": "cosmos_predict2", **cosmos()},
    ),
    "cosmos_predict2_14b": ("cosmos", "CosmosT2IPredict2", None, {"image_model": "cosmos_predict2", **cosmos(5120, 36, 40)}),
    "krea2": ("krea2", "Krea2", krea2(64, 2, 1, 2, 32, 3, 2), krea2()),
    "ideogram4": ("ideogram4", "Ideogram4", ideogram4(2, 2, 32, 96, 24, 40, (8, 4, 4)), ideogram4()),
    "ernie_image": ("ernie", "ErnieImage", ernie(64, 2, 2, 96, 32, (8, 12, 12)), ernie()),
    "lens": ("lens", "Lens", lens(2, 2, 16, 2), lens()),
    "hunyuan_image21": ("hunyuan_image", "HunyuanImage21", hunyuan_image(64, 2, 1, 1, 32, False), hunyuan_image()),
    "kandinsky5_image": (
        "kandinsky5", "Kandinsky5Image", kandinsky5(64, 96, 32, 2, (8, 12, 12), 32, 24), kandinsky5(),
    ),
    "kandinsky5_video_lite": (
        "kandinsky5", "Kandinsky5", None, kandinsky5(1792, 7168, 512, 32, (16, 24, 24), video=True),
    ),
    "hidream_i1": ("hidream", "HiDream", hidream(2, 1, 1, 2, 2, 32, 24, [0, 1]), hidream()),
    "mage_flow": ("qwen_image", "MageFlow", mage_flow(2, 2, 32, 32, (8, 12, 12)), mage_flow()),
    "omnigen2": ("omnigen2", "Omnigen2", omnigen2(48, 2, 1, 1, 1, 16, 32, (8, 8, 8)), omnigen2()),
}  # fmt: skip

# Width of the prompt's encoding, by a family's config.
WIDTHS = {
    "cosmos": lambda c: c["crossattn_emb_channels"],
    "krea2": lambda c: c["txtlayers"] * c["txtdim"],
    "ideogram4": lambda c: c["llm_features_dim"],
    "ernie": lambda c: c["text_in_dim"],
    "chroma_radiance": lambda c: c["context_in_dim"],
    "lens": lambda c: c["enc_hidden_dim"] * len(c["selected_layer_index"]),
    "hunyuan_image": lambda c: c["context_in_dim"],
    "kandinsky5": lambda c: c["in_text_dim"],
    "hidream": lambda c: c["caption_channels"][0],
    "omnigen2": lambda c: c["text_feat_dim"],
}
CHANNELS = {"ernie": 128, "kandinsky5": 16, "krea2": 16}  # of latents, where a config does not say


def conditions(family, config, draw, batch, tokens):
    """What ``apply_model`` takes beside latents, sigmas and the prompt's encoding; `draw` makes random tensors of a shape."""
    if family == "chroma_radiance":
        return {"guidance": draw(batch).abs()}
    if family == "kandinsky5":
        return {"y": draw(batch, config["in_text_dim2"])}
    if family == "hidream":
        layers = max(config["llama_layers"]) + 1
        return {
            "y": draw(batch, config["text_emb_dim"]),
            "encoder_hidden_states_llama3": draw(batch, layers, tokens, config["caption_channels"][1]),
        }
    return {"num_tokens": tokens} if family == "omnigen2" else {}
