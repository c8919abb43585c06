"""Compact Model."""

import logging

from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checkpoint.compact import report
from ..uniforget.errors import SettingError
from ..uniforget.hosts.comfy import apply as host
from ..uniforget.hosts.comfy.compact import compact
from ..uniforget.mask.subspace import Subspace
from ..uniforget.model.fingerprint import same_base
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
        if isinstance(mask, Subspace):
            raise SettingError(
                "Input 'mask': this is a subspace, which switches directions off and no neurons, so nothing can be cut out. Use a mask of gates here, and "
                "Apply Memorization Mask for the subspace."
            )
        base = host.base_fingerprint(model)
        small, plan = compact(model, mask, multiple)
        lines = [mask.summary(), *report(plan)]
        if mask.info.base and base and not any(same_base(one, base) for one in mask.info.base.split()):
            lines.append("Careful: this mask was learned on another model. It may forget less, or harm quality.")
            logging.warning("UniForget: %s", lines[-1])
        return io.NodeOutput(small, ui=show(cls, "\n".join(lines)))
