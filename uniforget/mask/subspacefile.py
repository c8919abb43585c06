"""Subspace files: named-key safetensors, vectors in bf16 and spectra in float32; described in docs/mask_format.md."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import atomic
from ..errors import BadContentsError, MaskError, MaskFileError, MaskWriteError, NotAMaskError
from .file import check_start, parse
from .info import MaskInfo
from .subspace import Basis, SubspaceMask

# The one key of the metadata, as in files of gates.
MARK = "uniforget_subspace"
FORMAT_VERSION = 1
MAX_HEADER = 4 << 20
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 17
_NAME = re.compile(r"[!-~]{1,200}")


def save(subspace: SubspaceMask, path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Write `subspace` to `path`, replacing what is there in one step; vectors are rounded to bf16.

    Raises:
        MaskWriteError: it could not be written; what was there before is unchanged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise MaskWriteError(f"{path}: expected a name that ends in .safetensors. Add the ending.")
    tensors: dict[str, torch.Tensor] = {}
    for name, basis in subspace.bases.items():
        tensors[f"{name}.vectors"] = basis.vectors.to(torch.bfloat16).contiguous()
        tensors[f"{name}.energy"] = basis.energy.contiguous()
    about = {
        "format": FORMAT_VERSION,
        "digest": subspace.digest(),
        "threshold": subspace.threshold,
        "range": [subspace.low, subspace.high],
        "layers": [[name, subspace.kinds[name], base] for name, base in subspace.shared.items()],
        "bases": {name: [basis.first, basis.missed] for name, basis in subspace.bases.items()},
        **subspace.info.stored(),
    }
    metadata = {MARK: json.dumps(about, separators=(",", ":"))}
    try:
        atomic.replace_by(path, lambda temporary: save_file(tensors, temporary, metadata), overwrite)
    except (OSError, SafetensorError) as error:
        raise MaskWriteError(
            f"{path}: the subspace was not saved ({getattr(error, 'strerror', None) or error}). Free "
            f"{sum(t.nbytes for t in tensors.values()) / 1e6:.0f} MB on the disk, or choose another folder."
        ) from error


def is_subspace(path: str | os.PathLike[str]) -> bool:
    """Whether the file at `path` says that it is a subspace. Whatever else it is: False."""
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return MARK in (file.metadata() or {})
    except (MaskFileError, SafetensorError, OSError, ValueError):
        return False


def load(path: str | os.PathLike[str]) -> SubspaceMask:
    """Read a subspace. Nothing that the file says is believed before it is checked.

    Raises:
        MaskFileError: one of its subclasses, naming the file and what is wrong with it.
    """
    name = str(path)
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if MARK not in metadata:
                raise NotAMaskError(f"{name}: this safetensors file is no UniForget subspace. Choose one that UniForget saved.")
            about = parse(metadata[MARK], FORMAT_VERSION, name)
            digest, threshold, (low, high) = (about.pop(key) for key in ("digest", "threshold", "range"))
            if not all(type(value) in (int, float) for value in (threshold, low, high)):
                _bad(name, "its thresholds are no numbers")
            layers, bases = _table(about.pop("layers"), about.pop("bases"), name)
            # ComfyUI runs nodes in inference mode; subspaces are ordinary tensors wherever they were loaded.
            with torch.inference_mode(False):
                read = {base: _basis(file, base, *bases[base], name) for base in bases}
        shared, kinds = ({row[0]: row[i] for row in layers} for i in (2, 1))
        found = SubspaceMask(read, shared, kinds, threshold, MaskInfo.of(about), low, high)
        if found.digest() != digest:
            _bad(name, "its digest does not belong to its contents")
        return found
    except OSError as error:
        raise MaskFileError(f"{name}: the subspace file cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, KeyError, ValueError, TypeError, MaskError) as error:
        _bad(name, f"{error}"[:200])


def _check_header(path: str | os.PathLike[str]) -> None:
    """Refuse what is no safetensors file, or has a larger header than any subspace, before a library reads it."""
    if not os.path.isfile(path):
        raise NotAMaskError(f"{path}: expected a subspace; found no regular file. Choose a file that UniForget saved.")
    with open(path, "rb") as file:
        check_start(file.read(64), os.fstat(file.fileno()).st_size, str(path), MAX_HEADER)


def _bad(name: str, what: str) -> NoReturn:
    raise BadContentsError(
        f"{name}: this subspace file is damaged: {what}. Download or copy it again, or learn a new one."
    ) from None


def _table(layers: Any, bases: Any, name: str) -> tuple[list[list[str]], dict[str, tuple[int, float]]]:
    """Layers (name, kind, base) and bases (first, missed), checked."""
    if (
        not isinstance(layers, list)
        or not isinstance(bases, dict)
        or not 0 < len(layers) <= MAX_LAYERS
        or len(bases) > MAX_LAYERS
    ):
        _bad(name, "its layers are no list of layers")
    for row in layers:
        fits = isinstance(row, list) and len(row) == 3 and all(isinstance(part, str) and _NAME.fullmatch(part) for part in row)
        if not fits or row[1] not in ("ffn", "attn") or row[2] not in bases:
            _bad(name, f"a layer is described by {ascii(row)[:80]}")
    if len({row[0] for row in layers}) != len(layers):
        _bad(name, "a layer stands twice")
    for row in bases.values():
        fits = isinstance(row, list) and len(row) == 2 and type(row[0]) is int and 0 <= row[0] <= MAX_WIDTH
        if not fits or not isinstance(row[1], int | float) or not 0 <= row[1] <= 1:
            _bad(name, f"a basis is described by {ascii(row)[:80]}")
    return layers, {base: (first, float(missed)) for base, (first, missed) in bases.items()}


def _basis(file: Any, base: str, first: int, missed: float, name: str) -> Basis:
    vectors, energy = file.get_slice(f"{base}.vectors"), file.get_slice(f"{base}.energy")
    if vectors.get_dtype() != "BF16" or energy.get_dtype() != "F32":
        _bad(name, f"{base}: expected BF16 vectors and F32 energies; found {vectors.get_dtype()} and {energy.get_dtype()}")
    shape, size = vectors.get_shape(), energy.get_shape()
    if len(shape) != 2 or len(size) != 1 or shape[0] != size[0] or not 0 < size[0] <= MAX_WIDTH or shape[1] > shape[0]:
        _bad(name, f"{base}: vectors {tuple(shape)} and energies {tuple(size)} do not fit together")
    found = Basis(file.get_tensor(f"{base}.vectors").clone(), file.get_tensor(f"{base}.energy").clone(), first, missed)
    if not bool(torch.isfinite(found.energy).all()) or not bool(torch.isfinite(found.vectors).all()):
        _bad(name, f"{base}: its vectors or energies are no numbers")
    return found
