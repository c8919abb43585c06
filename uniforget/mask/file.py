"""Mask files: one safetensors file each, described in docs/mask_format.md.

The header is written and read here rather than by a library: same mask, same bytes, and nothing that a file claims is
believed before it is checked.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from .. import atomic
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
from . import bitcode, sitetable
from .bitcode import CodeError
from .info import MaskInfo, MaskSet, to_bytes

FORMAT_VERSION = 1
MAX_BYTES = 32 << 20
MAX_HEADER = 256 << 10

_TEXTS = ("family", "base", "base_name", "method", "preset", "prompts_hash", "version")
_REQUIRED = ("format_version", "uniforget", "family", "sparsity", "digest")
_OPTIONAL = ("base", "base_name", "method", "beta", "preset", "targets", "prompts_hash", "seed", "steps", "learn_seconds")
_EXTRA = "extra."
# First byte of soft gates; bitcode's codings are 0 to 2.
_ONE_BYTE_A_GATE = 3
_AGAIN = "Download or copy the mask again, or learn a new one."
_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def save(mask: MaskSet, path: str | os.PathLike[str]) -> None:
    """Write `mask` to `path`, replacing what is there in one step; the same mask always gives the same bytes.

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
        atomic.replace(path, content)
    except OSError as error:
        raise MaskWriteError(f"{path}: the mask was not saved ({error.strerror or error}). {_advice(error)}") from error


def load(path: str | os.PathLike[str]) -> MaskSet:
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


def dumps(mask: MaskSet, name: str = "mask") -> bytes:
    """The bytes of a mask file. `name` is used in messages.

    Raises:
        MaskError: a gate was changed in place to something that no gate can be.
        TooLargeError: the mask has more sites, gates or information than a file may hold.
    """
    # Tensors can be changed behind the mask's back, and NaN would be stored as any byte at all.
    mask = replace(mask)
    sites = [(mask.kinds[site], gates.numel(), site) for site, gates in mask.gates.items()]
    kinds, units, _ = zip(*sites, strict=True)
    for count, limit, what in ((len(sites), sitetable.MAX_SITES, "sites"), (sum(units), sitetable.MAX_GATES, "gates")):
        if count > limit:
            raise TooLargeError(f"{name}: a mask file holds at most {limit} {what}; this mask has {count}. Learn fewer targets.")
    values = np.concatenate([to_bytes(gates) for gates in mask.gates.values()])
    hard = bool(((values == 0) | (values == 255)).all())
    tensors = {
        "sites": sitetable.pack(sites),
        "gates": bitcode.encode(values == 255, units, kinds) if hard else bytes([_ONE_BYTE_A_GATE]) + values.tobytes(),
    }
    header: dict[str, Any] = {"__metadata__": format_info(mask)}
    end = 0
    for key, data in tensors.items():
        header[key] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise TooLargeError(
            f"{name}: a mask's information takes at most {MAX_HEADER} bytes; found {len(text)}. Shorten the extra texts."
        )
    return len(text).to_bytes(8, "little") + text + b"".join(tensors.values())


def loads(data: bytes, name: str = "mask", most: int = sitetable.MAX_GATES) -> MaskSet:
    """The mask that `data`, the bytes of a mask file, holds. `name` is used in messages, `most` is how many gates it may have.

    Raises:
        MaskFileError: as for :func:`load`.
    """
    header, body = _split(data, name)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or "uniforget" not in metadata:
        holds = ", ".join(_short(key) for key in sorted(header)[:3]) or "nothing"
        raise NotAMaskError(
            f"{name}: this safetensors file is no UniForget mask (it holds {holds}). "
            "Models and LoRAs cannot be loaded here: choose a mask that UniForget saved."
        )
    _check_metadata(metadata, name)
    tensors = _tensors(header, body, name)
    try:
        kinds, units, names = zip(*sitetable.unpack(tensors["sites"], most), strict=True)
        coded = tensors["gates"]
        if coded[:1] == bytes([_ONE_BYTE_A_GATE]):
            values = np.frombuffer(coded[1:], np.uint8).astype(np.float32) / np.float32(255)
        else:
            values = bitcode.decode(coded, units, kinds).astype(np.float32)
    except CodeError as error:
        _bad(name, str(error))
    if len(values) != sum(units):
        _bad(name, f"its sites have {sum(units)} gates and it holds {len(values)}")
    # ComfyUI runs nodes in inference mode; masks are ordinary tensors wherever they were loaded.
    with torch.inference_mode(False):
        pieces = [torch.from_numpy(piece.copy()) for piece in np.split(values, np.cumsum(units)[:-1])]
    try:
        mask = MaskSet(dict(zip(names, pieces, strict=True)), dict(zip(names, kinds, strict=True)), parse_info(metadata, name))
    except MaskError as error:
        _bad(name, str(error))
    for key, found in (("digest", mask.digest()), ("sparsity", _format_sparsity(mask))):
        if metadata[key] != found:
            _bad(name, f"its {key} says {_short(metadata[key])} and its gates say {found!r}")
    return mask


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


def _split(data: bytes, name: str) -> tuple[dict[str, Any], bytes]:
    """The header (parsed, unchecked) and what follows it."""
    if not data:
        raise TruncatedError(f"{name}: the file is empty. {_AGAIN}")
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or length > MAX_HEADER or data[8:9] != b"{":
        _refuse(data, name)
    if length > len(data) - 8:
        raise TruncatedError(
            f"{name}: the file is cut off: its header takes {length} bytes and {len(data) - 8} are there. {_AGAIN}"
        )
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_no_twice)
    except (ValueError, RecursionError) as error:
        _bad(name, f"its header cannot be parsed ({error})")
    if not isinstance(header, dict):
        _bad(name, "its header is no JSON object")
    return header, data[8 + length :]


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


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


def _check_metadata(metadata: dict[str, Any], name: str) -> None:
    if not all(isinstance(value, str) for value in metadata.values()):
        _bad(name, "its metadata must be texts")
    version = metadata.get("format_version", "")
    if re.fullmatch(r"[1-9][0-9]{0,8}", version) and int(version) > FORMAT_VERSION:
        raise NewerFormatError(
            f"{name}: this mask has format version {version}, and this UniForget reads up to {FORMAT_VERSION}. Update UniForget."
        )
    if version != str(FORMAT_VERSION):
        _bad(name, f"expected format_version {str(FORMAT_VERSION)!r}; found {_short(version)}")
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        _bad(name, f"its metadata lacks {', '.join(missing)}")
    extra = [key for key in metadata if key not in _REQUIRED + _OPTIONAL and not key.startswith(_EXTRA)]
    if extra:
        _bad(name, f"its metadata has unknown keys, such as {_short(extra[0])}")


def _tensors(header: dict[str, Any], body: bytes, name: str) -> dict[str, bytes]:
    """The two tensors' bytes: one after the other, together the whole body."""
    missing = [key for key in ("sites", "gates") if key not in header]
    if missing:
        _bad(name, f"it lacks the tensor {missing[0]!r}")
    if len(header) != 2:
        odd = next(key for key in header if key not in ("sites", "gates"))
        _bad(name, f"it holds an unknown tensor {_short(odd)}")
    found, end = {}, 0
    for key in ("sites", "gates"):
        entry = header[key]
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            _bad(name, f"tensor {key!r} is not described by dtype, shape and data_offsets")
        if entry["dtype"] != "U8":
            _bad(name, f"tensor {key!r}: expected dtype U8; found {_short(entry['dtype'])}")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _sizes(shape, 1) or not _sizes(offsets, 2) or offsets[0] != end or offsets[1] - end != shape[0]:
            _bad(name, f"tensor {key!r}: shape {_short(shape)} and data_offsets {_short(offsets)} do not fit together")
        end = offsets[1]
        found[key] = body[offsets[0] : end]
    if end > len(body):
        raise TruncatedError(f"{name}: the file is cut off: its contents take {end} bytes and {len(body)} are there. {_AGAIN}")
    if end < len(body):
        _bad(name, f"{len(body) - end} bytes follow its contents")
    return found


def _sizes(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(v) is int and 0 <= v <= MAX_BYTES for v in value)


def _format_sparsity(mask: MaskSet) -> str:
    return ",".join(f"{kind}={share:.3f}" for kind, share in mask.sparsity().items())


def format_info(mask: Any) -> dict[str, str]:
    """A mask's (or subspace's) information as safetensors metadata."""
    info = mask.info
    found = {
        "format_version": str(FORMAT_VERSION),
        "uniforget": info.version,
        **{key: getattr(info, key) for key in _TEXTS if key != "version"},
        "beta": repr(info.beta),
        "targets": ",".join(info.targets),
        "seed": str(info.seed),
        "steps": str(info.steps),
        "learn_seconds": repr(info.learn_seconds),
        "sparsity": _format_sparsity(mask),
        "digest": mask.digest(),
        **{_EXTRA + key: value for key, value in sorted(info.extra.items())},
    }
    return {key: value for key, value in found.items() if value or key == "uniforget" or key.startswith(_EXTRA)}


def parse_info(metadata: Mapping[str, str], name: str) -> MaskInfo:
    """The information that :func:`format_info` wrote. `name` is used in messages.

    Raises:
        BadContentsError: a number is none.
    """

    def number(key: str, pattern: str, kind: type) -> Any:
        text = metadata.get(key, "0")
        if not re.fullmatch(pattern, text):
            _bad(name, f"{key} is no number: {_short(text)}")
        return kind(text)

    real = r"[0-9]{1,20}(\.[0-9]{1,20})?(e[+-]?[0-9]{1,3})?"
    targets = metadata.get("targets", "")
    return MaskInfo(
        **{key: metadata.get(key, "") for key in _TEXTS if key != "version"},
        version=metadata["uniforget"],
        beta=number("beta", real, float),
        targets=tuple(targets.split(",")) if targets else (),
        seed=number("seed", r"[0-9]{1,20}", int),
        steps=number("steps", r"[0-9]{1,20}", int),
        learn_seconds=number("learn_seconds", real, float),
        extra={key.removeprefix(_EXTRA): value for key, value in metadata.items() if key.startswith(_EXTRA)},
    )
