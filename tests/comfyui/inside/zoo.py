"""Every family's architecture, built from ComfyUI's own classes: small with random weights, or at real size without any."""

from dataclasses import fields

import comfy.model_patcher
import comfy.supported_models as supported
import torch
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.chroma_radiance.model import ChromaRadianceParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

from tests.comfyui.inside import zoo_newer

SIZE = 8  # of latents


def unet(
    channels=32, blocks=(1, 1), depth=(1, 1), middle=1, context=768, linear=False, adm=None, mult=None, out=None, heads=None
):
    """UNet config as comfy.model_detection makes it; `depth` holds one entry per residual block."""
    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels, "num_res_blocks": list(blocks),
        "channel_mult": list(mult or range(1, len(blocks) + 1)), "use_spatial_transformer": True, "legacy": False,
        "use_checkpoint": False, "transformer_depth": list(depth), "transformer_depth_middle": middle, "context_dim": context,
        "transformer_depth_output": list(out) if out else [d for n, d in zip(blocks, depth, strict=False) for d in [d] * (n + 1)],
        "use_linear_in_transformer": linear, "adm_in_channels": adm, "use_temporal_attention": False, "use_temporal_resblock": False,
        **(heads or {"num_head_channels": 64}),
    }  # fmt: skip
    if adm is not None:
        config["num_classes"] = "sequential"
    return config


def sd3(heads, blocks, dual=(), qk_norm=None, context=4096, adm=2048, channels=16, patch=2, positions=192):
    return {
        "in_channels": channels, "patch_size": patch, "depth": heads, "num_blocks": blocks, "input_size": None,
        "adm_in_channels": adm, "pos_embed_max_size": positions, "num_patches": positions**2, "pos_embed_scaling_factor": None,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": context, "out_features": 64 * heads}},
        "qk_norm": qk_norm, "x_block_self_attn_layers": list(dual),
    }  # fmt: skip


def known(params, config):
    """`config` without what this ComfyUI's class has no setting for: later versions ask for some that earlier ones refuse."""
    names = {"image_model", *(f.name for f in fields(params))}
    return {name: value for name, value in config.items() if name in names}


def flux(hidden=3072, heads=24, double=19, single=38, guidance=True, **changes):
    return known(FluxParams, {
        "image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": heads, "mlp_ratio": 4.0, "theta": 10000, "out_channels": 16,
        "qkv_bias": True, "patch_size": 2, "in_channels": 16, "hidden_size": hidden, "context_in_dim": 4096, "vec_in_dim": 768,
        "depth": double, "depth_single_blocks": single, "guidance_embed": guidance, "txt_ids_dims": [],
    }) | changes  # fmt: skip


def flux2(hidden=6144, heads=48, double=8, single=48, **changes):
    return known(FluxParams, {
        "image_model": "flux2", "axes_dim": [32, 32, 32, 32], "num_heads": heads, "mlp_ratio": 3.0, "theta": 2000,
        "out_channels": 128, "global_modulation": True, "vec_in_dim": None, "mlp_silu_act": True, "qkv_bias": False,
        "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "patch_size": 1, "in_channels": 128,
        "hidden_size": hidden, "context_in_dim": 15360, "depth": double, "depth_single_blocks": single, "guidance_embed": True,
        "txt_ids_dims": [3],
    }) | changes  # fmt: skip


def chroma(hidden=3072, heads=24, double=19, single=38, **changes):
    return known(ChromaParams, flux(hidden, heads, double, single) | {
        "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": hidden, "hidden_dim": 5120,
        "n_layers": 5, "vec_in_dim": None,
    }) | changes  # fmt: skip


def pixart(hidden=1152, depth=28, alpha=False, context=4096, size=128):
    return {
        "image_model": "pixart_alpha" if alpha else "pixart_sigma", "num_heads": 16, "patch_size": 2, "hidden_size": hidden,
        "in_channels": 4, "depth": depth, "model_max_length": 120 if alpha else 300, "micro_condition": alpha,
        "caption_channels": context, "input_size": size, "pe_interpolation": size // 64,
    }  # fmt: skip


def hunyuan(hidden=1408, depth=40, ratio=4.3637, first=False, heads=16, **changes):
    extra = {"size_cond": True, "use_style_cond": True} if first else {}
    return {
        "image_model": "hydit1" if first else "hydit", "depth": depth, "hidden_size": hidden, "mlp_ratio": ratio,
        "num_heads": heads, **extra, **changes,
    }  # fmt: skip


def lumina(dim=2304, layers=26, heads=24, kv=8, axes=(32, 32, 32), context=2304, multiplier=4.0, z=False):
    config = {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": dim, "cap_feat_dim": context, "n_layers": layers,
        "qk_norm": True, "n_heads": heads, "n_kv_heads": kv, "axes_dims": list(axes), "axes_lens": [300, 512, 512],
        "rope_theta": 10000.0, "ffn_dim_multiplier": multiplier,
    }  # fmt: skip
    if z:
        config |= {"z_image_modulation": True, "time_scale": 1000.0, "rope_theta": 256.0}
    return config


def qwen(layers=60, heads=24, context=3584, head=128, axes=(16, 56, 56)):
    return {
        "image_model": "qwen_image", "in_channels": 64, "num_layers": layers, "num_attention_heads": heads,
        "attention_head_dim": head, "joint_attention_dim": context, "axes_dims_rope": axes,
    }  # fmt: skip


def aura(dim=3072, double=4, single=32, context=2048, positions=9216):
    return {
        "max_seq": positions, "cond_seq_dim": context, "n_double_layers": double, "n_layers": double + single, "dim": dim,
        "global_conddim": dim, "n_heads": 12,
    }  # fmt: skip


def wan(dim=1536, ffn=8960, layers=30, kind="t2v", channels=16, text=4096, out=16):
    return {
        "image_model": "wan2.1", "dim": dim, "out_dim": out, "num_heads": dim // 128, "ffn_dim": ffn, "num_layers": layers,
        "patch_size": (1, 2, 2), "freq_dim": 256, "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6,
        "in_dim": channels, "model_type": kind, "text_dim": text,
    }  # fmt: skip


def radiance(**changes):
    return known(ChromaRadianceParams, chroma() | zoo_newer.RADIANCE | changes)


_SMALL_UNET = {"channels": 64, "blocks": (1, 1), "depth": (1, 2)}
_SD1 = {"num_heads": 8}

# name -> (family, ComfyUI's class, small config, real config or None)
ARCHITECTURES = {
    "sd1": (
        "sd1", supported.SD15, unet(**_SMALL_UNET, heads=_SD1),
        unet(320, (2, 2, 2, 2), (1, 1, 1, 1, 1, 1, 0, 0), 1, 768, False, None, (1, 2, 4, 4), (1,) * 9 + (0,) * 3, _SD1),
    ),
    "sd2": (
        "sd2", supported.SD20, unet(**_SMALL_UNET, context=1024, linear=True),
        unet(320, (2, 2, 2, 2), (1, 1, 1, 1, 1, 1, 0, 0), 1, 1024, True, None, (1, 2, 4, 4), (1,) * 9 + (0,) * 3),
    ),
    "sdxl": (
        "sdxl", supported.SDXL, unet(**_SMALL_UNET, context=2048, linear=True, adm=2816),
        unet(320, (2, 2, 2), (0, 0, 2, 2, 10, 10), 10, 2048, True, 2816, (1, 2, 4), (0, 0, 0, 2, 2, 2, 10, 10, 10)),
    ),
    "sdxl_refiner": (
        "sdxl", supported.SDXLRefiner, unet(64, (1, 1), (0, 1), context=1280, linear=True, adm=2560),
        unet(384, (2, 2, 2, 2), (0, 0, 4, 4, 4, 4, 0, 0), 4, 1280, True, 2560, (1, 2, 4, 4), (0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0)),
    ),
    "ssd_1b": (
        "sdxl", supported.SSD1B, unet(64, (2, 1), (0, 1, 2), -1, 2048, True, 2816, (1, 2), (0, 1, 0, 2, 1)),
        unet(320, (2, 2, 2), (0, 0, 2, 2, 4, 4), -1, 2048, True, 2816, (1, 2, 4), (0, 0, 0, 1, 1, 2, 10, 4, 4)),
    ),
    "segmind_vega": (
        "sdxl", supported.Segmind_Vega, None,
        unet(320, (2, 2, 2), (0, 0, 1, 1, 2, 2), -1, 2048, True, 2816, (1, 2, 4), (0, 0, 0, 1, 1, 1, 2, 2, 2)),
    ),
    "koala_700m": (
        "sdxl", supported.KOALA_700M, unet(64, (1, 1), (0, 2), -2, 2048, True, 2816, (1, 2), (0, 0, 2, 2)),
        unet(320, (1, 1, 1), (0, 2, 5), -2, 2048, True, 2816, (1, 2, 4), (0, 0, 2, 2, 5, 5)),
    ),
    "sd3": ("sd3", supported.SD3, sd3(2, 2, context=32, adm=24, positions=8), sd3(24, 24)),
    "sd35_medium": (
        "sd3", supported.SD3, sd3(2, 3, (0, 1), "rms", context=32, adm=24, positions=8),
        sd3(24, 24, range(13), "rms", positions=384),
    ),
    "sd35_large": ("sd3", supported.SD3, sd3(2, 2, (), "rms", 32, 24, positions=8), sd3(38, 38, (), "rms")),
    "flux_dev": (
        "flux", supported.Flux, flux(64, 2, 2, 2, axes_dim=[8, 12, 12], context_in_dim=32, vec_in_dim=24), flux(),
    ),
    "flux_schnell": (
        "flux", supported.FluxSchnell, flux(64, 2, 2, 2, False, axes_dim=[8, 12, 12], context_in_dim=32, vec_in_dim=24),
        flux(guidance=False),
    ),
    "flux2": (
        "flux2", supported.Flux2,
        flux2(64, 2, 2, 2, axes_dim=[8, 8, 8, 8], context_in_dim=32), flux2(),
    ),
    "flux2_klein_4b": (
        "flux2", supported.Flux2, None, flux2(3072, 24, 5, 20, context_in_dim=7680, guidance_embed=False),
    ),
    "flux2_klein_9b": (
        "flux2", supported.Flux2, None, flux2(4096, 32, 8, 24, context_in_dim=12288, guidance_embed=False),
    ),
    "chroma": (
        "chroma", supported.Chroma, chroma(64, 2, 2, 2, axes_dim=[8, 12, 12], context_in_dim=32, hidden_dim=48, n_layers=2),
        chroma(),
    ),
    "pixart_alpha": ("pixart", supported.PixArtAlpha, pixart(96, 2, True, 32, 64), pixart(alpha=True)),
    "pixart_sigma": ("pixart", supported.PixArtSigma, pixart(96, 2, False, 32, 64), pixart()),
    "hunyuandit": (
        "hunyuandit", supported.HunyuanDiT, hunyuan(64, 4, 4.0, heads=4, text_states_dim=32, text_states_dim_t5=16, text_len_t5=6, text_len=5),
        hunyuan(),
    ),
    "hunyuandit1": (
        "hunyuandit", supported.HunyuanDiT1,
        hunyuan(64, 4, 4.0, True, heads=4, text_states_dim=32, text_states_dim_t5=16, text_len_t5=6, text_len=5), hunyuan(first=True),
    ),
    "lumina2": ("lumina2", supported.Lumina2, lumina(64, 2, 4, 2, (8, 4, 4), 32, 1.0), lumina()),
    "z_image": (
        "z_image", supported.ZImage, lumina(256, 2, 4, 4, (32, 16, 16), 32, 1.0, True),
        lumina(3840, 30, 30, 30, (32, 48, 48), 2560, 8 / 3, True),
    ),
    "qwen_image": ("qwen_image", supported.QwenImage, qwen(3, 2, 32, 32, (8, 12, 12)), qwen()),
    "auraflow": ("auraflow", supported.AuraFlow, aura(96, 2, 2, 32, 64), aura()),
    "wan21_t2v_1.3b": ("wan", supported.WAN21_T2V, wan(256, 96, 2, text=32), wan()),
    "wan21_t2v_14b": ("wan", supported.WAN21_T2V, None, wan(5120, 13824, 40)),
    "wan21_i2v_14b": ("wan", supported.WAN21_I2V, None, wan(5120, 13824, 40, "i2v", 36)),
    "wan22_ti2v_5b": ("wan", supported.WAN22_T2V, None, wan(3072, 14336, 30, channels=48, out=48)),
}  # fmt: skip
_LONGCAT = {"vec_in_dim": None, "txt_ids_dims": [1, 2]}
_PIXELS = {"image_model": "zimage_pixel", "in_channels": 3, "patch_size": 16, "decoder_in_channels": 768}
# Run on the version whose classes they were written for; 0.3.75 has some of them.
NEWER = hasattr(supported, "Krea2")
_LATER = {
    **zoo_newer.ARCHITECTURES,
    "chroma_radiance": (
        "chroma_radiance", "ChromaRadiance",
        radiance(nerf_hidden_size=16, nerf_depth=2, hidden_size=64, num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[8, 12, 12], context_in_dim=32,
                 out_dim=64, hidden_dim=48, n_layers=2, nerf_mlp_ratio=2),
        radiance(),
    ),
    "longcat_image": (
        "flux", "LongCatImage", flux(64, 2, 2, 2, False, axes_dim=[8, 12, 12], context_in_dim=32, **_LONGCAT),
        flux(double=10, single=20, guidance=False, context_in_dim=3584, **_LONGCAT),
    ),
    "z_image_pixel": (
        "z_image", "ZImagePixelSpace",
        lumina(256, 2, 4, 4, (32, 16, 16), 32, 1.0, True) | _PIXELS | {"decoder_hidden_size": 32, "decoder_num_res_blocks": 2},
        lumina(3840, 30, 30, 30, (32, 48, 48), 2560, 8 / 3, True) | _PIXELS,
    ),
}  # fmt: skip
for _name, (_family, _kind, _small, _published) in _LATER.items():
    if _family == "hunyuan_image":
        _small, _published = (known(HunyuanVideoParams, config) for config in (_small, _published))
    if NEWER:
        ARCHITECTURES[_name] = (_family, getattr(supported, _kind), _small, _published)
SMALL = tuple(name for name, entry in ARCHITECTURES.items() if entry[2] is not None)


def _network(name, config, device=None):
    kind = ARCHITECTURES[name][1]
    settings = kind({**config})
    settings.unet_config |= config  # some classes write published sizes into it
    settings.set_inference_dtype(torch.float32, None)
    return settings.get_model({}, device=device)


def real(name):
    """The real architecture's diffusion model on the meta device."""
    return _network(name, ARCHITECTURES[name][3], torch.device("meta")).diffusion_model


def small(name, seed=0):
    """A small ``comfy.model_base`` model with random weights (fp32), in which every weight matters."""
    model = _network(name, ARCHITECTURES[name][2])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.diffusion_model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                # Norms below 1 keep attention from saturating, which would kill the gradients of what is not attended to.
                weight.copy_(0.1 * noise + (0.5 if key.endswith(("weight", "scale")) else 0))
            else:
                weight.copy_(noise * min(0.3, 1.2 / weight[0].numel() ** 0.5))
        kept = model.diffusion_model.state_dict()  # the other buffers are tables of what a position or a time is
        for key, buffer in model.diffusion_model.named_buffers():
            if key in kept and buffer.is_floating_point():
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
    return model.requires_grad_(False).eval()


def patcher(name, seed=0):
    """The small model as a loader node hands it out."""
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(small(name, seed), load_device=cpu, offload_device=cpu)


def conditions(name, batch=2, tokens=5, seed=1):
    """Keyword arguments of ``apply_model`` beside latents and sigmas."""
    family, _, config, _ = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    width = {
        "sd3": lambda c: c["context_embedder_config"]["params"]["in_features"],
        "pixart": lambda c: c["caption_channels"],
        "hunyuandit": lambda c: c["text_states_dim"],
        "qwen_image": lambda c: c["joint_attention_dim"],
        "auraflow": lambda c: c["cond_seq_dim"],
        "wan": lambda c: c["text_dim"],
        **dict.fromkeys(("sd1", "sd2", "sdxl"), lambda c: c["context_dim"]),
        **dict.fromkeys(("flux", "flux2", "chroma"), lambda c: c["context_in_dim"]),
        **dict.fromkeys(("lumina2", "z_image"), lambda c: c["cap_feat_dim"]),
        **zoo_newer.WIDTHS,
    }[family](config)
    out = {"c_crossattn": draw(batch, tokens, width), **zoo_newer.conditions(family, config, draw, batch, tokens)}
    if family in ("sdxl", "sd3"):
        out["y"] = draw(batch, config["adm_in_channels"])
    if family == "flux" and config["vec_in_dim"]:
        out["y"] = draw(batch, config["vec_in_dim"])
    if family in ("flux", "flux2", "chroma"):
        out["guidance"] = torch.full((batch,), 3.5)
    if family in ("lumina2", "z_image"):
        out["num_tokens"] = tokens
    if family == "hunyuandit":
        out |= {
            "text_embedding_mask": torch.ones(batch, tokens),
            "encoder_hidden_states_t5": draw(batch, config["text_len_t5"], config["text_states_dim_t5"]),
            "text_embedding_mask_t5": torch.ones(batch, config["text_len_t5"]),
            "image_meta_size": torch.tensor([[64.0, 64, 64, 64, 0, 0]]).repeat(batch, 1),
        }
    return out


def inputs(name, batch=2, seed=2):
    """Latents (batch, ...) and sigmas (batch,)."""
    family, _, config, _ = ARCHITECTURES[name]
    channels = config.get("in_channels") or config.get("in_dim") or 4
    channels = 16 if family in ("chroma", "wan") or name == "qwen_image" else zoo_newer.CHANNELS.get(family, channels)
    # PixArt's positions are counted in units of 64; some draw pixels, in patches of 16
    size = {"pixart": 40, "chroma_radiance": 32, "z_image_pixel": 32}.get(name if family == "z_image" else family, SIZE)
    frames = (1,) if family in ("wan", "cosmos", "krea2") or name == "qwen_image" else ()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *frames, size, size, generator=generator)
    return x, torch.tensor([0.9, 0.4])[:batch]


def predict(name, model, gradients=False):
    """One prediction of a ``comfy.model_base`` model."""
    x, sigma = inputs(name)
    with torch.set_grad_enabled(gradients):
        return model.apply_model(x, sigma, **conditions(name), transformer_options={})
