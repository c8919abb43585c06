"""Recover Quality: a LoRA that makes up for what a mask costs."""

import logging
import os
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import folder_paths
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checkpoint import lora as lorafile
from ..uniforget.hosts.comfy import apply as host
from ..uniforget.hosts.comfy.learn import loaded, prepare
from ..uniforget.learn import Session, Settings
from ..uniforget.learn.recover import one_of_each, recover
from ..uniforget.mask.gates import match_sites
from ..uniforget.mask.subspace import match_layers
from ..uniforget.prompts import prompts_hash
from .inputs import CATEGORY, MaskType, search, show, to_input, valid
from .learn import read_prompts
from .maskio import check_name, saving_as
from .progress import learning_report


def lora_folder():
    """Where LoRAs are saved: the output folder's, which ComfyUI's LoRA loaders list, too."""
    return os.path.join(folder_paths.get_output_directory(), "loras")


class RecoverQuality(io.ComfyNode):
    """Trains a LoRA on neutral prompts so that the masked model draws them as the original did."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetRecover",
            display_name="Recover Quality",
            category=CATEGORY,
            description=(
                "Where a strong mask costs quality, this trains a LoRA that brings it back, from neutral prompts alone: what was forgotten is never "
                "shown to it. The LoRA is an ordinary file. Cancelled? Queue it again with the same settings: it goes on where it stopped."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model, without the mask."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                MaskType.Input("mask", tooltip="The mask whose cost is to be made up for, at full strength."),
                MaskType.Input(
                    "mask_b", optional=True, tooltip="A subspace that is applied as well: learned on the model with the mask."
                ),
                *(to_input(p) for p in config.RECOVER.values()),
                io.String.Input(
                    "filename_prefix", default="recovered", tooltip="Name of the LoRA, in the output folder's loras."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output(id="recovered", display_name="MODEL", tooltip="The model with the mask and the LoRA."),
                io.String.Output(id="path", display_name="path", tooltip="Where the LoRA is."),
            ],
            is_output_node=True,
            **search("retrain", "fine-tune", "restore", "unlearn"),
        )

    @classmethod
    def validate_inputs(cls, filename_prefix):
        return valid(check_name, filename_prefix, lora_folder())

    @classmethod
    def execute(cls, model, clip, mask, filename_prefix, mask_b=None, **values):
        settings, rank = Settings.checked(values, config.RECOVER), config.RECOVER["rank"].check(values["rank"])
        check_name(filename_prefix, lora_folder())
        gates, subspace = one_of_each([one for one in (mask, mask_b) if one is not None])
        family, sites = host.sites_of(model)
        matched = match_sites(gates, family, sites) if gates else []
        if subspace:
            match_layers(subspace, *host.layers_of(model))
        prompts = read_prompts(settings.prompts, model)
        folder = Path(folder_paths.get_output_directory(), "uniforget", "unfinished")
        paths = []

        def save(lora):
            with saving_as(filename_prefix, inside=lora_folder()) as path:
                lorafile.save(lora, path, overwrite=False)
            paths.append(path)

        session = Session(learning_report(cls, settings.steps), folder, save=save)
        about = f"{host.base_fingerprint(model)} {prompts_hash(prompts)}"
        lesson = prepare(model, clip, prompts, settings, folder)
        lora = loaded(
            model, matched, lesson, settings.batch, lambda m: recover(m, gates, settings, rank, subspace, about, session)
        )
        [path] = paths
        text = f"saved as {path}\ndifference to the original on neutral prompts: {lora.curve[0].reconstruction:.4f} -> {lora.curve[-1].reconstruction:.4f}"
        logging.info("UniForget: %s", text)
        model = host.apply_mask(model, gates) if gates else model
        model = host.apply_mask(model, subspace) if subspace else model
        return io.NodeOutput(with_lora(model, lora), str(path), ui=show(cls, text))


def with_lora(model, lora):
    """A clone of the model with the LoRA, as ComfyUI's own loader would make it."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(lorafile.state_dict(lora)), keys)
    clone = model.clone()
    clone.add_patches(patches, 1.0)
    return clone
