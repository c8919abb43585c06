"""Strength Sweep: strengths x prompts x seeds as a grid, from the same noise; web/sweep.js makes it one to click on."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checks.similarity import correlation
from ..uniforget.hosts.comfy.sample import Bar, sample, sample_original
from ..uniforget.report.sweep import plan
from .apply import forget, remarks
from .compare import as_image, keeper, saving_inputs
from .gridsheet import grid_sheet
from .inputs import CATEGORY, MaskType, search, to_input
from .sampling import decode, drawing, sampler_inputs

KINDS = [param for name, param in config.APPLY.items() if name != "strength"]


class StrengthSweep(io.ComfyNode):
    """Draws every prompt at every strength and measures how far each is from the original."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetSweep",
            display_name="Strength Sweep",
            category=CATEGORY,
            description=(
                "How much forgetting is enough? Draws your prompts at several strengths from the same noise, in a grid, with the "
                "likeness to the original under each picture. Click a picture to use its strength in Apply Memorization Mask."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model. LoRA loaders belong before this node."),
                MaskType.Input("mask", tooltip="From Learn or Load Memorization Mask; must fit this model's family."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="Turns latents into pictures; it comes with the model."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the picture's size. Of a batch, the first one is used."
                ),
                *(to_input(p) for p in config.SWEEP.values()),
                *(to_input(p) for p in KINDS),
                *sampler_inputs(),
                *saving_inputs("the grid as one", "uniforget/sweep"),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(id="sheet", display_name="sheet", tooltip="The whole grid with its labels as one picture."),
                io.Image.Output(
                    id="pictures",
                    display_name="pictures",
                    tooltip="All pictures, row by row: strengths of the first prompt first.",
                ),
            ],
            is_output_node=True,
            **search("forget", "unlearn", "grid", "xy plot", "strengths"),
        )

    @classmethod
    def execute(
        cls, model, mask, clip, vae, latent_image, prompts, negative, strengths, seeds, seed, save, filename_prefix, **values
    ):
        settings = drawing({**values, "seed": seed})
        grid = plan(prompts, strengths, seeds, settings.seed)
        kinds = {param.name: values[param.name] for param in KINDS}
        patched = [forget(model, mask, {**kinds, "strength": strength}) for strength in grid.strengths[1:]]
        keep = keeper(cls, save, str(filename_prefix).strip() or "uniforget/sweep")
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
        words = {prompt: encode(prompt) for prompt, _ in grid.rows}
        unwanted, latent = encode(config.SWEEP["negative"].check(negative)), first(latent_image)
        bar = Bar(model, grid.pictures, settings.steps)

        def column(network, draw):
            """One picture (height, width, channels) per row."""
            rows = (
                draw(network, replace(settings, seed=seed), words[prompt], unwanted, latent, bar) for prompt, seed in grid.rows
            )
            return [decode(vae, drawn)[0].cpu() for drawn in rows]

        columns = [column(model, sample_original), *(column(network, sample) for network in patched)]
        cells = [picture for row in zip(*columns, strict=True) for picture in row]
        alike = [float(correlation(picture[None], row[0][None])[0]) for row in zip(*columns, strict=True) for picture in row]
        sheet = as_image(
            grid_sheet(
                ["original", *(f"strength {strength:g}" for strength in grid.strengths[1:])],
                [f"{prompt}  (seed {seed})" for prompt, seed in grid.rows],
                cells,
                [f"alike {value:.2f}" for value in alike],
            )
        )
        files = keep(cells, "cell")
        shown = {
            "strengths": list(grid.strengths),
            # as text, because JavaScript's numbers do not hold every seed
            "rows": [{"prompt": prompt, "seed": str(seed)} for prompt, seed in grid.rows],
            "cells": [{**file, "similarity": value} for file, value in zip(files, alike, strict=True)],
            "kinds": kinds,
            "notes": [*remarks(model, mask, {**kinds, "strength": grid.strengths[-1]}), *left_out(latent_image)],
        }
        out = {"sweep": [shown], **({"sheet": keep([sheet], "sheet")} if save else {})}
        return io.NodeOutput(sheet[None], torch.stack(cells), ui=out)


def first(latent):
    """A latent of a batch's first picture only."""
    return {name: value[:1] if name in ("samples", "noise_mask", "batch_index") else value for name, value in latent.items()}


def left_out(latent):
    """A sentence about the pictures of a batch that :func:`first` leaves out."""
    count = latent["samples"].shape[0]
    return [f"The latent holds {count} pictures; the sweep draws one per cell, from the first."] if count > 1 else []
