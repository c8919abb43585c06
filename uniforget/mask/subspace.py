"""A subspace: the directions that neutral prompts use in what each Linear reads. What lies outside is where memorized pictures are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..errors import MaskError, MismatchError
from ..model.families.schema import KINDS
from ..model.layers import Layer, find_layers
from .edit import Part, Project
from .info import NOTHING, MaskInfo
from .select import choose


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions of one input, ordered by the energy that neutral prompts have in them.

    Attributes:
        vectors: float (width, k), CPU: neighbouring columns of the ordered eigenvectors, from number ``first`` on: the leading
            ones (``first`` is 0), the trailing ones (the last is number width - 1), or all.
        energy: float32 (width,) shares of the whole energy, descending; for sketched inputs what the sketch caught, then zeros.
        missed: share of the energy that a sketch did not catch; 0 where the moments were complete.
    """

    vectors: torch.Tensor
    energy: torch.Tensor
    first: int = 0
    missed: float = 0.0

    @property
    def width(self) -> int:
        return len(self.energy)

    def kept(self, threshold: float) -> int:
        """How many leading directions hold at least ``1 - threshold`` of the energy; all, when a sketch cannot tell."""
        tail = self.energy.double().flip(0).cumsum(0) + self.missed
        return self.width - int((tail <= threshold).sum())

    def edit(self, threshold: float) -> Project | None:
        """What takes away all that goes at `threshold`; None: nothing goes. By the smaller of the two bases, where both are there.

        Raises:
            MaskError: the stored directions do not reach that far.
        """
        kept = self.kept(threshold)
        if kept == self.width:
            return None
        last = self.first + self.vectors.shape[1]
        gone = self.vectors[:, kept - self.first :] if last == self.width and kept >= self.first else None
        rest = self.vectors[:, :kept] if self.first == 0 and kept <= last else None
        if gone is not None and (rest is None or gone.shape[1] <= rest.shape[1]):
            return Project(gone)
        if rest is None:
            raise MaskError(
                f"This subspace file does not hold the directions that a threshold of {threshold:g} needs. Choose a value between "
                "those that its summary names, or learn the subspace again."
            )
        return Project(rest, complement=True)

    def trimmed(self, low: float, high: float) -> Basis:
        """The fewest vectors with which thresholds from `low` to `high` can be had, in bf16."""
        most, least = self.kept(low), self.kept(high)
        if self.first == 0 and most <= self.width - least:
            found, first = self.vectors[:, :most], 0
        else:
            found, first = self.vectors[:, least - self.first :], least
        return replace(self, vectors=found.to(torch.bfloat16).contiguous(), first=first)


@dataclass(frozen=True, eq=False)
class SubspaceMask:
    """Bases of a model's Linears, and how much of the energy on neutral prompts is given up.

    Attributes:
        bases: layer name -> basis; layers that read the same input share that of the first.
        shared: layer name -> the name in ``bases``.
        kinds: layer name -> "ffn" or "attn".
        threshold: share of each input's energy on neutral prompts that is given up with the directions that hold it.
        low, high: the thresholds that the stored vectors allow.
        info: where it came from; ``info.method`` is "subspace".
    """

    what: ClassVar[str] = "subspace"

    bases: Mapping[str, Basis]
    shared: Mapping[str, str]
    kinds: Mapping[str, str]
    threshold: float
    info: MaskInfo
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.shared or self.shared.keys() != self.kinds.keys() or set(self.shared.values()) != set(self.bases):
            raise MaskError("This subspace has no layers, or its layers and bases do not belong together.")
        if not (math.isfinite(self.threshold) and self.low <= self.threshold <= self.high):
            raise MaskError(
                f"Subspace threshold: expected {self.low:g} to {self.high:g}, which is what this subspace holds; found {self.threshold:g}."
            )
        for name, basis in self.bases.items():
            first, count = basis.first, basis.vectors.shape[1]
            if (
                basis.vectors.shape[0] != basis.width
                or first < 0
                or (first and first + count != basis.width)
                or count > basis.width
            ):
                raise MaskError(f"Layer {name}: its {tuple(basis.vectors.shape)} vectors do not fit {basis.width} inputs.")

    def at(self, threshold: float) -> SubspaceMask:
        """The same directions with another threshold.

        Raises:
            MaskError: the stored vectors do not allow it.
        """
        return replace(self, threshold=threshold)

    @property
    def names(self) -> Collection[str]:
        return self.shared.keys()

    def acts(self, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> bool:
        return bool(effective(self, strength, per_kind))

    def edits(
        self, shapes: Mapping[str, Sequence[int]], strength: float = 1.0, per_kind: Mapping[str, float] | None = None
    ) -> dict[str, Project]:
        """See :meth:`.edit.Mask.edits`."""
        family, layers = find_layers(shapes)
        found = effective(self, strength, per_kind)
        matched = [layer for layer in match_layers(self, family.name, layers) if layer.name in found]
        return {f"{path}.weight": found[layer.name] for layer in matched for path in layer.paths}

    def select(self, kinds: Iterable[str] = KINDS, blocks: str = "") -> SubspaceMask:
        """See :meth:`.edit.Mask.select`; layers that are not chosen are left out."""
        chosen, extra = choose(self.kinds, self.info, kinds, blocks, self.digest())
        if len(chosen) == len(self.shared):
            return self
        shared = {n: b for n, b in self.shared.items() if n in chosen}
        bases = {n: b for n, b in self.bases.items() if n in shared.values()}
        info = replace(self.info, extra=extra)
        return replace(self, bases=bases, shared=shared, kinds={n: self.kinds[n] for n in shared}, info=info)

    def cautions(self, base: str | None = None) -> list[str]:
        return [*([] if self.acts() else [NOTHING]), *self.info.cautions(base)]

    def parts(self) -> Iterator[Part]:
        gone = {}
        for base, basis in self.bases.items():
            kept = basis.kept(self.threshold)
            lost = float(basis.energy[kept:].double().sum()) + (basis.missed if kept < basis.width else 0.0)
            gone[base] = (basis.width, basis.width - kept, float(basis.width - kept), lost)
        for name, base in self.shared.items():
            yield Part(name, self.kinds[name], *gone[base])

    def trimmed(self, low: float, high: float) -> SubspaceMask:
        """With the fewest bf16 vectors that allow thresholds from `low` to `high`."""
        low, high = min(low, self.threshold), max(high, self.threshold)
        return replace(self, bases={n: b.trimmed(low, high) for n, b in self.bases.items()}, low=low, high=high)

    def sparsity(self) -> dict[str, float]:
        """Share of directions that go, of each kind that is present and of "all"."""
        out = {}
        gone = {n: b.width - b.kept(self.threshold) for n, b in self.bases.items()}
        for kind in [*(k for k in ("ffn", "attn") if k in self.kinds.values()), "all"]:
            chosen = [b for n, b in self.shared.items() if kind in ("all", self.kinds[n])]
            out[kind] = sum(gone[b] for b in chosen) / sum(self.bases[b].width for b in chosen)
        return out

    def off_share(self, kind: str = "all") -> float:
        """Share of directions that go, of one kind or of all."""
        return self.sparsity()[kind]

    def digest(self) -> str:
        """Ten hexadecimal digits of the SHA-256 over layers, energies and threshold."""
        sha = hashlib.sha256(f"{self.threshold!r}\n".encode())
        for name, base in self.shared.items():
            sha.update(f"{self.kinds[name]} {name} {base}\n".encode())
        for basis in self.bases.values():
            sha.update(basis.energy.numpy().tobytes())
        return sha.hexdigest()[:10]

    def summary(self) -> str:
        """A few lines for people."""
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in self.sparsity().items())
        missed = max(b.missed for b in self.bases.values())
        lines = [
            f"subspace {self.digest()}, family {self.info.family}, {len(self.shared)} layers",
            f"directions removed: {shares}",
            f"energy given up on neutral prompts: {self.threshold:.2%} ({self.low:.2%} to {self.high:.2%} can be chosen)",
            f"learned with: {self.info.preset or 'custom'}, subspace, seed {self.info.seed}",
            f"base model: {self.info.base_name or 'unknown'}",
        ]
        if missed:
            lines.append(f"the widest inputs were sketched; what that misses of their energy: up to {missed:.2%}")
        return "\n".join(lines)


def project(weight: torch.Tensor, basis: torch.Tensor, complement: bool, strength: float) -> torch.Tensor:
    """A weight (out, width) projected: see :class:`.edit.Project`."""
    return Project(basis, complement, strength).weight(weight)


def match_layers(subspace: SubspaceMask, family: str, layers: Iterable[Layer]) -> list[Layer]:
    """The model's layers that the subspace has directions for.

    Raises:
        MismatchError: it is of another family, or the model lacks layers, or they have another size.
    """
    if subspace.info.family != family:
        raise MismatchError(
            f"This subspace was learned on a model of family {subspace.info.family!r}, and this model is of family {family!r}. "
            "Use one of the same family, or learn one for this model."
        )
    there = {layer.name: layer for layer in layers}
    missing = [name for name in subspace.shared if name not in there]
    if missing:
        raise MismatchError(
            f"{len(missing)} of the subspace's {len(subspace.shared)} layers do not exist in this model, such as {missing[0]}. "
            "It was learned on another variant of this family: learn one for this model."
        )
    for name, base in subspace.shared.items():
        if there[name].width != subspace.bases[base].width:
            raise MismatchError(
                f"{name} has {subspace.bases[base].width} inputs in the subspace and {there[name].width} in the model. It was learned "
                "on another variant: learn one for this model."
            )
    return [there[name] for name in subspace.shared]


def effective(subspace: SubspaceMask, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> dict[str, Project]:
    """Layer name -> how its weight is projected; layers that stay as they are, are left out."""
    found = {}
    edits = {name: basis.edit(subspace.threshold) for name, basis in subspace.bases.items()}
    for name, base in subspace.shared.items():
        own = strength * (per_kind or {}).get(subspace.kinds[name], 1.0)
        edit = edits[base]
        if own and edit is not None:
            found[name] = edit.at(own)
    return found
