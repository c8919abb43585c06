"""Learn Memorization Mask."""

import contextlib
import logging
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..uniforget import atomic, config
from ..uniforget.errors import UniForgetError
from ..uniforget.hosts.comfy import apply as host
from ..uniforget.hosts.comfy.learn import loaded, prepare
from ..uniforget.learn import METHODS, Session, Settings, curve_csv, describe, learn, measure
from ..uniforget.mask import file as maskfile
from ..uniforget.model.sites import target_kinds
from ..uniforget.prompts import neutral_prompts, parse_prompts
from .inputs import CATEGORY, MaskType, say, search, show, to_input
from .progress import curve_image, learning_report

# Updates from which on it pays to run two of them first, to say what all will take.
WORTH_MEASURING = 50


def read_prompts(text, model):
    """Prompts of the text box, one a line or as JSONL; empty means the bundled list that fits the model."""
    return parse_prompts(text) or getattr(model.model, "neutral_prompts", neutral_prompts)()


class LearnMask(io.ComfyNode):
    """Learns which parts of a model neutral prompts can do without."""

    @classmethod
    def define_schema(cls):
        settings = {p.name: to_input(p) for p in config.LEARN.values()}
        settings["preset"].extra_dict = {"uniforget_betas": config.PRESETS}  # web/advanced.js shows which beta a preset is
        return io.Schema(
            node_id="UniForgetLearn",
            display_name="Learn Memorization Mask",
            category=CATEGORY,
            description=(
                "Finds what in the model neutral prompts do not need: memorized pictures live there. "
                "You never name what should be forgotten. Learn once, save the mask, and use it at any strength. "
                "Cancelled? Queue it again with the same settings: it goes on where it stopped."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to learn a mask for. It is not changed."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                *settings.values(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                MaskType.Output(id="mask", display_name="mask", tooltip="Apply it, or save it."),
                io.Image.Output(id="curve", display_name="curve", tooltip="How learning went: loss and share switched off."),
                io.String.Output(id="csv", display_name="csv", tooltip="The same as a table: one line per update."),
            ],
            **search("forget", "unlearn", "copyright", "memorization", "prune", "pruning", "copy"),
        )

    @classmethod
    def execute(cls, model, clip, **values):
        settings = Settings.checked(values)
        prompts, kinds = read_prompts(settings.prompts, model), target_kinds(settings.targets)
        family, sites = host.sites_of(model)
        info = describe(settings, family.name, host.base_fingerprint(model), type(model.model).__name__, kinds, prompts)
        folder = Path(folder_paths.get_output_directory(), "uniforget")
        lesson = prepare(model, clip, prompts, settings, folder / "unfinished")

        def log(text):
            logging.info("UniForget: %s", text)
            say(cls, text)

        def keep(found):
            """A copy on disk, should saving the mask fail later on. Not of a subspace, which can have gigabytes."""
            if found.mask.what == "mask":
                path = folder / "learned" / f"{found.mask.digest()}.safetensors"
                lines.append(beside(path, "mask", lambda: maskfile.dumps(found.mask)))

        def run(found):
            if METHODS[settings.objective].trains and settings.steps >= WORTH_MEASURING:
                log(str(measure(found, settings, info)))
            session = Session(learning_report(cls, settings.steps), folder / "unfinished", log=log, save=keep)
            return learn(found, settings, info, session)

        lines = []
        result = loaded(model, [site for site in sites if site.kind in kinds], lesson, settings.batch, run)
        logging.info("UniForget: %s", result.mask.summary())
        image = curve_image(result.curve, settings.steps)
        picture = np.asarray(image.convert("RGB") if image else Image.new("RGB", (64, 64)), dtype=np.float32) / 255
        table = curve_csv(result.curve)
        if result.curve:
            lines.append(beside(folder / "curves" / f"{result.mask.digest()}.csv", "curve", table.encode))
        text = "\n".join([result.mask.summary(), *lines])
        return io.NodeOutput(result.mask, torch.from_numpy(picture)[None], table, ui=show(cls, text))


def beside(path, what, content):
    """Write a file that goes with a result but that the result is not to be lost for; returns what is said about it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # named by the mask's digest: of the very same mask
            atomic.replace(path, content(), overwrite=False)
        return f"{what} saved as {path}"
    except (OSError, UniForgetError) as error:
        logging.warning("UniForget: the %s was not saved as %s (%s)", what, path, error)
        return f"Careful: the {what} was not saved as {path} ({error})."
