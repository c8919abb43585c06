"""Strength Sweep: strengths x prompts x seeds as a grid, from the same noise; web/sweep.js makes it one to click on."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checks.likeness import likeness, word
from ..uniforget.hosts.comfy.sample import Bar, sample, sample_original
from ..uniforget.report.sweep import HALVINGS, least, plan
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
                *saving_inputs("all pictures, as one grid, are", "uniforget/sweep"),
                io.Boolean.Input(
                    "save_cells",
                    default=False,
                    optional=True,
                    tooltip="On: every picture of the grid is saved as well. Off: they are kept only until ComfyUI restarts.",
                ),
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
        cls,
        model,
        mask,
        clip,
        vae,
        latent_image,
        prompts,
        everyday,
        negative,
        strengths,
        find,
        seeds,
        seed,
        save,
        filename_prefix,
        save_cells=False,
        **values,
    ):
        settings = drawing({**values, "seed": seed})
        grid = plan(prompts, strengths, seeds, settings.seed, everyday)
        kinds = {param.name: values[param.name] for param in KINDS}
        patched = lambda strength: forget(model, mask, {**kinds, "strength": strength})  # noqa: E731
        networks = {strength: patched(strength) for strength in grid.strengths[1:]}
        prefix = str(filename_prefix).strip() or "uniforget/sweep"
        keep, keep_cells = keeper(cls, save, prefix), keeper(cls, save and save_cells, prefix)
        encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
        words = {prompt: encode(prompt) for prompt, _ in grid.rows}
        unwanted, latent = encode(config.SWEEP["negative"].check(negative)), first(latent_image)
        searching = config.SWEEP["find"].check(find) and len(grid.strengths) > 1
        bar = Bar(model, grid.pictures + searching * HALVINGS * len(grid.rows), settings.steps)

        def column(network, draw):
            """One picture (height, width, channels) per row."""
            rows = (
                draw(network, replace(settings, seed=seed), words[prompt], unwanted, latent, bar) for prompt, seed in grid.rows
            )
            return [decode(vae, drawn)[0].cpu() for drawn in rows]

        drawn = {0.0: column(model, sample_original)}
        drawn |= {strength: column(network, sample) for strength, network in networks.items()}
        alike = {strength: likeness(torch.stack(found), torch.stack(drawn[0.0])) for strength, found in drawn.items()}

        def gone(strength):
            """Whether nothing of what should go is left at this strength."""
            if strength not in drawn:
                drawn[strength] = column(patched(strength), sample)
                alike[strength] = likeness(torch.stack(drawn[strength]), torch.stack(drawn[0.0]))
            return all(word(value) == "gone" for value in alike[strength][: len(grid.rows) - grid.everyday])

        found = least(grid.strengths[1:], gone) if searching else None
        columns = sorted(drawn)
        cells = [picture for row in zip(*(drawn[strength] for strength in columns), strict=True) for picture in row]
        figures = [value for row in zip(*(alike[strength] for strength in columns), strict=True) for value in row]
        wanted = (len(grid.rows) - grid.everyday) * len(columns)
        told = [word(value) if i < wanted else "" for i, value in enumerate(figures)]
        sheet = as_image(
            grid_sheet(
                ["original", *(f"strength {strength:g}" for strength in columns[1:])],
                [f"{prompt}  (seed {seed})" for prompt, seed in grid.rows],
                cells,
                [f"alike {value:.2f}" + (f", {said}" if said else "") for value, said in zip(figures, told, strict=True)],
            )
        )
        files = keep_cells(cells, "cell")
        shown = {
            "strengths": columns,
            # as text, because JavaScript's numbers do not hold every seed
            "rows": [
                {"prompt": prompt, "seed": str(seed), "everyday": i >= len(grid.rows) - grid.everyday}
                for i, (prompt, seed) in enumerate(grid.rows)
            ],
            "cells": [
                {**file, "similarity": value, "word": said} for file, value, said in zip(files, figures, told, strict=True)
            ],
            "kinds": kinds,
            "found": found,
            "notes": [
                *remarks(model, mask, {**kinds, "strength": columns[-1]}),
                *left_out(latent_image),
                *([f"Not gone even at strength {columns[-1]:g}: try a stronger mask."] if searching and found is None else []),
            ],
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
