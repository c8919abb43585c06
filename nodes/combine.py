"""Combine Memorization Masks."""

import logging

from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.mask.combine import blocks_in, chosen_kinds, combine, report
from ..uniforget.mask.files import gates_of
from .inputs import CATEGORY, MaskType, search, show, to_input


class CombineMasks(io.ComfyNode):
    """One mask out of two, or a part of one."""

    @classmethod
    def define_schema(cls):
        blocks = config.COMBINE["blocks"]
        return io.Schema(
            node_id="UniForgetCombine",
            display_name="Combine Memorization Masks",
            category=CATEGORY,
            description=(
                "Makes one mask out of two (union, intersection, difference or blend), or keeps only some kinds of parts and some "
                "blocks of a mask. It needs no model, learns nothing, and shows what the result switches off."
            ),
            inputs=[
                MaskType.Input("mask_a", tooltip="The first mask, from Learn, Load or another Combine."),
                MaskType.Input(
                    "mask_b",
                    optional=True,
                    tooltip="The second mask, of the same model family. Without it, kinds and blocks of mask A are chosen.",
                ),
                *(to_input(p) for p in config.COMBINE.values() if p is not blocks),
                io.String.Input(blocks.name, default=blocks.default, tooltip=blocks.tooltip),  # one line
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[MaskType.Output(id="combined", display_name="mask", tooltip="Apply it, save it, or combine it further.")],
            **search("forget", "unlearn", "merge masks", "union", "intersection"),
        )

    @classmethod
    def execute(cls, mask_a, mode, weight, kinds, blocks, mask_b=None):
        sources = {"mask A": mask_a} if mask_b is None else {"mask A": mask_a, "mask B": mask_b}
        whole = mask_a
        if mask_b is not None:
            a, b = (gates_of(mask, f"Input {name!r} of a combination") for name, mask in sources.items())
            whole = combine(a, b, mode, weight)
        made = whole.select(chosen_kinds(kinds), blocks)
        did = "" if mask_b is None else f"{mode} of A and B" + (f", weight {weight:g}" if mode == "blend" else "")
        kept = "" if made is whole else f"only {made.info.extra['selected'].rpartition('; then ')[2]}"
        lines = [", ".join(filter(None, (did, kept))) or "mask A unchanged: connect mask B, or choose kinds or blocks"]
        lines.append(report(made, sources))
        there = blocks_in(made)
        if there:
            lines.append(f"blocks of this model: {there}")
        for caution in made.cautions():
            logging.warning("UniForget: %s", caution)
        return io.NodeOutput(made, ui=show(cls, "\n".join(lines)))
