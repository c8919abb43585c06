"""Files that are either the old ones or the new ones, never half of something."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content` in one step.

    Raises:
        OSError: it could not be written. Nothing half-written is left, and what was there is unchanged.
    """
    # Short, so that every name that the disk allows can be saved.
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        # Not tempfile: its files are readable by their owner only, whatever the user's umask says.
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
