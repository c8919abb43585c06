"""Automatic1111 and Forge: the script's controls, its place in a generation, its settings and its axes of the X/Y/Z plot.

Both hosts only log what a script raises, so everything that must stop a generation goes through :func:`uniforget.hosts.webui.refuse`.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from weakref import ref

import gradio as gr
from modules import paths, processing, script_callbacks, scripts, shared
from modules.ui_common import create_refresh_button
from modules.ui_components import InputAccordion

from ...config import WEBUI
from ...errors import FamilyError, MismatchError
from ...param import Param
from ...untrusted import safe
from . import (
    NO_MASK,
    Request,
    Run,
    comparison,
    describe,
    find,
    from_infotext,
    masks,
    merge,
    note,
    original_of,
    overridden,
    refusal,
    refuse,
)
from .request import LABELS

ROOT = Path(__file__).resolve().parents[3]
FORGE = find_spec("modules_forge") is not None
TITLE = "UniForget"
SETTING = "uniforget_folder"
# Names as people write them; everything else about a control is in config.WEBUI.
NAMES = {
    "mask": "Mask",
    "strength": "Strength",
    "strength_ffn": "Neurons (ffn)",
    "strength_norm": "Norm channels (norm)",
    "strength_attn": "Attention heads (attn)",
    "blocks": "Blocks",
    "compare": "Compare with original",
}


def masks_folder() -> Path:
    """Where masks are: the setting, or ``models/UniForget``."""
    chosen = str(getattr(shared.opts, SETTING, "") or "").strip()
    return Path(paths.data_path, chosen).expanduser() if chosen else Path(paths.models_path, "UniForget")


def choices() -> list[str]:
    """What the list of masks offers."""
    return [NO_MASK, *masks(masks_folder())]


def _nothing() -> None:
    """Stands for a reference to no model."""


class Generation:
    """One generation under way: kept on the host's processing object `p` until its pictures are there.

    Attributes:
        run: the request and its mask.
        before: a copy of `p` from before processing, for the comparison; None without one.
    """

    def __init__(self, run: Run, before: Any):
        self.run, self.before = run, before
        # Hosts free a model before they load another one: it must not be kept alive here.
        self._first: Any = _nothing  # the model that the mask must land on, which is the first one that samples
        self._masked: Any = _nothing  # the model that has the mask now, or was found not to take it
        self.hooks = ExitStack()

    def knows(self, model: Any) -> bool:
        """Whether `model` has been seen to already."""
        return self._masked() is model

    def mask(self, p: Any, x: Any = None) -> None:
        """Mask the model that samples now, unless it is masked.

        Args:
            x: latents, when sampling has begun.

        Raises:
            FamilyError, MismatchError: the mask does not land on the first model. A second one (refiner, another checkpoint for hires fix)
                only gets a note, because no mask could be for both.
        """
        model = shared.sd_model
        if self._first is _nothing:
            self._first = ref(model)
        first = self._first() is model
        self._masked = ref(model)
        try:
            landed = self._forge(model, x) if FORGE else self._a1111(model)
        except (FamilyError, MismatchError) as error:
            if first:
                raise
            note(p, f"the second model of this picture is not masked. {error}")
            return
        if first:
            self.run.tell(p, landed)

    def _forge(self, model: Any, x: Any) -> Any:
        from . import forge

        unet, landed = forge.apply(model.forge_objects.unet, self.run)
        model.forge_objects.unet = unet
        if x is not None:
            # The host has loaded this model without the mask.
            from backend.sampling.sampling_function import sampling_prepare

            sampling_prepare(unet, x=x)
        return landed

    def _a1111(self, model: Any) -> Any:
        from . import a1111

        self.hooks.close()
        from modules import sd_unet

        if getattr(sd_unet, "current_unet", None) is not None:
            raise MismatchError(
                "This model runs as an optimized engine (Settings > SD Unet), which no mask can change. Set SD Unet to None."
            )
        return self.hooks.enter_context(a1111.applied(model.model.diffusion_model, self.run))

    def guard(self, p: Any) -> None:
        """Make sampling of `p` leave no hook behind, however it ends; on Automatic1111, mask its model when it begins."""
        sample = p.sample

        def guarded(*args: Any, **kwargs: Any) -> Any:
            self._first = self._masked = _nothing
            with self.hooks:
                if not FORGE:
                    try:
                        self.mask(p)
                    except Exception as error:
                        raise refusal(error) from error
                return sample(*args, **kwargs)

        p.sample = guarded


class UniForgetScript(scripts.Script):
    """The accordion in txt2img and img2img."""

    def title(self):
        return TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        ids = "uniforget_img2img" if is_img2img else "uniforget_txt2img"
        controls = {}

        def put(name, kind, **more):
            param = WEBUI[name]
            controls[name] = kind(
                value=param.default, label=NAMES[name], tooltip=param.tooltip, elem_id=f"{ids}_{name}", **_range(param), **more
            )

        with InputAccordion(WEBUI["enabled"].default, label=TITLE, elem_id=ids) as controls["enabled"]:
            with gr.Row():
                put("mask", gr.Dropdown, choices=choices())
                create_refresh_button(controls["mask"], lambda: None, lambda: {"choices": choices()}, f"{ids}_refresh")
                put("strength", gr.Slider)
            about = gr.Textbox(label="About this mask", interactive=False, visible=False, lines=5, elem_id=f"{ids}_about")
            with gr.Row():
                for name in ("strength_ffn", "strength_norm", "strength_attn"):
                    put(name, gr.Slider)
            with gr.Row():
                put("blocks", gr.Textbox, placeholder="all")
                put("compare", gr.Checkbox)
            gr.Markdown(
                f"Masks are learned in ComfyUI or on the command line, from neutral prompts only; README.md in `{ROOT}` says how. There:\n\n"
                f"`python -m uniforget learn CHECKPOINT.safetensors -o {masks_folder() / 'my_mask.safetensors'}`"
            )

        def tell(mask):
            text = describe(masks_folder(), mask)
            return gr.update(value=text, visible=bool(text))

        controls["mask"].change(fn=tell, inputs=[controls["mask"]], outputs=[about], show_progress=False)
        self.infotext_fields = [(controls[name], _reader(name)) for name in WEBUI]
        self.paste_field_names = list(LABELS.values())
        return [controls[name] for name in WEBUI]

    def before_process(self, p, *values):
        # Whatever other scripts do to p from here on, they do to the copy again when it is processed.
        p.uniforget_before = comparison(p)

    def process(self, p, *values):
        p.uniforget_generation = None
        try:
            request = Request.of(values, overridden(p))
            if not request.enabled:
                return
            run = Run.of(request, masks_folder())
            run.begin(p)
            before = getattr(p, "uniforget_before", None)
            generation = Generation(run, before if request.compare else None)
            generation.guard(p)
            p.uniforget_generation = generation
        except Exception as error:
            refuse(p, error)

    def process_before_every_sampling(self, p, *values, **kwargs):
        generation = getattr(p, "uniforget_generation", None)
        if generation is None or not FORGE:
            return
        try:
            generation.mask(p)
        except Exception as error:
            # Sampling is next, with this object.
            p.sampler = Refusing(refusal(error))

    def postprocess(self, p, processed, *values):
        generation, p.uniforget_generation, p.uniforget_before = getattr(p, "uniforget_generation", None), None, None
        vars(p).pop("sample", None)
        if generation is None or generation.before is None or shared.state.interrupted or shared.state.stopping_generation:
            return
        twin = original_of(generation.before, p, generation.run.request.mask)
        twin.uniforget_before = None
        if shared.state.job_count > 0:
            shared.state.job_count += p.n_iter
        try:
            merge(processed, processing.process_images(twin))
        except Exception as error:
            processed.comments += (
                f"UniForget: the original could not be made for comparison ({safe(error, page=True, line=True)}).\n"
            )
            raise
        finally:
            twin.close()


class Refusing:
    """A sampler that raises what kept the model from being masked."""

    def __init__(self, error: Exception):
        self.error = error

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error

    sample_img2img = sample


def _range(param: Param) -> dict[str, Any]:
    if param.kind != "float":
        return {}
    return {"minimum": param.minimum, "maximum": param.maximum, "step": param.step}


def _reader(name: str) -> Any:
    return lambda params: from_infotext(name, params)


def second_model(params: Any) -> None:
    """Called before every denoising step: the refiner, or hires fix, may just have brought in another model."""
    p = getattr(getattr(params, "denoiser", None), "p", None)
    generation = getattr(p, "uniforget_generation", None)
    if generation is None or generation.knows(shared.sd_model):
        return
    try:
        generation.mask(p, params.x)
    except Exception as error:
        note(p, f"the second model of this picture could not be masked ({type(error).__name__}: {error}).")


def settings() -> None:
    """The folder of masks on the settings page."""
    option = shared.OptionInfo(
        "",
        "Folder of masks and subspaces (empty: models/UniForget)",
        gr.Textbox,
        {"interactive": True},
        section=("uniforget", TITLE),
    )
    shared.opts.add_option(SETTING, option)


# --- axes of the X/Y/Z plot


def _set(name: str) -> Any:
    def apply(p: Any, value: Any, values: Any) -> None:
        enabled = {"enabled": value != NO_MASK} if name == "mask" else {"enabled": overridden(p).get("enabled", True)}
        # The plot shows one picture per cell; the original is the cell with no mask, or with strength 0.
        p.uniforget = {**overridden(p), **enabled, name: value, "compare": False}

    return apply


def _confirm_masks(p: Any, values: list[str]) -> None:
    for value in values:
        if value != NO_MASK:
            find(masks_folder(), value)


def _confirm_strengths(p: Any, values: list[float]) -> None:
    for value in values:
        WEBUI["strength"].check(value)


def _plot() -> Any:
    """The host's module with the X/Y/Z plot; None without one."""
    found = (data.module for data in scripts.scripts_data if os.path.basename(data.path) == "xyz_grid.py")
    return next(found, None)


def add_axes() -> None:
    """Offer mask and strength as axes of the X/Y/Z plot; those that are there already are replaced."""
    remove_axes()
    plot = _plot()
    if plot is None:
        logging.info("UniForget: this web UI has no X/Y/Z plot to add axes to")
        return
    plot.axis_options += [
        plot.AxisOption(LABELS["mask"], str, _set("mask"), confirm=_confirm_masks, choices=choices),
        plot.AxisOption(LABELS["strength"], float, _set("strength"), confirm=_confirm_strengths),
    ]


def remove_axes() -> None:
    """Take our axes out of the X/Y/Z plot."""
    plot = _plot()
    if plot is not None:
        ours = (LABELS["mask"], LABELS["strength"])
        plot.axis_options[:] = [option for option in plot.axis_options if option.label not in ours]


def tidy_path() -> None:
    """Take the extension out of ``sys.path``, where its folders (``nodes``, ``web``, ...) could be taken for somebody else's."""
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != ROOT]


def before_ui() -> None:
    """All scripts are loaded."""
    add_axes()
    tidy_path()


def register() -> None:
    """Tell the host about everything beside the script itself. It forgets that when it reloads scripts."""
    add_axes()  # started for the API only, a host makes controls before the callback below
    script_callbacks.on_before_ui(before_ui)
    script_callbacks.on_ui_settings(settings)
    script_callbacks.on_cfg_denoiser(second_model)
    script_callbacks.on_script_unloaded(remove_axes)
