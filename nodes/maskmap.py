"""Mask Map: where a mask bites, and which blocks of it to keep."""

import numpy as np
import torch
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.mask.map import map_data, named_blocks
from .inputs import CATEGORY, MaskType, search, show, to_input
from .mappicture import mask_picture


class MaskMapNode(io.ComfyNode):
    """Shows what a mask switches off in each block, which web/maskmap.js draws into the node."""

    @classmethod
    def define_schema(cls):
        blocks = config.COMBINE["blocks"]
        return io.Schema(
            node_id="UniForgetMaskMap",
            display_name="Mask Map",
            category=CATEGORY,
            description=(
                "Shows where a mask bites: the share that it switches off in every block of the model, for each kind of part. "
                "Click on blocks to leave them alone, and pass on the mask with only the others."
            ),
            inputs=[
                MaskType.Input("mask", tooltip="From Learn, Load, Combine or Embedded Mask."),
                io.String.Input(
                    blocks.name,
                    default=blocks.default,
                    tooltip="Which blocks stay in the mask; clicks on the map write this. " + blocks.tooltip,
                ),
                to_input(config.MAP_THEME),
            ],
            outputs=[
                MaskType.Output(id="kept", display_name="mask", tooltip="The mask with only these blocks switched off."),
                io.String.Output(
                    id="selection", display_name="blocks", tooltip="The blocks as text: connect it to Combine Memorization Masks."
                ),
                io.Image.Output(id="picture", display_name="picture", tooltip="The map as a picture, to save or to send."),
            ],
            is_output_node=True,
            **search("forget", "heatmap", "blocks", "prune", "pruning"),
        )

    @classmethod
    def execute(cls, mask, blocks, theme):
        theme = config.MAP_THEME.check(theme)
        blocks = config.COMBINE["blocks"].check(blocks).strip()
        data = map_data(mask)
        kept = mask.select(blocks=blocks)
        picture = mask_picture(mask, theme, named_blocks(mask, blocks))
        array = np.asarray(picture, dtype=np.float32) / 255
        return io.NodeOutput(
            kept, blocks, torch.from_numpy(array)[None], ui={"uniforget_map": [data], **show(cls, kept.summary()).as_dict()}
        )
