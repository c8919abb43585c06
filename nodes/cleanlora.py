"""Clean LoRA: a LoRA file that keeps its style and gives up its training pictures."""

import logging
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..uniforget.checkpoint.cleanlora import clean
from ..uniforget.config.copies import CLEAN_LORA
from ..uniforget.errors import ModelFileError
from ..uniforget.mask.files import ENDINGS
from .inputs import CATEGORY, search, show, to_input, valid
from .maskio import check_name, saving_as
from .recover import lora_folder
from .sanitize import find_model, models

NO_LORAS = "(no .safetensors LoRAs yet)"


def loras():
    """What the list shows: every safetensors file in ComfyUI's folder of LoRAs."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(ENDINGS)] or [NO_LORAS]


def find_lora(name):
    """Path of a LoRA, as the list shows it.

    Raises:
        ModelFileError: it is not in ComfyUI's folder.
    """
    path = folder_paths.get_full_path("loras", name) if name in folder_paths.get_filename_list("loras") else None
    if path is None or not str(name).lower().endswith(ENDINGS):
        raise ModelFileError(
            f"Setting 'lora_name': expected a .safetensors or .sft file in ComfyUI's folder loras; found {name!r}. Put the LoRA there and press R, or "
            "choose another."
        )
    return Path(path)


class CleanLora(io.ComfyNode):
    """Writes a copy of a LoRA without what it learned by heart."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetCleanLora",
            display_name="Clean LoRA",
            category=CATEGORY,
            description=(
                "A LoRA that draws its training pictures: this writes a copy that keeps its style or subject and gives up what it learned by heart. "
                "Needs no pictures, no prompts and no graphics card, and takes seconds. The original file stays as it is."
            ),
            inputs=[
                io.Combo.Input("lora_name", options=loras(), tooltip="The LoRA's file. Press R after adding files."),
                io.Combo.Input("model_name", options=models(), tooltip="The model that the LoRA is for: what fits it is kept."),
                *(to_input(p) for p in CLEAN_LORA.values()),
                io.String.Input(
                    "filename_prefix", default="cleaned", tooltip="Name of the new LoRA, in the output folder's loras."
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Off: each save gets a new number. On: the file is replaced every time, if UniForget made it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(id="path", display_name="path", tooltip="Where the LoRA is.")],
            is_output_node=True,
            **search("memorization", "overfit", "copyright", "training pictures", "fix lora"),
        )

    @classmethod
    def validate_inputs(cls, lora_name, model_name, filename_prefix, overwrite=False):
        for check, *values in (
            (find_lora, lora_name),
            (find_model, model_name),
            (check_name, filename_prefix, lora_folder(), overwrite),
        ):
            wrong = valid(check, *values)
            if wrong is not True:
                return wrong
        return True

    @classmethod
    def execute(cls, lora_name, model_name, strength, keep, filename_prefix, overwrite):
        source, (base, _) = find_lora(lora_name), find_model(model_name)
        bar = comfy.utils.ProgressBar(1000)

        def report(done, of):
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(1000 * done // max(of, 1))

        with saving_as(filename_prefix, overwrite, lora_folder()) as target:
            done = clean(source, base, target, keep, strength, overwrite, report)
        for caution in done.cautions:
            logging.warning("UniForget: %s", caution)
        return io.NodeOutput(str(target), ui=show(cls, done.summary()))
