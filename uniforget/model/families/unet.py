"""UNets: Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from .schema import Alias, Blocks, Family, Key, Naming, Rule, Stream

_UNET_BLOCK = r"(?:input_blocks\.\d+|middle_block|output_blocks\.\d+)\.1\.transformer_blocks\.\d+\."
_UNET_BLOCKS = (
    Blocks("IN", r"input_blocks\.(\d+)\."),
    Blocks("MID", r"middle_block\."),
    Blocks("OUT", r"output_blocks\.(\d+)\."),
)
_UNET_ALIASES = (
    Alias("input_blocks.{}.1.{*}", "down_blocks.{}.attentions.{}.{*}", joined=1),
    Alias("middle_block.1.{*}", "mid_block.attentions.0.{*}"),
    Alias("output_blocks.{}.1.{*}", "up_blocks.{}.attentions.{}.{*}", joined=0),
)
_UNET_IN = r"(?:input_blocks\.\d+|output_blocks\.\d+)\.1\.proj_in\.weight"
_UNET_TEXT = r"output_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight"
_UNET_IN_DIFFUSERS = r"(?:down_blocks|up_blocks)\.\d+\.attentions\.0\.proj_in\.weight"
_UNET_TEXT_DIFFUSERS = r"up_blocks\.\d+\.attentions\.0\.transformer_blocks\.0\.attn2\.to_k\.weight"
_UNET_PLAIN = (
    r"(?:input_blocks\.\d+|middle_block|output_blocks\.\d+)\.\d+\.emb_layers\.1",
    r"(?:input_blocks\.\d+|middle_block|output_blocks\.\d+)\.1\.proj_(?:in|out)",
    _UNET_BLOCK + r"(?:attn[12]\.to_[qkv]|ff\.net\.0\.proj)",
)
_UNET_PLAIN_DIFFUSERS = (r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\.resnets\.\d+\.time_emb_proj",)
_VIDEO = (r".*\.(?:time_stack|time_mix_blocks|temporal_transformer_blocks|motion_modules)\..*",)


def _unet(name: str, title: str, text: tuple[int, ...], ndim: int, heads: int = 0, width: int = 1, extra: str = "") -> Family:
    """A UNet family: `text` is the width of its prompts' encoding, `ndim` 4 where the projections around blocks are convolutions."""
    ours: tuple[Key, ...] = (Key(_UNET_IN, ndim=ndim), Key(_UNET_TEXT, columns=text))
    theirs: tuple[Key, ...] = (Key(_UNET_IN_DIFFUSERS, ndim=ndim), Key(_UNET_TEXT_DIFFUSERS, columns=text))
    if extra:
        ours, theirs = (*ours, Key(r"label_emb\.0\.0\.weight")), (*theirs, Key(extra))
    return Family(
        name=name,
        title=title,
        keys=ours,
        without=_VIDEO,
        rules=(
            Rule("ffn", _UNET_BLOCK + r"ff\.net\.2"),
            Rule("norm", _UNET_BLOCK + r"norm[123]", axis="out"),
            Rule("attn", _UNET_BLOCK + r"attn[12]\.to_out\.0", heads=heads, width=width),
        ),
        blocks=_UNET_BLOCKS,
        streams=(Stream("self", r"\.attn1\."), Stream("cross", r"\.attn2\.")),
        plain=_UNET_PLAIN,
        diffusers=Naming(theirs, _UNET_ALIASES, _VIDEO, _UNET_PLAIN_DIFFUSERS),
    )


SD1 = _unet("sd1", "Stable Diffusion 1.x", text=(768,), ndim=4, heads=8)

SD2 = _unet("sd2", "Stable Diffusion 2.x", text=(1024,), ndim=2, width=64)

SDXL = _unet("sdxl", "Stable Diffusion XL", text=(2048, 1280), ndim=2, width=64, extra=r"add_embedding\.linear_1\.weight")
