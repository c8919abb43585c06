"""The folder of masks: what is in it, and reading from it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import MaskFileMissingError, SettingError
from ...mask import files, subspacefile
from ...mask.edit import Mask
from ...model.blocks import describe_blocks
from ...model.detect import family
from ...untrusted import UNSEEN, safe, told

NO_MASK = "None"
# Subspaces can have gigabytes: too much to read only to tell what is in them.
_DESCRIBED = 64 * 2**20
LONGEST = 1000

_last: dict[tuple[str, int, int], Mask] = {}


def masks(folder: str | os.PathLike[str]) -> list[str]:
    """Names of the files in `folder` and below, with "/" between folders, sorted; hidden and odd ones are left out (:func:`odd`)."""
    return sorted((name for name in _below(str(folder), ()) if not odd(name)), key=str.casefold)


def _below(folder: str, around: tuple[str, ...]) -> Iterator[str]:
    """Links are followed, as the hosts do; not into a folder that the link is in."""
    real = os.path.realpath(folder)
    if real in around or not os.path.isdir(folder):
        return
    with os.scandir(folder) as found:
        for entry in (entry for entry in found if not entry.name.startswith(".")):
            if entry.is_dir():
                yield from (f"{entry.name}/{name}" for name in _below(entry.path, (*around, real)))
            elif entry.is_file() and entry.name.lower().endswith(files.ENDINGS):
                yield entry.name


def odd(name: str) -> bool:
    """Whether `name` holds what could be markup, or is not seen: names get into infotext, and that into pages and pictures."""
    return len(name) > LONGEST or bool(UNSEEN.search(name) or set(name) & set('<>"'))


def find(folder: str | os.PathLike[str], name: str) -> Path:
    """Path of the file called `name`, as :func:`masks` lists it.

    Raises:
        SettingError: the name leads out of the folder, or has another ending.
        MaskFileMissingError: no mask is chosen, or there is no such file.
    """
    if not name or name == NO_MASK:
        raise MaskFileMissingError(
            f"UniForget is on and no mask is chosen. Choose one, or put one into {folder} and press the button beside the list."
        )
    parts = re.split(r"[/\\]", name)
    if odd(name):
        raise SettingError(
            f"Setting 'mask': expected a name of at most {LONGEST} characters without <, >, \" and control characters, because it goes into the "
            f"infotext of pictures; found {safe(name, line=True, most=100)!r}. Rename the file."
        )
    inside = all(part.strip(" .") and not set(part) & {":", "\0"} for part in parts)
    if not inside or not name.lower().endswith(files.ENDINGS):
        raise SettingError(
            f"Setting 'mask': expected the name of a {' or '.join(files.ENDINGS)} file inside {folder}; found {name!r}."
        )
    path = Path(folder, *parts)
    if not os.path.isfile(path):  # also of names that are too long for one
        raise MaskFileMissingError(f"There is no mask {name!r} in {folder}. Put the file there, or choose another one.")
    return path


def load(path: Path) -> Mask:
    """What is in a file; the one that was read last is kept until it changes.

    Raises:
        MaskFileError: one of its subclasses, naming the file and what is wrong with it.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise MaskFileMissingError(f"{path}: the mask cannot be read ({error.strerror}). Choose another one.") from error
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _last:
        _last.clear()
        _last[key] = files.load(path)
    return _last[key]


def describe(folder: str | os.PathLike[str], name: str) -> str:
    """A few lines about the mask called `name`, safe for the page; what is wrong with it, if anything is."""
    if not name or name == NO_MASK:
        return ""
    try:
        path = find(folder, name)
        size = path.stat().st_size
        if size > _DESCRIBED and subspacefile.is_subspace(path):
            return f"a subspace of {size / 2**20:.0f} MB"
        learned = load(path)
        return safe(f"{learned.summary()}\nblocks: {describe_blocks(family(learned.info.family), learned.names)}", page=True)
    except Exception as error:
        return told(error, "the console")
