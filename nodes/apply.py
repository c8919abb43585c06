"""Apply Memorization Mask."""

import logging

from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.hosts.comfy import apply as host
from .inputs import CATEGORY, MaskType, search, show, to_input


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
            **search("forget", "unlearn", "copyright", "memorization", "prune", "mask"),
        )

    @classmethod
    def execute(cls, model, mask, strength, strength_ffn, strength_norm, strength_attn):
        strengths = {
            "strength": strength,
            "strength_ffn": strength_ffn,
            "strength_norm": strength_norm,
            "strength_attn": strength_attn,
        }
        patched = forget(model, mask, strengths)
        lines = [f"strength {strength:g}", mask.summary(), *remarks(model, mask, strengths)]
        return io.NodeOutput(patched, ui=show(cls, "\n".join(lines)))


def forget(model, mask, strengths):
    """A clone of `model` that computes with `mask` (gates or a subspace); the original is untouched.

    Args:
        strengths: values of the settings in :data:`config.APPLY`, by name.

    Raises:
        SettingError: a strength is out of its range.
        FamilyError, MismatchError: the mask is not for this model.
    """
    strength, per_kind = _checked(strengths)
    return host.apply_mask(model, mask, strength, per_kind)


def remarks(model, mask, strengths):
    """What a user should know about :func:`forget` with the same arguments, as lines: nothing is changed, another base, ..."""
    strength, per_kind = _checked(strengths)
    lines = mask.cautions(host.base_fingerprint(model) if mask.info.base else "")
    for line in lines:
        logging.warning("UniForget: %s", line)
    if mask.acts() and not mask.acts(strength, per_kind):
        lines.append("The model is unchanged: the strength of all that this mask switches off is 0.")
    return lines


def _checked(strengths):
    """``(strength, strength per kind)``, each in its range."""
    values = {name: param.check(strengths[name]) for name, param in config.APPLY.items()}
    return values.pop("strength"), {name.removeprefix("strength_"): value for name, value in values.items()}
