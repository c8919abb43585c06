"""Seed Variety: the same prompt from several seeds, before and after forgetting, and how different they are."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checks.likeness import variety
from ..uniforget.hosts.comfy.sample import Bar, sample, sample_original
from .apply import forget, remarks
from .compare import as_image, keeper, saving_inputs
from .gridsheet import grid_sheet
from .inputs import CATEGORY, MaskType, search, show, to_input
from .sampling import decode, drawing, nothing, sampler_inputs, strengths
from .sweep import first, left_out


class SeedVariety(io.ComfyNode):
    """Draws n seeds with and without the mask, and measures how different they are among themselves."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetVariety",
            display_name="Seed Variety (UniForget)",
            category=CATEGORY,
            description=(
                "Does every seed draw the same picture? That is the everyday face of memorization. Draws your prompt from several seeds, "
                "before and after forgetting, and says how different they are: 0 is the same picture every time."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model. LoRA loaders belong before this node."),
                MaskType.Input("mask", tooltip="From Learn or Load Memorization Mask; must fit this model's family."),
                io.Conditioning.Input("positive", tooltip="What to draw, from CLIP Text Encode."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the picture's size. Of a batch, the first one is used."
                ),
                io.Vae.Input("vae", tooltip="Turns latents into pictures; it comes with the model."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What not to draw. Leave it unconnected for models that need none.",
                ),
                *(to_input(p) for p in config.APPLY.values()),
                to_input(config.VARIETY),
                *sampler_inputs(),
                *saving_inputs("all pictures, as one grid, are", "uniforget/variety"),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(
                    id="sheet", display_name="sheet", tooltip="All seeds before and after, with labels, as one picture."
                ),
                io.Float.Output(id="before", display_name="before", tooltip="How different the seeds are without the mask."),
                io.Float.Output(id="after", display_name="after", tooltip="How different the seeds are with the mask."),
            ],
            is_output_node=True,
            **search("diversity", "same picture", "every seed", "collapse", "memorization"),
        )

    @classmethod
    def execute(cls, model, mask, positive, latent_image, vae, seeds, save, filename_prefix, negative=None, **values):
        settings, wanted = drawing(values), strengths(values)
        count = config.VARIETY.check(seeds)
        patched = forget(model, mask, wanted)
        keep = keeper(cls, save, str(filename_prefix).strip() or "uniforget/variety")
        bar, latent = Bar(model, 2 * count, settings.steps), first(latent_image)
        unwanted = nothing(positive) if negative is None else negative
        numbers = [(settings.seed + i) % 2**64 for i in range(count)]

        def row(network, draw):
            drawn = (draw(network, replace(settings, seed=number), positive, unwanted, latent, bar) for number in numbers)
            return torch.stack([decode(vae, each)[0].cpu() for each in drawn])

        rows = row(model, sample_original), row(patched, sample)
        before, after = (variety(pictures) for pictures in rows)
        titles = [
            f"{name}: the seeds are {value:.2f} different"
            for name, value in (("original", before), (f"strength {wanted['strength']:g}", after))
        ]
        heads = [f"seed {number}" for number in numbers]
        sheet = as_image(grid_sheet(heads, titles, [*rows[0], *rows[1]], [""] * 2 * count))
        text = "\n".join([*in_words(before, after), *remarks(model, mask, wanted), *left_out(latent_image)])
        return io.NodeOutput(
            sheet[None],
            before,
            after,
            ui={"images": keep([sheet], "seeds"), "uniforget_variety": [before, after], **show(cls, text).as_dict()},
        )


def in_words(before, after):
    """The two numbers and what they mean, as lines."""
    return [
        f"Before: {before:.2f}. After: {after:.2f}.",
        "0: every seed draws the same picture. About 0.8: the pictures have nothing in common.",
    ]
