"""Weights and inputs of families of 2025 and 2026 between both hosts, for :mod:`tests.comfyui.inside.test_diffusers_naming`.

Converters are the hosts' own, where there is one.
"""

import comfy.utils
import torch
from diffusers.loaders import single_file_utils as single_file
from einops import rearrange

# Converters: ComfyUI's config and state dict -> state dict as diffusers names it.


def cosmos(config, state):
    return single_file.convert_cosmos_transformer_checkpoint_to_diffusers(dict(state))


def krea2(config, state):
    return single_file.convert_krea2_transformer_checkpoint_to_diffusers(dict(state))


def same(config, state):
    return dict(state)


def _split(key, value, fused, *names):
    """The rows of a fused Linear under each of their own names."""
    return {key.replace(fused, name): piece for name, piece in zip(names, value.chunk(len(names)), strict=True)}


def ideogram4(config, state):
    """Neither host has a converter, so this is from the code of both."""
    out = {}
    for key, value in state.items():
        if ".qkv." in key:
            out |= _split(key, value, ".qkv.", ".to_q.", ".to_k.", ".to_v.")
        else:
            out[key.replace(".attention.o.", ".attention.to_out.0.")] = value
    return out


# The first that a key contains is replaced.
_HUNYUAN_IMAGE = {
    "img_in.proj.": "x_embedder.proj.", "time_in.in_layer.": "time_guidance_embed.timestep_embedder.linear_1.",
    "time_in.out_layer.": "time_guidance_embed.timestep_embedder.linear_2.", "final_layer.linear.": "proj_out.",
    "final_layer.adaLN_modulation.1.": "norm_out.linear.", "txt_in.input_embedder.": "context_embedder.proj_in.",
    **{
        f"txt_in.{ours}_embedder.{side}_layer.": f"context_embedder.time_text_embed.{theirs}_embedder.linear_{number}."
        for ours, theirs in (("t", "timestep"), ("c", "text")) for side, number in (("in", 1), ("out", 2))
    },
}  # fmt: skip
_REFINER = {
    "txt_in.individual_token_refiner.blocks.": "context_embedder.token_refiner.refiner_blocks.", ".self_attn.proj.": ".attn.to_out.0.",
    ".mlp.0.": ".ff.net.0.proj.", ".mlp.2.": ".ff.net.2.", ".adaLN_modulation.1.": ".norm_out.linear.",
}  # fmt: skip


def hunyuan_image(config, state):
    """Its blocks by ComfyUI's map of FLUX; the rest, for which neither host has a converter, from the code of both."""
    out = {}
    for theirs, entry in comfy.utils.flux_to_diffusers(config).items():
        ours, part = (entry[0], entry[1]) if isinstance(entry, tuple) else (entry, None)
        other = (
            ".linear_" in theirs
            or ".to_qkv_mlp_proj." in theirs
            or ".attn.to_out.weight" in theirs
            or ".attn.to_out.bias" in theirs
        )
        if ours.startswith(("double_blocks.", "single_blocks.")) and ours in state and not other:
            out[theirs] = state[ours] if part is None else state[ours].narrow(*part)
    for key, value in state.items():
        if "individual_token_refiner" in key:
            for old, new in _REFINER.items():
                key = key.replace(old, new)
            out |= _split(key, value, ".self_attn.qkv.", *(f".attn.to_{x}." for x in "qkv")) if ".qkv." in key else {key: value}
        elif not key.startswith(("double_blocks.", "single_blocks.")):
            old = next(old for old in _HUNYUAN_IMAGE if old in key)
            # diffusers takes scale before shift at the end
            value = torch.cat(value.chunk(2)[::-1]) if "adaLN" in old else value
            out[key.replace(old, _HUNYUAN_IMAGE[old])] = value
    return out


CONVERTERS = {f.__name__: f for f in (cosmos, krea2, ideogram4, hunyuan_image)} | dict.fromkeys(
    ("ernie", "kandinsky5", "hidream"), same
)

# ComfyUI's prediction for the keyword arguments of diffusers' forward, in diffusers' layout.


def run_cosmos(network, model, given):
    return network(given["hidden_states"], given["timestep"], given["encoder_hidden_states"])


def run_krea2(network, model, given):
    form = {"h": int(given["hidden_states"].shape[1] ** 0.5), "ph": 2, "pw": 2}
    picture = rearrange(given["hidden_states"], "b (h w) (c ph pw) -> b c (h ph) (w pw)", **form)
    out = network(picture, given["timestep"], given["encoder_hidden_states"].flatten(2))
    return rearrange(out, "b c (h ph) (w pw) -> b (h w) (c ph pw)", **form)


def run_ideogram4(network, model, given):
    """Of the picture's tokens."""
    text = (given["indicator"][0] == 3).sum().item()
    tokens = given["hidden_states"][:, text:]
    side = int(tokens.shape[1] ** 0.5)
    picture = network._tokens_to_img(tokens, side, side)
    out = -network(picture, 1 - given["timestep"], given["encoder_hidden_states"][:, :text])
    return network._img_to_tokens(out)


def run_ernie(network, model, given):
    return network(given["hidden_states"], given["timestep"], given["text_bth"])


def run_hunyuan_image(network, model, given):
    return network(given["hidden_states"], given["timestep"], given["encoder_hidden_states"])


def run_kandinsky5(network, model, given):
    picture = given["hidden_states"].movedim(-1, 1)
    out = network(picture, given["timestep"], given["encoder_hidden_states"], given["pooled_projections"])
    return out.movedim(1, -1)


def run_hidream(network, model, given):
    llama = given["encoder_hidden_states_llama3"].movedim(0, 1)
    picture, pooled, text = given["hidden_states"], given["pooled_embeds"], given["encoder_hidden_states_t5"]
    return -network(picture, given["timesteps"], pooled, text, llama)


RUNS = {
    f.__name__.removeprefix("run_"): f
    for f in (run_cosmos, run_krea2, run_ideogram4, run_ernie, run_hunyuan_image, run_kandinsky5, run_hidream)
}
