"""Where checkpoints keep denoisers: prefixes, what other programs wrap around names, and formats that cannot be changed."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import FamilyError, MismatchError, ModelFileError
from ..model.detect import unsupported
from ..model.families.schema import Family
from ..model.fingerprint import fingerprint
from ..model.names import WRAPPER, plain
from ..model.sites import Site, find_sites, fingerprint_targets
from . import safefile
from .safefile import Entry, Header

# What names of a denoiser's weights begin with in checkpoints, one after the other; the second row is of training programs.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "net.")
_WRAPPERS = ("module.", "unet.", "transformer.", "state_dict.", "ema_model.", "ema.")
_DEEPEST = 3
EMA = "model_ema."
# Names of models in several files, as everybody writes them: what they have in common, the number of this one and of all.
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?=\.safetensors$)", re.IGNORECASE)
# Packed formats that show in names beside a weight: bitsandbytes, GPTQ and AWQ, HQQ, Quanto, NVFP4.
_COMPANION = re.compile(
    r"(.*?)(?:\.weight\.(?:quant_state\..*|absmax|quant_map|nested_\w+|_data)|\.(?:qweight|W_q|SCB|weight_scale_2))"
)
_PLAIN_FORMATS = ("float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Denoiser:
    """One denoiser in the files of a checkpoint.

    Attributes:
        prefix: what its names begin with there.
        wrappers: what was taken away from its names that no program but the one that saved them expects: ``_orig_mod.``, ``module.``, ...
        names: name relative to the denoiser -> full name.
        entries: name relative to the denoiser -> its file and tensor.
        family, sites: see :func:`uniforget.model.sites.find_sites`.
    """

    prefix: str
    wrappers: tuple[str, ...]
    names: dict[str, str]
    entries: dict[str, tuple[Header, Entry]]
    family: Family
    sites: tuple[Site, ...]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Relative name -> shape."""
        return {name: entry.shape for name, (_, entry) in self.entries.items()}

    def averages(self, name: str) -> str:
        """Where original Stable Diffusion checkpoints keep the moving average of a weight called `name` here."""
        return EMA + f"diffusion_model.{name}".replace(".", "")

    def fingerprint(self) -> str:
        """The same as the loaded model's (:mod:`uniforget.model.fingerprint`)."""
        weights = {}
        for site in fingerprint_targets(self.sites):
            path = site.places[0].path
            header, entry = self.entries[f"{path}.weight"]
            # fp8 files keep one scale per matrix.
            weights[path] = safefile.Values(header, entry, self._scale(path))
        return fingerprint(weights)

    def _scale(self, path: str) -> float:
        for name in (f"{path}.scale_weight", f"{path}.weight_scale"):
            header, entry = self.entries.get(name, (None, None))
            if header and entry and entry.dtype in safefile.DTYPES and math.prod(entry.shape) == 1:
                with safefile.mapped(header) as view, view(entry.start, entry.end) as piece:
                    return float(safefile.tensor(piece, entry).reshape(-1)[0])
        return 1.0

    def cautions(self) -> tuple[str, ...]:
        """What to tell about the names."""
        if not self.wrappers:
            return ()
        found = " and ".join(repr(w) for w in self.wrappers)
        return (
            f"Careful: names of weights in this file have {found} around them, which was left out to read them and is still there. Programs may "
            "not know the model by these names.",
        )


def find_denoisers(headers: Sequence[Header]) -> list[Denoiser]:
    """The denoiser that these files hold together, and further copies of it under other prefixes, the first one first.

    Raises:
        FamilyError: no part of them is a model that UniForget knows.
        MismatchError: see :func:`uniforget.model.sites.find_sites`.
        ModelFileError: its weights are packed in a way that they cannot be changed in, or this is one of several files that hold it.
    """
    path = headers[0].path
    part = SHARD.match(path.name)
    if part and len(headers) < int(part[3]):
        raise ModelFileError(
            f"{path}: by its name this is part {int(part[2])} of {int(part[3])}, and {len(headers)} of them {'is' if len(headers) == 1 else 'are'} given. "
            "Give the folder that holds all parts, so that none is left as it is."
        )
    everything = {name: (header, entry) for header in headers for name, entry in header.entries.items()}
    if not everything:
        raise FamilyError(f"{path}: this file has no weights.")
    cleaned = {name: plain(name) for name in everything}
    problem: FamilyError | None = None
    found: list[Denoiser] = []
    taken: set[str] = set()
    # A prefix that all names share is one, whatever it is.
    shared = os.path.commonprefix(list(cleaned.values())).rpartition(".")  # noqa: RUF071
    for prefix in dict.fromkeys([*_candidates(list(cleaned.values())), "", shared[0] + shared[1]]):
        names = {clean.removeprefix(prefix): full for full, clean in cleaned.items() if clean.startswith(prefix)}
        names = {name: full for name, full in names.items() if full not in taken}
        if not names:
            continue
        entries = {name: everything[full] for name, full in names.items()}
        shapes = {name: entry.shape for name, (_, entry) in entries.items()}
        if not found and not unsupported(shapes):
            refuse_packed(entries, path, names)
        try:
            family, sites = find_sites(shapes)
        except FamilyError as error:
            problem = problem or error
            continue
        except MismatchError:
            if found:
                continue
            raise
        inside = dict.fromkeys(m.group() for full in names.values() for m in WRAPPER.finditer(full))
        wrappers = (*(token for token in _tokens(prefix) if token not in _PREFIXES), *inside)
        found.append(Denoiser(prefix, wrappers, names, entries, family, tuple(sites)))
        taken.update(names.values())
    if not found:
        raise FamilyError(f"{path}: {problem}") from problem
    return found


def _candidates(names: Sequence[str], depth: int = _DEEPEST) -> Iterator[str]:
    """Prefixes that some of `names` have, the longest ones first."""
    if not depth:
        return
    for token in (*_PREFIXES, *_WRAPPERS):
        inner = [name.removeprefix(token) for name in names if name.startswith(token)]
        if inner:
            yield from (token + more for more in _candidates(inner, depth - 1))
            yield token


def _tokens(prefix: str) -> Iterator[str]:
    while prefix:
        token = next((t for t in (*_PREFIXES, *_WRAPPERS) if prefix.startswith(t)), prefix)
        yield token
        prefix = prefix.removeprefix(token)


def refuse_packed(entries: Mapping[str, tuple[Header, Entry]], path: Path, names: Mapping[str, str] | None = None) -> None:
    """See that weights are numbers that can be changed one by one, judged by dtypes and by what lies beside them.

    Args:
        entries: name -> its file and tensor; names: name -> full name, for the message.

    Raises:
        ModelFileError: they are not.
    """
    packed: dict[str, str] = {}
    shown: dict[str, str] = {}
    for name, (header, entry) in entries.items():
        base = name.removesuffix(".weight")
        companion = _COMPANION.fullmatch(name)
        if companion:
            packed.setdefault(companion[1], name.removeprefix(f"{companion[1]}."))
            shown.setdefault(companion[1], name)
        elif base != name and len(entry.shape) > 1 and entry.dtype not in safefile.DTYPES:
            packed[base] = entry.dtype
        elif name.endswith(".comfy_quant") and (kind := _quantization(header, entry)) not in _PLAIN_FORMATS:
            packed[name.removesuffix(".comfy_quant")] = kind
        elif name.endswith((".weight_scale", ".scale_weight")) and len(entry.shape) > 1 and math.prod(entry.shape[1:]) > 1:
            packed.setdefault(name.rpartition(".")[0], "a scale for every few weights")
    if packed:
        first, kind = next(iter(packed.items()))
        example = f"{first}.weight" if f"{first}.weight" in entries else shown[first]
        raise ModelFileError(
            f"{path}: {len(packed)} of the weights are packed ({kind}), such as {(names or {}).get(example, example)}. Use the fp16, bf16 or fp8 version of this model, "
            "sanitize that and convert the result, or apply the mask in ComfyUI."
        )


def _quantization(header: Header, entry: Entry) -> str:
    """The format that ComfyUI's note beside a weight names, with "rotated" behind it where the weight is."""
    try:
        with safefile.mapped(header) as view, view(entry.start, min(entry.end, entry.start + 65536)) as piece:
            note = json.loads(bytes(piece))
        rotated = " rotated" if note.get("convrot") or note.get("params", {}).get("convrot") else ""
        return f"{note['format']}{rotated}"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "a format that cannot be read"
