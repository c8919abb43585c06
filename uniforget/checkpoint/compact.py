"""Compaction: what a mask switches off completely is cut out of the weights, so that the model is smaller and faster.

A hidden neuron is one column of the Linear that reads it and one row (with its bias) of each Linear that makes it; in gated FFNs (GEGLU,
SwiGLU) it has one row in each half. A head is a group of such columns and rows. Norm channels stay: everything reads them.
Cuts never change what the masked model computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange

from ..config import MULTIPLE
from ..errors import MismatchError, SettingError
from ..mask.gates import match_sites
from ..mask.info import GateMask
from ..model.detect import canonical, detect
from ..model.sites import Place, find_sites

MULTIPLES = tuple(map(int, MULTIPLE.choices))
# What makes the hidden units that a Linear reads, in ComfyUI's naming: all of the first list that exists.
_MAKERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(.*\.mlp)\.fc2", (r"\1.fc1",)),
    (r"(.*\.net)\.2", (r"\1.0.proj",)),
    (r"(.*_mlp|.*\.ffn)\.2", (r"\1.0",)),
    (r"(.*)\.linear2", (r"\1.linear1",)),
    (r"(.*)\.w2", (r"\1.w1", r"\1.w3")),
    (r"(.*\.mlp)\.layer2", (r"\1.layer1",)),
    (r"(.*\.mlp)\.down", (r"\1.gate", r"\1.up")),
    (r"(.*\.mlp)\.linear_fc2", (r"\1.gate_proj", r"\1.up_proj")),
    (r"(.*\.feed_forward)\.out_layer", (r"\1.in_layer",)),
    (r"(.*\.feed_forward)\.linear_2", (r"\1.linear_1", r"\1.linear_3")),
    (r"(.*)\.c_proj", (r"\1.c_fc1", r"\1.c_fc2")),
    (r"(.*)\.to_out\.0", (r"\1.to_q", r"\1.to_k", r"\1.to_v")),
)
# Attention whose heads are nobody else's: UNets'. In the others, two streams attend together and share heads.
_OWN_HEADS = ("sd1", "sd2", "sdxl")


@dataclass
class Cut:
    """What is kept of one Linear.

    Attributes:
        path: the module, in the host's naming.
        size: (out, in) of the whole weight.
        rows, columns: indices that are kept, int64, ascending; None: all.
    """

    path: str
    size: tuple[int, int]
    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None

    @property
    def kept(self) -> tuple[int, int]:
        """(out, in) of what is kept."""
        out, into = self.size
        return (out if self.rows is None else len(self.rows), into if self.columns is None else len(self.columns))

    def gather(self, weight: torch.Tensor) -> torch.Tensor:
        """The kept part of a whole weight (out, in)."""
        if self.rows is not None:
            weight = weight[self.rows.to(weight.device)]
        return weight if self.columns is None else weight[:, self.columns.to(weight.device)]

    def gather_bias(self, bias: torch.Tensor) -> torch.Tensor:
        """The kept part of a whole bias (out,)."""
        return bias if self.rows is None else bias[self.rows.to(bias.device)]

    def scatter(self, weight: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """A whole weight (out, in) from the kept part: `into` with that part replaced, or zero elsewhere."""
        out = weight.new_zeros(self.size) if into is None else into
        rows, columns = (
            torch.arange(size, device=weight.device) if kept is None else kept.to(weight.device)
            for kept, size in zip((self.rows, self.columns), self.size, strict=True)
        )
        out[rows[:, None], columns] = weight
        return out

    def scatter_bias(self, bias: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        """A whole bias (out,) from the kept part: `into` with that part replaced, or zero elsewhere."""
        if self.rows is None:
            return bias
        out = bias.new_zeros(self.size[0]) if into is None else into
        out[self.rows.to(bias.device)] = bias
        return out


@dataclass
class Plan:
    """All that is cut.

    Attributes:
        cuts: by module path.
        heads: attention module's path -> heads that are left.
        hidden: path of the Linear that reads hidden units -> units that are left.
        units: kind -> (units there were, units that are left).
        whole: kind -> sites that have something switched off and stay whole, because other parts share their units.
    """

    cuts: dict[str, Cut] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    hidden: dict[str, int] = field(default_factory=dict)
    units: dict[str, tuple[int, int]] = field(default_factory=dict)
    whole: dict[str, list[str]] = field(default_factory=dict)

    def saved(self) -> tuple[int, int]:
        """Numbers in all weights that are cut, before and after."""
        before = sum(c.size[0] * c.size[1] for c in self.cuts.values())
        return before, sum(c.kept[0] * c.kept[1] for c in self.cuts.values())


def plan(shapes: Mapping[str, Sequence[int]], mask: GateMask, multiple: int = 8) -> Plan:
    """What can be cut out of a model that `mask` is applied to at full strength.

    Args:
        shapes: weight name, relative to the diffusion model -> shape, in ComfyUI's or diffusers' naming.
        multiple: FFN widths are rounded up to a multiple of this, which suits the hardware: some that are switched off stay, as zeros.

    Raises:
        FamilyError, MismatchError: the mask does not belong to this model.
        SettingError: `multiple` is none of :data:`MULTIPLES`.
    """
    if multiple not in MULTIPLES:
        raise SettingError(f"multiple: expected one of {', '.join(map(str, MULTIPLES))}; found {multiple}.")
    family, sites = find_sites(shapes)
    known, origin = canonical(shapes, detect(shapes)[1])
    out = Plan()
    for site in match_sites(mask, family, sites):
        gates = mask.gates[site.name]
        if site.kind == "norm" or not bool((gates == 0).any()):
            continue
        place = site.places[0]
        makers = _makers(_canonical_path(site.name, site.kind), known)
        alone = len(site.places) == 1 and not place.swapped
        if not makers or not alone or (site.kind == "attn" and (family.name not in _OWN_HEADS or place.start)):
            out.whole.setdefault(site.kind, []).append(site.name)
            continue
        keep = _keep(gates, multiple if site.kind == "ffn" else 1)
        was, left = out.units.get(site.kind, (0, 0))
        out.units[site.kind] = (was + len(gates), left + len(keep))
        if len(keep) == len(gates):
            continue
        _cut_columns(out, place, shapes, keep)
        for maker in makers:
            _cut_rows(out, maker, known, origin, shapes, place, keep, len(gates))
        if site.kind == "attn":
            out.heads[place.path.removesuffix(".to_out.0")] = len(keep)
        else:
            out.hidden[place.path] = len(keep)
    return out


def _canonical_path(name: str, kind: str) -> str:
    """The Linear that a site's name is of: fused ones carry two sites, named behind it."""
    return name.removesuffix(".mlp") if name.endswith("linear2.mlp") else name


def _makers(path: str, known: Mapping[str, Sequence[int]]) -> list[str]:
    for pattern, names in _MAKERS:
        match = re.fullmatch(pattern, path)
        if match:
            found = [match.expand(name) for name in names]
            return found if all(f"{name}.weight" in known for name in found) else []
    return []


def _keep(gates: torch.Tensor, multiple: int) -> torch.Tensor:
    """Units that are not switched off, and as many of the others as round their number up; at least one."""
    on = gates > 0
    wanted = min(len(gates), -(-max(1, int(on.sum())) // multiple) * multiple)
    off = (~on).nonzero().flatten()[: wanted - int(on.sum())]
    return torch.cat([on.nonzero().flatten(), off]).sort().values


def _spread(keep: torch.Tensor, width: int, start: int = 0) -> torch.Tensor:
    """Indices of columns or rows that units cover."""
    return start + rearrange(keep[:, None] * width + torch.arange(width), "units width -> (units width)")


def _cut(out: Plan, path: str, shapes: Mapping[str, Sequence[int]]) -> Cut:
    size = shapes[f"{path}.weight"]
    return out.cuts.setdefault(path, Cut(path, (size[0], size[1])))


def _cut_columns(out: Plan, place: Place, shapes: Mapping[str, Sequence[int]], keep: torch.Tensor) -> None:
    cut = _cut(out, place.path, shapes)
    assert cut.columns is None, "one set of units of a Linear's inputs is cut"
    behind = place.start + (place.size - place.start) // place.width * place.width
    outside = [torch.arange(place.start), _spread(keep, place.width, place.start), torch.arange(behind, place.size)]
    cut.columns = torch.cat(outside)


def _cut_rows(
    out: Plan,
    maker: str,
    known: Mapping[str, Sequence[int]],
    origin: Mapping[str, tuple],
    shapes: Mapping[str, Sequence[int]],
    place: Place,
    keep: torch.Tensor,
    units: int,
) -> None:
    """The rows that make the kept units, in the pieces that the host keeps the Linear in."""
    rows = known[f"{maker}.weight"][0]
    # A Linear that also makes queries, keys and values has those first: as many rows as there are columns before the units, three times.
    fixed, length = 3 * place.start, units * place.width
    if (rows - fixed) % length:
        raise MismatchError(
            f"{maker} has {rows} outputs, which cannot be {units} hidden units of {place.path}. Load the model as it was published."
        )
    parts = [torch.arange(fixed)]
    parts += [_spread(keep, place.width, fixed + chunk * length) for chunk in range((rows - fixed) // length)]
    wanted, first = torch.cat(parts), 0
    for piece in origin[maker]:
        count = shapes[f"{piece.path}.weight"][0]
        inside = wanted[(wanted >= first) & (wanted < first + count)] - first
        if len(inside) < count:
            _cut(out, piece.path, shapes).rows = inside
        first += count


def report(found: Plan) -> list[str]:
    """Sentences for people."""
    before, after = found.saved()
    lines = [f"{kind}: {left:,} of {was:,} units left" for kind, (was, left) in found.units.items()]
    if before:
        lines.append(f"{len(found.cuts)} layers cut, from {before / 1e6:,.1f} to {after / 1e6:,.1f} million weights")
    for kind, names in found.whole.items():
        lines.append(f"{len(names)} {kind} sites are switched off in place, such as {_first(names)}: others share their units")
    return lines or ["nothing is switched off completely, so nothing can be cut"]


def _first(names: Iterable[str]) -> str:
    return next(iter(names))
