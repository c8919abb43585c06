"""Recognising models by their weights: each family in both namings, what only looks like one, and what users are told."""

import pytest

from uniforget.errors import FamilyError, MismatchError
from uniforget.model import detect as module
from uniforget.model.detect import canonical, detect, family
from uniforget.model.families import FAMILIES
from uniforget.model.families.unsupported import UNSUPPORTED
from uniforget.model.sites import find_sites

TO_K = "transformer_blocks.0.attn2.to_k.weight"
CHROMA_MLP = {"single_transformer_blocks.0.proj_mlp.weight": (8, 8)}


def square(*names):
    return dict.fromkeys(names, (8, 8))


def unet(inside, outside, text, ndim, **more):
    """A UNet's telling weights: the projection in front of its attention, and what reads the prompt."""
    return {f"{inside}.proj_in.weight": (8, 8, 1, 1)[:ndim], f"{outside}.{TO_K}": (8, text)} | dict.fromkeys(
        more.values(), (8, 8)
    )


# family -> just the weights that tell it, in ComfyUI's naming
OURS = {
    "sd1": unet("input_blocks.1.1", "output_blocks.3.1", 768, 4),
    "sd2": unet("input_blocks.1.1", "output_blocks.11.1", 1024, 2),
    "sdxl": unet("input_blocks.4.1", "output_blocks.0.1", 2048, 2, extra="label_emb.0.0.weight"),
    "sd3": square("joint_blocks.0.x_block.attn.qkv.weight", "joint_blocks.0.context_block.adaLN_modulation.1.weight"),
    "flux": square("img_in.weight", "double_blocks.0.img_mod.lin.weight", "single_blocks.0.modulation.lin.weight"),
    "flux2": square("img_in.weight", "double_stream_modulation_img.lin.weight", "single_stream_modulation.lin.weight"),
    "chroma": square("img_in.weight", "distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"),
    "pixart": square("t_block.1.weight", "blocks.0.scale_shift_table", "blocks.0.cross_attn.kv_linear.weight"),
    "hunyuandit": square("mlp_t5.0.weight", "blocks.0.default_modulation.1.weight"),
    "lumina2": square("cap_embedder.1.weight", "layers.0.adaLN_modulation.1.weight", "layers.0.attention.qkv.weight"),
    "z_image": square("cap_embedder.1.weight", "layers.0.adaLN_modulation.0.weight", "layers.0.attention.qkv.weight"),
    "qwen_image": square(
        "transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.attn.add_q_proj.weight", "txt_norm.weight"
    ),
    "auraflow": square("double_layers.0.attn.w1q.weight", "single_layers.0.modCX.1.weight"),
    "wan": square("head.modulation", "blocks.0.self_attn.q.weight", "blocks.0.ffn.2.weight"),
    "cosmos": square("blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_mlp.1.weight", "x_embedder.proj.1.weight"),
    "krea2": square("txtfusion.projector.weight", "blocks.0.attn.wo.weight", "blocks.0.mlp.down.weight"),
    "ideogram4": square(
        *("embed_image_indicator.weight", "layers.0.attention.qkv.weight", "layers.0.adaln_modulation.weight"),
    ),
    "ernie": square("layers.0.mlp.linear_fc2.weight", "layers.0.adaLN_sa_ln.weight"),
    "chroma_radiance": square(
        "img_in_patch.weight", "distilled_guidance_layer.in_proj.weight", "double_blocks.0.img_attn.qkv.weight"
    ),
    "lens": square(*(f"transformer_blocks.0.{n}.weight" for n in ("img_mlp.w1", "img_mod.1", "attn.img_qkv"))),
    "hunyuan_image": {"img_in.proj.weight": (8, 8, 1, 1), "txt_in.individual_token_refiner.blocks.0.norm1.weight": (8,)}
    | square("double_blocks.0.img_mod.lin.weight"),
    "kandinsky5": square(
        *(f"visual_transformer_blocks.0.{n}.out_layer.weight" for n in ("visual_modulation", "cross_attention")),
    ),
    "hidream": square(
        *("caption_projection.0.linear.weight", "double_stream_blocks.0.block.ff_t.w2.weight"),
        "single_stream_blocks.0.block.attn1.to_out.weight",
    ),
    "omnigen2": square(
        *("ref_image_refiner.0.attn.to_q.weight", "layers.0.norm1.linear.weight", "layers.0.feed_forward.linear_2.weight"),
    ),
}
# The same in diffusers' naming, where it has the model and other names.
THEIRS = {
    "sd1": unet("down_blocks.0.attentions.0", "up_blocks.1.attentions.0", 768, 4),
    "sd2": unet("down_blocks.0.attentions.0", "up_blocks.1.attentions.0", 1024, 2),
    "sdxl": unet("down_blocks.1.attentions.0", "up_blocks.0.attentions.0", 2048, 2, extra="add_embedding.linear_1.weight"),
    "sd3": square(
        *(f"transformer_blocks.0.{n}.weight" for n in ("norm1_context.linear", "ff_context.net.2")), "pos_embed.proj.weight"
    ),
    "flux": CHROMA_MLP
    | square(
        "transformer_blocks.0.norm1_context.linear.weight",
        "single_transformer_blocks.0.norm.linear.weight",
        "x_embedder.weight",
    ),
    "flux2": square("double_stream_modulation_img.linear.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"),
    "chroma": CHROMA_MLP | square("distilled_guidance_layer.in_proj.weight"),
    "pixart": square(
        *("adaln_single.linear.weight", "pos_embed.proj.weight", "transformer_blocks.0.scale_shift_table"),
        "caption_projection.linear_1.weight",
    ),
    "hunyuandit": square("blocks.0.norm1.linear.weight", "text_embedding_padding"),
    "lumina2": square(
        *("layers.0.norm1.linear.weight", "layers.0.feed_forward.linear_2.weight"),
        "time_caption_embed.caption_embedder.0.weight",
    ),
    "z_image": square("cap_embedder.1.weight", "layers.0.adaLN_modulation.0.weight", "layers.0.attention.to_q.weight"),
    "auraflow": square(
        *(f"joint_transformer_blocks.0.{n}.weight" for n in ("norm1_context.linear", "ff.out_projection")),
    ),
    "wan": square("condition_embedder.time_proj.weight", "blocks.0.ffn.net.2.weight", "blocks.0.attn1.to_q.weight"),
    "cosmos": square("patch_embed.proj.weight", *(f"transformer_blocks.0.{n}.weight" for n in ("norm3.linear_2", "attn2.to_q"))),
    "krea2": square("text_fusion.projector.weight", *(f"transformer_blocks.0.{n}.weight" for n in ("attn.to_out.0", "ff.down"))),
    "ideogram4": square(
        *("embed_image_indicator.weight", "layers.0.attention.to_q.weight", "layers.0.adaln_modulation.weight"),
    ),
    "hunyuan_image": {
        **{"x_embedder.proj.weight": (8, 8, 1, 1), "context_embedder.token_refiner.refiner_blocks.0.norm1.weight": (8,)},
        **square("single_transformer_blocks.0.proj_mlp.weight"),
    },
}
MINIMAL = [*((n, False, s) for n, s in OURS.items()), *((n, True, s) for n, s in THEIRS.items())]
IDS = [f"{name}-{'diffusers' if theirs else 'comfyui'}" for name, theirs, _ in MINIMAL]


def found(shapes):
    """``(family's name, whether in diffusers' naming)``."""
    entry, naming = detect(shapes)
    assert naming is None or naming is entry.diffusers
    return entry.name, naming is not None


def refusal(shapes):
    with pytest.raises(FamilyError) as caught:
        detect(shapes)
    return str(caught.value)


# --- families


def test_the_tables_above_are_complete():
    assert list(OURS) == [f.name for f in FAMILIES]
    assert list(THEIRS) == [f.name for f in FAMILIES if f.diffusers.keys]


@pytest.mark.parametrize(("name", "theirs", "shapes"), MINIMAL, ids=IDS)
@pytest.mark.parametrize("order", [1, -1])
def test_the_telling_weights_tell_exactly_one_family_whatever_is_asked_first(name, theirs, shapes, order, monkeypatch):
    monkeypatch.setattr(module, "FAMILIES", FAMILIES[::order])
    assert found(shapes) == (name, theirs)
    assert found({"other.weight": (3,), **shapes, "something.else": (2, 2)}) == (name, theirs)


@pytest.mark.parametrize(("name", "theirs", "shapes"), MINIMAL, ids=IDS)
def test_every_telling_weight_is_needed(name, theirs, shapes):
    for dropped in shapes:
        rest = {k: v for k, v in shapes.items() if k != dropped}
        try:
            assert found(rest) != (name, theirs), dropped
        except FamilyError as error:
            assert "UniForget does not know this model" in str(error)


def test_unets_are_told_apart_by_shapes_alone():
    for ndim, text in ((4, 1024), (2, 768), (4, 2048), (2, 4096)):
        message = refusal(unet("input_blocks.1.1", "output_blocks.3.1", text, ndim))
        assert "does not know this model: found" in message
    refiner = unet("input_blocks.4.1", "output_blocks.3.1", 1280, 2, extra="label_emb.0.0.weight")
    assert found(refiner) == ("sdxl", False)


def test_a_family_that_is_not_there_is_named_with_those_that_are():
    assert family("flux").title == "FLUX.1"
    with pytest.raises(FamilyError, match=r"no model family 'flux9' \(it knows: sd1, sd2, .*omnigen2\)\. Update UniForget"):
        family("flux9")


def test_a_missing_piece_of_a_fused_linear_is_named():
    shapes = THEIRS["pixart"] | square(*(f"transformer_blocks.0.attn1.to_{x}.weight" for x in "qk"))
    _, naming = detect(shapes)
    expected = (
        r"blocks\.0\.attn\.qkv is kept in 3 pieces here, and only 2 are there \(transformer_blocks\.0\.attn1\.to_q, .*to_k\)"
    )
    with pytest.raises(MismatchError, match=expected):
        canonical(shapes, naming)


def test_projections_that_diffusers_has_fused_are_refused_because_gates_would_do_nothing():
    shapes = THEIRS["pixart"] | square(*(f"transformer_blocks.0.attn1.to_{x}.weight" for x in "qkv"))
    assert [s.name for s in find_sites(shapes)[1]] == ["blocks.0.norm1"]
    fused = shapes | {"transformer_blocks.0.attn1.to_qkv.weight": (24, 8)}
    with pytest.raises(
        MismatchError, match=r"blocks\.0\.norm1: .*attn1\.to_q, .*attn1\.to_qkv.*before calling fuse_qkv_projections\(\)"
    ):
        find_sites(fused)
    # where no gate acts on what was fused, nothing is lost
    assert find_sites(fused, ("ffn", "attn"))[1] == []


@pytest.mark.parametrize(("name", "theirs", "shapes"), MINIMAL, ids=IDS)
def test_a_look_alike_with_linears_of_its_own_is_refused_and_they_are_named(name, theirs, shapes):
    """Ovis-Image has FLUX's keys and another FFN: its neurons would stay, and nobody would be told."""
    rows = {"sd3": "joint_blocks", "flux": "double_blocks"}
    for strange in (f"{rows.get(name, 'blocks')}.3.other_mlp.down", "more_blocks.0.attn.in_proj", "experts.0.w1"):
        weight = f"{strange}_weight" if strange.endswith("in_proj") else f"{strange}.weight"
        message = refusal(shapes | {weight: (8, 8)})
        assert "does not know this model: it has what tells" in message and strange in message and f"({name})" in message
    # a norm, a convolution and a table are no Linears, and what is in no block is none of the family's business
    others = {"blocks.0.new_norm.weight": (8,), "blocks.0.conv.weight": (8, 8, 3, 3), "new_embedder.0.weight": (8, 8)}
    assert found(shapes | others) == (name, theirs)


def test_what_other_programs_attach_to_a_model_does_not_hide_its_family():
    adapter = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.0.weight"
    assert found(THEIRS["sd1"] | square(adapter)) == ("sd1", True)
    assert found(OURS["flux"] | square("pulid_ca.0.to_q.weight")) == ("flux", False)


# --- what no mask fits

HUNYUAN_VIDEO = {"img_in.proj.weight": (8, 8, 1, 2, 2)} | square(
    *("txt_in.individual_token_refiner.blocks.0.mlp.0.weight", "txt_in.input_embedder.weight"),
    *("double_blocks.0.img_mod.lin.weight", "double_blocks.0.img_mlp.2.weight", "double_blocks.0.img_attn.proj.weight"),
    *("single_blocks.0.linear2.weight", "single_blocks.0.modulation.lin.weight", "final_layer.linear.weight"),
)
LTX = square("patchify_proj.weight", "adaln_single.linear.weight", "transformer_blocks.0.attn2.to_k.weight") | {
    "transformer_blocks.0.scale_shift_table": (6, 8),
    "caption_projection.linear_1.weight": (8, 8),
}
CASCADE = square(
    "clip_txt_mapper.weight", "down_blocks.0.0.channelwise.0.weight", "up_blocks.0.0.channelwise.0.weight", "clf.1.weight"
)
SVD = OURS["sd2"] | square("input_blocks.1.1.time_stack.0.attn1.to_q.weight", "label_emb.0.0.weight")
SVD_DIFFUSERS = THEIRS["sd2"] | square("down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q.weight")

# what it is, its weights, and words of the message
MODELS = {
    "hunyuan_video": (HUNYUAN_VIDEO, ["HunyuanVideo", "double_blocks.0.img_mod.lin.weight"]),
    "hunyuan_3d": (square("latent_in.weight", *OURS["flux"]), ["Hunyuan3D", "latent_in.weight"]),
    "ltx": (LTX, ["LTX-Video", "transformer_blocks.0.attn2.to_k.weight"]),
    "cascade": (CASCADE, ["Stable Cascade", "clip_txt_mapper.weight"]),
    "svd": (SVD, ["Stable Video Diffusion", "input_blocks.1.1.proj_in.weight"]),
    "svd_diffusers": (SVD_DIFFUSERS, ["Stable Video Diffusion"]),
    "video_1.5": (THEIRS["sd2"] | square("up_blocks.1.temp_convs.0.conv1.0.weight"), ["video UNet"]),
    "sana": (OURS["pixart"] | square("blocks.0.mlp.inverted_conv.conv.weight"), ["Sana"]),
    "mochi": (square("t5_yproj.weight", "blocks.0.mod_x.weight"), ["Mochi", "blocks.0.mod_x.weight"]),
    "cosmos": (square("blocks.block0.blocks.0.block.attn.to_q.0.weight"), ["the first Cosmos"]),
    "hidream_o1": (square("t_embedder1.mlp.0.weight", "x_embedder.proj1.weight"), ["HiDream-O1"]),
    "boogu": (square("double_stream_layers.0.img_instruct_attn.processor.img_to_q.weight"), ["Boogu-Image"]),
    "joyimage": (square("double_blocks.0.attn.img_attn_qkv.weight", "img_in.weight"), ["JoyImage"]),
    "pixeldit": (square("core.pixel_embedder.proj.weight"), ["PixelDiT"]),
}
FILES = {
    "checkpoint": ({f"model.diffusion_model.{k}": v for k, v in OURS["sd1"].items()}, ["a whole checkpoint", "as the prefix"]),
    "checkpoint_vae": (
        square("first_stage_model.decoder.conv_in.weight", "model.diffusion_model.out.2.weight"),
        ["a whole checkpoint", "'model.diffusion_model.'"],
    ),
    "lora_kohya": (square("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"), ["a LoRA", "fuse the LoRA"]),
    "lora_diffusers": (square("transformer.transformer_blocks.0.attn.to_q.lora_A.weight"), ["a LoRA", "to_q.lora_A.weight"]),
    "lora_old": (square("unet.mid_block.attentions.0.processor.to_q_lora.down.weight"), ["a LoRA"]),
    "lokr": (square("lycoris_blocks_0_attn.lokr_w1"), ["a LoRA"]),
    "lora_attached": (THEIRS["flux"] | square("x_embedder.lora_A.default.weight"), ["with one attached", "fuse the LoRA"]),
    "controlnet": (
        square("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.attentions.0.proj_in.weight"),
        ["a ControlNet", "Load the model that it steers"],
    ),
    "controlnet_flux": (THEIRS["flux"] | square("controlnet_blocks.0.weight"), ["a ControlNet"]),
    "controlnet_ldm": (square("control_model.input_hint_block.0.weight"), ["a ControlNet"]),
    "vae": (square("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"), ["a VAE", "decoder.conv_in.weight"]),
    "vae_wan": (square("encoder.conv1.weight", "decoder.conv1.weight"), ["a VAE", "Load the diffusion model itself"]),
    "clip": (square("text_model.encoder.layers.0.self_attn.k_proj.weight"), ["a text encoder", "self_attn.k_proj.weight"]),
    "open_clip": (square("conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"), ["a text encoder"]),
    "t5": (square("shared.weight", "encoder.block.0.layer.0.SelfAttention.k.weight"), ["a text encoder", "Load the diffusion"]),
    "qwen": (square("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"), ["a text encoder"]),
}


@pytest.mark.parametrize(("shapes", "words"), MODELS.values(), ids=MODELS)
def test_other_models_are_named_with_what_to_do(shapes, words):
    message = refusal(shapes)
    for word in ["UniForget cannot mask", f"found {len(shapes)} weights", "Use a model of a supported family: Stable", *words]:
        assert word in message, message


@pytest.mark.parametrize(("shapes", "words"), FILES.values(), ids=FILES)
def test_files_that_are_no_diffusion_model_are_named_with_what_to_load(shapes, words):
    message = refusal(shapes)
    assert message.startswith("This is a") and "not a diffusion model" in message
    for word in words:
        assert word in message, message


def test_every_stranger_is_tested():
    messages = [refusal(shapes) for shapes, _ in [*MODELS.values(), *FILES.values()]]
    assert not [s.title for s in UNSUPPORTED if not any(s.title in m for m in messages)]


@pytest.mark.parametrize("name", ["double_blocks.0.img_mlp.2.weight", "resblocks.0.convs1.0.weight", "logit_scale"])
def test_an_unknown_model_is_told_by_its_weights(name):
    message = refusal(square(name))
    for word in [
        f"does not know this model: found 1 weights such as {name}. Use a model of a supported family",
        f"{FAMILIES[-1].title}. CONTRIBUTING.md",
    ]:
        assert word in message, message


def test_the_weights_that_are_named_are_from_different_parts_of_the_model():
    blocks = square(*(f"blocks.{i}.{part}.weight" for i in range(30) for part in ("a", "b")))
    message = refusal({"x.bias": (1,), **blocks, **square("head.out.weight", "embed.in.weight", "embed.out.weight")})
    assert "found 64 weights such as blocks.0.a.weight, embed.in.weight, head.out.weight." in message


def test_no_weights_at_all():
    assert refusal({}) == (
        "This model has no weights, so there is nothing to mask. Load a model; for a state dict, check the prefix."
    )
