"""The mask itself: gates by name, and where they came from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch

from .. import untrusted
from ..errors import MaskError
from ..model.families.schema import KINDS
from ..model.fingerprint import same_base
from ..model.sites import find_sites
from .edit import Part, Scale
from .gates import match_sites, scales, strength_factor
from .select import choose

# Path components, none of them empty: the file format relies on it.
_NAME = re.compile(r"(?=.{1,200}\Z)[!-\-/-~]+(?:\.[!-\-/-~]+)*")
NOTHING = (
    "Careful: this mask switches nothing off, so the model is unchanged. Choose another, or learn one with a stronger preset."
)
_TEXTS = ("family", "base", "base_name", "method", "preset", "prompts_hash", "version")


@dataclass(frozen=True)
class MaskInfo:
    """Where a mask came from.

    Attributes:
        family: the model family's short name, e.g. "sd3".
        base: fingerprint of the model it was learned on (opaque).
        base_name: what the user calls that model.
        method: how it was made, e.g. "trajectory".
        beta: weight of the sparsity term it was learned with.
        preset: "weak", "medium", "strong" or "custom".
        targets: kinds that were learned, e.g. ("ffn", "norm").
        prompts_hash: hash of the neutral prompts.
        seed, steps, learn_seconds: how it was learned, and how long that took.
        version: version of UniForget that made it.
        extra: anything else, by name.

    Every text is one line without control characters, of at most ``untrusted.TEXT`` characters: it is shown to people.

    Raises:
        MaskError: a value has the wrong type, is not finite, or is no such text.
    """

    family: str
    base: str
    base_name: str = ""
    method: str = ""
    beta: float = 0.0
    preset: str = ""
    targets: tuple[str, ...] = ()
    prompts_hash: str = ""
    seed: int = 0
    steps: int = 0
    learn_seconds: float = 0.0
    version: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _TEXTS:
            self._require_text(name, getattr(self, name))
        for name in ("seed", "steps"):
            value = getattr(self, name)
            self._require(
                name, isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64, "an integer of 0 or more"
            )
        for name in ("beta", "learn_seconds"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # Neither NaN nor an integer that no float can hold passes.
            self._require(name, number and 0 <= value < 1e300, "a number of 0 or more")
            object.__setattr__(self, name, float(value))
        self._require("family", bool(self.family), "the name of a model family")
        self._require(
            "targets",
            not isinstance(self.targets, str) and all(t in KINDS for t in self.targets),
            f"kinds out of {', '.join(KINDS)}",
        )
        object.__setattr__(self, "targets", tuple(self.targets))
        self._require("extra", isinstance(self.extra, Mapping), "texts by name")
        object.__setattr__(self, "extra", dict(self.extra))
        self._require("extra", len(self.extra) <= untrusted.EXTRAS, f"at most {untrusted.EXTRAS} texts")
        for name, value in self.extra.items():
            self._require_text("extra", name, untrusted.EXTRA_NAME)
            self._require_text(f"extra.{name}", value)

    def cautions(self, base: str | None) -> list[str]:
        """What to say of a mask from here about a model with the fingerprint `base`: see :meth:`.edit.Mask.cautions`."""
        called = f" ({self.base_name})" if self.base_name else ""
        # Combined masks have the fingerprints of several models.
        own = self.base.split()
        if base is None:
            return [f"Careful: it was learned on different models{called}. It may forget less, or harm quality: compare."][
                : len(own) - 1
            ]
        same = sum(same_base(one, base) for one in own) if base else 0
        if same == len(own):
            return []
        if not base:
            return [
                "This model's weights are in a format that UniForget cannot compare with those the mask was learned on: make sure that it "
                "is the same model."
            ]
        return [
            f"Careful: {'a part of ' if same else ''}this mask was learned on another model{called}. It may forget less, or harm quality. Learn a mask for this model "
            "to be sure."
        ]

    def stored(self) -> dict[str, Any]:
        """Everything that was set, as JSON holds it."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if k == "targets" else dict(sorted(v.items())) if k == "extra" else v for k, v in found.items() if v}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> MaskInfo:
        """The information that :meth:`stored` gave.

        Raises:
            MaskError: it is something else.
        """
        unknown = stored.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise MaskError(f"Mask information has the unknown entry {min(unknown)!r:.80}.")
        if not isinstance(targets := stored.get("targets", []), list) or not all(isinstance(t, str) for t in targets):
            raise MaskError(f"Mask information 'targets': expected kinds; found {targets!r:.80}.")
        return cls(**{"family": "", "base": "", **stored})

    def _require(self, name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise MaskError(f"Mask information {name!r}: expected {expected}; found {getattr(self, name)!r:.80}.")

    @staticmethod
    def _require_text(name: str, value: object, most: int = untrusted.TEXT) -> None:
        if not isinstance(value, str):
            raise MaskError(f"Mask information {name!r:.100}: expected text; found {value!r:.80}.")
        if fault := untrusted.fault_of_text(value, most):
            raise MaskError(f"Mask information {name!r:.100}: expected {fault}.")


@dataclass(frozen=True, eq=False)
class GateMask:
    """Gates of one model, by site.

    Attributes:
        gates: site name -> float32 (units,), CPU, values in [0, 1]: 1 keeps a unit, 0 switches it off. The order of the
            names is the canonical one. A site's name is ComfyUI's path of the Linear that its gates fold into.
        kinds: site name -> "ffn", "norm" or "attn".
        info: where the mask came from.

    Two masks are the same when their :meth:`digest` is.

    Raises:
        MaskError: any of this does not hold; the message names the site.
    """

    what: ClassVar[str] = "mask"

    gates: Mapping[str, torch.Tensor]
    kinds: Mapping[str, str]
    info: MaskInfo

    def __post_init__(self) -> None:
        object.__setattr__(self, "gates", dict(self.gates))
        object.__setattr__(self, "kinds", dict(self.kinds))
        if not self.gates:
            raise MaskError("This mask has no gates. A mask needs at least one site.")
        if self.gates.keys() != self.kinds.keys():
            odd = sorted(map(repr, self.gates.keys() ^ self.kinds.keys()))
            raise MaskError(f"Gates and kinds must name the same sites; {len(odd)} are in only one of them, such as {odd[0]}.")
        for name, gates in self.gates.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise MaskError(
                    f"Site {name!r:.80}: expected a dotted path of 1 to 200 printable ASCII characters without spaces."
                )
            if self.kinds[name] not in KINDS:
                raise MaskError(f"Site {name}: expected a kind out of {', '.join(KINDS)}; found {self.kinds[name]!r:.80}.")
            _check_gates(name, gates)

    @property
    def names(self) -> Collection[str]:
        return self.gates.keys()

    def factors(self, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
        """Site -> float32 (units,) factors ``1 - s * (1 - gate)``, with ``s = strength * per_kind[kind]``.

        Sites whose factor is 1 everywhere (strength 0 among them) are left out, so that they stay bit-identical.
        """
        out = {}
        for name, gates in self.gates.items():
            factor = strength_factor(gates, strength * (per_kind or {}).get(self.kinds[name], 1.0))
            if not bool((factor == 1).all()):
                out[name] = factor
        return out

    def acts(self, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> bool:
        return bool(self.factors(strength, per_kind))

    def edits(
        self, shapes: Mapping[str, Sequence[int]], strength: float = 1.0, per_kind: Mapping[str, float] | None = None
    ) -> dict[str, Scale]:
        """See :meth:`.edit.Mask.edits`; several sites on one weight become one edit."""
        family, sites = find_sites(shapes)
        factor = self.factors(strength, per_kind)
        matched = [site for site in match_sites(self, family, sites) if site.name in factor]
        return scales(matched, factor, shapes)

    def select(self, kinds: Iterable[str] = KINDS, blocks: str = "") -> GateMask:
        """See :meth:`.edit.Mask.select`.

        Every other site stays in the mask with all its gates at 1, rather than being left out: shares stay shares of the whole
        model, parts of one mask combine to that mask again, and a site without closed gates costs next to nothing in a file and
        nothing in a model.
        """
        chosen, extra = choose(self.kinds, self.info, kinds, blocks, self.digest())
        if len(chosen) == len(self.gates):
            return self
        # ComfyUI runs nodes in inference mode; masks are ordinary tensors wherever they were made.
        with torch.inference_mode(False):
            gates = {name: values if name in chosen else torch.ones(values.shape) for name, values in self.gates.items()}
        return replace(self, gates=gates, info=replace(self.info, extra=extra))

    def cautions(self, base: str | None = None) -> list[str]:
        return [*([] if self.acts() else [NOTHING]), *self.info.cautions(base)]

    def parts(self) -> Iterator[Part]:
        for name, gates in self.gates.items():
            yield Part(name, self.kinds[name], gates.numel(), int((gates < 0.5).sum()), float((1 - gates.double()).sum()))

    @property
    def hard(self) -> bool:
        """Whether all gates are exactly 0 or 1."""
        return all(bool(((g == 0) | (g == 1)).all()) for g in self.gates.values())

    def harden(self, threshold: float = 0.5) -> GateMask:
        """A hard mask: gates of at least `threshold` become 1, the others 0.

        Raises:
            MaskError: `threshold` is not in (0, 1].
        """
        if not 0 < threshold <= 1:
            raise MaskError(f"Threshold for hardening: expected more than 0 and at most 1; found {threshold!r}.")
        return replace(self, gates={name: (g >= threshold).float() for name, g in self.gates.items()})

    def off_share(self, kind: str | None = None) -> float:
        """Share of gates below 0.5, of one kind or of all.

        Raises:
            MaskError: the mask has no gates of that kind.
        """
        chosen = [g for name, g in self.gates.items() if kind in (None, self.kinds[name])]
        if not chosen:
            raise MaskError(f"This mask has no gates of kind {kind!r}; it has {', '.join(self.sparsity())}.")
        return sum(int((g < 0.5).sum()) for g in chosen) / sum(g.numel() for g in chosen)

    def sparsity(self) -> dict[str, float]:
        """:meth:`off_share` of each kind that is present, and of "all"."""
        present = set(self.kinds.values())
        return {kind: self.off_share(kind) for kind in KINDS if kind in present} | {"all": self.off_share()}

    def digest(self) -> str:
        """Ten hexadecimal digits of the SHA-256 over names, kinds, sizes and gates in steps of 1/255.

        It stays the same when the mask is saved and loaded.
        """
        sha = hashlib.sha256()
        for name, gates in self.gates.items():
            sha.update(f"{self.kinds[name]} {gates.numel()} {name}\n".encode())
            sha.update(to_bytes(gates).tobytes())
        return sha.hexdigest()[:10]

    def _made(self) -> str:
        info, extra = self.info, self.info.extra
        if "combined_a" in extra:
            of = " and ".join(extra[key] for key in ("combined_a", "combined_b") if extra.get(key))
            chosen = f", only {extra['selected']}" if extra.get("selected") else ""
            return f"made from: {of} ({info.method}){chosen}"
        found = f", {extra['self_found']} prompts that it found itself" if "self_found" in extra else ""
        return f"learned with: {info.preset or 'custom'}, beta {info.beta:g}, {info.method or 'unknown method'}, seed {info.seed}{found}"

    def summary(self) -> str:
        """A few lines for people: what the mask switches off, and where it came from."""
        info = self.info
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in self.sparsity().items())
        lines = [
            f"mask {self.digest()} ({'hard' if self.hard else 'soft'}), family {info.family}",
            f"switched off: {shares}",
            self._made(),
            f"base model: {info.base_name or 'unknown'}",
        ]
        return "\n".join(lines)


def to_bytes(gates: torch.Tensor) -> np.ndarray:
    """Gates in [0, 1] -> uint8 in steps of 1/255, rounded half to even."""
    return np.rint(gates.detach().numpy() * np.float32(255)).astype(np.uint8)


def _check_gates(name: str, gates: torch.Tensor) -> None:
    if not isinstance(gates, torch.Tensor) or gates.dtype != torch.float32 or gates.ndim != 1 or gates.device.type != "cpu":
        found = (
            f"{gates.dtype} {tuple(gates.shape)} on {gates.device}" if isinstance(gates, torch.Tensor) else type(gates).__name__
        )
        raise MaskError(f"Site {name}: expected gates as a 1-D float32 tensor on the CPU; found {found}.")
    if not gates.numel():
        raise MaskError(f"Site {name} has no gates; expected at least one.")
    low, high = gates.aminmax()
    # NaN fails both comparisons.
    if not (low >= 0 and high <= 1):
        raise MaskError(f"Site {name}: expected gates from 0 to 1; found {low.item():g} to {high.item():g}.")
