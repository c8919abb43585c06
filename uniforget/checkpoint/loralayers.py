"""What a LoRA file changes: its pairs of factors, and the rows of which of the model's weights each pair is for.

Names of kohya's programs, of peft and of diffusers; of ComfyUI's or diffusers' modules, whichever the model's own file uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import MismatchError, ModelFileError
from ..model.detect import canonical, detect, translations
from . import safefile
from .denoiser import Denoiser
from .safefile import DTYPES, Header

# How the two factors are called: (down, up), behind the name of the layer.
_FACTORS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
# Other kinds of adapters, by what their names have and a LoRA's do not.
_OTHER = {
    "LoHa": re.compile(r"\.hada_"),
    "LoKr": re.compile(r"\.lokr_"),
    "DoRA": re.compile(r"\.dora_scale$|\.lora_magnitude_vector"),
    "OFT": re.compile(r"\.oft_|\.boft_"),
    "GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "a LoRA with a Tucker core": re.compile(r"\.lora_mid\.weight$"),
    "whole weights": re.compile(r"\.diff(?:_b)?$|\.set_weight$"),
}
_TEXT = re.compile(r"(?:lora|lycoris)_te\d?_|(?:base_model\.model\.)?(?:text_encoder|te\d?|clip_\w)[._]")
_PREFIX = re.compile(
    r"(?:base_model\.model\.)?(?:(?:lora|lycoris)_(?:unet|transformer)_|model\.diffusion_model\.|diffusion_model\.|unet\.|transformer\.|lycoris_)?"
)


@dataclass(frozen=True)
class Pair:
    """One layer's change.

    Attributes:
        layer: its name in the file, without what stands behind it.
        down, up: names of the factors' tensors: (r, in, ...) and (out, r, ...).
    """

    layer: str
    down: str
    up: str


@dataclass(frozen=True)
class Rows:
    """Some rows of a weight: `count` from `start` on; `swapped`: of all of them, the two halves exchanged."""

    path: str
    start: int
    count: int
    swapped: bool = False


def pairs(header: Header) -> tuple[list[Pair], list[Pair]]:
    """The layers that a LoRA changes, in the order of the file: of the denoiser, and of text encoders.

    Raises:
        ModelFileError: it is no LoRA, of a kind whose result could not be written as the same kind, or a factor is missing.
    """
    for kind, pattern in _OTHER.items():
        odd = [name for name in header.entries if pattern.search(name)]
        if odd:
            raise ModelFileError(
                f"{header.path}: this is {kind} ({len(odd)} tensors such as {odd[0]}), and what is taken out of it could not be written as the same "
                "kind. Expected a LoRA of two factors (lora_down and lora_up, or lora_A and lora_B). Convert it to a LoRA first."
            )
    denoiser: list[Pair] = []
    text: list[Pair] = []
    for name in header.entries:
        for down, up in _FACTORS:
            if name.endswith(down) or name.endswith(up):
                layer = name.removesuffix(down).removesuffix(up)
                pair = Pair(layer, layer + down, layer + up)
                _check(header, pair)
                if name == pair.up:
                    (text if _TEXT.match(layer) else denoiser).append(pair)
                break
    if not denoiser:
        more = f", which changes {len(text)} layers of text encoders alone" if text else ""
        raise ModelFileError(f"{header.path}: expected a LoRA of a diffusion model; found {len(header.entries)} tensors{more}.")
    return denoiser, text


def _check(header: Header, pair: Pair) -> None:
    down, up = header.entries.get(pair.down), header.entries.get(pair.up)
    if not down or not up:
        raise ModelFileError(
            f"{header.path}: {pair.layer} has {(down or up).name} alone; expected both factors. Download it again."  # type: ignore[union-attr]
        )
    fits = len(down.shape) >= 2 and len(up.shape) >= 2 and up.shape[1] == down.shape[0] and set(up.shape[2:]) <= {1}
    if not fits or not all(one.dtype in DTYPES and min(one.shape) for one in (down, up)):
        raise ModelFileError(
            f"{header.path}: {pair.layer}: expected factors (r, in) and (out, r) of numbers; found {down.dtype} {list(down.shape)} and "
            f"{up.dtype} {list(up.shape)}. Download it again."
        )


def matched(header: Header, found: Sequence[Pair], base: Denoiser) -> dict[str, list[Rows]]:
    """For each pair, by its layer's name, the rows of the model's weights that it changes, one below the other.

    Raises:
        MismatchError: the model has no such layer, or of another size.
    """
    weights = _Weights(base)
    out: dict[str, list[Rows]] = {}
    strange = []
    for pair in found:
        down, up = header.entries[pair.down], header.entries[pair.up]
        size = (up.shape[0], _flat(down.shape))
        rows = weights.find(_PREFIX.sub("", pair.layer, count=1), size[0])
        has = (sum(one.count for one in rows), weights.inputs(rows[0].path)) if rows else None
        if has == size:
            out[pair.layer] = rows
        else:
            strange.append(f"{pair.layer} {list(size)}" + (f" (there {list(has)})" if has else ""))
    if strange:
        raise MismatchError(
            f"{header.path}: {len(strange)} of the {len(found)} layers that this LoRA changes are not in {next(iter(base.entries.values()))[0].path.name} "
            f"({base.family.title}), such as {', '.join(strange[:3])}. Give the model that the LoRA was made for; a diffusers folder of it if the "
            "LoRA's names are diffusers'."
        )
    return out


def _flat(shape: Sequence[int]) -> int:
    size = 1
    for one in shape[1:]:
        size *= one
    return size


def _plain(name: str) -> str:
    """Kohya writes underscores for dots, and names have their own: compared are names with underscores alone."""
    return name.replace(".", "_")


class _Weights:
    """A model's weights by the names that LoRAs have for them."""

    def __init__(self, base: Denoiser):
        self.shapes = base.shapes()
        self.family, naming = detect(self.shapes)
        self.naming = None if naming else self.family.diffusers
        paths = [n.removesuffix(".weight") for n, s in self.shapes.items() if n.endswith(".weight") and len(s) >= 2]
        self.own: dict[str, list[Rows]] = {_plain(path): [self._whole(path)] for path in paths}
        if naming:
            for path, pieces in canonical(self.shapes, naming)[1].items():
                if all(f"{piece.path}.weight" in self.shapes for piece in pieces):
                    self.own.setdefault(_plain(path), [self._whole(p.path, p.swapped) for p in pieces])

    def _whole(self, path: str, swapped: bool = False) -> Rows:
        return Rows(path, 0, self.shapes[f"{path}.weight"][0], swapped)

    def inputs(self, path: str) -> int:
        return _flat(self.shapes[f"{path}.weight"])

    def find(self, layer: str, outputs: int) -> list[Rows]:
        """Rows of the layer that a LoRA calls `layer`, which has as many outputs; [] if there is none."""
        name = _plain(layer)
        if name in self.own or self.naming is None:
            return self.own.get(name, [])
        for known in translations(self.naming, name):
            if rows := self.own.get(_plain(known.path)):
                chunks = known.alias.swapped_chunks
                if known.of == 1:
                    swapped = bool(chunks) and chunks * self.inputs(rows[0].path) == rows[0].count
                    return [Rows(rows[0].path, 0, rows[0].count, swapped)]
                # of fused layers all parts but the last are of one size
                start = rows[0].count - outputs if known.number == known.of - 1 else known.number * outputs
                return [Rows(rows[0].path, start, outputs)] if start >= 0 and start + outputs <= rows[0].count else rows
        return []


def weight(base: Denoiser, rows: Sequence[Rows]) -> torch.Tensor:
    """What :func:`matched` found, read from the model's file: float32 (out, in)."""
    parts = []
    for one in rows:
        header, entry = base.entries[f"{one.path}.weight"]
        size = (entry.end - entry.start) // entry.shape[0]
        with (
            safefile.mapped(header) as view,
            view(entry.start + one.start * size, entry.start + (one.start + one.count) * size) as piece,
        ):
            part = safefile.tensor(piece, entry).float().flatten(1)
        parts.append(torch.cat(part.chunk(2)[::-1]) if one.swapped else part)
    return torch.cat(parts)


def factors(header: Header, pair: Pair, read: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """``(up (out, r), down (r, in))`` of a pair, float32."""
    return read[pair.up].float().flatten(1), read[pair.down].float().flatten(1)
