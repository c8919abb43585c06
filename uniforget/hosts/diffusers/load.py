"""diffusers pipelines from files: safetensors and known classes only, nothing that could run code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import diffusers
import torch

from ...errors import LearnError
from ...mask.files import ENDINGS
from . import modelindex
from .singlefile import load_file

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def load_pipeline(path: str, dtype: torch.dtype = torch.bfloat16, config: str | None = None) -> diffusers.DiffusionPipeline:
    """A diffusers pipeline on the CPU, from a diffusers folder, a single-file checkpoint, or an identifier of the Hub.

    Args:
        dtype: of all weights.
        config: for a single file: a diffusers folder of the same kind of model, for settings, tokenizers, and text encoders that
            the file lacks. None: diffusers gets settings and tokenizers from the Hub.

    Raises:
        LearnError: it is none of these, has no safetensors (pickles are never opened), names classes of other libraries than diffusers
            and transformers (see :mod:`.modelindex`), or diffusers cannot load it.
        FamilyError, ModelFileError: a single file of no family that UniForget knows, or no complete one.
    """
    modelindex.check_version()
    place = Path(path).expanduser()
    if os.path.isfile(place):
        return load_file(place, dtype, _settings(config))
    here = os.path.isdir(place)
    if here and not (place / "model_index.json").is_file():
        raise LearnError(
            f"{path} is no diffusers folder: expected a model_index.json in it, found none. Give the folder that holds the whole "
            "pipeline, or a single-file checkpoint (.safetensors)."
        )
    if not here and (place.suffix.lower() in (*ENDINGS, *_PICKLES) or path.count("/") != 1 or path.startswith((".", "/", "~"))):
        raise LearnError(
            f"There is no file or folder {path}. Expected a diffusers folder, a single-file checkpoint (.safetensors), or an "
            "identifier of the Hub such as owner/name."
        )
    # Safetensors only: a pickle could run code.
    safe = {"use_safetensors": True, "trust_remote_code": False}
    try:
        if not here:
            place = Path(diffusers.DiffusionPipeline.download(path, revision=modelindex.fetched(path), **safe))
        modelindex.check_folder(place)
        return diffusers.DiffusionPipeline.from_pretrained(str(place), torch_dtype=dtype, **safe)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        advice = (
            "Expected all its weights as .safetensors; convert other weights first."
            if here
            else "There is no such folder here, so diffusers looked for it on the Hub. Check the spelling, or the network."
        )
        raise LearnError(f"diffusers cannot load {path} ({_first_line(error)}). {advice}") from error


def _settings(config: str | None) -> dict[str, Any] | None:
    """How diffusers is told where settings and tokenizers are.

    Raises:
        LearnError: the folder could run code, or there is no such model on the Hub.
    """
    if not config:
        return None
    place = Path(config).expanduser()
    if not os.path.isdir(place):
        return {"config": config, "revision": _commit(config)}
    _refuse_pickles(place)
    if (place / modelindex.NAME).exists():  # without one, diffusers loads nothing
        modelindex.check_folder(place)
    return {"config": str(place)}


def _commit(config: str) -> str:
    """The commit of a model on the Hub whose settings may be used."""
    try:
        return modelindex.fetched(config)
    except (OSError, ValueError) as error:
        raise LearnError(
            f"config: there is no folder {config}, and the Hub has no such model, or cannot be reached ({_first_line(error)}). Check the "
            "spelling, or the network."
        ) from error


def _refuse_pickles(folder: Path) -> None:
    """from_single_file() would open pickles where `folder` has nothing else."""
    for part in {file.parent for file in folder.rglob("*") if file.suffix in _PICKLES}:
        if not any(part.glob("*.safetensors")):
            raise LearnError(f"{part} holds weights that can run code when opened. Expected .safetensors: convert them first.")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
