"""What a mask does to one weight: to the weight itself, or to what runs through its layer.

Both forms of an edit compute the same layer. The weight's is exact: in float32, and rounded once to the weight's own dtype, wherever
it is used (ComfyUI, Forge, diffusers, files).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, cast

import torch
from torch import nn

from ..errors import MismatchError
from ..model.families.schema import KINDS
from ..model.names import eager, weights_of

if TYPE_CHECKING:
    from .info import MaskInfo


class Edit(Protocol):
    """What happens to one weight or bias of a Linear or a norm."""

    def weight(self, rows: torch.Tensor, first: int = 0) -> torch.Tensor:
        """`rows` (n, in), or entries (n,) of a bias or a norm, edited: those from number `first` on. Dtype and device stay."""
        ...

    def input(self, x: torch.Tensor) -> torch.Tensor:
        """What the layer's input (..., in) becomes, where its weight is left alone."""
        ...

    def output(self, y: torch.Tensor) -> torch.Tensor:
        """What its output (..., out) becomes then."""
        ...

    def at(self, strength: float) -> Edit:
        """The same edit, done only in part (0: not at all)."""
        ...

    def to(self, like: torch.Tensor) -> Edit:
        """The same edit with its tensors on the device and in the dtype of `like`, for the running form."""
        ...

    def factors(self) -> list[tuple[str, torch.Tensor]]:
        """What it multiplies the weight's columns ("in") and rows ("out") by; [] where it does something else."""
        ...


class Part(NamedTuple):
    """What a mask does in one site or layer.

    Attributes:
        units: gates, or directions; off: how many of them go; turned: how far they are turned down, all together.
        energy: share of the energy on neutral prompts that goes along; 0 for gates.
    """

    name: str
    kind: str
    units: int
    off: int
    turned: float
    energy: float = 0.0


class Mask(Protocol):
    """What was learned, whatever it is made of: :class:`.info.GateMask` and :class:`.subspace.SubspaceMask`.

    Attributes:
        what: what to call it, "mask" or "subspace".
        names: of its sites or layers; ``kinds``: the kind of each.
    """

    what: ClassVar[str]

    @property
    def info(self) -> MaskInfo: ...
    @property
    def names(self) -> Collection[str]: ...
    @property
    def kinds(self) -> Mapping[str, str]: ...

    def edits(
        self, shapes: Mapping[str, Sequence[int]], strength: float = 1.0, per_kind: Mapping[str, float] | None = None
    ) -> Mapping[str, Edit]:
        """What happens to which weights and biases, by name; those that stay as they are, are left out.

        Args:
            shapes: weight name, relative to the diffusion model -> shape, in ComfyUI's or diffusers' naming.
            strength: 0 is the model as it was, 1 all of the mask; ``per_kind`` multiplies it for single kinds.

        Raises:
            FamilyError, MismatchError: the mask does not belong to this model.
        """
        ...

    def acts(self, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> bool:
        """Whether it changes anything in a model."""
        ...

    def select(self, kinds: Iterable[str] = KINDS, blocks: str = "") -> Mask:
        """The mask with only the chosen kinds and blocks; the very same one if that is all of it.

        Raises:
            SettingError, FamilyError: see :func:`.select.choose`.
        """
        ...

    def cautions(self, base: str | None = None) -> list[str]:
        """What its user should know, as sentences: it does nothing, it is of another model.

        Args:
            base: fingerprint of the model that it is for, "" if that cannot be told; None: there is no model yet.
        """
        ...

    def parts(self) -> Iterator[Part]:
        """What it does, site by site."""
        ...

    def off_share(self) -> float: ...
    def sparsity(self) -> dict[str, float]: ...
    def digest(self) -> str: ...
    def summary(self) -> str: ...


class Scale(NamedTuple):
    """One factor per column and one per row.

    Attributes:
        columns: float32 (in,); rows: float32 (out,), which act on a bias as well. None: all 1.
    """

    columns: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    def weight(self, rows: torch.Tensor, first: int = 0) -> torch.Tensor:
        out = rows.to(_exact(rows.dtype))
        if self.columns is not None:
            out = out * self.columns.to(out)
        if self.rows is not None:
            part = self.rows[first : first + len(rows)].to(out)
            out = out * (part[:, None] if rows.ndim == 2 else part)
        return out.to(rows.dtype)

    def input(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.columns is None else x * self.columns.to(x)

    def output(self, y: torch.Tensor) -> torch.Tensor:
        return y if self.rows is None else y * self.rows.to(y)

    def at(self, strength: float) -> Scale:
        return Scale(*(None if factors is None else 1 - strength * (1 - factors) for factors in self))

    def to(self, like: torch.Tensor) -> Scale:
        return Scale(*(None if factors is None else factors.to(like) for factors in self))

    def factors(self) -> list[tuple[str, torch.Tensor]]:
        return [(axis, found) for axis, found in zip(("in", "out"), self, strict=True) if found is not None]


class Project(NamedTuple):
    """Taking directions out of what a layer reads: ``W (I - s R R^T)``, or with the complement's basis K ``(1 - s) W + s W K K^T``.

    Attributes:
        basis: float (in, r), orthonormal columns: what goes, or with `complement` all that stays.
        strength: s.
    """

    basis: torch.Tensor
    complement: bool = False
    strength: float = 1.0

    @torch.no_grad()
    def weight(self, rows: torch.Tensor, first: int = 0) -> torch.Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return self.input(rows.to(_exact(rows.dtype))).to(rows.dtype)

    def input(self, x: torch.Tensor) -> torch.Tensor:
        basis = self.basis.to(x)
        # Under autocast a product has another dtype.
        part = ((x @ basis) @ basis.T).to(x.dtype)
        return torch.lerp(x, part, self.strength) if self.complement else x - self.strength * part

    def output(self, y: torch.Tensor) -> torch.Tensor:
        return y

    def at(self, strength: float) -> Project:
        return self._replace(strength=strength * self.strength)

    def to(self, like: torch.Tensor) -> Project:
        return self._replace(basis=self.basis.to(like))

    def factors(self) -> list[tuple[str, torch.Tensor]]:
        return []


class Chain:
    """Several edits of one weight, one after the other; rounded once."""

    def __init__(self, edits: Iterable[Edit]):
        self.edits = tuple(edits)

    def weight(self, rows: torch.Tensor, first: int = 0) -> torch.Tensor:
        out = rows.to(_exact(rows.dtype))
        for edit in self.edits:
            out = edit.weight(out, first)
        return out.to(rows.dtype)

    __call__ = weight

    def input(self, x: torch.Tensor) -> torch.Tensor:
        # The last edit of a weight is the first to meet what it multiplies.
        for edit in reversed(self.edits):
            x = edit.input(x)
        return x

    def output(self, y: torch.Tensor) -> torch.Tensor:
        for edit in self.edits:
            y = edit.output(y)
        return y

    def at(self, strength: float) -> Chain:
        return Chain(edit.at(strength) for edit in self.edits)

    def to(self, like: torch.Tensor) -> Chain:
        return Chain(edit.to(like) for edit in self.edits)

    def factors(self) -> list[tuple[str, torch.Tensor]]:
        return [found for edit in self.edits for found in edit.factors()]


def chain(several: Iterable[Mapping[str, Edit]]) -> dict[str, Chain]:
    """The edits of several masks, applied in this order, by weight."""
    found: dict[str, list[Edit]] = {}
    for edits in several:
        for name, edit in edits.items():
            found.setdefault(name, []).append(edit)
    return {name: Chain(edits) for name, edits in found.items()}


_KINDS = (Scale, Project)


def pack(edit: Edit) -> tuple[Any, ...]:
    """An edit as a plain tuple of tensors and values, which hosts move and rebuild as they like."""
    return (_KINDS.index(type(edit)), *cast("Scale | Project", edit))


def unpack(fields: Sequence[Any]) -> Edit:
    """Inverse of :func:`pack`."""
    return _KINDS[fields[0]](*fields[1:])


def merge(
    state: Mapping[str, torch.Tensor],
    mask: Mask,
    strength: float = 1.0,
    per_kind: Mapping[str, float] | None = None,
    prefix: str = "",
) -> dict[str, torch.Tensor]:
    """A state dict with the mask merged into its weights; untouched tensors are the very same objects.

    Args:
        state: weights in ComfyUI's or diffusers' naming, each name starting with `prefix`.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model.
    """
    shapes = {name.removeprefix(prefix): tuple(v.shape) for name, v in state.items() if name.startswith(prefix)}
    edits = mask.edits(shapes, strength, per_kind)
    return {**state, **{prefix + name: edit.weight(state[prefix + name]) for name, edit in edits.items()}}


def apply(model: Any, mask: Mask, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> Any:
    """Merge `mask` into a model: the way without hooks, which costs nothing later.

    Args:
        model: a pipeline of diffusers, or its transformer or UNet, whose weights are changed in place; or a state dict of one (or of
            ComfyUI's diffusion model), which stays as it is.
        strength: 0 is the model as it was, 1 all of the mask; ``per_kind`` multiplies it for "ffn", "norm" or "attn".

    Returns:
        `model`; of a state dict, a new one.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model; nothing was changed.
    """
    if isinstance(model, Mapping):
        return merge(model, mask, strength, per_kind)
    merge_(next(filter(None, (getattr(model, part, None) for part in ("transformer", "unet"))), model), mask, strength, per_kind)
    return model


@torch.no_grad()
def merge_(model: nn.Module, mask: Mask, strength: float = 1.0, per_kind: Mapping[str, float] | None = None) -> None:
    """Merge `mask` into the model's weights in place.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model; nothing was changed.
    """
    weights = weights_of(model)
    edits = mask.edits({name: tuple(weight.shape) for name, weight in weights.items()}, strength, per_kind)
    empty = [name for name in edits if weights[name].is_meta]
    if empty:
        raise MismatchError(
            f"{len(empty)} of the {len(edits)} weights that the mask acts on have no values here, such as {empty[0]}: sequential "
            "offloading keeps them elsewhere. Merge the mask before turning it on."
        )
    for name, edit in edits.items():
        weights[name].copy_(edit.weight(weights[name]))


@contextmanager
def hooked(modules: Mapping[str, nn.Module], edits: Mapping[str, Edit]) -> Iterator[None]:
    """Within it, modules compute as if the edits were merged; no weight is touched, and hooks are gone afterwards, however it ends.

    Args:
        modules: by path; edits: by name of the weight. Edits of biases are left out: the weight's output form covers them.
    """
    with eager(), ExitStack() as hooks:
        for name, edit in edits.items():
            path, _, leaf = name.rpartition(".")
            if leaf == "weight":
                placed = _Placed(edit)
                hooks.callback(modules[path].register_forward_pre_hook(placed.before).remove)
                hooks.callback(modules[path].register_forward_hook(placed.after).remove)
        yield


class _Placed:
    """An edit, and its copy where it was needed last."""

    def __init__(self, edit: Edit):
        self.edit = self.copy = edit
        self.at: tuple[torch.device, torch.dtype] | None = None

    def like(self, x: torch.Tensor) -> Edit:
        if self.at != (x.device, x.dtype):
            self.copy, self.at = self.edit.to(x), (x.device, x.dtype)
        return self.copy

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.like(args[0]).input(args[0]), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return self.like(output).output(output)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
