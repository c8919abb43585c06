"""The testbed's diffusion model in both namings, and its one file.

An SD3-type MMDiT in 64x64 pixel space: hidden size 192, 4 joint blocks, 3 heads of 64, patch 8. Rectified flow:
``x_sigma = (1 - sigma) * x0 + sigma * noise``, the timestep is ``1000 * sigma``, and the network predicts x0 (a patch has
as many numbers as the hidden size: predicting velocity would have to carry the noise through it, and learns far slower).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from .text import LENGTH, WIDTH, TextEncoder, WordTokenizer

BLOCKS, HEADS, HIDDEN, PATCH, CANVAS = 4, 3, 192, 8, 64
SHIFT = 3.0  # of the sampling schedule, SD3's: what a picture shows is decided at high noise
WEIGHTS = Path(__file__).with_name("testbed.safetensors")
DIFFUSION_PREFIX = "model.diffusion_model."
TEXT_PREFIX = "text_encoders.uniforget_words."

DIFFUSERS_CONFIG = {
    "sample_size": CANVAS,
    "patch_size": PATCH,
    "in_channels": 3,
    "out_channels": 3,
    "num_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HIDDEN // HEADS,
    "caption_projection_dim": HIDDEN,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "pos_embed_max_size": CANVAS // PATCH,
    "qk_norm": "rms_norm",
}
COMFY_CONFIG = {
    "in_channels": 3,
    "patch_size": PATCH,
    "depth": HEADS,  # ComfyUI: hidden size = 64 * depth, heads = depth
    "num_blocks": BLOCKS,
    "input_size": None,
    "adm_in_channels": WIDTH,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": HIDDEN}},
    "pos_embed_max_size": CANVAS // PATCH,
    "num_patches": (CANVAS // PATCH) ** 2,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
}

_OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
_STREAM = {
    "x_block": {
        "qkv": ("to_q", "to_k", "to_v"),
        "proj": "to_out.0",
        "ln_q": "norm_q",
        "ln_k": "norm_k",
        "ff": "ff",
        "ada": "norm1",
    },
    "context_block": {
        "qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
        "proj": "to_add_out",
        "ln_q": "norm_added_q",
        "ln_k": "norm_added_k",
        "ff": "ff_context",
        "ada": "norm1_context",
    },
}


def to_comfy(state):
    """diffusers ``SD3Transformer2DModel`` state dict -> ComfyUI ``MMDiT`` state dict (no prefix), tensors shared or concatenated."""
    out = {"pos_embed": state["pos_embed.pos_embed"]}
    put = lambda ours, theirs, fix=lambda t: t: out.update(  # noqa: E731
        {f"{ours}.{k}": fix(state[f"{theirs}.{k}"]) for k in ("weight", "bias") if f"{theirs}.{k}" in state}
    )
    swap = lambda t: torch.cat(t.chunk(2)[::-1])  # noqa: E731  (diffusers stores scale before shift there)
    for ours, theirs in _OUTER.items():
        put(ours, theirs)
    put("final_layer.adaLN_modulation.1", "norm_out.linear", swap)
    for i in range(BLOCKS):
        for stream, names in _STREAM.items():
            last = i == BLOCKS - 1 and stream == "context_block"
            ours, theirs = f"joint_blocks.{i}.{stream}", f"transformer_blocks.{i}"
            for k in ("weight", "bias"):
                out[f"{ours}.attn.qkv.{k}"] = torch.cat([state[f"{theirs}.attn.{n}.{k}"] for n in names["qkv"]])
            put(f"{ours}.attn.ln_q", f"{theirs}.attn.{names['ln_q']}")
            put(f"{ours}.attn.ln_k", f"{theirs}.attn.{names['ln_k']}")
            put(f"{ours}.adaLN_modulation.1", f"{theirs}.{names['ada']}.linear", swap if last else lambda t: t)
            if not last:
                put(f"{ours}.attn.proj", f"{theirs}.attn.{names['proj']}")
                put(f"{ours}.mlp.fc1", f"{theirs}.{names['ff']}.net.0.proj")
                put(f"{ours}.mlp.fc2", f"{theirs}.{names['ff']}.net.2")
    return out


def to_diffusers(state):
    """The inverse of :func:`to_comfy`."""
    out = {"pos_embed.pos_embed": state["pos_embed"]}
    put = lambda theirs, ours, fix=lambda t: t: out.update(  # noqa: E731
        {f"{theirs}.{k}": fix(state[f"{ours}.{k}"]) for k in ("weight", "bias") if f"{ours}.{k}" in state}
    )
    swap = lambda t: torch.cat(t.chunk(2)[::-1])  # noqa: E731
    for ours, theirs in _OUTER.items():
        put(theirs, ours)
    put("norm_out.linear", "final_layer.adaLN_modulation.1", swap)
    for i in range(BLOCKS):
        for stream, names in _STREAM.items():
            last = i == BLOCKS - 1 and stream == "context_block"
            ours, theirs = f"joint_blocks.{i}.{stream}", f"transformer_blocks.{i}"
            for k in ("weight", "bias"):
                for name, part in zip(names["qkv"], state[f"{ours}.attn.qkv.{k}"].chunk(3), strict=True):
                    out[f"{theirs}.attn.{name}.{k}"] = part
            put(f"{theirs}.attn.{names['ln_q']}", f"{ours}.attn.ln_q")
            put(f"{theirs}.attn.{names['ln_k']}", f"{ours}.attn.ln_k")
            put(f"{theirs}.{names['ada']}.linear", f"{ours}.adaLN_modulation.1", swap if last else lambda t: t)
            if not last:
                put(f"{theirs}.attn.{names['proj']}", f"{ours}.attn.proj")
                put(f"{theirs}.{names['ff']}.net.0.proj", f"{ours}.mlp.fc1")
                put(f"{theirs}.{names['ff']}.net.2", f"{ours}.mlp.fc2")
    return out


def build():
    """Freshly initialised ``(transformer, text_encoder, tokenizer)``, fp32."""
    from diffusers import SD3Transformer2DModel

    tokenizer = WordTokenizer()
    return SD3Transformer2DModel(**DIFFUSERS_CONFIG), TextEncoder(len(tokenizer)), tokenizer


def read(path=WEIGHTS):
    """``(diffusion, text)`` state dicts of the testbed file, fp32, ComfyUI naming without prefixes."""
    state = {k: v.float() for k, v in load_file(path).items()}
    part = lambda prefix: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}  # noqa: E731
    return part(DIFFUSION_PREFIX), part(TEXT_PREFIX)


def load(path=WEIGHTS):
    """The trained ``(transformer, text_encoder, tokenizer)`` for diffusers, fp32, in eval mode."""
    diffusion, text = read(path)
    transformer, encoder, tokenizer = build()
    transformer.load_state_dict(to_diffusers(diffusion))
    encoder.load_state_dict(text)
    return transformer.eval().requires_grad_(False), encoder.eval().requires_grad_(False), tokenizer


def encode(encoder, tokenizer, prompts):
    """Prompts -> (hidden states (n, LENGTH, WIDTH), pooled (n, WIDTH))."""
    return encoder(torch.tensor([tokenizer(p) for p in prompts]).view(-1, LENGTH))
