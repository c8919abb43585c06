"""Files of what was learned, whatever it is: masks and subspaces."""

from __future__ import annotations

import os

from . import file as maskfile
from . import subspacefile
from .info import MaskSet
from .subspace import Subspace


def load(path: str | os.PathLike[str]) -> MaskSet | Subspace:
    """Read a mask or a subspace.

    Raises:
        MaskFileError: one of its subclasses (see :mod:`uniforget.errors`), naming the file and what is wrong with it.
    """
    return subspacefile.load(path) if subspacefile.is_subspace(path) else maskfile.load(path)


def save(learned: MaskSet | Subspace, path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Write a mask or a subspace to `path`, replacing what is there in one step; without `overwrite` only where no file is.

    Raises:
        MaskWriteError: it could not be written; an existing file is unchanged.
        MaskError, TooLargeError: see :func:`uniforget.mask.file.dumps`.
    """
    if isinstance(learned, Subspace):
        subspacefile.save(learned, path, overwrite)
    else:
        maskfile.save(learned, path, overwrite)
