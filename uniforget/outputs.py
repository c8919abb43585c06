"""The one rule for everything that a command or a node writes.

* What exists is replaced only where the user allowed overwriting, and then only if UniForget wrote it: it carries our note.
* An input is never replaced, whatever links or mounts lead to it, nor a folder around an input; nothing is written into an input's folder.

:func:`check` is called before the work starts, and again by what writes; :mod:`uniforget.atomic` puts it there in one step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from . import __version__, atomic, untrusted
from .errors import SettingError

# Keys of safetensors metadata that begin with it are our note.
MARK = "uniforget"
# The note of a folder: which files UniForget wrote into it.
FOLDER_NOTE = "uniforget.json"
LARGEST_NOTE = 4 << 20


def check(
    target: str | os.PathLike[str],
    overwrite: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
    ending: str | None = ".safetensors",
    begins: bytes = b"",
) -> None:
    """See that `target` may be written. Cheap: reads no more than headers, so it is called before any work starts.

    Args:
        target: a file, or with ``ending=None`` a folder, that is going to be written.
        overwrite: what is there may be replaced, if it carries our note: safetensors metadata, :data:`FOLDER_NOTE` in a folder that holds
            nothing else than what we wrote, or for other files that they begin with `begins`.
        inputs: files and folders that the work reads. Names of things that do not exist (a model on a server) are left out.
        ending: what the name of a file has to end in.

    Raises:
        SettingError: it may not, or cannot. The message names the target, what was found, and what to do.
    """
    path, read = Path(target), [Path(one) for one in inputs if _exists(one)]
    try:
        _check_name(path, ending)
        _check_inputs(path, read, ending is None)
        if not os.path.lexists(path):
            return
        _check_kind(path, folder=ending is None)
        if not overwrite:
            raise SettingError(f"{path}: this exists already. Choose another name, or allow overwriting.")
        problem = _folder_problem(path, read) if ending is None else _file_problem(path, begins)
        if problem:
            raise SettingError(f"{path}: {problem}, so it is not overwritten. Choose another name, or remove it yourself.")
    except OSError as error:
        raise SettingError(
            f"{path}: this cannot be written ({error.strerror or error}). Choose another name or place."
        ) from error


def distinct(*targets: str | os.PathLike[str] | None) -> None:
    """See that the outputs of one command are not the same file.

    Raises:
        SettingError: two of them are.
    """
    found: set[str] = set()
    for target in targets:
        if target is not None:
            real = os.path.normcase(os.path.realpath(target))
            if real in found:
                raise SettingError(f"{target}: two outputs have this name. Give each its own.")
            found.add(real)


@contextlib.contextmanager
def numbered(folder: Path, name: str, ending: str = ".safetensors") -> Iterator[Path]:
    """``name_00001.safetensors``, or the next free number, in `folder`; as long as this lasts no other run gets the same one.

    Raises:
        OSError: the folder cannot be read or written.
    """
    # Case counts for no more than on the file systems that ignore it.
    pattern = re.compile(re.escape(name) + r"_([0-9]{1,9})" + re.escape(ending), re.IGNORECASE)
    number = max((int(match[1]) for match in map(pattern.fullmatch, os.listdir(folder)) if match), default=0)
    while True:
        number += 1
        path = folder / f"{name}_{number:05}{ending}"
        token = hashlib.sha256(path.name.casefold().encode("utf-8", "surrogatepass")).hexdigest()[:12]
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(atomic.held(folder / f"{atomic.START}{token}{atomic.LOCK}"))
            except BlockingIOError:
                continue
            if not os.path.lexists(path):
                yield path
                return


def note_folder(folder: Path) -> None:
    """Write the note into a folder that was just filled, so that a later run may overwrite it."""
    files = sorted({*_files(folder), FOLDER_NOTE})
    content = {"uniforget": __version__, "files": files}
    (folder / FOLDER_NOTE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _check_name(path: Path, ending: str | None) -> None:
    try:
        name = os.fsencode(path.name)
        shown = os.fsencode(path)
    except UnicodeEncodeError:
        raise SettingError(f"{str(path)!a}: this cannot be a name on this system. Choose another.") from None
    if path.name in ("", "..") or b"\0" in shown:
        raise SettingError(f"{ascii(str(path))[1:-1]}: expected the name of a new file or folder. Choose one.")
    if ending is not None and path.suffix != ending:
        raise SettingError(f"{path}: expected a name that ends in {ending}. Change it.")
    if not path.parent.is_dir():
        raise SettingError(f"{path}: its folder does not exist. Make it, or choose another place.")
    longest = os.pathconf(path.parent, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    if len(name) > longest:
        raise SettingError(f"{path}: expected a name of at most {longest} bytes; found {len(name)}. Choose a shorter one.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise SettingError(f"{path}: nothing can be written into its folder. Choose another place, or allow writing there.")


def _exists(path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # no name that a file can have
        return False


def _around(path: Path) -> list[Path]:
    """`path` and the folders that it is in, links resolved."""
    real = Path(os.path.realpath(path))
    return [real, *real.parents]


def _check_inputs(path: Path, inputs: Iterable[Path], folder: bool) -> None:
    """Neither is `path` an input, nor around one, nor inside of one; links and mounts are seen through."""
    there = path.exists()
    for one in inputs:
        if there and os.path.samefile(path, one):
            raise SettingError(f"{path}: this is {one} itself, which is read. Choose another name.")
        if one.is_dir() and any(os.path.samefile(parent, one) for parent in _around(path.parent)):
            raise SettingError(f"{path}: this is inside {one}, which is read. Choose another place.")
        if folder and there and any(os.path.samefile(parent, path) for parent in _around(one)):
            raise SettingError(f"{path}: {one}, which is read, is inside this folder. Choose another name.")


def _check_kind(path: Path, folder: bool) -> None:
    if path.is_symlink():
        raise SettingError(f"{path}: this is a link. Give the name of what is to be written, or remove the link.")
    mode = path.stat().st_mode
    if folder != stat.S_ISDIR(mode) or not (folder or stat.S_ISREG(mode)):
        found = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device or pipe"
        raise SettingError(f"{path}: expected a {'folder' if folder else 'file'}; found {found}. Choose another name.")


def _file_problem(path: Path, begins: bytes) -> str:
    """Why a file may not be overwritten; "": it carries our note."""
    if path.suffix == ".safetensors":
        try:
            untrusted.header_length(path)
            with safe_open(path, framework="numpy") as file:
                if any(key.startswith(MARK) for key in file.metadata() or {}):
                    return ""
        except (SafetensorError, OSError, ValueError):
            pass
    elif begins:
        with open(path, "rb") as file:
            if file.read(len(begins)) == begins:
                return ""
    return "UniForget left no note in this file"


def _folder_problem(path: Path, inputs: Iterable[Path]) -> str:
    """Why a folder may not be overwritten; "": its note lists everything in it, and no input is among that."""
    note = path / FOLDER_NOTE
    try:
        if note.is_symlink() or not note.is_file():
            return f"UniForget left no note ({FOLDER_NOTE}) in this folder"
        with open(note, "rb") as file:
            listed = untrusted.parse_json(file.read(LARGEST_NOTE + 1), LARGEST_NOTE)["files"]
        known = {name for name in listed if isinstance(name, str)}
    except (ValueError, TypeError, KeyError):
        return f"UniForget's note ({FOLDER_NOTE}) in this folder is damaged"
    # A mount can lead to a part of this folder under names that do not tell.
    read = {_identity(part) for one in inputs for part in _around(one)}
    for name in _files(path):
        if name not in known:
            return f"it holds {name}, which UniForget did not write"
        if read & {_identity(path / name), _identity((path / name).parent)}:
            return f"it holds {name}, which is read"
    return ""


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _files(folder: Path) -> Iterator[str]:
    """Everything in `folder` but plain folders, and also those that something is mounted on: with slashes, relative to it."""

    def refuse(error: OSError) -> None:
        raise error

    for at, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(at, name)) or os.path.ismount(os.path.join(at, name))]
        for name in [*files, *links]:
            yield Path(at, name).relative_to(folder).as_posix()
