"""Save Sanitized Checkpoint: the file on the disk, rewritten with masks folded in."""

import logging
import os
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..testbed import model as tb
from ..uniforget import config
from ..uniforget.checkpoint import compactfile
from ..uniforget.checkpoint.compact import report as cut_report
from ..uniforget.checkpoint.fileplan import Use
from ..uniforget.checkpoint.sanitize import sanitize
from ..uniforget.errors import ModelFileError, SettingError
from ..uniforget.hosts.comfy.compact import load
from ..uniforget.mask.files import ENDINGS, gates_of
from .demo import BUNDLED
from .inputs import CATEGORY, MaskType, search, show, to_input, valid
from .maskio import check_name, saving_as

# ComfyUI's folders of models that hold a denoiser; it looks for models in the output folder's folders of these names, too.
FOLDERS = ("checkpoints", "diffusion_models")


def models():
    """What the list shows: ``folder/name`` of every safetensors model, and the bundled one."""
    found = [f"{folder}/{name}" for folder in FOLDERS for name in folder_paths.get_filename_list(folder)]
    return [*(name for name in found if name.lower().endswith(ENDINGS)), BUNDLED]


def find_model(name):
    """Path of a model and the folder it is of, as the list shows them.

    Raises:
        ModelFileError: it is not in ComfyUI's folders.
    """
    if name == BUNDLED:
        return Path(tb.WEIGHTS), FOLDERS[0]
    folder, _, inner = str(name).partition("/")
    if folder in FOLDERS and inner in folder_paths.get_filename_list(folder):
        path = folder_paths.get_full_path(folder, inner)
        if path is not None and inner.lower().endswith(ENDINGS):
            return Path(path), folder
    raise ModelFileError(
        f"Setting 'model_name': expected a .safetensors or .sft file in ComfyUI's folders {' or '.join(FOLDERS)}; found {name!r}. Put the model there and "
        "press R, or choose another."
    )


class SaveSanitized(io.ComfyNode):
    """Writes a sanitized copy of a model's file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetSaveSanitized",
            display_name="Save Sanitized Checkpoint",
            category=CATEGORY,
            description=(
                "Writes a copy of a model's file that has forgotten: for sharing, or for programs without UniForget. Everything else in the file "
                "stays as it is, and the model need not fit into memory. LoRAs of this workflow are not in it."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name", options=models(), tooltip="The model's file; not a loaded model. Press R after adding files."
                ),
                MaskType.Input("mask", tooltip="From Learn or Load Memorization Mask; must fit this model's family."),
                MaskType.Input(
                    "mask_b", optional=True, tooltip="Applied after the first one, at the same strength: gates, then a subspace."
                ),
                *(to_input(p) for p in config.APPLY.values()),
                io.String.Input(
                    "filename_prefix",
                    default="sanitized",
                    tooltip="Name of the new file, in ComfyUI's output folder. A slash makes a folder: client/model.",
                ),
                io.Boolean.Input(
                    "compact",
                    default=False,
                    tooltip="Also cut out what the mask switches off: a smaller, faster file, which only Load Compact Model can load. Strength 1, gates only.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Off: each save gets a new number. On: the file is replaced every time, if UniForget made it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(id="path", display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
            **search("forget", "unlearn", "copyright", "clean", "bake", "prune"),
        )

    @classmethod
    def validate_inputs(cls, model_name, filename_prefix, overwrite=False):
        wrong = valid(find_model, model_name)
        known = str(model_name).partition("/")[0] if model_name != BUNDLED else FOLDERS[0]
        folder = os.path.join(folder_paths.get_output_directory(), known)
        return valid(check_name, filename_prefix, folder, overwrite) if wrong is True else wrong

    @classmethod
    def execute(
        cls,
        model_name,
        mask,
        strength,
        strength_ffn,
        strength_norm,
        strength_attn,
        filename_prefix,
        compact,
        overwrite,
        mask_b=None,
    ):
        per_kind = {"ffn": strength_ffn, "norm": strength_norm, "attn": strength_attn}
        config.APPLY["strength"].check(strength)
        for kind, value in per_kind.items():
            config.APPLY[f"strength_{kind}"].check(value)
        source, folder = find_model(model_name)
        inside = os.path.join(folder_paths.get_output_directory(), folder)
        with saving_as(filename_prefix, overwrite, inside) as target:
            lines = cls.write(source, target, mask, mask_b, strength, per_kind, compact, overwrite)
        return io.NodeOutput(str(target), ui=show(cls, "\n".join([f"saved as {target}", *lines])))

    @classmethod
    def write(cls, source, target, mask, mask_b, strength, per_kind, compact, overwrite):
        """Write the file; returns what is said about it."""
        bar = comfy.utils.ProgressBar(1000)

        def report(done, of):
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(1000 * done // max(of, 1))

        if compact:
            gates = gates_of(mask, "Setting 'compact'")
            if mask_b is not None or strength != 1 or set(per_kind.values()) != {1}:
                raise SettingError(
                    "Setting 'compact': only one mask of gates at strength 1 (all strengths) can be cut out. Switch it off, or set them to 1."
                )
            found = compactfile.save(source, target, gates, 64, overwrite, report)
            return [*cut_report(found), mask.summary()]
        uses = [Use(one, strength, per_kind) for one in (mask, mask_b) if one is not None]
        done = sanitize(source, target, uses, overwrite, report)
        for caution in done.cautions:
            logging.warning("UniForget: %s", caution)
        strengths = [f"strength {strength:g}: {use.learned.summary().splitlines()[0]}" for use in uses]
        return [f"{done.changed} tensors changed, {done.kept} as they were", *done.cautions, *strengths]


class LoadCompact(io.ComfyNode):
    """Loads what Save Sanitized Checkpoint wrote with `compact`."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetLoadCompact",
            display_name="Load Compact Model",
            category=CATEGORY,
            description="Loads a compact model: one whose switched-off parts were cut out, by Save Sanitized Checkpoint or the command line.",
            inputs=[
                io.Combo.Input("model_name", options=models(), tooltip="A compact .safetensors file. Press R after adding files.")
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(
                    id="model", display_name="MODEL", tooltip="The compact model. LoRAs work; masks were applied already."
                ),
                io.Clip.Output(id="clip", display_name="CLIP", tooltip="Its text encoder, if the file has one."),
                io.Vae.Output(id="vae", display_name="VAE", tooltip="Its VAE, if the file has one."),
            ],
            **search("prune", "pruned", "smaller"),
        )

    @classmethod
    def validate_inputs(cls, model_name):
        return valid(find_model, model_name)

    @classmethod
    def fingerprint_inputs(cls, model_name):
        status = os.stat(find_model(model_name)[0])
        return f"{model_name} {status.st_size} {status.st_mtime_ns}"

    @classmethod
    def execute(cls, model_name):
        path = find_model(model_name)[0]
        model, clip, vae = load(path, folder_paths.get_folder_paths("embeddings"))
        return io.NodeOutput(model, clip, vae, ui=show(cls, f"{path.name}: compact, {model.model_size() / 1e9:.2f} GB in memory"))
