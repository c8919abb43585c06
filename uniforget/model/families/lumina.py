"""Lumina 2, Z-Image and OmniGen2."""

from __future__ import annotations

from .schema import Blocks, Family, Key, Naming, Rule, same

_NEXT_LAYER = r"((?:layers|noise_refiner|context_refiner)\.\d+)\."
_NEXT_RULES = (
    Rule("ffn", _NEXT_LAYER + r"feed_forward\.w2"),
    Rule("norm", _NEXT_LAYER + r"(?:attention_norm|ffn_norm)[12]", axis="out"),
    Rule("attn", _NEXT_LAYER + r"attention\.out", like=(r"\1.attention.q_norm.weight",)),
)
_NEXT_PLAIN = (
    _NEXT_LAYER + r"(?:attention\.qkv|feed_forward\.w[13]|adaLN_modulation\.[01])",
    # Z-Image: pictures as a prompt, and the decoder of the pixel-space variant.
    r"siglip_refiner\.\d+\.(?:attention\.(?:qkv|out|to_[qkv]|to_out\.0)|feed_forward\.w[123])",
    r"dec_net\.res_blocks\.\d+\.(?:mlp\.[02]|adaLN_modulation\.1)",
)
_NEXT_BLOCKS = (
    Blocks("", r"layers\.(\d+)\."),
    Blocks("NOISE", r"noise_refiner\.(\d+)\."),
    Blocks("CONTEXT", r"context_refiner\.(\d+)\."),
)
_NEXT_ROWS = ("layers", "noise_refiner", "context_refiner")

LUMINA2 = Family(
    name="lumina2",
    title="Lumina 2",
    keys=(
        Key(r"cap_embedder\.1\.weight"),
        Key(r"layers\.0\.adaLN_modulation\.1\.weight"),
        Key(r"layers\.0\.attention\.qkv\.weight"),
    ),
    rules=_NEXT_RULES,
    plain=_NEXT_PLAIN,
    blocks=_NEXT_BLOCKS,
    diffusers=Naming(
        keys=(
            Key(r"layers\.0\.norm1\.linear\.weight"),
            Key(r"layers\.0\.feed_forward\.linear_2\.weight"),
            Key(r"time_caption_embed\.caption_embedder\.0\.weight"),
        ),
        without=(r"ref_image_refiner\..*",),  # OmniGen2's
        plain=(_NEXT_LAYER + r"(?:attn\.to_[qkv]|norm1\.linear)",),
        aliases=same(
            *(
                alias
                for row in _NEXT_ROWS
                for alias in (
                    *((f"{row}.{{}}.feed_forward.w{n}", f"{row}.{{}}.feed_forward.linear_{n}") for n in (1, 2, 3)),
                    (f"{row}.{{}}.attention.out", f"{row}.{{}}.attn.to_out.0"),
                    (f"{row}.{{}}.attention.q_norm", f"{row}.{{}}.attn.norm_q"),
                    (f"{row}.{{}}.attention_norm1", f"{row}.{{}}.norm1{'' if row == 'context_refiner' else '.norm'}"),
                    (f"{row}.{{}}.attention_norm2", f"{row}.{{}}.norm2"),
                    (f"{row}.{{}}.ffn_norm1", f"{row}.{{}}.ffn_norm1"),
                    (f"{row}.{{}}.ffn_norm2", f"{row}.{{}}.ffn_norm2"),
                )
            )
        ),
    ),
)

Z_IMAGE = Family(
    name="z_image",
    title="Z-Image",
    keys=(
        Key(r"cap_embedder\.1\.weight"),
        Key(r"layers\.0\.adaLN_modulation\.0\.weight"),
        Key(r"layers\.0\.attention\.qkv\.weight"),
    ),
    rules=_NEXT_RULES,
    plain=_NEXT_PLAIN,
    blocks=_NEXT_BLOCKS,
    diffusers=Naming(
        keys=(
            Key(r"cap_embedder\.1\.weight"),
            Key(r"layers\.0\.adaLN_modulation\.0\.weight"),
            Key(r"layers\.0\.attention\.to_q\.weight"),
        ),
        plain=(_NEXT_LAYER + r"(?:attention\.to_[qkv]|adaLN_modulation\.0)",),
        aliases=same(
            *(
                alias
                for row in _NEXT_ROWS
                for alias in (
                    *((f"{row}.{{}}.feed_forward.w{n}", f"{row}.{{}}.feed_forward.w{n}") for n in (1, 2, 3)),
                    (f"{row}.{{}}.attention.out", f"{row}.{{}}.attention.to_out.0"),
                    (f"{row}.{{}}.attention.q_norm", f"{row}.{{}}.attention.norm_q"),
                    *(
                        (f"{row}.{{}}.{norm}", f"{row}.{{}}.{norm}")
                        for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")
                    ),
                )
            )
        ),
    ),
)

OMNIGEN2 = Family(
    name="omnigen2",
    title="OmniGen2",
    keys=(
        Key(r"ref_image_refiner\.0\.attn\.to_q\.weight"),
        Key(r"layers\.0\.norm1\.linear\.weight"),
        Key(r"layers\.0\.feed_forward\.linear_2\.weight"),
    ),
    rules=(
        Rule("ffn", _NEXT_LAYER + r"feed_forward\.linear_2"),
        # in the rows that see the noise level, the first norm has a Linear beside it
        Rule("norm", r"(?:layers|noise_refiner)\.\d+\.norm1\.norm", axis="out"),
        Rule("norm", r"context_refiner\.\d+\.norm1", axis="out"),
        Rule("norm", _NEXT_LAYER + r"(?:norm2|ffn_norm[12])", axis="out"),
        Rule("attn", _NEXT_LAYER + r"attn\.to_out\.0", like=(r"\1.attn.norm_q.weight",)),
    ),
    plain=(
        _NEXT_LAYER + r"(?:attn\.to_[qkv]|feed_forward\.linear_[13]|norm1\.linear)",
        # runs only where pictures are part of the prompt
        r"ref_image_refiner\.\d+\.(?:attn\.to_(?:[qkv]|out\.0)|feed_forward\.linear_[123]|norm1\.linear)",
    ),
    blocks=_NEXT_BLOCKS,
    diffusers=Naming(keys=(), aliases=()),
    hosts=("comfyui",),
)
