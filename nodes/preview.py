"""Preview Comparison: draws with and without the mask from the same noise, and shows both in the node (web/compare.js)."""

from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checks.likeness import likeness, sentence
from ..uniforget.hosts.comfy.sample import Bar, sample, sample_original
from .apply import forget, remarks
from .compare import keeper, saving_inputs, shown
from .inputs import CATEGORY, MaskType, search, to_input
from .sampling import NAMES, decode, drawing, nothing, sampler_inputs, strengths


class PreviewComparison(io.ComfyNode):
    """Apply, two samplers, two decoders and Compare in one."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetPreview",
            display_name="Preview Comparison (UniForget)",
            category=CATEGORY,
            description=(
                "Draws your prompt twice from the same noise, with and without forgetting, and shows both under a slider. Everything in "
                "one node. Change the strength and run again: the original is remembered and not drawn anew."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model. LoRA loaders belong before this node."),
                MaskType.Input("mask", tooltip="From Learn or Load Memorization Mask; must fit this model's family."),
                io.Conditioning.Input("positive", tooltip="What to draw, from CLIP Text Encode."),
                io.Latent.Input("latent_image", tooltip="An empty latent of the picture's size; a batch draws several pictures."),
                io.Vae.Input("vae", tooltip="Turns latents into pictures; it comes with the model."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What not to draw. Leave it unconnected for models that need none.",
                ),
                *(to_input(p) for p in config.APPLY.values()),
                *sampler_inputs(),
                *saving_inputs("all pictures, and one with both sides, are", "uniforget/preview"),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(id="original", display_name="original", tooltip="Pictures made without the mask."),
                io.Image.Output(id="forgotten", display_name="forgotten", tooltip="Pictures made with the mask."),
                io.Model.Output(
                    id="forgotten_model", display_name="MODEL", tooltip="The model with the mask applied, to go on with."
                ),
            ],
            is_output_node=True,
            **search("forget", "unlearn", "copyright", "before after", "compare"),
        )

    @classmethod
    def execute(cls, model, mask, positive, latent_image, vae, save, filename_prefix, negative=None, **values):
        settings, wanted = drawing(values), strengths(values)
        patched = forget(model, mask, wanted)
        keep = keeper(cls, save, str(filename_prefix).strip() or "uniforget/preview")
        bar = Bar(model, 2, settings.steps)
        given = (settings, positive, nothing(positive) if negative is None else negative, latent_image, bar)
        before = decode(vae, sample_original(model, *given))
        after = decode(vae, sample(patched, *given))
        labels = ("original", f"strength {wanted['strength']:g}")
        out = shown(before, after, labels, keep, save)
        out["notes"].append(f"The original's picture: {sentence(likeness(after, before))}.")
        out["notes"] += remarks(model, mask, wanted)
        how = ", ".join(f"{name} {values[name]}" for name in NAMES)
        out["settings"] = [
            [how],
            [how, f"mask {mask.digest()}: " + ", ".join(f"{name} {value:g}" for name, value in wanted.items())],
        ]
        return io.NodeOutput(before, after, patched, ui=out)
