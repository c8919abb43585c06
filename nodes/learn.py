"""Learn Memorization Mask."""

import contextlib
import logging
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io

from ..testbed.concepts import CANVAS
from ..testbed.evaluate import learning_prompts
from ..uniforget import __version__, atomic, config
from ..uniforget.errors import SettingError, UniForgetError
from ..uniforget.hosts.comfy import apply as host
from ..uniforget.learn import Settings, curve_csv
from ..uniforget.learn.overflow import Overflow
from ..uniforget.mask import file as maskfile
from ..uniforget.mask.info import MaskInfo
from ..uniforget.model.sites import target_kinds
from ..uniforget.prompts import neutral_prompts, parse_prompts, prompts_hash
from .demo import TestbedModel
from .inputs import CATEGORY, MaskType, search, show, to_input
from .progress import curve_image, learning_bar


def read_prompts(text, model):
    """Prompts of the text box, one a line or as JSONL; empty means the bundled list that fits the model."""
    return parse_prompts(text) or (learning_prompts() if isinstance(model.model, TestbedModel) else neutral_prompts())


class LearnMask(io.ComfyNode):
    """Learns which parts of a model only serve memorized pictures, from neutral prompts alone."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetLearn",
            display_name="Learn Memorization Mask",
            category=CATEGORY,
            description=(
                "Finds the few parts of the model that neutral prompts do not need: that is where memorized pictures live. "
                "You never name what should be forgotten. Learn once, save the mask, and use it at any strength. "
                "Cancelled? Queue it again with the same settings: it goes on where it stopped."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to learn a mask for. It is not changed."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                *(to_input(p) for p in config.LEARN.values()),
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
        for name, param in config.LEARN.items():
            values[name] = param.check(values[name])
        prompts = read_prompts(values["prompts"], model)
        preset = values["preset"]
        beta = config.resolve_beta(preset, values["beta"])
        settings = Settings(beta=beta, **{name: values[name] for name in config.SETTINGS})
        family, sites = host.sites_of(model)
        kinds = target_kinds(values["targets"])
        info = MaskInfo(
            family=family.name,
            base=host.base_fingerprint(model),
            base_name=type(model.model).__name__,
            method=settings.objective,
            beta=beta,
            preset=preset,
            targets=kinds,
            prompts_hash=prompts_hash(prompts),
            seed=settings.seed,
            version=__version__,
        )
        folder = Path(folder_paths.get_output_directory(), "uniforget")
        positive, negative, latent, sigmas = prepare(model, clip, prompts, values, folder)
        report, _ = learning_bar(settings.steps)
        chosen = [site for site in sites if site.kind in kinds]
        tell = lambda text: logging.info("UniForget: learning takes %s", text)  # noqa: E731
        lines = []

        def keep(found):
            """A copy on disk, should saving the mask fail later on. Not of a subspace, which can have gigabytes."""
            if found.mask.what == "mask":
                path = folder / "learned" / f"{found.mask.digest()}.safetensors"
                lines.append(beside(path, "mask", lambda: maskfile.dumps(found.mask)))

        result = host.learn_mask(
            model, chosen, positive, negative, latent, sigmas, settings, info, report, folder / "unfinished", tell, keep
        )
        logging.info("UniForget: %s", result.mask.summary())
        image = curve_image(result.curve, settings.steps)
        picture = torch.from_numpy(_array(image))[None] if image else torch.zeros(1, 64, 64, 3)
        table = curve_csv(result.curve)
        if result.curve:
            lines.append(beside(folder / "curves" / f"{result.mask.digest()}.csv", "curve", table.encode))
        return io.NodeOutput(result.mask, picture, table, ui=show(cls, "\n".join([result.mask.summary(), *lines])))


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


def prepare(model, clip, prompts, values, folder):
    """Conditionings of the prompts and of the empty one, an empty latent, and the sampling steps' noise levels."""
    encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))  # noqa: E731
    store = Overflow(folder / "unfinished")
    negative = encode("")
    positive = [store.keep(encode(p)) for p in prompts]
    latent = empty_latent(model, values["width"], values["height"])
    # Only what is learned on stays on the device.
    comfy.model_management.unload_all_models()
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", values["sampling_steps"])
    return positive, negative, latent, sigmas


def _array(image):
    import numpy as np

    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def empty_latent(model, width, height):
    """Empty latent (1, channels, h, w) that the model takes for pictures of this size."""
    if isinstance(model.model, TestbedModel) and (width, height) != (CANVAS, CANVAS):
        raise SettingError(
            f"width and height: the UniForget Demo Model draws {CANVAS} x {CANVAS} pictures only; found {width} x {height}. Set both to {CANVAS}."
        )
    form = model.get_model_object("latent_format")
    shrink = getattr(form, "spacial_downscale_ratio", None) or (1 if isinstance(form, comfy.latent_formats.ChromaRadiance) else 8)
    if width % shrink or height % shrink:
        raise SettingError(f"width and height: expected multiples of {shrink} for this model; found {width} x {height}.")
    latent = torch.zeros(1, form.latent_channels, height // shrink, width // shrink)
    return comfy.sample.fix_empty_latent_channels(model, latent)
