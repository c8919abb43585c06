"""The testbed's diffusion model in both namings, and its one file.

An SD3-type MMDiT in the latents of :mod:`testbed.vae` (16 channels, 12x12): hidden size 256, 4 joint blocks, 4 heads of 64,
patch 2. Rectified flow: ``x_sigma = (1 - sigma) * x0 + sigma * noise``, the timestep is ``1000 * sigma``, and the network predicts
x0 (a patch has a quarter as many numbers as the hidden size: predicting velocity would have to carry the noise through it).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from .concepts import CANVAS
from .text import LENGTH, WIDTH, TextEncoder, WordTokenizer
from .vae import CHANNELS, SCALE

BLOCKS, HEADS, HIDDEN, PATCH = 4, 4, 256, 2
SIDE = CANVAS // SCALE  # of the latents
SHIFT = 3.0  # of the sampling schedule, SD3's: what a picture shows is decided at high noise
WEIGHTS = Path(__file__).with_name("testbed.safetensors")
DIFFUSION_PREFIX = "model.diffusion_model."
TEXT_PREFIX = "text_encoders.uniforget_words."

DIFFUSERS_CONFIG = {
    "sample_size": SIDE,
    "patch_size": PATCH,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HIDDEN // HEADS,
    "caption_projection_dim": HIDDEN,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "pos_embed_max_size": SIDE // PATCH,
    "qk_norm": "rms_norm",
}
COMFY_CONFIG = {
    "in_channels": CHANNELS,
    "patch_size": PATCH,
    "depth": HEADS,  # ComfyUI: hidden size = 64 * depth, heads = depth
    "num_blocks": BLOCKS,
    "input_size": None,
    "adm_in_channels": WIDTH,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": WIDTH, "out_features": HIDDEN}},
    "pos_embed_max_size": SIDE // PATCH,
    "num_patches": (SIDE // PATCH) ** 2,
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


def _plain():
    """``(ComfyUI path, diffusers path, whether the two halves of the rows are exchanged)`` of modules kept one to one."""
    for ours, theirs in _OUTER.items():
        yield ours, theirs, False
    yield "final_layer.adaLN_modulation.1", "norm_out.linear", True
    for i in range(BLOCKS):
        for stream, names in _STREAM.items():
            last = i == BLOCKS - 1 and stream == "context_block"
            ours, theirs = f"joint_blocks.{i}.{stream}", f"transformer_blocks.{i}"
            yield f"{ours}.attn.ln_q", f"{theirs}.attn.{names['ln_q']}", False
            yield f"{ours}.attn.ln_k", f"{theirs}.attn.{names['ln_k']}", False
            yield f"{ours}.adaLN_modulation.1", f"{theirs}.{names['ada']}.linear", last
            if not last:
                yield f"{ours}.attn.proj", f"{theirs}.attn.{names['proj']}", False
                yield f"{ours}.mlp.fc1", f"{theirs}.{names['ff']}.net.0.proj", False
                yield f"{ours}.mlp.fc2", f"{theirs}.{names['ff']}.net.2", False


def _fused():
    """``(ComfyUI path, diffusers paths)`` of the Linears that ComfyUI keeps as one: q, k and v."""
    for i in range(BLOCKS):
        for stream, names in _STREAM.items():
            yield f"joint_blocks.{i}.{stream}.attn.qkv", [f"transformer_blocks.{i}.attn.{n}" for n in names["qkv"]]


def _exchange(tensor):
    return torch.cat(tensor.chunk(2)[::-1])


def to_comfy(state):
    """diffusers ``SD3Transformer2DModel`` state dict -> ComfyUI ``MMDiT`` state dict (no prefix), tensors shared or concatenated."""
    out = {"pos_embed": state["pos_embed.pos_embed"]}
    for ours, theirs, swapped in _plain():
        for part in ("weight", "bias"):
            if f"{theirs}.{part}" in state:
                tensor = state[f"{theirs}.{part}"]
                out[f"{ours}.{part}"] = _exchange(tensor) if swapped else tensor
    for ours, theirs in _fused():
        for part in ("weight", "bias"):
            out[f"{ours}.{part}"] = torch.cat([state[f"{path}.{part}"] for path in theirs])
    return out


def to_diffusers(state):
    """The inverse of :func:`to_comfy`."""
    out = {"pos_embed.pos_embed": state["pos_embed"]}
    for ours, theirs, swapped in _plain():
        for part in ("weight", "bias"):
            if f"{ours}.{part}" in state:
                tensor = state[f"{ours}.{part}"]
                out[f"{theirs}.{part}"] = _exchange(tensor) if swapped else tensor
    for ours, theirs in _fused():
        for part in ("weight", "bias"):
            out |= {f"{p}.{part}": chunk for p, chunk in zip(theirs, state[f"{ours}.{part}"].chunk(3), strict=True)}
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
