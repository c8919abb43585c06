"""Other transformers."""

from __future__ import annotations

from .schema import Alias, Blocks, Family, Key, Naming, Rule, Stream, same

_SD3_STREAM = r"joint_blocks\.\d+\.(?:x|context)_block\."
_JOINT = (Blocks("", r"joint_blocks\.(\d+)\."),)

SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3 / 3.5",
    keys=(
        Key(r"joint_blocks\.0\.x_block\.attn\.qkv\.weight"),
        Key(r"joint_blocks\.0\.context_block\.adaLN_modulation\.1\.weight"),
    ),
    rules=(
        Rule("ffn", _SD3_STREAM + r"mlp\.fc2"),
        Rule("norm", _SD3_STREAM + r"adaLN_modulation\.1", axis="out"),
        Rule("attn", _SD3_STREAM + r"attn2?\.proj", width=64),
    ),
    plain=(_SD3_STREAM + r"(?:mlp\.fc1|attn2?\.qkv)", r"context_processor\..*"),
    blocks=_JOINT,
    streams=(Stream("image", r"\.x_block\."), Stream("text", r"\.context_block\.")),
    diffusers=Naming(
        keys=(
            Key(r"transformer_blocks\.0\.norm1_context\.linear\.weight"),
            Key(r"transformer_blocks\.0\.ff_context\.net\.2\.weight"),
            Key(r"pos_embed\.proj\.weight"),
        ),
        without=(r"single_transformer_blocks\..*",),
        aliases=(
            *same(
                ("joint_blocks.{}.x_block.mlp.fc1", "transformer_blocks.{}.ff.net.0.proj"),
                ("joint_blocks.{}.x_block.mlp.fc2", "transformer_blocks.{}.ff.net.2"),
                ("joint_blocks.{}.context_block.mlp.fc1", "transformer_blocks.{}.ff_context.net.0.proj"),
                ("joint_blocks.{}.context_block.mlp.fc2", "transformer_blocks.{}.ff_context.net.2"),
                *(("joint_blocks.{}.x_block.attn.qkv", f"transformer_blocks.{{}}.attn.to_{x}") for x in "qkv"),
                *(("joint_blocks.{}.x_block.attn2.qkv", f"transformer_blocks.{{}}.attn2.to_{x}") for x in "qkv"),
                *(("joint_blocks.{}.context_block.attn.qkv", f"transformer_blocks.{{}}.attn.add_{x}_proj") for x in "qkv"),
                ("joint_blocks.{}.x_block.attn.proj", "transformer_blocks.{}.attn.to_out.0"),
                ("joint_blocks.{}.x_block.attn2.proj", "transformer_blocks.{}.attn2.to_out.0"),
                ("joint_blocks.{}.context_block.attn.proj", "transformer_blocks.{}.attn.to_add_out"),
                ("joint_blocks.{}.x_block.adaLN_modulation.1", "transformer_blocks.{}.norm1.linear"),
            ),
            Alias(
                "joint_blocks.{}.context_block.adaLN_modulation.1",
                "transformer_blocks.{}.norm1_context.linear",
                swapped_chunks=2,
            ),
        ),
    ),
)

PIXART = Family(
    name="pixart",
    title="PixArt alpha / sigma",
    keys=(Key(r"t_block\.1\.weight"), Key(r"blocks\.0\.scale_shift_table"), Key(r"blocks\.0\.cross_attn\.kv_linear\.weight")),
    rules=(
        Rule("ffn", r"blocks\.\d+\.mlp\.fc2"),
        Rule("norm", r"(blocks\.\d+)\.attn\.qkv", name=r"\1.norm1"),
        Rule("norm", r"(blocks\.\d+)\.mlp\.fc1", name=r"\1.norm2"),
        Rule("attn", r"blocks\.\d+\.(?:attn|cross_attn)\.proj", heads=16),
    ),
    plain=(r"blocks\.\d+\.cross_attn\.(?:q|kv)_linear",),
    blocks=(Blocks("", r"blocks\.(\d+)\."),),
    streams=(Stream("self", r"\.attn\."), Stream("cross", r"\.cross_attn\.")),
    diffusers=Naming(
        keys=(
            Key(r"adaln_single\.linear\.weight"),
            Key(r"pos_embed\.proj\.weight"),
            Key(r"transformer_blocks\.0\.scale_shift_table"),
            Key(r"caption_projection\.linear_1\.weight"),
        ),
        aliases=same(
            ("blocks.{}.mlp.fc1", "transformer_blocks.{}.ff.net.0.proj"),
            ("blocks.{}.mlp.fc2", "transformer_blocks.{}.ff.net.2"),
            *(("blocks.{}.attn.qkv", f"transformer_blocks.{{}}.attn1.to_{x}") for x in "qkv"),
            ("blocks.{}.attn.proj", "transformer_blocks.{}.attn1.to_out.0"),
            ("blocks.{}.cross_attn.proj", "transformer_blocks.{}.attn2.to_out.0"),
        ),
        plain=(r"transformer_blocks\.\d+\.attn2\.to_[qkv]",),
    ),
)

HUNYUANDIT = Family(
    name="hunyuandit",
    title="HunyuanDiT",
    keys=(Key(r"mlp_t5\.0\.weight"), Key(r"blocks\.0\.default_modulation\.1\.weight")),
    rules=(
        Rule("ffn", r"blocks\.\d+\.mlp\.fc2"),
        Rule("norm", r"blocks\.\d+\.norm[123]", axis="out"),
        Rule("attn", r"(blocks\.\d+\.attn[12])\.out_proj", like=(r"\1.q_norm.weight",)),
    ),
    plain=(r"blocks\.\d+\.(?:attn1\.Wqkv|attn2\.(?:q|kv)_proj|default_modulation\.1|mlp\.fc1|skip_linear)",),
    blocks=(Blocks("", r"blocks\.(\d+)\."),),
    streams=(Stream("self", r"\.attn1\."), Stream("cross", r"\.attn2\.")),
    diffusers=Naming(
        keys=(Key(r"blocks\.0\.norm1\.linear\.weight"), Key(r"text_embedding_padding")),
        aliases=same(
            ("blocks.{}.mlp.fc1", "blocks.{}.ff.net.0.proj"),
            ("blocks.{}.mlp.fc2", "blocks.{}.ff.net.2"),
            ("blocks.{}.norm1", "blocks.{}.norm1.norm"),
            ("blocks.{}.norm3", "blocks.{}.norm2"),
            ("blocks.{}.norm2", "blocks.{}.norm3"),
            ("blocks.{}.attn1.out_proj", "blocks.{}.attn1.to_out.0"),
            ("blocks.{}.attn2.out_proj", "blocks.{}.attn2.to_out.0"),
            ("blocks.{}.attn1.q_norm", "blocks.{}.attn1.norm_q"),
            ("blocks.{}.attn2.q_norm", "blocks.{}.attn2.norm_q"),
        ),
        plain=(r"blocks\.\d+\.(?:attn[12]\.to_[qkv]|norm1\.linear|skip_linear)",),
    ),
)

QWEN_IMAGE = Family(
    name="qwen_image",
    title="Qwen-Image",
    keys=(
        Key(r"transformer_blocks\.0\.img_mod\.1\.weight"),
        Key(r"transformer_blocks\.0\.attn\.add_q_proj\.weight"),
        Key(r"txt_norm\.weight"),
    ),
    rules=(
        # The last block's text is only read by its own attention.
        Rule("", r"transformer_blocks\.{last}\.(?:txt_mlp\.net\.2|attn\.to_add_out)"),
        Rule("norm", r"transformer_blocks\.{last}\.txt_mod\.1", axis="out", chunks=(2, 6)),
        Rule("ffn", r"transformer_blocks\.\d+\.(?:img|txt)_mlp\.net\.2"),
        Rule("norm", r"transformer_blocks\.\d+\.(?:img|txt)_mod\.1", axis="out"),
        Rule("attn", r"(transformer_blocks\.\d+)\.attn\.(?:to_out\.0|to_add_out)", like=(r"\1.attn.norm_q.weight",)),
    ),
    plain=(r"transformer_blocks\.\d+\.(?:attn\.(?:to_[qkv]|add_[qkv]_proj)|(?:img|txt)_mlp\.net\.0\.proj)",),
    blocks=(Blocks("", r"transformer_blocks\.(\d+)\."),),
    streams=(Stream("image", r"\.img_|\.attn\.to_(?:[qkv]|out)\b"), Stream("text", r"\.txt_|\.attn\.(?:add_|to_add_)")),
    # Both hosts use the same names.
    diffusers=Naming(keys=(), aliases=()),
)

AURAFLOW = Family(
    name="auraflow",
    title="AuraFlow",
    keys=(Key(r"double_layers\.0\.attn\.w1q\.weight"), Key(r"single_layers\.0\.modCX\.1\.weight")),
    rules=(
        Rule("ffn", r"(?:double_layers\.\d+\.mlp[CX]|single_layers\.\d+\.mlp)\.c_proj"),
        Rule("norm", r"(?:double_layers\.\d+\.mod[CX]|single_layers\.\d+\.modCX)\.1", axis="out"),
        Rule("attn", r"(?:double_layers\.\d+\.attn\.w[12]o|single_layers\.\d+\.attn\.w1o)", heads=12),
    ),
    plain=(
        r"double_layers\.\d+\.(?:attn\.w[12][qkv]|mlp[CX]\.c_fc[12])",
        r"single_layers\.\d+\.(?:attn\.w1[qkv]|mlp\.c_fc[12])",
    ),
    blocks=(Blocks("DOUBLE", r"double_layers\.(\d+)\."), Blocks("SINGLE", r"single_layers\.(\d+)\.")),
    streams=(
        Stream("image", r"^double_layers\.\d+\.(?:mlpX|modX|attn\.w2)"),
        Stream("text", r"^double_layers\.\d+\.(?:mlpC|modC|attn\.w1)"),
    ),
    diffusers=Naming(
        keys=(
            Key(r"joint_transformer_blocks\.0\.norm1_context\.linear\.weight"),
            Key(r"joint_transformer_blocks\.0\.ff\.out_projection\.weight"),
        ),
        aliases=same(
            *((f"double_layers.{{}}.mlpC.c_fc{n}", f"joint_transformer_blocks.{{}}.ff_context.linear_{n}") for n in (1, 2)),
            *((f"double_layers.{{}}.mlpX.c_fc{n}", f"joint_transformer_blocks.{{}}.ff.linear_{n}") for n in (1, 2)),
            *((f"single_layers.{{}}.mlp.c_fc{n}", f"single_transformer_blocks.{{}}.ff.linear_{n}") for n in (1, 2)),
            ("double_layers.{}.mlpC.c_proj", "joint_transformer_blocks.{}.ff_context.out_projection"),
            ("double_layers.{}.mlpX.c_proj", "joint_transformer_blocks.{}.ff.out_projection"),
            ("double_layers.{}.modC.1", "joint_transformer_blocks.{}.norm1_context.linear"),
            ("double_layers.{}.modX.1", "joint_transformer_blocks.{}.norm1.linear"),
            ("double_layers.{}.attn.w1o", "joint_transformer_blocks.{}.attn.to_add_out"),
            ("double_layers.{}.attn.w2o", "joint_transformer_blocks.{}.attn.to_out.0"),
            ("single_layers.{}.mlp.c_proj", "single_transformer_blocks.{}.ff.out_projection"),
            ("single_layers.{}.modCX.1", "single_transformer_blocks.{}.norm1.linear"),
            ("single_layers.{}.attn.w1o", "single_transformer_blocks.{}.attn.to_out.0"),
        ),
        plain=(r"(?:joint|single)_transformer_blocks\.\d+\.attn\.(?:to_[qkv]|add_[qkv]_proj)",),
    ),
)

# What Wan's video variants steer it by: control videos, speech, faces.
_WAN_EXTRAS = (
    r"(?:vace_blocks|audio_injector|casual_audio_encoder|face_adapter|face_encoder|motion_encoder|control_adapter)\..*",
    r"blocks\.\d+\.audio_cross_attn_wrapper\..*",
)

WAN = Family(
    name="wan",
    title="Wan 2.x",
    keys=(Key(r"head\.modulation"), Key(r"blocks\.0\.self_attn\.q\.weight"), Key(r"blocks\.0\.ffn\.2\.weight")),
    rules=(
        Rule("ffn", r"blocks\.\d+\.ffn\.2"),
        Rule("norm", r"(blocks\.\d+)\.self_attn\.q", name=r"\1.norm1", also=(r"\1.self_attn.k", r"\1.self_attn.v")),
        Rule("norm", r"(blocks\.\d+)\.ffn\.0", name=r"\1.norm2"),
        Rule("norm", r"blocks\.\d+\.norm3", axis="out"),
        Rule("attn", r"blocks\.\d+\.(?:self|cross)_attn\.o", width=128),
    ),
    plain=(r"blocks\.\d+\.cross_attn\.(?:[qkv]|[kv]_img)", *_WAN_EXTRAS),
    blocks=(Blocks("", r"blocks\.(\d+)\."),),
    streams=(Stream("self", r"\.self_attn\."), Stream("cross", r"\.cross_attn\.")),
    diffusers=Naming(
        keys=(
            Key(r"condition_embedder\.time_proj\.weight"),
            Key(r"blocks\.0\.ffn\.net\.2\.weight"),
            Key(r"blocks\.0\.attn1\.to_q\.weight"),
        ),
        aliases=same(
            ("blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj"),
            ("blocks.{}.ffn.2", "blocks.{}.ffn.net.2"),
            *((f"blocks.{{}}.self_attn.{x}", f"blocks.{{}}.attn1.to_{x}") for x in "qkv"),
            ("blocks.{}.self_attn.o", "blocks.{}.attn1.to_out.0"),
            ("blocks.{}.cross_attn.o", "blocks.{}.attn2.to_out.0"),
            ("blocks.{}.norm3", "blocks.{}.norm2"),
        ),
        plain=(
            r"blocks\.\d+\.attn2\.(?:to_[qkv]|add_[kv]_proj)",
            r"condition_embedder\.image_embedder\.ff\..*",
            *_WAN_EXTRAS,
        ),
    ),
)
