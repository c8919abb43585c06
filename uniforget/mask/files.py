"""Files of what was learned, whatever it is, and what only some of it can do."""

from __future__ import annotations

import os
from typing import NoReturn

from ..errors import SettingError
from . import file as maskfile
from . import subspacefile
from .edit import Mask
from .info import GateMask
from .subspace import SubspaceMask

# What names of safetensors files end in, in any case: masks' and models'. What is in them decides what they are.
ENDINGS = (".safetensors", ".sft")


def load(path: str | os.PathLike[str]) -> Mask:
    """Read a mask, whatever it is made of.

    Raises:
        MaskFileError: one of its subclasses (see :mod:`uniforget.errors`), naming the file and what is wrong with it.
    """
    return subspacefile.load(path) if subspacefile.is_subspace(path) else maskfile.load(path)


def save(mask: Mask, path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Write a mask to `path`, replacing what is there in one step; without `overwrite` only where no file is.

    Raises:
        MaskWriteError: it could not be written; an existing file is unchanged.
        MaskError, TooLargeError: see :func:`uniforget.mask.file.dumps`.
    """
    {"mask": maskfile, "subspace": subspacefile}[mask.what].save(mask, path, overwrite)


def gates_of(mask: Mask, wanted: str) -> GateMask:
    """The mask, if it is made of gates. `wanted` says what they are needed for, such as "Compact Model (Prune)".

    Raises:
        SettingError: it is a subspace.
    """
    if isinstance(mask, GateMask):
        return mask
    refuse_subspace(wanted)


def refuse_subspace(wanted: str) -> NoReturn:
    """Say that a subspace cannot be used for this.

    Raises:
        SettingError: always.
    """
    raise SettingError(
        f"{wanted} needs a mask of gates; found a subspace, which switches directions off and no neurons or heads, and has megabytes. Use "
        "it with Apply Memorization Mask, Save Sanitized Checkpoint or uniforget apply, one mask after the other."
    )


def subspace_of(mask: Mask, wanted: str) -> SubspaceMask:
    """The mask, if it is a subspace. `wanted` as for :func:`gates_of`.

    Raises:
        SettingError: it is made of gates.
    """
    if isinstance(mask, SubspaceMask):
        return mask
    raise SettingError(
        f"{wanted} needs a subspace; found a mask of gates, which has no threshold. Use the strength of Apply Memorization Mask, or learn "
        "with the objective 'subspace'."
    )
