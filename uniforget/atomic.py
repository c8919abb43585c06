"""Files that are either the old ones or the new ones, never half of something."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content` in one step.

    Raises:
        OSError: it could not be written. Nothing half-written is left, and what was there is unchanged.
    """

    def write(temporary: Path) -> None:
        # Not tempfile: its files are readable by their owner only, whatever the user's umask says.
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()

    replace_by(path, write)


def replace_by(path: Path, write: Callable[[Path], None]) -> None:
    """Replace the file at `path` in one step by what `write` puts into the file that it is told.

    Raises:
        OSError: as for :func:`replace`; and whatever `write` raises, after which the old file is unchanged, too.
    """
    # Short, so that every name that the disk allows can be saved.
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
