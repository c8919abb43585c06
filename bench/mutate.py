"""Damaged inputs as a stranger would craft them, the same for the same seed.

Three layers that call each other: :func:`tree` for whatever is JSON (headers, notes, indices, prompts, graphs), :func:`container` for
safetensors files, and :func:`data` for bytes. Each looks into what it finds, so a mask in base64 in a note of a header is taken apart, too.
What would take much memory or time is not left to chance: :mod:`bench.seeds`.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import math
import random
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

_RAW = re.compile('"\ue000(.*?)\ue000"')
_TWIN = "\ue001"  # at the end of a key that is to stand twice
DTYPES = (
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "I64", "I32", "I16", "I8", "U64"),
    *("U32", "U16", "U8", "BOOL", "C64", "", "u8", "F128", "float32", "object", "\0"),
)


def raw(text: str) -> str:
    """Stands for `text` itself in what :func:`dump` writes: JSON that Python would not write, or no JSON."""
    return f"\ue000{text}\ue000"


NUMBERS: tuple[Any, ...] = (
    *(0, -0.0, -1, 1, 2, 3, 255, 256, 65537, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63)),
    *(10**400, 0.5, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf, True),
    *map(raw, ("1e999", "9" * 5000, "-", "0x10", "1.", "01", "1e-999")),
)  # fmt: skip
TEXTS = (
    *("", " ", "0", "1", "2", "-1", "1e3", "1e999", "nan", "-inf", "0x1p9999", "0x", "9" * 5000, "x" * 300, "é", "\U0001f600", "\0", "a\0b"),
    *("\n", "a\nok  weights: as they were written", "\x1b[2J\x1b]0;t\x07", "\r\x1b[A", "\u202e", "\u2028", "\ufeff", "\x85", "\ud800", "a\udfff"),
    *("<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "javascript:alert(1)", "${x}", "{0.__class__}", "%s%n", "'\"`\\"),
    *("..", ".", "../x", "../../../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "\\\\host\\x", "con", "~", "~root", "|x", "a:b"),
    *("None", "null", "true", "__proto__", "__class__", "ffn", "ffn,ffn", "norm", "all", "a..b", ".a", "a.", "\u0663", "\u00b2", "1_0", " 1 "),
    *("os.system", "x.py", "x:y", "diffusers", "UNet2DConditionModel", "torch", "U8", "F32", "F4", "sd1", "1-", "-1", "1-999999999", ",,,"),
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    *(None, [], {}, [[]], [0, 1], [1, 0], [0, 0, 0], [None], {"a": 1}, {"": {}}, [0, 2**62], ["x", "X"], [True], "x" * 3000),
)
HEADS = (
    *(
        b"",
        b"\0",
        b"PK\x03\x04",
        b"\x80\x02",
        b"\x80\x04\x95",
        b"GGUF\x03\0\0\0",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x1f\x8b",
    ),
    *(b"{", b"\xff" * 8, b"\xff\xfe", b"\xef\xbb\xbf", b"\0" * 16, b"<!DOCTYPE html>", (1 << 40).to_bytes(8, "little") + b"{"),
)


def hostile(rng: random.Random) -> Any:
    """A value that nobody expects."""
    return copy.deepcopy(rng.choice(rng.choice((NUMBERS, TEXTS, TEXTS, OTHERS))))


# --- JSON


def dump(value: Any, plain: bool = True) -> str:
    """JSON, with keys that stand twice, numbers that are none, and (if not `plain`) characters as they are, halves of pairs included."""
    text = json.dumps(value, ensure_ascii=plain)
    if plain:
        text = re.sub(r"\\ue00([01])", lambda m: chr(0xE000 + int(m[1])), text)
    return _RAW.sub(lambda m: m[1], text).replace(_TWIN, "")


def encoded(rng: random.Random, value: Any) -> bytes:
    """The same in UTF-8, which halves of pairs make invalid unless they are escaped."""
    return dump(value, rng.random() < 0.7).encode("utf-8", "surrogatepass")


def tree(rng: random.Random, value: Any, times: int = 0) -> Any:
    """A copy of some JSON with one or a few places changed."""
    top = [copy.deepcopy(value)]
    for _ in range(times or rng.choice((1, 1, 1, 2, 3, 8))):
        where, key = rng.choice(_places(top))
        rng.choice(_CHANGES)(rng, where, key)
    return top[0]


def _places(top: list[Any]) -> list[tuple[Any, Any]]:
    """(list or dict, key) of all values in a tree, or of some thousands; those near the top more often."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [top]
    for holder in waiting:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], dict | list) and holder[key]]
        if len(found) > 3000:
            break
    return found + found[:5]


def _replace(rng: random.Random, where: Any, key: Any) -> None:
    same = {int: NUMBERS, float: NUMBERS, str: TEXTS, list: OTHERS, dict: OTHERS}.get(type(where[key]))
    where[key] = copy.deepcopy(rng.choice(same)) if same and rng.random() < 0.6 else hostile(rng)


def _nudge(rng: random.Random, where: Any, key: Any) -> None:
    """What it was, and a little else."""
    value = where[key]
    if isinstance(value, bool | None):
        where[key] = not value
    elif isinstance(value, int | float):
        where[key] = rng.choice((value + 1, value - 1, -value, value * 2, value * 1000, str(value), [value], 0.5))
    elif isinstance(value, str):
        where[key] = inside(rng, value)
    elif isinstance(value, list) and value:
        at = rng.randrange(len(value))
        where[key] = rng.choice((value[:at], value[at:], value + value, value[::-1], [*value, hostile(rng)], tuple(value)))
    elif isinstance(value, dict) and value:
        some = rng.sample(sorted(value, key=str), rng.randrange(len(value)))
        where[key] = {name: value[name] for name in some}


def _drop(rng: random.Random, where: Any, key: Any) -> None:
    if isinstance(where, dict):
        del where[key]
    else:
        where[key] = None


def _rename(rng: random.Random, where: Any, key: Any) -> None:
    if isinstance(where, dict):
        where[rng.choice((str(hostile(rng)), key + " ", key.upper(), inside(rng, key)))] = where.pop(key)


def _twice(rng: random.Random, where: Any, key: Any) -> None:
    if isinstance(where, dict):
        where[key + _TWIN] = rng.choice((where[key], hostile(rng)))
    else:
        where[key] = [where[key], where[key]]


def _add(rng: random.Random, where: Any, key: Any) -> None:
    if isinstance(where, dict):
        where[str(hostile(rng))] = rng.choice((where[key], hostile(rng)))


def _swap(rng: random.Random, where: Any, key: Any) -> None:
    keys = list(where) if isinstance(where, dict) else range(len(where))
    other = rng.choice(keys)
    where[key], where[other] = copy.deepcopy(where[other]), where[key]


def _deepen(rng: random.Random, where: Any, key: Any) -> None:
    deep = rng.choice((1, 2, 3, 60, 900, 5000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    where[key] = raw(opening * deep + "1" + closing * (deep if rng.random() < 0.8 else 0))


def _grow(rng: random.Random, where: Any, key: Any) -> None:
    """Much more of it, unless it is much already."""
    value, count = where[key], rng.choice((10, 300))
    if isinstance(value, str):
        where[key] = rng.choice(("x", "\n", "é", "<b>", "1,", "a.")) * 10 * count
    elif isinstance(value, dict) and len(str(value)) < 1000:
        some = next(iter(value.values()), 0)
        value |= {f"x{i}": some for i in range(count)}
    elif len(str(value)) < 1000:
        where[key] = [value] * count


_CHANGES: tuple[Callable[[random.Random, Any, Any], None], ...] = (
    *(_replace, _replace, _replace, _nudge, _nudge, _nudge, _drop, _rename, _twice, _add, _swap, _deepen, _grow),
)


def inside(rng: random.Random, text: str) -> str:
    """`text` with a change inside of what it holds: JSON, bytes in base64, a list, or only characters."""
    if text[:1] in ("{", "[") and rng.random() < 0.9:
        try:
            return dump(tree(rng, json.loads(text)), rng.random() < 0.8)
        except (ValueError, RecursionError):
            pass
    if len(text) > 24 and rng.random() < 0.9:
        try:
            packed = base64.b64decode(text, validate=True)
            return base64.b64encode(data(rng, packed)).decode()
        except (binascii.Error, ValueError):
            pass
    at, size = rng.randrange(len(text) + 1), rng.choice((1, 1, 2, 8, 64))
    kind = rng.randrange(6)
    if kind == 0:
        return text[:at] + text[at + size :]
    if kind == 1:
        return text[:at] + rng.choice(TEXTS) + text[at:]
    if kind == 2:
        return text[:at] + rng.choice("0123456789abcdefXYZ-+/=:.,;_ \n\0<&é\u202e\ud800") + text[at + 1 :]
    if kind == 3:
        return text[: at + size] + text[at:]
    if kind == 4:
        return text.swapcase()
    return text * rng.choice((2, 3, 50))


# --- bytes


def data(rng: random.Random, content: bytes) -> bytes:
    """Bytes with a change inside of what they are: a safetensors file, a zlib stream, or only bytes."""
    if content[:1] == b"\x78" and rng.random() < 0.8:
        try:
            held = zlib.decompress(content)
        except zlib.error:
            return bits(rng, content)
        return zlib.compress(data(rng, held))
    return container(rng, content) if content[8:9] == b"{" else bits(rng, content)


def bits(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, bytes set, removed, doubled or added, once or a few times; or all but the start or the end cut off."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = rng.randbytes(size)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size]
        elif kind == 4:
            out[at : at + size] = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * size
        elif kind == 5:
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**16, 2**24, 2**31, 2**32 - 1)))
        elif kind == 6:
            out[:] = out[at:] if rng.random() < 0.2 else out[:at]
        else:
            head = rng.choice(HEADS)
            out[: len(head)] = head
    return bytes(out)


# --- safetensors


def container(rng: random.Random, content: bytes) -> bytes:
    """A safetensors file with another header, other places or contents of tensors, or another length; the rest fits again, or not."""
    try:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        body = content[8 + length :]
        parts = {n: body[slice(*e["data_offsets"])] for n, e in header.items() if n != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return bits(rng, content)
    kind = rng.randrange(10)
    if kind < 3 and (notes := header.get("__metadata__")):
        header["__metadata__"] = tree(rng, notes)
    elif kind < 5:
        header = tree(rng, header)
    elif kind == 5 and parts:
        _misplace(rng, header[rng.choice(sorted(parts))], len(body))
    elif kind < 8 and parts:
        name = rng.choice(sorted(parts))
        parts[name] = data(rng, parts[name])
        body = refit(header, parts, rng.random() < 0.8)
    elif kind == 8:
        header |= empty_tensors(rng.choice((10, 300)), len(body))
    else:
        return bits(rng, content)
    size = None
    if rng.randrange(12) == 0:
        size = rng.choice((0, 1, length - 1, length + 1, length + len(body), 2**31, 2**63 - 1, 2**63, 2**64 - 1, 100_000_001))
    body = rng.choice((body, body, body, body, body, body, body[:-1], body + b"\0", body * 2, b""))
    return joined(encoded(rng, header), body, size)


def joined(header: bytes, body: bytes, size: int | None = None) -> bytes:
    """A file of these parts; `size`: what it says the header's is."""
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header) if size is None else size) + header + body


def empty_tensors(count: int, at: int) -> dict[str, Any]:
    """`count` entries of a header without a byte."""
    return {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [at, at]} for i in range(count)}


def _misplace(rng: random.Random, entry: dict[str, Any], size: int) -> None:
    """Say something else about where a tensor lies and what it is."""
    (first, last), shape = entry["data_offsets"], entry["shape"]
    kind = rng.randrange(4)
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        wrong = (
            [0],
            [0, 0],
            [],
            [-1, -1],
            [1] * 2000,
            [2**32, 2**32],
            [2**62, 4],
            [0, 2**62],
            [2**64],
            shape[::-1],
            [*shape, 1],
            [*shape, 0],
            [1.0],
        )
        entry["shape"] = rng.choice(wrong)
    elif kind == 2:
        wrong = (
            [0, last - first],
            [first, last - 1],
            [first + 1, last + 1],
            [last, first],
            [0, size],
            [size, size],
            [-8, last],
            [first],
            [0, 2**63],
        )
        entry["data_offsets"] = rng.choice(wrong)
    else:
        # as it was written, but of other elements: sub-byte ones included
        entry["dtype"], entry["shape"] = (
            rng.choice(DTYPES),
            [rng.choice((last - first, (last - first) * 2, (last - first) // 2, 1))],
        )


def refit(header: dict[str, Any], parts: dict[str, bytes], whole: bool) -> bytes:
    """The tensors' bytes one after the other, and their places in the header; if not `whole`, the places stay what they were."""
    body = b""
    for name in sorted(parts, key=lambda n: header[n]["data_offsets"][0]):
        entry, part = header[name], parts[name]
        if whole:
            entry["data_offsets"] = [len(body), len(body) + len(part)]
            if len(entry["shape"]) == 1 and entry["dtype"] in ("U8", "I8", "BOOL"):
                entry["shape"] = [len(part)]
        body += part
    return body


# --- text


def mask_text(rng: random.Random, text: str, packed: bytes, wrap: Callable[[bytes], str]) -> str:
    """The text of an embedded mask with other fields or characters; or other contents, `packed`, under a head that fits them (`wrap`)."""
    kind = rng.randrange(6)
    if kind < 3:
        return wrap(data(rng, packed))
    if kind == 3:
        parts = text.split(":")
        parts[rng.randrange(len(parts))] = str(rng.choice((*TEXTS, *NUMBERS, parts[rng.randrange(len(parts))])))
        return ":".join(parts)
    return inside(rng, text)


def lines(rng: random.Random, text: str) -> bytes:
    """A text file, or JSONL, with other lines or another encoding."""
    rows = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(rows))
        row = rows[at]
        if row[:1] in ("{", '"', "[") and rng.random() < 0.7:
            try:
                row = dump(tree(rng, json.loads(row)), rng.random() < 0.7)
            except (ValueError, RecursionError):
                row = inside(rng, row)
        else:
            row = rng.choice((inside(rng, row), rng.choice(TEXTS), '{"prompt": "x"}', '"x', "{a|b} [[c]]", "# x", "[" * 5000))
        rows[at : at + rng.randrange(2)] = [row]
    found = rng.choice(("\n", "\n", "\n", "\r", "\r\n", "\u2028")).join(rows)
    code = rng.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig", "utf-32"))
    out = found.encode(code, "surrogatepass")
    return bits(rng, out) if rng.randrange(6) == 0 else out
