"""One mask serves ComfyUI and diffusers: for every family that diffusers has, on the same weights under both names.

The weights are translated by the hosts' own converters, never by our tables.
"""

import re

import comfy.utils
import pytest
import torch
from diffusers.loaders import single_file_utils as single_file
from diffusers.models.transformers.transformer_chroma import ChromaCombinedTimestepTextProjEmbeddings
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder
from einops import rearrange
from uniforget_pack.uniforget.hosts.diffusers.apply import find_modules, fold_
from uniforget_pack.uniforget.mask.edit import merge
from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo
from uniforget_pack.uniforget.model.families.schema import KINDS
from uniforget_pack.uniforget.model.sites import find_sites

from tests.comfyui.inside import converters_newer as newer
from tests.comfyui.inside import zoo
from tests.unit import diffusers_zoo

# Where the small architectures of the two zoos differ, because diffusers cannot build ComfyUI's: what to change in ComfyUI's.
CHANGES = {
    **{name: {"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1]} for name in ("sd1", "sd2", "sdxl")},
    "ssd_1b": {"num_res_blocks": [2, 2], "transformer_depth": [0, 0, 2, 2], "transformer_depth_output": [0, 0, 0, 1, 1, 2]},
    "z_image": {
        "dim": 288, "n_heads": 3, "n_kv_heads": 3, "axes_dims": [32, 32, 32], "ffn_dim_multiplier": 8 / 3, "pad_tokens_multiple": 32,
    },
}  # fmt: skip


def widen_chroma(model):
    """ComfyUI makes as many modulation vectors as the published model needs, whatever the number of blocks."""
    model.time_text_embed = ChromaCombinedTimestepTextProjEmbeddings(num_channels=16, out_dim=344)


def narrow_z_image(model):
    """diffusers makes the inside of this one as wide as the published model's, whatever the width."""
    model.t_embedder = TimestepEmbedder(256, mid_size=model.dim)


# Where that is not enough: what to change in diffusers' model.
ADAPT = {"chroma": widen_chroma, "z_image": narrow_z_image}


# Converters: ComfyUI's config and state dict -> state dict as diffusers names it.


def by_map(key_map, state):
    """`state` by one of ComfyUI's maps: diffusers' name -> ours, or (ours, (dim, start, length)), or (ours, None, function)."""
    out = {}
    for theirs, entry in key_map.items():
        ours, part, change = (*entry, None)[:3] if isinstance(entry, tuple) else (entry, None, None)
        if ours in state:
            value = state[ours] if part is None else state[ours].narrow(*part)
            out[theirs] = value if change is None else change(value)
    return out


def unet(config, state):
    # the map has two names for what SDXL calls add_embedding
    return {k: v for k, v in by_map(comfy.utils.unet_to_diffusers(config), state).items() if not k.startswith("class_embedding.")}


def sd3(config, state):
    # not ComfyUI's map, which takes the number of heads for the number of blocks
    return single_file.convert_sd3_transformer_checkpoint_to_diffusers(dict(state))


def flux(config, state):
    # ComfyUI's map of later versions has the names of diffusers' FLUX.2 as well
    other = re.compile(r"\.ff(_context)?\.linear_|\.to_qkv_mlp_proj\.|^single_.*\.attn\.to_out\.")
    return by_map({k: v for k, v in comfy.utils.flux_to_diffusers(config).items() if not other.search(k)}, state)


def flux2(config, state):
    return single_file.convert_flux2_transformer_checkpoint_to_diffusers(dict(state))


def chroma(config, state):
    # diffusers' own converter is for the published width only
    names = {"in_layer": "linear_1", "out_layer": "linear_2", ".scale": ".weight"}
    guidance = {}
    for key in (k for k in state if k.startswith("distilled_guidance_layer.")):
        name = key
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        guidance[name] = state[key]
    return flux(config, state) | guidance


def pixart(config, state):
    out = by_map(comfy.utils.pixart_to_diffusers(config), state)
    del out["caption_projection.y_embedding"]  # for training
    return out


# The first that a key contains is replaced.
_HUNYUANDIT = {
    "mlp_t5.0.": "text_embedder.linear_1.", "mlp_t5.2.": "text_embedder.linear_2.", "pooler.": "time_extra_emb.pooler.",
    "style_embedder.": "time_extra_emb.style_embedder.", "x_embedder.": "pos_embed.", "final_layer.linear.": "proj_out.",
    "t_embedder.mlp.0.": "time_extra_emb.timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "time_extra_emb.timestep_embedder.linear_2.",
    "extra_embedder.0.": "time_extra_emb.extra_embedder.linear_1.",
    "extra_embedder.2.": "time_extra_emb.extra_embedder.linear_2.", "final_layer.adaLN_modulation.1.": "norm_out.linear.",
    "default_modulation.1.": "norm1.linear.", "norm1.": "norm1.norm.", "norm2.": "norm3.", "norm3.": "norm2.",
    "mlp.fc1.": "ff.net.0.proj.", "mlp.fc2.": "ff.net.2.", "q_norm.": "norm_q.", "k_norm.": "norm_k.",
    "out_proj.": "to_out.0.", "attn2.q_proj.": "attn2.to_q.",
}  # fmt: skip


def hunyuandit(config, state):
    """Neither host has a converter, so this is from the code of both."""
    out = {}
    for key, value in state.items():
        fused = next((name for name in ("Wqkv", "kv_proj") if f".{name}." in key), None)
        if fused:
            letters = "qkv" if fused == "Wqkv" else "kv"
            out |= {key.replace(fused, f"to_{letter}"): v for letter, v in zip(letters, value.chunk(len(letters)), strict=True)}
            continue
        old = next((old for old in _HUNYUANDIT if old in key), "")
        # diffusers takes scale before shift at the end
        value = torch.cat(value.chunk(2)[::-1]) if old.startswith("final_layer.adaLN") else value
        out[key.replace(old, _HUNYUANDIT.get(old, ""))] = value
    return out


def lumina2(config, state):
    # the converter splits what is fused at the published width only
    head = config["dim"] // config["n_heads"]
    sizes = [config["dim"], *(2 * [head * config["n_kv_heads"]])]
    out = single_file.convert_lumina2_to_diffusers({k: v for k, v in state.items() if ".qkv." not in k})
    for key in (k for k in state if ".qkv." in k):
        for letter, piece in zip("qkv", state[key].split(sizes), strict=True):
            out[key.replace("attention.qkv", f"attn.to_{letter}")] = piece
    return out


def z_image(config, state):
    return single_file.convert_z_image_transformer_checkpoint_to_diffusers(dict(state))


def qwen_image(config, state):
    return dict(state)


def auraflow(config, state):
    return by_map(comfy.utils.auraflow_to_diffusers(config), state)


def wan(config, state):
    return single_file.convert_wan_transformer_to_diffusers(dict(state))


CONVERTERS = {
    **dict.fromkeys(("sd1", "sd2", "sdxl"), unet),
    **{f.__name__: f for f in (sd3, flux, flux2, chroma, pixart, hunyuandit, lumina2, z_image, qwen_image, auraflow, wan)},
    **newer.CONVERTERS,
}


# ComfyUI's prediction for the keyword arguments of diffusers' forward, in diffusers' layout.


def run_unet(network, model, given):
    extra = {}
    if "added_cond_kwargs" in given:
        numbers = given["added_cond_kwargs"]["time_ids"]
        times = model.add_time_proj(numbers.flatten()).view(len(numbers), -1)
        extra["y"] = torch.cat([given["added_cond_kwargs"]["text_embeds"], times], dim=1)
    return network(given["sample"], given["timestep"].float(), context=given["encoder_hidden_states"], **extra)


def run_tokens(network, model, given):
    """FLUX and its kin take pictures in ComfyUI, and their tokens in diffusers."""
    form = {"h": diffusers_zoo.SIZE // 2, "ph": network.patch_size, "pw": network.patch_size}
    picture = rearrange(given["hidden_states"], "b (h w) (c ph pw) -> b c (h ph) (w pw)", **form)
    extra = {"guidance": given.get("guidance", torch.zeros(len(picture)))}
    if "pooled_projections" in given:
        extra["y"] = given["pooled_projections"]
    out = network(picture, given["timestep"], given["encoder_hidden_states"], **extra)
    return rearrange(out, "b c (h ph) (w pw) -> b (h w) (c ph pw)", **form)


def run_picture(network, model, given):
    extra = {"y": given["pooled_projections"]} if "pooled_projections" in given else {}
    return network(given["hidden_states"], given["timestep"], given["encoder_hidden_states"], **extra)


def run_pixart(network, model, given):
    sizes = given["added_cond_kwargs"]
    return network(
        given["hidden_states"], given["timestep"], given["encoder_hidden_states"], sizes["resolution"], sizes["aspect_ratio"]
    )


def run_hunyuandit(network, model, given):
    names = ("text_embedding_mask", "encoder_hidden_states_t5", "text_embedding_mask_t5", "image_meta_size")
    context = given["encoder_hidden_states"].clone()  # it writes into it
    return network(given["hidden_states"], given["timestep"], context, **{k: given[k] for k in names})


def run_lumina2(network, model, given):
    tokens = given["encoder_hidden_states"]
    return -network(given["hidden_states"], 1 - given["timestep"], tokens, tokens.shape[1])


def run_z_image(network, model, given):
    tokens = torch.stack(given["cap_feats"])
    return -network(torch.stack(given["x"]).squeeze(2), 1 - given["t"], tokens, tokens.shape[1]).unsqueeze(2)


def run_qwen_image(network, model, given):
    form = {"h": diffusers_zoo.SIZE // 2, "ph": 2, "pw": 2}
    picture = rearrange(given["hidden_states"], "b (h w) (c ph pw) -> b c 1 (h ph) (w pw)", **form)
    out = network(picture, given["timestep"], given["encoder_hidden_states"])
    return rearrange(out, "b c 1 (h ph) (w pw) -> b (h w) (c ph pw)", **form)


# How far the same weights may predict apart, where it is more than in the other families: diffusers rounds Kandinsky's positions to bf16.
APART = {"kandinsky5": 1e-3}
RUNS = {
    **dict.fromkeys(("sd1", "sd2", "sdxl"), run_unet),
    **dict.fromkeys(("flux", "flux2", "chroma"), run_tokens),
    **dict.fromkeys(("sd3", "auraflow", "wan"), run_picture),
    **{f.__name__.removeprefix("run_"): f for f in (run_pixart, run_hunyuandit, run_lumina2, run_z_image, run_qwen_image)},
    **newer.RUNS,
}


class Pair:
    """The same weights in both hosts."""

    def __init__(self, name, monkeypatch):
        family, kind, config, published = zoo.ARCHITECTURES[name]
        self.name, self.family, self.config = name, family, config | CHANGES.get(name, {})
        monkeypatch.setitem(zoo.ARCHITECTURES, name, (family, kind, self.config, published))
        self.network = zoo.small(name).diffusion_model
        self.state = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.model = diffusers_zoo.small(name)
        ADAPT.get(family, lambda model: None)(self.model)
        self.model.load_state_dict(self.convert(self.state))

    def convert(self, state):
        return CONVERTERS[self.family](self.config, state)

    def predictions(self):
        """ComfyUI's and diffusers', of one shape."""
        given = diffusers_zoo.inputs(self.name, self.model)
        ours = RUNS[self.family](self.network, self.model, given)
        theirs = diffusers_zoo.predict(self.name, self.model, given)
        if self.family in ("pixart", "hunyuandit"):
            theirs = theirs[:, : ours.shape[1]]  # ComfyUI leaves out the predicted variance
        if self.family == "ideogram4":
            theirs = theirs[:, -ours.shape[1] :]  # ComfyUI leaves out the text
        assert ours.shape == theirs.shape
        return ours, theirs


def random_mask(family, sites, seed=0):
    generator = torch.Generator().manual_seed(seed)
    gates = {s.name: torch.rand(s.units, generator=generator) for s in sites}
    return GateMask(gates, {s.name: s.kind for s in sites}, MaskInfo(family=family.name, base="", method="test"))


def shapes(state):
    return {k: tuple(v.shape) for k, v in state.items()}


@pytest.mark.parametrize("name", [name for name in diffusers_zoo.SMALL if name in zoo.ARCHITECTURES])
def test_one_mask_serves_both(name, monkeypatch):
    pair = Pair(name, monkeypatch)
    before, apart = pair.predictions(), APART.get(pair.family, 1e-4)
    assert before[0].std() > 0.05 and (before[0] - before[1]).abs().max() < apart * max(1, before[0].abs().max()), (
        "translated weights must predict the same, or the translation proves nothing"
    )
    family, ours = find_sites(shapes(pair.state))
    their_family, theirs, _ = find_modules(pair.model)
    assert family is their_family and family.name == pair.family
    assert {(s.name, s.kind, s.units) for s in ours} == {(s.name, s.kind, s.units) for s in theirs}
    assert {s.kind for s in ours} == set(KINDS)
    translated = pair.convert(pair.state)
    for mask in (random_mask(family, ours), random_mask(family, theirs, seed=1)):
        here = merge(pair.state, mask, 0.9)
        there = merge(translated, mask, 0.9)
        changed = {site.places[0].path for site in ours}
        assert all(not torch.equal(here[f"{path}.weight"], pair.state[f"{path}.weight"]) for path in changed)
        expected = pair.convert(here)
        assert expected.keys() == there.keys()
        different = [key for key in there if not torch.equal(expected[key], there[key])]
        assert not different, f"folded differently: {different}"
        fold_(pair.model, mask, 0.9)
        assert all(torch.equal(value, there[key]) for key, value in pair.model.state_dict().items())
        pair.network.load_state_dict(here)
        after = pair.predictions()
        assert (after[0] - before[0]).abs().max() > 1e-2
        assert (after[0] - after[1]).abs().max() < apart * max(1, after[0].abs().max())
        pair.network.load_state_dict(pair.state)
        pair.model.load_state_dict(translated)
