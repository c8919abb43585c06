"""Files and folders that are the old ones or the new ones, never half of something, whenever a run is killed.

New content lies beside its target under a hidden name of this run's own, which the run holds a lock on. The system drops the lock when the
run ends, however it ends, and later runs remove what nobody holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

START, TEMPORARY, LOCK, ASIDE = ".uniforget-", ".tmp", ".lock", ".old"
_NO_REPLACE, _EXCHANGE, _HERE = 1, 2, -100  # renameat2's flags; AT_FDCWD
# What disks that have no hard links say.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EMLINK, errno.EOPNOTSUPP, getattr(errno, "ENOTSUP", errno.EOPNOTSUPP)}
# What this process holds: some network file systems grant a process its own locks again.
_own: set[Path] = set()


def replace(path: Path, content: bytes, overwrite: bool = True) -> None:
    """Put `content` at `path` in one step.

    Args:
        overwrite: False: there must be no such file, also none that appeared in the meantime.

    Raises:
        FileExistsError: `path` exists, and must not.
        OSError: it could not be written. Nothing half-written is left, and what was there is unchanged.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()

    replace_by(path, write, overwrite)


def replace_by(path: Path, write: Callable[[Path], None], overwrite: bool = True) -> None:
    """Put at `path`, in one step, what `write` writes into the empty file that it is told.

    Raises:
        OSError: as for :func:`replace`; and whatever `write` raises, after which the old file is unchanged, too.
    """
    with _temporary(path.parent, _make_file) as temporary:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _place(temporary, path)


def replace_folder(path: Path, fill: Callable[[Path], None], overwrite: bool = True) -> None:
    """Put at `path`, in one step, the folder that `fill` fills. One that is there is swapped with it, and removed only then.

    Raises:
        OSError: as for :func:`replace`; and whatever `fill` raises, after which the old folder is unchanged, too.
    """
    with _temporary(path.parent, _make_folder) as temporary:
        fill(temporary)
        if not os.path.lexists(path):
            os.rename(temporary, path)
        elif not overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        elif not _rename(temporary, path, _EXCHANGE):
            _swap(temporary, path)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file at `path`, which is made for it and removed afterwards.

    Raises:
        BlockingIOError: another run holds it.
        OSError: it cannot be made.
    """
    if path in _own:
        raise BlockingIOError(f"{path} is held by this run.")
    lock = None
    _own.add(path)
    try:
        while lock is None:
            if os.path.lexists(path) and not _remove_dead(path):
                raise BlockingIOError(f"{path} is held by another run.")
            with contextlib.suppress(FileExistsError):
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                if not _lock(lock, path):
                    os.close(lock)
                    lock = None
        yield
    finally:
        _own.discard(path)
        if lock is not None:
            if os.name == "nt":  # which removes no file that is open
                os.close(lock)
            with contextlib.suppress(OSError):
                os.unlink(path)
            if os.name != "nt":
                os.close(lock)


def sweep(folder: Path) -> None:
    """Remove what dead runs left in `folder`, and put back what they had moved aside."""
    try:
        found = [folder / entry.name for entry in os.scandir(folder) if entry.name.startswith(START)]
    except OSError:
        return
    for path in found:
        if path in _own:
            continue
        if path.suffix in (TEMPORARY, LOCK):
            _remove_dead(path)
        elif path.suffix == ASIDE and (lock := _take(path)) is not None:
            with contextlib.suppress(OSError):
                home = path.with_name(path.name[len(START) : -len(ASIDE)])
                if os.path.lexists(home):
                    shutil.rmtree(path)
                else:
                    os.rename(path, home)
            os.close(lock)


@contextlib.contextmanager
def _temporary(folder: Path, make: Callable[[Path], int | None]) -> Iterator[Path]:
    """A new file or folder in `folder` that nobody else touches; removed afterwards, if it still has this name."""
    sweep(folder)
    lock: int | None = None
    # Short, so that every name that the disk allows can be saved.
    path = folder / f"{START}{secrets.token_hex(6)}{TEMPORARY}"
    _own.add(path)
    try:
        while (lock := make(path)) is not None and not _lock(lock, path):
            os.close(lock)
        yield path
    finally:
        _discard(path)
        if lock is not None:
            os.close(lock)
        _own.discard(path)


def _make_file(path: Path) -> int | None:
    # Not tempfile: its files are readable by their owner only, whatever the user's umask says.
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    if fcntl is not None:
        return lock
    os.close(lock)  # Windows renames no file that is open
    return None


def _make_folder(path: Path) -> int | None:
    os.mkdir(path)
    return None if fcntl is None else os.open(path, os.O_RDONLY)


def _lock(lock: int, path: Path) -> bool:
    """Lock what was just made; False: another run took it for a dead one's, and removed it."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        return os.name == "nt" or os.path.samestat(os.fstat(lock), os.lstat(path))
    except OSError:
        return False


def _take(path: Path) -> int | None:
    """The lock of what a dead run left; None: somebody holds it, or nobody can tell."""
    if fcntl is None:
        return None
    for mode in (os.O_RDWR, os.O_RDONLY):  # folders cannot be opened for writing
        try:
            lock = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK)
        except IsADirectoryError:
            continue
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError:
            os.close(lock)
            return None
    return None


def _remove_dead(path: Path) -> bool:
    """Remove what a dead run left; False: it is alive, or nobody can tell."""
    if fcntl is None:
        if path.suffix == TEMPORARY and time.time() - path.stat().st_mtime < 24 * 3600:
            return False
        _discard(path)
        return not os.path.lexists(path)
    lock = _take(path)
    if lock is None:
        return not os.path.lexists(path)
    _discard(path)
    os.close(lock)
    return not os.path.lexists(path)


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _place(temporary: Path, path: Path) -> None:
    """Give a finished file its name, which nobody may have."""
    if os.name == "nt":
        os.rename(temporary, path)  # which replaces nothing there
        return
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not _rename(temporary, path, _NO_REPLACE):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            os.replace(temporary, path)


def _swap(new: Path, path: Path) -> None:
    """Two steps where the system has no single one. A run that is killed between them leaves the old folder aside, and :func:`sweep` puts it back."""
    aside = path.with_name(f"{START}{path.name}{ASIDE}")
    lock = None if fcntl is None else os.open(path, os.O_RDONLY)
    try:
        if lock is not None:
            _lock(lock, path)
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except OSError:
            os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        if lock is not None:
            os.close(lock)


def _rename(old: Path, new: Path, flag: int) -> bool:
    """Linux's renameat2; False: it failed, or this system has none."""
    try:
        call = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call(_HERE, os.fsencode(old), _HERE, os.fsencode(new), flag) == 0
