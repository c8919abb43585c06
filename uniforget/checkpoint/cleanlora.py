"""Clean LoRA: a LoRA that keeps its style or subject and gives up what it learned by heart; a file in, a file of the same kind out.

Only the factors that write (``lora_up``, ``lora_B``) change; they keep their shape and dtype, and everything else in the file stays byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import __version__, outputs, untrusted
from ..config.copies import CLEAN_LORA
from ..errors import ModelFileError
from . import safefile
from .channels import alignment, channels
from .denoiser import Denoiser, find_denoisers
from .folder import denoiser_files
from .loralayers import Pair, factors, matched, pairs, weight
from .safefile import Header

NOTE = "uniforget_cleaned"


@dataclass(frozen=True)
class Cleaned:
    """What was done.

    Attributes:
        target: the file that was written.
        layers: layers of the denoiser that the LoRA changes; ``text``: of text encoders, which stay as they are.
        channels: all channels of those layers; ``removed``: how many of them were taken out.
        left: share of the change's energy (sum of squared sizes) that is left in all.
        cautions: sentences for whoever asked for it.
    """

    target: Path
    layers: int
    text: int
    channels: int
    removed: int
    left: float
    cautions: tuple[str, ...] = ()

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"saved as {self.target}: {self.removed:,} of {self.channels:,} channels taken out of {self.layers} layers, "
            f"{self.left:.0%} of the LoRA's strength is left"
        ]
        return "\n".join([*lines, *self.cautions])


def open_base(path: Path) -> Denoiser:
    """The denoiser in a model's file, or in a diffusers folder.

    Raises:
        ModelFileError, FamilyError, MismatchError: it cannot be read, or is no model that UniForget knows.
    """
    files = denoiser_files(path)[1][0] if os.path.isdir(path) else [path]
    return find_denoisers([safefile.read_header(one) for one in files])[0]


def clean(
    lora: Path,
    base: Path,
    target: Path,
    keep: float = CLEAN_LORA["keep"].default,
    strength: float = CLEAN_LORA["strength"].default,
    overwrite: bool = False,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Cleaned:
    """Write a copy of a LoRA without the channels that the model's own weights say least about.

    Channels of all layers are ranked by :func:`uniforget.checkpoint.channels.alignment`; of their energy, `keep` stays. Needs no pictures, no
    prompts and no sampling: seconds on a CPU.

    Args:
        base: the model that the LoRA is for: a .safetensors file or a diffusers folder.
        strength: 1 takes those channels out, 0 leaves them.
        report: is told the layers done and their number.

    Raises:
        ModelFileError: a file cannot be read or written, or is no LoRA whose result could be written as the same kind.
        FamilyError, MismatchError: the model is unknown, or the LoRA is not for it.
        SettingError: the target may not be written (:func:`uniforget.outputs.check`), or a setting is out of range.
    """
    keep, strength = CLEAN_LORA["keep"].check(keep), CLEAN_LORA["strength"].check(strength)
    outputs.check(target, overwrite, [lora, base])
    header = safefile.read_header(lora)
    found, text = pairs(header)
    model = open_base(base)
    where = matched(header, found, model)
    read = _tensors(header, found)
    aligned, sizes = [], []
    for done, pair in enumerate(found):
        report(done, len(found))
        up, down = factors(header, pair, read)
        numbers = [up, down]
        with contextlib.suppress(torch.linalg.LinAlgError):  # of what is no number, or beyond float32
            split = channels(up, down)
            numbers += [alignment(split, weight(model, where[pair.layer])), split.size * _scale(header, pair)]
            aligned.append(numbers[2])
            sizes.append(numbers[3])
        if len(numbers) < 4 or not all(bool(torch.isfinite(one).all()) for one in numbers):
            raise ModelFileError(
                f"{lora}: {pair.layer} holds numbers that are not finite or too large, or the model's own weight does, so one of the files is broken. "
                "Download them again."
            )
    gates = choose(aligned, sizes, keep)
    changes = {}
    for pair, gate in zip(found, gates, strict=True):
        if strength and bool((gate < 1).any()):
            changes[pair.up] = _change(header, pair, read, 1 - strength * (1 - gate))
    energy = torch.cat(sizes).double().square()
    kept = (1 - strength * (1 - torch.cat(gates))).square()
    note = {
        "version": __version__,
        "method": "spectral",
        "keep": keep,
        "strength": strength,
        "lora": header.path.name,
        "base": model.fingerprint(),
    }
    metadata = {**header.metadata, NOTE: json.dumps(note, separators=(",", ":"))}
    safefile.rewrite(header, target, changes, lambda before, after: metadata, overwrite=overwrite)
    report(len(found), len(found))
    count = sum(map(len, gates))
    share = float((energy * kept).sum() / energy.sum().clamp(min=1e-30))
    return Cleaned(
        target, len(found), len(text), count, count - int(torch.cat(gates).sum()), share, _cautions(header, text, model, changes)
    )


def choose(aligned: Sequence[torch.Tensor], sizes: Sequence[torch.Tensor], keep: float) -> list[torch.Tensor]:
    """Which channels stay, 1 or 0 for each: those aligned most, until they have the share `keep` of all energy."""
    energy = torch.cat(list(sizes)).double().square()
    order = torch.cat(list(aligned)).argsort(descending=True, stable=True)
    # a channel stays if what was kept before it is not enough yet
    before = energy[order].cumsum(0) - energy[order]
    gates = torch.zeros(len(order))
    gates[order] = (before < keep * energy.sum() * (1 - 1e-9)).float()
    return list(gates.split([len(one) for one in sizes]))


def _tensors(header: Header, found: Sequence[Pair]) -> dict[str, torch.Tensor]:
    names = [name for pair in found for name in (pair.down, pair.up, f"{pair.layer}.alpha") if name in header.entries]
    out = {}
    with safefile.mapped(header) as view:
        for name in sorted(names, key=lambda name: header.entries[name].start):
            entry = header.entries[name]
            with view(entry.start, entry.end) as piece:
                out[name] = safefile.tensor(piece, entry).reshape(entry.shape)
    return out


def _scale(header: Header, pair: Pair) -> float:
    """What hosts multiply a change by: alpha over rank, where the file says it."""
    entry = header.entries.get(f"{pair.layer}.alpha")
    if entry is None or entry.dtype not in safefile.DTYPES or entry.end == entry.start:
        return 1.0
    with safefile.mapped(header) as view, view(entry.start, entry.end) as piece:
        return float(safefile.tensor(piece, entry).reshape(-1)[0]) / header.entries[pair.down].shape[0]


def _change(header: Header, pair: Pair, read: Mapping[str, torch.Tensor], gate: torch.Tensor) -> safefile.Change:
    up, down = factors(header, pair, read)

    def rows(old: torch.Tensor, first: int) -> torch.Tensor:
        new = channels(up, down).without(up, gate)[first : first + len(old)]
        return new.reshape(old.shape).to(old.dtype)

    return rows


def _cautions(header: Header, text: Sequence[Pair], base: Denoiser, changes: Mapping[str, safefile.Change]) -> tuple[str, ...]:
    out = [] if changes else ["Careful: nothing was changed. The strength is 0, or all is kept."]
    if text:
        out.append(
            f"Careful: it also changes {len(text)} layers of text encoders, which stay as they are and may still remember. Load it without them if "
            "pictures are still copied."
        )
    if NOTE in header.metadata:
        out.append(f"Careful: {untrusted.safe(header.path.name, line=True)} was cleaned before.")
    return (*out, *header.cautions(), *base.cautions())
