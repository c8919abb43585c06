"""Compare: the original and the forgotten pictures, which web/compare.js lets one compare in the node."""

import random
import string

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..uniforget.errors import SettingError
from .inputs import CATEGORY
from .provenance import made_by, source, strength
from .sidebyside import side_by_side


class Compare(io.ComfyNode):
    """Shows two batches of pictures under a before/after slider, and in other ways."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetCompare",
            display_name="Compare (UniForget)",
            category=CATEGORY,
            description=(
                "Before and after under one slider: drag it to see what forgetting changed. Or look at them flickering, side by side, or "
                "at their difference; zoom into both at once. Works with batches. "
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
                    "label_original",
                    default="original",
                    optional=True,
                    tooltip="What is written over the left side. Left as it is, the strength stands there if a mask was applied to it.",
                ),
                io.String.Input(
                    "label_forgotten",
                    default="forgotten",
                    optional=True,
                    tooltip="What is written over the right side. Left as it is, the strength of Apply Memorization Mask stands there.",
                ),
            ],
            hidden=[io.Hidden.unique_id],  # as an output node it gets the prompt and the workflow, too
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, original, forgotten, save, filename_prefix, label_original="original", label_forgotten="forgotten"):
        for name, batch in (("original", original), ("forgotten", forgotten)):
            if batch.ndim != 4 or not len(batch):
                raise SettingError(
                    f"Compare: expected at least one picture in {name!r}; found a tensor of shape {tuple(batch.shape)}. "
                    "Connect an IMAGE output, such as VAE Decode's."
                )
        prompt, me = cls.hidden.prompt or {}, cls.hidden.unique_id
        sides = {name: source(prompt, me, name) for name in ("original", "forgotten")}
        labels = (label(label_original, "original", prompt, sides), label(label_forgotten, "forgotten", prompt, sides))
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
        settings = [made_by(prompt, nodes) for nodes in sides.values()]
        return io.NodeOutput(ui={**shown, "labels": list(labels), "notes": notes(original, forgotten), "settings": settings})


def label(text, side, prompt, sides):
    """What stands over a side: the user's own words, else the strength at which it forgot, else the side's name."""
    own = text.strip()
    return own if own and own != side else strength(prompt, sides[side]) or side


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
