"""A mask's sites as a few bytes (docs/mask_format.md has the format)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

from .bitcode import CodeError

MAX_SITES = 8192
MAX_GATES = 16 << 20
MAX_TABLE = 2 << 20


def pack(sites: Iterable[tuple[str, int, str]]) -> bytes:
    """Sites ``(kind, units, name)`` as zlib-compressed lines ``kind.units.name``.

    A component that equals the one above it is left empty. Names must be dotted paths without empty components.
    """
    lines: list[str] = []
    above: list[str] = []
    for kind, units, name in sites:
        parts = [kind, str(units), *name.split(".")]
        lines.append(".".join("" if above[i : i + 1] == [part] else part for i, part in enumerate(parts)))
        above = parts
    return zlib.compress("\n".join(lines).encode("ascii"), 9)


def unpack(data: bytes, most: int = MAX_GATES) -> list[tuple[str, int, str]]:
    """Inverse of :func:`pack`; at most MAX_SITES sites with `most` gates together, no name twice.

    Raises:
        CodeError: `data` is no such table. Kinds and the characters of names are not checked here.
    """
    stream = zlib.decompressobj()
    try:
        table = stream.decompress(data, MAX_TABLE)
    except zlib.error as error:
        raise CodeError(f"its site table cannot be unpacked ({error})") from error
    if not stream.eof or stream.unused_data:
        raise CodeError(f"its site table is cut off, has something after it, or is larger than {MAX_TABLE} bytes")
    lines = table.decode("latin-1").split("\n")
    if len(lines) > MAX_SITES:
        raise CodeError(f"it has {len(lines)} sites, and {MAX_SITES} is the most")
    sites: dict[str, tuple[str, int]] = {}
    above: list[str] = []
    total = 0
    for number, line in enumerate(lines, 1):
        parts = line.split(".")
        if len(parts) < 3 or any(not part and i >= len(above) for i, part in enumerate(parts)):
            raise CodeError(f"line {number} of its site table is malformed")
        above = [part or above[i] for i, part in enumerate(parts)]
        kind, units, name = above[0], above[1], ".".join(above[2:])
        if not re.fullmatch(r"[1-9][0-9]{0,8}", units):
            raise CodeError(f"line {number} of its site table has no count of gates")
        total += int(units)
        if total > most:
            raise CodeError(f"it has more than {most} gates")
        if name in sites:
            raise CodeError(f"line {number} of its site table names a site again")
        sites[name] = (kind, int(units))
    return [(kind, units, name) for name, (kind, units) in sites.items()]
