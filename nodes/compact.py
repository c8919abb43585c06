"""Compact Model."""

import logging

from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checkpoint.compact import report
from ..uniforget.hosts.comfy import apply as host
from ..uniforget.hosts.comfy.compact import compact
from ..uniforget.mask.files import gates_of
from .inputs import CATEGORY, MaskType, search, show, to_input


class CompactModel(io.ComfyNode):
    """Cuts what a mask switches off out of a model."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetCompact",
            display_name="Compact Model (Prune)",
            category=CATEGORY,
            description=(
                "Applies a mask at full strength and cuts what it switches off out of the model, which becomes smaller and faster. "
                "Pictures are those of Apply Memorization Mask. LoRAs work before and after."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that should forget. fp32, fp16, bf16 or fp8; not GGUF."),
                MaskType.Input("mask", tooltip="From Learn or Load Memorization Mask; must fit this model's family."),
                to_input(config.MULTIPLE),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(id="compact", display_name="MODEL", tooltip="The smaller model.")],
            **search("prune", "pruning", "shrink", "smaller", "faster", "unlearn"),
        )

    @classmethod
    def execute(cls, model, mask, multiple):
        multiple = int(config.MULTIPLE.check(multiple))
        mask = gates_of(mask, "Compact Model (Prune)")
        base = host.base_fingerprint(model)
        small, plan = compact(model, mask, multiple)
        cautions = mask.cautions(base)
        for caution in cautions:
            logging.warning("UniForget: %s", caution)
        lines = [mask.summary(), *report(plan), *cautions]
        return io.NodeOutput(small, ui=show(cls, "\n".join(lines)))
