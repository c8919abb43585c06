"""diffusers pipelines from a single checkpoint: what is in the file decides, whatever it is called and however its names are wrapped."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import safe_open

from ...checkpoint import safefile
from ...checkpoint.denoiser import Denoiser, find_denoisers
from ...errors import LearnError
from ...model.detect import detect
from . import modelindex

# Pipelines that diffusers loads from one file.
_SINGLE_FILE = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "chroma": "ChromaPipeline",
    "z_image": "ZImagePipeline",
}
_MODEL = "model.diffusion_model."
# Prefixes in single files: of text encoders, of the VAE.
_TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")
_VAE = ("first_stage_model.", "vae.")
_ERRORS = (OSError, ValueError, ImportError, RuntimeError, KeyError, SingleFileComponentError)
# Tensors without a use, by whose names fine-tunes of Stable Diffusion say what they were trained to predict.
_V, _ZERO_SNR = "v_pred", "ztsnr"
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
_METADATA = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}


def load_file(path: Path, dtype: torch.dtype, config: Mapping[str, Any] | None) -> diffusers.DiffusionPipeline:
    """A pipeline from a file; the text encoders come from a folder where the file has none.

    Args:
        dtype: of all weights.
        config: how diffusers is told where settings and tokenizers are: ``{"config": folder or identifier, ...}``.

    Raises:
        ModelFileError: it is no complete safetensors file, or its weights are packed.
        FamilyError: it is of no family that UniForget knows.
        LearnError: diffusers cannot load it, or it was trained in a way that diffusers' pipelines do not sample.
    """
    header = safefile.read_header(path)
    if header.odd:
        raise LearnError(
            f"{path.name}: metadata values are no text ({', '.join(header.odd[:3])}), which the safetensors library refuses. Write the file anew with "
            "texts only: `uniforget apply` with any mask at --strength 0 does that."
        )
    denoiser = find_denoisers([header])[0]
    _say(list(denoiser.cautions()))
    encoders = any(name.startswith(_TEXT) for name in header.entries)
    folder = Path(str(config["config"])) if config else None
    title, kind = denoiser.family.title, _SINGLE_FILE.get(denoiser.family.name)
    if not encoders and (folder is None or not (folder / modelindex.NAME).is_file()):
        given = f"{folder} holds no whole pipeline: expected a model_index.json in it" if folder else "they are not in this file"
        raise LearnError(
            f"{path.name}: learning needs the text encoders of {title} too, and {given}. Give a diffusers folder of the whole pipeline (as config, to use "
            "its text encoders with this file), or learn in ComfyUI."
        )
    if encoders and kind is None:
        raise LearnError(
            f"{path.name}: diffusers loads no {title} pipeline from one file. Give a diffusers folder, or learn in ComfyUI."
        )
    more: dict[str, Any] = dict(config or {})
    if not any(name.startswith(_VAE) for name in header.entries):
        more["vae"] = None  # not needed for learning
    try:
        if not encoders:
            assert folder is not None
            pipe = _beside(folder, denoiser, dtype)
        else:
            with _named(path) as name:
                pipe = getattr(diffusers, str(kind)).from_single_file(name, torch_dtype=dtype, **more)
    except _ERRORS as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
        raise LearnError(
            f"diffusers cannot load {path.name} as {kind or title} ({reason}). It needs settings and tokenizers from the Hub, or "
            "from a diffusers folder of the same kind of model given as config."
        ) from error
    return _as_trained(pipe, header)


def _say(lines: list[str]) -> None:
    for line in lines:
        logging.getLogger("uniforget").warning("%s", line)


def _beside(folder: Path, denoiser: Denoiser, dtype: torch.dtype) -> diffusers.DiffusionPipeline:
    """The pipeline of a folder with another denoiser."""
    index = json.loads((folder / modelindex.NAME).read_text(encoding="utf-8"))
    part = next((name for name in ("unet", "transformer") if isinstance(index.get(name), list)), None)
    if part is None:
        raise ValueError(f"{folder} names no unet or transformer in its model_index.json")
    kind = getattr(diffusers, str(index[part][1]))
    # diffusers knows models by the names that they have in whole checkpoints.
    prefix = _MODEL if detect(denoiser.shapes())[1] is None else ""
    with safe_open(next(iter(denoiser.entries.values()))[0].path, "pt") as file:
        state = {prefix + name: file.get_tensor(full) for name, full in denoiser.names.items() if not _marker(name)}
    network = kind.from_single_file(state, config=str(folder), subfolder=part, torch_dtype=dtype)
    missing = [name for name, weight in network.named_parameters() if weight.is_meta]
    if missing:
        raise ValueError(f"the settings in {folder / part} ask for weights that are not there, such as {missing[0]}")
    more: dict[str, Any] = {part: network}
    if not list((folder / "vae").glob("*.safetensors")):
        more["vae"] = None
    return diffusers.DiffusionPipeline.from_pretrained(
        str(folder), torch_dtype=dtype, use_safetensors=True, trust_remote_code=False, **more
    )


@contextlib.contextmanager
def _named(path: Path) -> Iterator[str]:
    """A name for a safetensors file by which diffusers does not take it for a pickle."""
    if path.suffix == ".safetensors":
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "model.safetensors")
        for make in (os.symlink, os.link, shutil.copyfile):
            with contextlib.suppress(OSError):
                make(path.resolve(), link)
                break
        yield str(link)


def _marker(name: str) -> str:
    """Which of the tensors that say how a model was trained this is; "" for any other."""
    return next((mark for mark in (_V, _ZERO_SNR, *_EDM) if name == mark or name.endswith(f".{mark}")), "")


def _as_trained(pipe: diffusers.DiffusionPipeline, header: safefile.Header) -> diffusers.DiffusionPipeline:
    """The pipeline, sampling what the file says that it was trained to predict.

    Raises:
        LearnError: diffusers' schedulers do not do that.
    """
    marks = {mark for name in header.entries if (mark := _marker(name))}
    if edm := sorted(marks.intersection(_EDM)):
        raise LearnError(
            f"{header.path.name}: it says that it was trained with EDM's noise levels ({', '.join(edm)}), which diffusers does not set up for single files. "
            "Learn in ComfyUI, which does, or from a diffusers folder of this model."
        )
    said = _METADATA.get(header.metadata.get("modelspec.prediction_type", ""))
    wanted = "v_prediction" if _V in marks else said
    found = pipe.scheduler.config.get("prediction_type")
    if found is None or wanted is None:  # flow matching, or nothing is said
        return pipe
    changes: dict[str, Any] = {"prediction_type": wanted}
    if _ZERO_SNR in marks:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if any(pipe.scheduler.config.get(name) != value for name, value in changes.items()):
        _say(
            [
                f"{header.path.name} says how it was trained, other than its settings: {', '.join(f'{n} {v}' for n, v in changes.items())}."
            ]
        )
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, **changes)
    return pipe
