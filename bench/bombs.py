"""Inputs that are made to take much memory or time: few kilobytes that unpack to much, long headers, deep nesting, many lines."""

from __future__ import annotations

import copy
import functools
import json
import struct
import zlib
from collections.abc import Callable

from .mutate import dump, empty_tensors, joined, refit


@functools.lru_cache
def bomb(size: int = 400 << 20) -> bytes:
    """A few hundred kilobytes that zlib would unpack to `size` zeros."""
    packer, block = zlib.compressobj(1), b"\0" * (1 << 20)
    return b"".join([*(packer.compress(block) for _ in range(size >> 20)), packer.flush()])


def bombs(content: bytes) -> list[bytes]:
    """Files that are made to take much memory or time, out of a valid safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    parts = {n: body[slice(*e["data_offsets"])] for n, e in header.items() if n != "__metadata__"}
    notes: dict[str, str] = header.get("__metadata__", {})
    out = [joined(b'{"__metadata__":{"a":"' + unit * (24 << 20) + b'"}}', b"") for unit in (b"x", b"\\n")]
    out += [joined(b"[" * (24 << 20), b""), joined(b'{"a":' * 200_000, body), joined(b'{"a":0,' * (2 << 20) + b'"a":0}', body)]
    out.append(joined(dump(header | empty_tensors(200_000, len(body))).encode(), body))
    out.append(joined(dump(header | {"__metadata__": notes | {f"n{i}": "" for i in range(300_000)}}).encode(), body))
    for name in notes:
        for more in ("9" * (1 << 20), "[" * (1 << 20), "[" + "[]," * (1 << 20) + "0]", '{"a":' * 50_000, "a " * (2 << 20)):
            out.append(joined(dump(header | {"__metadata__": notes | {name: more}}).encode(), body))
    for name, part in parts.items():
        # an announcement of terabytes, then streams that unpack to much: of zeros, of names
        again = copy.deepcopy(header)
        again[name] |= {"shape": [1 << 40], "data_offsets": [0, 1 << 40]}
        out.append(joined(dump(again).encode(), body))
        if part[:1] == b"\x78":
            for held in (bomb(), zlib.compress(b"a" * (30 << 20)), zlib.compress(b"\n".join(b"%x" % i for i in range(1 << 20)))):
                again = copy.deepcopy(header)
                out.append(joined(dump(again).encode(), refit(again, parts | {name: held}, True)))
    return out


def text_bombs(text: str, packed: bytes, wrap: Callable[[bytes], str]) -> list[str]:
    """Texts that are made to take much memory or time."""
    stuffed = [
        text + "A" * (8 << 20),
        " " * (8 << 20) + text,
        "uniforget-mask:" * (1 << 19),
        "\n" * (8 << 20),
        "\ud800" * (1 << 20),
    ]
    return [*stuffed, *(wrap(one) for one in (bomb(), *bombs(zlib.decompress(packed) if packed[:1] == b"\x78" else packed)))]


def line_bombs() -> list[bytes]:
    """Text files that are made to take much memory or time."""
    units = (
        b"\n",
        b"\n#",
        b" ",
        b"[",
        b"a\n",
        b'"a"\n',
        b"\r",
        b"\r\n",
        b'{"prompt":"',
        b"\xef\xbb\xbf",
        b"\0",
        b"\n\xe2\x80\xa8",
        b'{"a":',
    )
    out = [unit * ((8 << 20) // len(unit)) for unit in units]
    return [
        *out,
        b"\n".join(b"%x" % i for i in range(1 << 20)),
        b"\n".join(b'{"text":"%x"}' % i for i in range(1 << 19)),
        b"\n" * (70 << 20),
    ]
