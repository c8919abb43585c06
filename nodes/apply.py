"""Apply Memorization Mask."""

import logging

from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.fingerprint import same_base
from ..uniforget.hosts import comfy as host
from .inputs import CATEGORY, MaskType, show, to_input


class ApplyMask(io.ComfyNode):
    """Switches memorized content off in a model, through ComfyUI's own weight patching."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetApply",
            display_name="Apply Memorization Mask",
            category=CATEGORY,
            description=(
                "Switches off what the mask marks, so that the model no longer copies training pictures. "
                "Costs nothing while sampling. LoRAs loaded before this node are masked too; LoRAs after it are not."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model that should forget. LoRA loaders belong before this node."),
                MaskType.Input("mask", tooltip="From Learn or Load Memorization Mask; must fit this model's family."),
                *(to_input(p) for p in config.APPLY.values()),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(id="forgotten", display_name="MODEL", tooltip="The model with the mask applied.")],
            is_output_node=False,
        )

    @classmethod
    def execute(cls, model, mask, strength, strength_ffn, strength_norm, strength_attn):
        per_kind = {"ffn": strength_ffn, "norm": strength_norm, "attn": strength_attn}
        config.APPLY["strength"].check(strength)
        for kind, value in per_kind.items():
            config.APPLY[f"strength_{kind}"].check(value)
        patched = host.apply_mask(model, mask, strength, per_kind)
        lines = [f"strength {strength:g}", mask.summary()]
        _, sites = host.sites_of(model)
        if mask.info.base and not same_base(mask.info.base, host.base_fingerprint(model, sites)):
            warning = (
                f"Careful: this mask was learned on another model"
                f"{f' ({mask.info.base_name})' if mask.info.base_name else ''}. It may forget less, or harm quality. "
                "Learn a mask for this model to be sure."
            )
            logging.warning("UniForget: %s", warning)
            lines.append(warning)
        return io.NodeOutput(patched, ui=show(cls, "\n".join(lines)))
