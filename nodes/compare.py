"""Compare: the original and the forgotten pictures under one slider, which web/compare.js draws into the node."""

import random
import string

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..uniforget.errors import SettingError
from .inputs import CATEGORY, search
from .sidebyside import side_by_side


class Compare(io.ComfyNode):
    """Shows two batches of pictures under a before/after slider."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetCompare",
            display_name="Compare (UniForget)",
            category=CATEGORY,
            description=(
                "Before and after under one slider: drag it to see what forgetting changed. Works with batches. "
                "The pictures are saved, so that a workflow opened tomorrow still shows them."
            ),
            inputs=[
                io.Image.Input("original", tooltip="Pictures made without the mask."),
                io.Image.Input(
                    "forgotten",
                    tooltip="Pictures made with the mask. Use the same seed and settings, so that only the mask differs.",
                ),
                io.Boolean.Input(
                    "save",
                    default=True,
                    tooltip=(
                        "On: all pictures, and one with both sides, are saved into ComfyUI's output folder. "
                        "Off: they are kept only until ComfyUI restarts."
                    ),
                ),
                io.String.Input(
                    "filename_prefix",
                    default="uniforget/compare",
                    tooltip="Where to save, inside ComfyUI's output folder. A slash makes a folder.",
                ),
                io.String.Input(
                    "label_original", default="original", optional=True, tooltip="What is written over the left side."
                ),
                io.String.Input(
                    "label_forgotten", default="forgotten", optional=True, tooltip="What is written over the right side."
                ),
            ],
            outputs=[],
            is_output_node=True,
            **search("before after", "slider", "a/b", "difference"),
        )

    @classmethod
    def execute(cls, original, forgotten, save, filename_prefix, label_original="original", label_forgotten="forgotten"):
        labels = (label_original.strip() or "original", label_forgotten.strip() or "forgotten")
        for name, batch in (("original", original), ("forgotten", forgotten)):
            if batch.ndim != 4 or not len(batch):
                raise SettingError(
                    f"Compare: expected at least one picture in {name!r}; found a tensor of shape {tuple(batch.shape)}. "
                    "Connect an IMAGE output, such as VAE Decode's."
                )
        if not save:
            prefix = "uniforget_" + "".join(random.choices(string.ascii_lowercase, k=8))
            folder, level = io.FolderType.temp, 1
        else:
            prefix, folder, level = filename_prefix.strip() or "uniforget/compare", io.FolderType.output, 4

        def keep(images, name):
            return ui.ImageSaveHelper.save_images(images, f"{prefix}_{name}", folder, cls=cls, compress_level=level)

        shown = {"a_images": keep(original, "original"), "b_images": keep(forgotten, "forgotten")}
        if save:
            sheet = side_by_side(pairs(original, forgotten), labels)
            # ComfyUI's helper rounds down: half a level more keeps every level
            shown["comparison"] = keep([torch.from_numpy((np.asarray(sheet, dtype=np.float32) + 0.5) / 255)], "side_by_side")
        return io.NodeOutput(ui={**shown, "labels": list(labels), "notes": notes(original, forgotten)})


def pairs(original, forgotten):
    """What is compared with what: picture by picture; a single one with each of the other batch."""
    if len(original) == 1 or len(forgotten) == 1:
        n = max(len(original), len(forgotten))
        return list(zip(original.expand(n, -1, -1, -1), forgotten.expand(n, -1, -1, -1), strict=True))
    return list(zip(original, forgotten, strict=False))


def notes(original, forgotten):
    """What the two batches do not have in common, as sentences for the node."""
    found = []
    (h, w), (other_h, other_w) = original.shape[1:3], forgotten.shape[1:3]
    if (h, w) != (other_h, other_w):
        found.append(f"The sizes differ: original {w}x{h}, forgotten {other_w}x{other_h}. Shown fitted into one frame.")
    if len(original) != len(forgotten) and 1 not in (len(original), len(forgotten)):
        found.append(
            f"{len(original)} original and {len(forgotten)} forgotten pictures: "
            f"the last {abs(len(original) - len(forgotten))} have no partner."
        )
    return found
