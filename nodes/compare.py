"""Compare: the original and the forgotten pictures, which web/compare.js lets one compare in the node."""

import random
import string

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..uniforget.errors import SettingError
from ..uniforget.report.graph import in_words, made_by, source, strengths
from .inputs import CATEGORY, search
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
                *saving_inputs("all pictures, and one with both sides, are", "uniforget/compare"),
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
            **search("before after", "slider", "a/b", "difference"),
        )

    @classmethod
    def execute(cls, original, forgotten, save, filename_prefix, label_original="original", label_forgotten="forgotten"):
        prompt, me = cls.hidden.prompt or {}, cls.hidden.unique_id
        before, after = (source(prompt, me, name) for name in ("original", "forgotten"))
        labels = (
            label_of(label_original, "original", strengths(prompt, before)),
            label_of(label_forgotten, "forgotten", strengths(prompt, after)),
        )
        keep = keeper(cls, save, str(filename_prefix).strip() or "uniforget/compare")
        settings = made_by(prompt, before), made_by(prompt, after)
        return io.NodeOutput(ui=shown(original, forgotten, labels, keep, save, settings))


def label_of(own, default, known):
    """What stands over a side: the user's `own` words, else the strengths `known` of it, else the side's name."""
    own = own.strip()
    return own if own and own != default else f"strength {in_words(known)}" if known else default


def shown(original, forgotten, labels, keep, sheet, settings=((), ())):
    """Keeps both batches as files and says where, as web/compare.js takes it from a node's ``ui``.

    Args:
        original, forgotten: pictures (n, height, width, channels), floats in [0, 1].
        keep: from :func:`keeper`.
        sheet: whether to keep one picture with both sides and their labels, too.
        settings: how each side was made, as lines to copy; see :func:`~uniforget.report.graph.made_by`.

    Raises:
        SettingError: a batch has no pictures.
    """
    need_pictures("Compare", original, forgotten)
    out = {"a_images": keep(original, "original"), "b_images": keep(forgotten, "forgotten")}
    if sheet:
        out["comparison"] = keep([as_image(side_by_side(pairs(original, forgotten), labels))], "side_by_side")
    made = [list(lines) for lines in settings]
    return {**out, "labels": list(labels), "notes": notes(original, forgotten), "settings": made}


def need_pictures(node, original, forgotten):
    """See that there is something to compare.

    Raises:
        SettingError: a batch has no pictures; it names the node, by its English name.
    """
    for name, batch in (("original", original), ("forgotten", forgotten)):
        if batch.ndim != 4 or not batch.numel():
            raise SettingError(
                f"{node}: expected at least one picture in {name!r}; found a tensor of shape {tuple(batch.shape)}. "
                "Connect an IMAGE output, such as VAE Decode's."
            )


def saving_inputs(what, prefix):
    """The widgets of nodes that save pictures with a :func:`keeper`; `what` is saved, in words."""
    return [
        io.Boolean.Input(
            "save",
            default=True,
            tooltip=(f"On: {what} saved into ComfyUI's output folder. Off: they are kept only until ComfyUI restarts."),
        ),
        io.String.Input(
            "filename_prefix",
            default=prefix,
            tooltip="Where to save, inside ComfyUI's output folder. A slash makes a folder.",
        ),
    ]


def keeper(node, save, prefix):
    """``keep(images, name)``: saves pictures as ``prefix_name`` in the output folder, or until ComfyUI restarts, and says where.

    Raises:
        SettingError: the prefix leads out of the output folder, or is none; said here already, before anything is drawn.
    """
    folder, level = io.FolderType.output, 4
    if save:
        try:
            if prefix in ("", "None"):  # which is what ComfyUI makes of no name
                raise ValueError("no name")
            folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
        except Exception as error:
            raise SettingError(
                f"Setting 'filename_prefix': expected a name inside {folder_paths.get_output_directory()}, such as 'uniforget/compare'; found "
                f"{prefix!r:.200} ({str(error).splitlines()[0]:.200}). Change the name."
            ) from None
    else:
        prefix = "uniforget_" + "".join(random.choices(string.ascii_lowercase, k=8))
        folder, level = io.FolderType.temp, 1

    def keep(images, name):
        return ui.ImageSaveHelper.save_images(images, f"{prefix}_{name}", folder, cls=node, compress_level=level)

    return keep


def as_image(picture):
    """A PIL picture as ComfyUI's IMAGE (height, width, 3); half a level more, because ComfyUI rounds down when it saves."""
    return torch.from_numpy((np.asarray(picture, dtype=np.float32) + 0.5) / 255)


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
