"""What masks and subspaces do to the weights of a checkpoint's file, tensor by tensor."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import MismatchError
from ..mask import file as maskfile
from ..mask.edit import Chain, Mask, chain
from ..mask.files import gates_of
from .denoiser import Denoiser, find_denoisers
from .safefile import Header


@dataclass(frozen=True)
class Use:
    """A mask or subspace, and how much of it.

    Attributes:
        strength: as in Apply Memorization Mask; ``per_kind`` multiplies it for single kinds.
        file: a mask's file, where it was read from one: it need not be packed again.
    """

    learned: Mask
    strength: float = 1.0
    per_kind: Mapping[str, float] = field(default_factory=dict)
    file: bytes = field(default=b"", repr=False)

    @cached_property
    def packed(self) -> bytes:
        """A mask of gates as its file; empty for subspaces, which are too large to travel along."""
        return self.file or (maskfile.dumps(gates_of(self.learned, "A note")) if self.learned.what == "mask" else b"")

    def stored(self) -> Use:
        """The same with gates as mask files hold them, in 255ths, so that the note in a sanitized file says exactly what was done."""
        return replace(self, learned=maskfile.loads(self.packed)) if self.packed else self

    def note(self) -> dict[str, Any]:
        """What is written into a sanitized file about it."""
        return {
            "mask": self.learned.digest(),
            "method": self.learned.info.method,
            "strength": self.strength,
            "per_kind": {kind: value for kind, value in self.per_kind.items() if value != 1},
            # Gates are small: with them in the file, what was done can be checked from the file alone.
            "gates": base64.b64encode(self.packed).decode(),
        }


def plan(shapes: Mapping[str, tuple[int, ...]], uses: Sequence[Use]) -> dict[str, Chain]:
    """What is done to which weights of a denoiser.

    Args:
        shapes: weight name, relative to the denoiser -> shape, in ComfyUI's or diffusers' naming.

    Raises:
        FamilyError, MismatchError: a mask does not belong to this model.
    """
    return chain(use.learned.edits(shapes, use.strength, use.per_kind) for use in uses)


def changes(headers: Sequence[Header], uses: Sequence[Use]) -> dict[str, Chain]:
    """What is done to which tensors, by full name, over all files of one denoiser: to all copies of it, moving averages included.

    Raises:
        FamilyError, MismatchError: a mask does not belong to this model.
        ModelFileError: weights are packed in a way that they cannot be changed in.
    """
    return of_all(find_denoisers(headers), headers, uses)[0]


def of_all(found: Sequence[Denoiser], headers: Sequence[Header], uses: Sequence[Use]) -> tuple[dict[str, Chain], list[str]]:
    """:func:`changes` to `found`, and the prefixes of those further ones among them that are of another family or size than the masks.

    Raises:
        MismatchError: a mask does not belong to the first one.
    """
    there = {name for header in headers for name in header.entries}
    out: dict[str, Chain] = {}
    others = []
    for number, one in enumerate(found):
        try:
            planned = plan(one.shapes(), uses)
        except MismatchError:
            if not number:
                raise
            others.append(one.prefix)
            continue
        for name, steps in planned.items():
            out |= {full: steps for full in (one.names[name], one.averages(name)) if full in there}
    return out, others


def base_fingerprint(headers: Sequence[Header]) -> str:
    """Fingerprint of the denoiser in these files, the same as the loaded model's.

    Raises:
        FamilyError: it is no model that UniForget knows.
        ModelFileError: its weights are packed.
    """
    return find_denoisers(headers)[0].fingerprint()
