"""FLUX and what was built on its blocks."""

from __future__ import annotations

from .schema import Blocks, Family, Key, Naming, Rule, Stream, same

_FLUX_BLOCKS = (Blocks("DOUBLE", r"double_blocks\.(\d+)\."), Blocks("SINGLE", r"single_blocks\.(\d+)\."))
_FLUX_STREAMS = (Stream("image", r"^double_blocks\.\d+\.img_"), Stream("text", r"^double_blocks\.\d+\.txt_"))
_FLUX_HEAD = (r"\1.\2_attn.norm.query_norm.scale", r"\1.\2_attn.norm.query_norm.weight")
_FLUX_SINGLE_HEAD = (r"\1.norm.query_norm.scale", r"\1.norm.query_norm.weight")
_FLUX_SINGLE = r"(single_blocks\.\d+)\."
_FLUX_RULES = (
    Rule("ffn", r"double_blocks\.\d+\.(?:img|txt)_mlp\.2"),
    Rule("attn", r"(double_blocks\.\d+)\.(img|txt)_attn\.proj", like=_FLUX_HEAD),
    Rule("ffn", _FLUX_SINGLE + "linear2", name=r"\1.linear2.mlp", part="rest"),
    Rule("attn", _FLUX_SINGLE + "linear2", name=r"\1.linear2.attn", part="first", like=_FLUX_SINGLE_HEAD),
)
# Where modulation is shared or computed elsewhere, norm gates sit on the inputs of what reads the modulated norm (ours).
_FLUX_CONSUMERS = (
    Rule("norm", r"(double_blocks\.\d+)\.(img|txt)_attn\.qkv", name=r"\1.\2_norm1"),
    Rule("norm", r"(double_blocks\.\d+)\.(img|txt)_mlp\.0", name=r"\1.\2_norm2"),
    Rule("norm", _FLUX_SINGLE + "linear1", name=r"\1.pre_norm"),
)
_FLUX_ATTENTION = same(
    ("double_blocks.{}.img_attn.proj", "transformer_blocks.{}.attn.to_out.0"),
    ("double_blocks.{}.txt_attn.proj", "transformer_blocks.{}.attn.to_add_out"),
    ("double_blocks.{}.img_attn.norm.query_norm", "transformer_blocks.{}.attn.norm_q"),
    ("double_blocks.{}.txt_attn.norm.query_norm", "transformer_blocks.{}.attn.norm_added_q"),
    ("single_blocks.{}.norm.query_norm", "single_transformer_blocks.{}.attn.norm_q"),
    *(("double_blocks.{}.img_attn.qkv", f"transformer_blocks.{{}}.attn.to_{x}") for x in "qkv"),
    *(("double_blocks.{}.txt_attn.qkv", f"transformer_blocks.{{}}.attn.add_{x}_proj") for x in "qkv"),
)
_FLUX_MLP = same(
    ("double_blocks.{}.img_mlp.0", "transformer_blocks.{}.ff.net.0.proj"),
    ("double_blocks.{}.img_mlp.2", "transformer_blocks.{}.ff.net.2"),
    ("double_blocks.{}.txt_mlp.0", "transformer_blocks.{}.ff_context.net.0.proj"),
    ("double_blocks.{}.txt_mlp.2", "transformer_blocks.{}.ff_context.net.2"),
    *(("single_blocks.{}.linear1", f"single_transformer_blocks.{{}}.attn.to_{x}") for x in "qkv"),
    ("single_blocks.{}.linear1", "single_transformer_blocks.{}.proj_mlp"),
    ("single_blocks.{}.linear2", "single_transformer_blocks.{}.proj_out"),
)
_FLUX_PLAIN = (r"double_blocks\.\d+\.(?:img|txt)_(?:attn\.qkv|mlp\.0)", r"single_blocks\.\d+\.linear1")
_FLUX_IN = Key(r"img_in\.weight")
# HunyuanVideo and its kin share FLUX's block names.
_NOT_FLUX = (r"txt_in\.individual_token_refiner\..*", r"latent_in\..*", r"byt5_in\..*", r"nerf_blocks\..*")

FLUX = Family(
    name="flux",
    title="FLUX.1",
    keys=(_FLUX_IN, Key(r"double_blocks\.0\.img_mod\.lin\.weight"), Key(r"single_blocks\.0\.modulation\.lin\.weight")),
    without=_NOT_FLUX,
    rules=(
        *_FLUX_RULES,
        Rule("norm", r"double_blocks\.\d+\.(?:img|txt)_mod\.lin", axis="out"),
        Rule("norm", r"single_blocks\.\d+\.modulation\.lin", axis="out"),
    ),
    plain=_FLUX_PLAIN,
    blocks=_FLUX_BLOCKS,
    streams=_FLUX_STREAMS,
    diffusers=Naming(
        keys=(
            Key(r"transformer_blocks\.0\.norm1_context\.linear\.weight"),
            Key(r"single_transformer_blocks\.0\.norm\.linear\.weight"),
            Key(r"single_transformer_blocks\.0\.proj_mlp\.weight"),
            Key(r"x_embedder\.weight"),
        ),
        # Bria, LongCat-Image and Ovis-Image share all other names.
        without=(r"(?:time_embed|timestep_embedder)\..*",),
        aliases=(
            *_FLUX_ATTENTION,
            *_FLUX_MLP,
            *same(
                ("double_blocks.{}.img_mod.lin", "transformer_blocks.{}.norm1.linear"),
                ("double_blocks.{}.txt_mod.lin", "transformer_blocks.{}.norm1_context.linear"),
                ("single_blocks.{}.modulation.lin", "single_transformer_blocks.{}.norm.linear"),
            ),
        ),
    ),
)

FLUX2 = Family(
    name="flux2",
    title="FLUX.2",
    keys=(_FLUX_IN, Key(r"double_stream_modulation_img\.lin\.weight"), Key(r"single_stream_modulation\.lin\.weight")),
    rules=(*_FLUX_RULES, *_FLUX_CONSUMERS),
    blocks=_FLUX_BLOCKS,
    streams=_FLUX_STREAMS,
    diffusers=Naming(
        keys=(
            Key(r"double_stream_modulation_img\.linear\.weight"),
            Key(r"single_transformer_blocks\.0\.attn\.to_qkv_mlp_proj\.weight"),
        ),
        aliases=(
            *_FLUX_ATTENTION,
            *same(
                ("double_blocks.{}.img_mlp.0", "transformer_blocks.{}.ff.linear_in"),
                ("double_blocks.{}.img_mlp.2", "transformer_blocks.{}.ff.linear_out"),
                ("double_blocks.{}.txt_mlp.0", "transformer_blocks.{}.ff_context.linear_in"),
                ("double_blocks.{}.txt_mlp.2", "transformer_blocks.{}.ff_context.linear_out"),
                ("single_blocks.{}.linear1", "single_transformer_blocks.{}.attn.to_qkv_mlp_proj"),
                ("single_blocks.{}.linear2", "single_transformer_blocks.{}.attn.to_out"),
            ),
        ),
    ),
)

CHROMA = Family(
    name="chroma",
    title="Chroma",
    keys=(_FLUX_IN, Key(r"distilled_guidance_layer\.in_proj\.weight"), Key(r"double_blocks\.0\.img_attn\.qkv\.weight")),
    without=_NOT_FLUX,
    rules=(*_FLUX_RULES, *_FLUX_CONSUMERS),
    plain=(r"distilled_guidance_layer\.layers\.\d+\.(?:in|out)_layer",),
    blocks=_FLUX_BLOCKS,
    streams=_FLUX_STREAMS,
    diffusers=Naming(
        keys=(
            Key(r"distilled_guidance_layer\.in_proj\.weight"),
            Key(r"single_transformer_blocks\.0\.proj_mlp\.weight"),
        ),
        aliases=(*_FLUX_ATTENTION, *_FLUX_MLP),
        plain=(r"distilled_guidance_layer\.layers\.\d+\.linear_[12]",),
    ),
)

CHROMA_RADIANCE = Family(
    name="chroma_radiance",
    title="Chroma Radiance",
    keys=(
        Key(r"img_in_patch\.weight"),
        Key(r"distilled_guidance_layer\.in_proj\.weight"),
        Key(r"double_blocks\.0\.img_attn\.qkv\.weight"),
    ),
    rules=CHROMA.rules,
    # the network of each patch's pixels, whose weights the blocks' output makes
    plain=(*CHROMA.plain, r"nerf_blocks\.\d+\.param_generator"),
    blocks=_FLUX_BLOCKS,
    streams=_FLUX_STREAMS,
    diffusers=Naming(keys=(), aliases=()),
    hosts=("comfyui",),
)

# the text, before the first block sees it
_REFINER = r"txt_in\.individual_token_refiner\.blocks\.\d+\."
_REFINER_DIFFUSERS = r"context_embedder\.token_refiner\.refiner_blocks\.\d+\."

HUNYUAN_IMAGE = Family(
    name="hunyuan_image",
    title="HunyuanImage 2.1",
    keys=(
        # HunyuanVideo's patches are in three dimensions.
        Key(r"img_in\.proj\.weight", ndim=4),
        Key(r"txt_in\.individual_token_refiner\.blocks\.0\.norm1\.weight"),
        Key(r"double_blocks\.0\.img_mod\.lin\.weight"),
    ),
    rules=FLUX.rules,
    plain=(*_FLUX_PLAIN, _REFINER + r"(?:self_attn\.(?:qkv|proj)|mlp\.[02]|adaLN_modulation\.1)"),
    blocks=_FLUX_BLOCKS,
    streams=_FLUX_STREAMS,
    diffusers=Naming(
        keys=(
            Key(r"x_embedder\.proj\.weight", ndim=4),
            Key(r"context_embedder\.token_refiner\.refiner_blocks\.0\.norm1\.weight"),
            Key(r"single_transformer_blocks\.0\.proj_mlp\.weight"),
        ),
        aliases=FLUX.diffusers.aliases,
        plain=(_REFINER_DIFFUSERS + r"(?:attn\.to_(?:[qkv]|out\.0)|ff\.net\.(?:0\.proj|2)|norm_out\.linear)",),
    ),
)
