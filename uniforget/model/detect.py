"""Recognising a model by its weights' names and shapes, in ComfyUI's naming or another host's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ..errors import FamilyError, MismatchError
from .families import FAMILIES
from .families.schema import Alias, Family, Key, Naming
from .families.unsupported import ATTACHED, UNSUPPORTED, Unsupported

Shapes = Mapping[str, Sequence[int]]
# The weight of a Linear in a numbered block, and its path: blocks.0.attn.qkv.weight, blocks.0.attn.in_proj_weight.
_BLOCK_WEIGHT = re.compile(r"((?:.*\.)?\d+\.[A-Za-z_].*?)(?:\.weight|(?<=in_proj)_weight)")


@dataclass(frozen=True)
class Piece:
    """Where a host keeps some of the outputs of a Linear: its module path there, whether its row halves are exchanged."""

    path: str
    swapped: bool = False


def family(name: str) -> Family:
    """The family called `name`.

    Raises:
        FamilyError: there is none; the message lists those there are.
    """
    for entry in FAMILIES:
        if entry.name == name:
            return entry
    known = ", ".join(f.name for f in FAMILIES)
    raise FamilyError(f"This version of UniForget knows no model family {name!r} (it knows: {known}). Update UniForget.")


def detect(shapes: Shapes) -> tuple[Family, Naming | None]:
    """The family whose defining weights are all among `shapes`, and the naming they are in (None: ComfyUI's own).

    Args:
        shapes: weight name, relative to the diffusion model -> shape.

    Raises:
        FamilyError: none matches, and the message names some of what was found; or one does and the blocks have
            Linears that it does not know, which would stay as they are without a word.
    """
    # One text, a name per line, so that each pattern is one search.
    text = "\n".join(shapes)
    odd = unsupported(shapes)
    for entry in () if odd else FAMILIES:
        naming = entry.diffusers
        if _matches(text, shapes, entry.keys, entry.without):
            return _member(entry, None, shapes), None
        if naming.keys and _matches(text, shapes, naming.keys, naming.without):
            return _member(entry, naming, shapes), naming
    raise FamilyError(_unknown(text, shapes, odd))


def unsupported(shapes: Shapes) -> Unsupported | None:
    """What these weights are of, if it is something that no mask fits."""
    text = "\n".join(shapes)
    return next((s for s in UNSUPPORTED if _present(text, shapes, Key(s.key, s.ndim))), None)


def _member(entry: Family, naming: Naming | None, shapes: Shapes) -> Family:
    """`entry`, if it knows every Linear in the blocks of a model that has its defining weights.

    Raises:
        FamilyError: it does not.
    """
    found = [path for name, shape in shapes.items() if (path := _in_block(name, shape))]
    layers = _layers(shapes)
    aliases = naming.aliases if naming else ()
    names = {path: [n for a in aliases if (n := _translate(a, path, layers))] or [path] for path in found}
    rules = [re.compile(rule.path.replace("{last}", r"\d+")) for rule in entry.rules]
    known = _any((*entry.plain, *(naming.plain if naming else ()), *ATTACHED))
    gated: set[str] = set()
    for name in dict.fromkeys(n for ns in names.values() for n in ns):
        for rule, pattern in zip(entry.rules, rules, strict=True):
            if match := pattern.fullmatch(name):
                gated |= {name, *(match.expand(other) for other in rule.also)}
    strange = [path for path in found if not any(n in gated or known.fullmatch(n) for n in (path, *names[path]))]
    if not strange:
        return entry
    # One of each kind: numbers tell blocks apart, not what is in them.
    some = list({re.sub(r"\d+", "0", path): path for path in reversed(strange)}.values())[::-1]
    more = f" and {len(some) - 4} other kinds" if len(some) > 4 else ""
    raise FamilyError(
        f"UniForget does not know this model: it has what tells {entry.title} ({entry.name}), but {len(strange)} of the {len(found)} Linears in "
        f"its blocks are no part of that family: {', '.join(some[:4])}{more}. A mask would leave them as they are. Use a published "
        f"{entry.title} model, without what other programs added to it; CONTRIBUTING.md says how to add a family."
    )


def _in_block(name: str, shape: Sequence[int]) -> str:
    """The path of a Linear (or of a stack of them) in a numbered block; "" for any other weight."""
    match = _BLOCK_WEIGHT.fullmatch(name)
    return match[1] if match and len(shape) in (2, 3) else ""


@cache
def _any(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def _unknown(text: str, shapes: Shapes, odd: Unsupported | None) -> str:
    """What to tell about weights of no family."""
    if not shapes:
        return "This model has no weights, so there is nothing to mask. Load a model; for a state dict, check the prefix."
    found = f"found {len(shapes)} weights such as {', '.join(_sample(shapes))}"
    if odd and odd.advice:
        return f"This is {odd.title}, not a diffusion model ({found}). {odd.advice}"
    what = f"cannot mask {odd.title}" if odd else "does not know this model"
    return (
        f"UniForget {what}: {found}. Use a model of a supported family: {', '.join(f.title for f in FAMILIES)}. "
        "CONTRIBUTING.md says how to add one."
    )


def _sample(shapes: Shapes, most: int = 3) -> list[str]:
    """Names that tell a model: the first one of each of its largest parts."""
    names = [n for n in shapes if n.endswith(".weight")] or list(shapes)
    parts = Counter(n.partition(".")[0] for n in names)
    firsts = {part: next(n for n in names if n.partition(".")[0] == part) for part, _ in parts.most_common(most)}
    return list(dict.fromkeys([*firsts.values(), *names]))[:most]


def _matches(text: str, shapes: Shapes, keys: Iterable[Key], without: Iterable[str]) -> bool:
    return all(_present(text, shapes, key) for key in keys) and not any(_line(w).search(text) for w in without)


def _present(text: str, shapes: Shapes, key: Key) -> bool:
    for match in _line(key.name).finditer(text):
        shape = shapes[match.group()]
        if (not key.ndim or len(shape) == key.ndim) and (not key.columns or (len(shape) > 1 and shape[1] in key.columns)):
            return True
    return False


@cache
def _line(pattern: str) -> re.Pattern[str]:
    return re.compile(f"^(?:{pattern})$", re.MULTILINE)


def canonical(shapes: Shapes, naming: Naming | None) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[Piece, ...]]]:
    """`shapes` under ComfyUI's names, and for each module path there the pieces that the host keeps it in.

    Weights that no alias names are left out; without a naming (or one without aliases) all stay as they are.

    Raises:
        MismatchError: a piece of a fused Linear is missing.
    """
    if naming is None or not naming.aliases:
        return {n: tuple(s) for n, s in shapes.items()}, {n.rpartition(".")[0]: (Piece(n.rpartition(".")[0]),) for n in shapes}
    order = {alias: i for i, alias in enumerate(naming.aliases)}
    layers = _layers(shapes)
    found: dict[str, list[tuple[int, str, Alias]]] = {}
    paths = dict.fromkeys(n.rpartition(".")[0] for n in shapes)
    for path in paths:
        for alias in naming.aliases:
            name = _translate(alias, path, layers)
            if name is not None:
                found.setdefault(name, []).append((order[alias], path, alias))
    out: dict[str, tuple[int, ...]] = {}
    origin: dict[str, tuple[Piece, ...]] = {}
    for name, parts in found.items():
        parts.sort(key=lambda part: part[0])
        wanted = sum(a.canonical == parts[0][2].canonical for a in naming.aliases)
        if len(parts) != wanted:
            raise MismatchError(
                f"{name} is kept in {wanted} pieces here, and only {len(parts)} are there ({', '.join(p[1] for p in parts)}). "
                "Was a part of this model removed or fused? Load it as it was published."
            )
        for leaf in ("weight", "bias"):
            pieces = [tuple(shapes[f"{path}.{leaf}"]) for _, path, _ in parts if f"{path}.{leaf}" in shapes]
            if len(pieces) == len(parts):
                out[f"{name}.{leaf}"] = (sum(p[0] for p in pieces), *pieces[0][1:])
        weight = out.get(f"{name}.weight", ())
        origin[name] = tuple(
            Piece(path, bool(a.swapped_chunks) and len(weight) == 2 and a.swapped_chunks * weight[1] == weight[0])
            for _, path, a in parts
        )
    return out, origin


def _layers(shapes: Shapes) -> int:
    """Layers per block of a diffusers UNet, 0 for anything else."""
    numbers = [int(m.group(1)) for m in re.finditer(r"^down_blocks\.0\.resnets\.(\d+)\.", "\n".join(shapes), re.MULTILINE)]
    return max(numbers) + 1 if numbers else 0


@dataclass(frozen=True)
class Translation:
    """ComfyUI's path of a Linear that another host keeps in `of` pieces, of which this is `number`; ``alias`` says more."""

    path: str
    number: int
    of: int
    alias: Alias


def translations(naming: Naming, path: str) -> Iterator[Translation]:
    """What ComfyUI calls a module of another host, from its `path` with underscores for dots, as LoRA files have it.

    UNets are taken to have two layers per block, as all that were published have.
    """
    for alias in naming.aliases:
        name = _translate(alias, path, 2, "_")
        if name is not None:
            same = [other for other in naming.aliases if other.canonical == alias.canonical]
            yield Translation(name, same.index(alias), len(same), alias)


@cache
def _pattern(alias: Alias, dot: str = ".") -> re.Pattern[str]:
    other = re.escape(alias.other.replace(".", dot))
    return re.compile(other.replace(r"\{\}", r"(\d+)").replace(r"\{\*\}", "(.*)"))


def _translate(alias: Alias, path: str, layers: int, dot: str = ".") -> str | None:
    """The canonical path of a host's `path`, written with `dot` between its parts, by this alias; None if it says nothing about it."""
    match = _pattern(alias, dot).fullmatch(path)
    if not match:
        return None
    values = list(match.groups())
    if alias.joined >= 0:
        values[:2] = [str(alias.joined + int(values[0]) * (layers + 1) + int(values[1]))]
    return alias.canonical.replace("{*}", "{}").format(*values)
