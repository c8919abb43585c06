"""Files of gates: one safetensors file each, described in docs/mask_format.md.

Sizes and counts are checked before anything is unpacked or put together, because files come from strangers.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from safetensors.numpy import save as to_safetensors

from .. import atomic, untrusted
from ..errors import (
    BadContentsError,
    MaskError,
    MaskFileError,
    MaskFileMissingError,
    MaskWriteError,
    NewerFormatError,
    NotAMaskError,
    PickleRefusedError,
    TooLargeError,
    TruncatedError,
)
from ..model.families.schema import KINDS
from .info import GateMask, MaskInfo, to_bytes

# The one key of the metadata; it holds JSON, because safetensors writes several keys in any order.
MARK = "uniforget_mask"
FORMAT_VERSION = 1
MAX_BYTES = 32 << 20
MAX_HEADER = 256 << 10
MAX_INFO = 120 << 10  # characters of JSON; inside the header's own JSON some of them take two
MAX_SITES = 8192
MAX_GATES = 16 << 20
MAX_TABLE = 216 * MAX_SITES

_SITE = re.compile(rf"({'|'.join(KINDS)}) ([1-9][0-9]{{0,8}}) (\S+)")
_AGAIN = "Download or copy the mask again, or learn a new one."
_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def save(mask: GateMask, path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Write `mask` to `path` in one step, replacing what is there if `overwrite`; the same mask always gives the same bytes.

    Hard masks keep their gates exactly; soft ones are rounded to steps of 1/255.

    Raises:
        MaskWriteError: it could not be written. Nothing half-written is left, and an existing file is unchanged.
        MaskError, TooLargeError: as for :func:`dumps`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise MaskWriteError(f"{path}: expected a name that ends in .safetensors. Add the ending.")
    content = dumps(mask, str(path))
    try:
        atomic.replace(path, content, overwrite)
    except OSError as error:
        raise MaskWriteError(f"{path}: the mask was not saved ({error.strerror or error}). {_advice(error)}") from error


def load(path: str | os.PathLike[str]) -> GateMask:
    """Read a mask from `path`.

    Raises:
        MaskFileError: one of its subclasses (see :mod:`uniforget.errors`), naming the file and what is wrong with it.
    """
    return loads(read_bytes(path), str(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file that is small enough to be a mask.

    Raises:
        MaskFileError: it is missing, no regular file, too large or cannot be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise NotAMaskError(f"{path}: expected a mask file; found {what}. Choose a .safetensors file.")
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1) if status.st_size <= MAX_BYTES else b""
    except FileNotFoundError as error:
        raise MaskFileMissingError(f"{path}: there is no such mask file. Check the name, or put the file there.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MaskFileError(
            f"{path}: the mask file cannot be read ({reason}). Check the name and the file's permissions."
        ) from error
    size = max(status.st_size, len(data))
    if size > MAX_BYTES:
        raise TooLargeError(
            f"{path}: expected at most {MAX_BYTES >> 20} MB; found {size / (1 << 20):.0f} MB. This is probably a model: "
            "choose a mask that UniForget saved."
        )
    return data


def dumps(mask: GateMask, name: str = "mask") -> bytes:
    """The bytes of a mask file. `name` is used in messages.

    Raises:
        MaskError: a gate was changed in place to something that no gate can be.
        TooLargeError: the mask has more sites, gates or information than a file may hold.
    """
    # Tensors can be changed behind the mask's back, and NaN would be stored as any byte at all.
    mask = replace(mask)
    total = sum(gates.numel() for gates in mask.gates.values())
    for count, limit, what in ((len(mask.gates), MAX_SITES, "sites"), (total, MAX_GATES, "gates")):
        if count > limit:
            raise TooLargeError(f"{name}: a mask file holds at most {limit} {what}; this mask has {count}. Learn fewer targets.")
    table = "".join(f"{mask.kinds[site]} {gates.numel()} {site}\n" for site, gates in mask.gates.items())
    values = np.concatenate([to_bytes(gates) for gates in mask.gates.values()])
    hard = bool(((values == 0) | (values == 255)).all())
    gates = np.packbits(values == 255, bitorder="little") if hard else values
    packed = {"sites": table.encode("ascii"), "bits" if hard else "bytes": gates.tobytes()}
    about = {"format": FORMAT_VERSION, "digest": mask.digest(), **mask.info.stored()}
    text = json.dumps(about, separators=(",", ":"))
    if len(text) > MAX_INFO:
        raise TooLargeError(
            f"{name}: a mask's information takes at most {MAX_INFO} characters; found {len(text)}. Shorten the extra texts."
        )
    return to_safetensors({key: np.frombuffer(_pack(data), np.uint8) for key, data in packed.items()}, {MARK: text})


def loads(data: bytes, name: str = "mask", most: int = MAX_GATES) -> GateMask:
    """The mask that `data`, the bytes of a mask file, holds. `name` is used in messages, `most` is how many gates it may have.

    Raises:
        MaskFileError: as for :func:`load`.
    """
    check_start(data, len(data), name)
    try:
        tensors = {key: bytes(entry["data"]) for key, entry in safetensors.deserialize(data)}
        header = untrusted.parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")], MAX_HEADER)
    except (SafetensorError, ValueError) as error:
        # What its header describes does not fill the file, or is more than there is.
        if "not fully covered" in str(error):
            raise TruncatedError(f"{name}: the file is cut off, or something follows its end. {_AGAIN}") from None
        if "expected a string" in str(error):
            raise BadContentsError(
                f"{name}: a value in its metadata is no text, so another program has changed this mask. Ask for the file as UniForget saved it."
            ) from None
        _bad(name, f"its header cannot be read ({error})"[:200])
    metadata = header.get("__metadata__") or {}
    if MARK not in metadata:
        holds = ", ".join(_short(key) for key in sorted(tensors)[:3]) or "nothing"
        raise NotAMaskError(
            f"{name}: this safetensors file is no UniForget mask (it holds {holds}). "
            "Models and LoRAs cannot be loaded here: choose a mask that UniForget saved."
        )
    about = parse(metadata[MARK], FORMAT_VERSION, name)
    hard = "bits" in tensors
    if tensors.keys() != {"sites", "bits" if hard else "bytes"}:
        _bad(name, f"it holds the tensors {_short(sorted(tensors))}, not sites and bits or bytes")
    sites = _sites(_unpack(tensors["sites"], MAX_TABLE, "sites", name), most, name)
    units = [count for _, count in sites.values()]
    count = sum(units)
    size = (count + 7) // 8 if hard else count
    packed = np.frombuffer(_unpack(tensors["bits" if hard else "bytes"], size, "gates", name), np.uint8)
    if len(packed) != size:
        _bad(name, f"its sites have {count} gates, which take {size} bytes; found {len(packed)}")
    values = np.unpackbits(packed, count=count, bitorder="little") if hard else packed / np.float32(255)
    # ComfyUI runs nodes in inference mode; masks are ordinary tensors wherever they were loaded.
    with torch.inference_mode(False):
        pieces = torch.from_numpy(values.astype(np.float32)).split(units)
        gates = {site: piece.clone() for site, piece in zip(sites, pieces, strict=True)}
    digest = about.pop("digest", None)
    try:
        mask = GateMask(gates, {site: kind for site, (kind, _) in sites.items()}, MaskInfo.of(about))
    except MaskError as error:
        _bad(name, str(error))
    if digest != mask.digest():
        _bad(name, f"its digest says {_short(digest)} and its gates say {mask.digest()!r}")
    return mask


def check_start(data: bytes, size: int, name: str, most: int = MAX_HEADER) -> None:
    """See that a file of `size` bytes that starts with `data` (nine or more) is a safetensors file with a header of `most` bytes.

    Raises:
        MaskFileError: it is something else; the message says what.
    """
    if not data:
        raise TruncatedError(f"{name}: the file is empty. {_AGAIN}")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or length > most or data[8:9] != b"{":
        _refuse(data, name)
    if length > size - 8:
        raise TruncatedError(f"{name}: the file is cut off: its header takes {length} bytes and {size - 8} are there. {_AGAIN}")


def parse(text: str, version: int, name: str) -> dict[str, Any]:
    """What the metadata says about a mask, without the format's version.

    Raises:
        MaskFileError: it was written by a newer version, or is damaged.
    """
    try:
        about = untrusted.parse_json(text, len(text))
    except ValueError as error:
        _bad(name, f"its metadata cannot be read ({error})"[:200])
    found = about.pop("format", None) if isinstance(about, dict) else None
    if type(found) is int and found > version:
        raise NewerFormatError(
            f"{name}: this file has format version {_short(found)}, and this UniForget reads up to {version}. Update UniForget."
        )
    if found != version:
        _bad(name, f"expected format version {version}; found {_short(found)}")
    return about


def _pack(data: bytes) -> bytes:
    """A zlib stream, the shorter one of two: gates have no repetitions to find, but unequal bytes and long runs."""
    streams = [zlib.compressobj(9, strategy=strategy) for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE)]
    return min((stream.compress(data) + stream.flush() for stream in streams), key=len)


def _unpack(data: bytes, most: int, what: str, name: str) -> bytes:
    """What a zlib stream holds, which may be `most` bytes."""
    try:
        return untrusted.inflate(data, most)
    except ValueError as error:
        _bad(name, f"{what}: {error}")


def _sites(table: bytes, most: int, name: str) -> dict[str, tuple[str, int]]:
    """Site -> kind and number of gates, which together may be `most`."""
    if table.count(b"\n") > MAX_SITES:
        _bad(name, f"it has more than {MAX_SITES} sites")
    sites: dict[str, tuple[str, int]] = {}
    total = 0
    for line in table.decode("latin-1").splitlines():
        match = _SITE.fullmatch(line)
        if not match or match[3] in sites:
            _bad(name, f"a site is described by {_short(line)}")
        total += int(match[2])
        if total > most:
            _bad(name, f"it has more than {most} gates")
        sites[match[3]] = (match[1], int(match[2]))
    return sites


def _bad(name: str, what: str) -> NoReturn:
    raise BadContentsError(f"{name}: this mask file is damaged: {what}. {_AGAIN}") from None


def _short(value: Any) -> str:
    """What a file says, for a message; it may be anything and very long."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _advice(error: OSError) -> str:
    if error.errno in _SPACE:
        return "The disk is full: free some space and save again."
    if error.errno in _DENIED:
        return "The folder or file is read-only, or open in another program: allow writing there or choose another folder."
    if error.errno == errno.ENAMETOOLONG:
        return "Choose a shorter name."
    return "Check that the folder exists and can be written to."


def _refuse(data: bytes, name: str) -> NoReturn:
    """Say what a file is that does not start like a safetensors file."""
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        what = "a zip file, probably a PyTorch checkpoint (pickle)"
    elif re.match(rb"\x80[\x02-\x05]", data):
        what = "a pickle"
    else:
        if data.startswith(b"GGUF"):
            what = "a GGUF model"
        elif data.startswith(b"version https://git-lfs"):
            what = "a Git LFS pointer; run 'git lfs pull' to get the file itself"
        elif data[8:9] == b"{":
            what = "a safetensors file with a larger header than any mask has"
        elif len(data) < 9:
            raise TruncatedError(f"{name}: the file is cut off: it has only {len(data)} bytes. {_AGAIN}")
        else:
            what = f"data that starts with {data[:8]!r}"
        raise NotAMaskError(f"{name}: expected a mask file; found {what}. Choose a mask that UniForget saved.")
    raise PickleRefusedError(
        f"{name}: refused: pickle. Expected a safetensors file; found {what}, whatever its name says. Pickles can run code when "
        "opened, so UniForget never opens one. Choose a mask that UniForget saved."
    )
