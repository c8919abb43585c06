"""Embedded Mask: a mask as text in the workflow itself."""

from comfy_api.latest import io

from ..uniforget.mask import text as masktext
from .inputs import CATEGORY, MaskType, search, show, valid_aside


class EmbeddedMask(io.ComfyNode):
    """Holds a mask in its own widget; web/embed.js shows what it is instead of the text."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetEmbeddedMask",
            display_name="Embedded Mask",
            category=CATEGORY,
            description=(
                "A mask that travels in the workflow: in its JSON file, and in every picture that ComfyUI saves with it. Whoever opens "
                "them needs no mask file. Right-click Load Memorization Mask and choose 'Embed mask in workflow' to make one."
            ),
            inputs=[
                io.String.Input(
                    "mask_text",
                    default="",
                    multiline=True,
                    socketless=True,
                    tooltip="The mask as text. Copy all of it to use it in another workflow, or paste one that you were sent.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[MaskType.Output(id="mask", display_name="mask", tooltip="Connect it to Apply Memorization Mask.")],
            **search("forget", "unlearn", "share", "inline"),
        )

    @classmethod
    async def validate_inputs(cls, mask_text):
        return await valid_aside(masktext.from_text, mask_text)

    @classmethod
    def execute(cls, mask_text):
        mask = masktext.from_text(mask_text)
        return io.NodeOutput(mask, ui=show(cls, mask.summary()))
