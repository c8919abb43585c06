"""Transformers of 2025 and 2026, whose text comes from language models."""

from __future__ import annotations

from .schema import Blocks, Family, Key, Naming, Rule, Stream, same

_NUMBERED = (Blocks("", r"blocks\.(\d+)\."),)
# Both hosts use the same names.
_SAME_NAMES = Naming(keys=(), aliases=())

# A LoRA of the modulation that all blocks share is added to each block's own: norm gates sit on what reads the modulated norms.
COSMOS = Family(
    name="cosmos",
    title="Anima / Cosmos-Predict2",
    keys=(
        Key(r"blocks\.0\.mlp\.layer1\.weight"),
        Key(r"blocks\.0\.adaln_modulation_mlp\.1\.weight"),
        Key(r"x_embedder\.proj\.1\.weight"),
    ),
    rules=(
        Rule("ffn", r"blocks\.\d+\.mlp\.layer2"),
        Rule(
            "norm",
            r"(blocks\.\d+)\.self_attn\.q_proj",
            name=r"\1.layer_norm_self_attn",
            also=(r"\1.self_attn.k_proj", r"\1.self_attn.v_proj"),
        ),
        Rule("norm", r"(blocks\.\d+)\.cross_attn\.q_proj", name=r"\1.layer_norm_cross_attn"),
        Rule("norm", r"(blocks\.\d+)\.mlp\.layer1", name=r"\1.layer_norm_mlp"),
        Rule("attn", r"(blocks\.\d+\.(?:self|cross)_attn)\.output_proj", like=(r"\1.q_norm.weight",)),
    ),
    plain=(
        r"blocks\.\d+\.(?:cross_attn\.[kv]_proj|adaln_modulation_(?:self_attn|cross_attn|mlp)\.[12])",
        r"t_embedder\.1\.linear_[12]",
        # Anima's text, read by a small transformer of its own
        r"llm_adapter\.blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]_proj|mlp\.[02])",
    ),
    blocks=_NUMBERED,
    streams=(Stream("self", r"self_attn\b"), Stream("cross", r"cross_attn\b")),
    diffusers=Naming(
        keys=(
            Key(r"patch_embed\.proj\.weight"),
            Key(r"transformer_blocks\.0\.norm3\.linear_2\.weight"),
            Key(r"transformer_blocks\.0\.attn2\.to_q\.weight"),
        ),
        # the first Cosmos, for videos, and those that read pictures
        without=(r"learnable_pos_embed\..*", r"img_context_proj\..*"),
        aliases=same(
            *((f"blocks.{{}}.self_attn.{x}_proj", f"transformer_blocks.{{}}.attn1.to_{x}") for x in "qkv"),
            ("blocks.{}.cross_attn.q_proj", "transformer_blocks.{}.attn2.to_q"),
            ("blocks.{}.self_attn.output_proj", "transformer_blocks.{}.attn1.to_out.0"),
            ("blocks.{}.cross_attn.output_proj", "transformer_blocks.{}.attn2.to_out.0"),
            ("blocks.{}.self_attn.q_norm", "transformer_blocks.{}.attn1.norm_q"),
            ("blocks.{}.cross_attn.q_norm", "transformer_blocks.{}.attn2.norm_q"),
            ("blocks.{}.mlp.layer1", "transformer_blocks.{}.ff.net.0.proj"),
            ("blocks.{}.mlp.layer2", "transformer_blocks.{}.ff.net.2"),
        ),
        plain=(r"transformer_blocks\.\d+\.(?:attn2\.to_[kv]|norm[123]\.linear_[12])",),
    ),
)

_KREA_TEXT = r"(?:layerwise|refiner)_blocks\.\d+\."

KREA2 = Family(
    name="krea2",
    title="Krea 2",
    keys=(Key(r"txtfusion\.projector\.weight"), Key(r"blocks\.0\.attn\.wo\.weight"), Key(r"blocks\.0\.mlp\.down\.weight")),
    rules=(
        Rule("ffn", r"blocks\.\d+\.mlp\.down"),
        # The norms multiply by 1 + scale: a scale of zero is not off.
        Rule(
            "norm",
            r"(blocks\.\d+)\.attn\.wq",
            name=r"\1.prenorm",
            also=(r"\1.attn.wk", r"\1.attn.wv", r"\1.attn.gate"),
        ),
        Rule("norm", r"(blocks\.\d+)\.mlp\.gate", name=r"\1.postnorm", also=(r"\1.mlp.up",)),
        Rule("attn", r"(blocks\.\d+\.attn)\.wo", like=(r"\1.qknorm.qnorm.scale", r"\1.qknorm.qnorm.weight")),
    ),
    plain=(r"txtfusion\." + _KREA_TEXT + r"(?:attn\.(?:w[qkvo]|gate)|mlp\.(?:gate|up|down))",),
    blocks=_NUMBERED,
    diffusers=Naming(
        keys=(
            Key(r"text_fusion\.projector\.weight"),
            Key(r"transformer_blocks\.0\.attn\.to_out\.0\.weight"),
            Key(r"transformer_blocks\.0\.ff\.down\.weight"),
        ),
        aliases=same(
            *((f"blocks.{{}}.attn.w{x}", f"transformer_blocks.{{}}.attn.to_{x}") for x in "qkv"),
            ("blocks.{}.attn.gate", "transformer_blocks.{}.attn.to_gate"),
            ("blocks.{}.attn.wo", "transformer_blocks.{}.attn.to_out.0"),
            ("blocks.{}.attn.qknorm.qnorm", "transformer_blocks.{}.attn.norm_q"),
            *((f"blocks.{{}}.mlp.{x}", f"transformer_blocks.{{}}.ff.{x}") for x in ("gate", "up", "down")),
        ),
        plain=(r"text_fusion\." + _KREA_TEXT + r"(?:attn\.to_(?:[qkv]|gate|out\.0)|ff\.(?:gate|up|down))",),
    ),
)

IDEOGRAM4 = Family(
    name="ideogram4",
    title="Ideogram 4",
    keys=(
        Key(r"embed_image_indicator\.weight"),
        Key(r"layers\.0\.attention\.qkv\.weight"),
        Key(r"layers\.0\.adaln_modulation\.weight"),
    ),
    rules=(
        Rule("ffn", r"layers\.\d+\.feed_forward\.w2"),
        Rule("norm", r"layers\.\d+\.adaln_modulation", axis="out"),
        Rule("attn", r"(layers\.\d+\.attention)\.o", like=(r"\1.norm_q.weight",)),
    ),
    plain=(r"layers\.\d+\.(?:attention\.qkv|feed_forward\.w[13])",),
    blocks=(Blocks("", r"layers\.(\d+)\."),),
    diffusers=Naming(
        keys=(
            Key(r"embed_image_indicator\.weight"),
            Key(r"layers\.0\.attention\.to_q\.weight"),
            Key(r"layers\.0\.adaln_modulation\.weight"),
        ),
        aliases=same(
            *((f"layers.{{}}.feed_forward.w{n}", f"layers.{{}}.feed_forward.w{n}") for n in (1, 2, 3)),
            ("layers.{}.adaln_modulation", "layers.{}.adaln_modulation"),
            *(("layers.{}.attention.qkv", f"layers.{{}}.attention.to_{x}") for x in "qkv"),
            ("layers.{}.attention.o", "layers.{}.attention.to_out.0"),
            ("layers.{}.attention.norm_q", "layers.{}.attention.norm_q"),
        ),
    ),
)

ERNIE = Family(
    name="ernie",
    title="Ernie-Image",
    keys=(Key(r"layers\.0\.mlp\.linear_fc2\.weight"), Key(r"layers\.0\.adaLN_sa_ln\.weight")),
    rules=(
        Rule("ffn", r"layers\.\d+\.mlp\.linear_fc2"),
        Rule("norm", r"layers\.\d+\.adaLN_(?:sa|mlp)_ln", axis="out"),
        Rule("attn", r"(layers\.\d+\.self_attention)\.to_out\.0", like=(r"\1.norm_q.weight",)),
    ),
    plain=(r"layers\.\d+\.(?:self_attention\.to_[qkv]|mlp\.(?:gate|up)_proj)",),
    blocks=(Blocks("", r"layers\.(\d+)\."),),
    diffusers=_SAME_NAMES,
)

LENS = Family(
    name="lens",
    title="Lens",
    keys=(
        Key(r"transformer_blocks\.0\.img_mlp\.w1\.weight"),
        Key(r"transformer_blocks\.0\.img_mod\.1\.weight"),
        Key(r"transformer_blocks\.0\.attn\.img_qkv\.weight"),
    ),
    rules=(
        # The last block's text is only read by its own attention.
        Rule("", r"transformer_blocks\.{last}\.(?:txt_mlp\.w2|attn\.to_add_out)"),
        Rule("norm", r"transformer_blocks\.{last}\.txt_mod\.1", axis="out", chunks=(2, 6)),
        Rule("ffn", r"transformer_blocks\.\d+\.(?:img|txt)_mlp\.w2"),
        Rule("norm", r"transformer_blocks\.\d+\.(?:img|txt)_mod\.1", axis="out"),
        Rule("attn", r"(transformer_blocks\.\d+)\.attn\.(?:to_out\.0|to_add_out)", like=(r"\1.attn.norm_q.weight",)),
    ),
    plain=(r"transformer_blocks\.\d+\.(?:attn\.(?:img|txt)_qkv|(?:img|txt)_mlp\.w[13])",),
    blocks=(Blocks("", r"transformer_blocks\.(\d+)\."),),
    streams=(Stream("image", r"\.img_|\.attn\.to_out\b"), Stream("text", r"\.txt_|\.attn\.to_add_out")),
    diffusers=_SAME_NAMES,
    hosts=("comfyui",),
)

KANDINSKY5 = Family(
    name="kandinsky5",
    title="Kandinsky 5",
    keys=(
        Key(r"visual_transformer_blocks\.0\.visual_modulation\.out_layer\.weight"),
        Key(r"visual_transformer_blocks\.0\.cross_attention\.out_layer\.weight"),
    ),
    rules=(
        Rule("ffn", r"visual_transformer_blocks\.\d+\.feed_forward\.out_layer"),
        Rule("norm", r"visual_transformer_blocks\.\d+\.visual_modulation\.out_layer", axis="out"),
        Rule(
            "attn",
            r"(visual_transformer_blocks\.\d+\.(?:self|cross)_attention)\.out_layer",
            like=(r"\1.query_norm.weight",),
        ),
    ),
    plain=(
        r"visual_transformer_blocks\.\d+\.(?:(?:self|cross)_attention\.to_(?:query|key|value)|feed_forward\.in_layer)",
        # the text, before the first block sees it
        r"text_transformer_blocks\.\d+\.(?:self_attention\.(?:to_(?:query|key|value)|out_layer)|feed_forward\.(?:in|out)_layer)",
        r"text_transformer_blocks\.\d+\.text_modulation\.out_layer",
    ),
    blocks=(Blocks("", r"visual_transformer_blocks\.(\d+)\."),),
    streams=(Stream("self", r"\.self_attention\."), Stream("cross", r"\.cross_attention\.")),
    diffusers=_SAME_NAMES,
)

_HIDREAM = r"(?:double|single)_stream_blocks\.\d+\.block\."

HIDREAM = Family(
    name="hidream",
    title="HiDream-I1 / E1",
    keys=(
        Key(r"caption_projection\.0\.linear\.weight"),
        Key(r"double_stream_blocks\.0\.block\.ff_t\.w2\.weight"),
        Key(r"single_stream_blocks\.0\.block\.attn1\.to_out\.weight"),
    ),
    rules=(
        # Each expert has neurons of its own.
        Rule("ffn", _HIDREAM + r"(?:ff_t|ff_i(?:\.(?:shared_experts|experts\.\d+))?)\.w2"),
        Rule("norm", _HIDREAM + r"adaLN_modulation\.1", axis="out"),
        # Its queries are normed across heads, so that no weight is as wide as one.
        Rule("attn", _HIDREAM + r"attn1\.to_out(?:_t)?", width=128),
    ),
    plain=(
        _HIDREAM + r"(?:attn1\.to_[qkv](?:_t)?|ff_i\.gate|(?:ff_t|ff_i(?:\.(?:shared_experts|experts\.\d+))?)\.w[13])",
        r"caption_projection\.\d+\.linear",
    ),
    blocks=(Blocks("DOUBLE", r"double_stream_blocks\.(\d+)\."), Blocks("SINGLE", r"single_stream_blocks\.(\d+)\.")),
    streams=(
        Stream("image", r"^double_stream_blocks\.\d+\.block\.(?:ff_i\.|attn1\.to_out$)"),
        Stream("text", r"^double_stream_blocks\.\d+\.block\.(?:ff_t\.|attn1\.to_out_t$)"),
    ),
    diffusers=_SAME_NAMES,
)
