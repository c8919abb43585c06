"""What a model family is made of; the families themselves are data, in :mod:`uniforget.model.families`.

Paths are ComfyUI's (the canonical names that masks are keyed by), relative to the diffusion model.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("ffn", "norm", "attn")


@dataclass(frozen=True)
class Rule:
    r"""One kind of site.

    Attributes:
        kind: ``"ffn"`` (hidden neurons), ``"norm"`` (norm channels), ``"attn"`` (heads), or "" for Linears that look like a
            site and must not be one, because nothing reads their output. The first rule that matches a path counts.
        path: regular expression that the whole path of the Linear (or affine norm) matches; ``{last}`` stands for the
            highest block number there is.
        axis: ``"in"`` gates the Linear's inputs (weight columns), ``"out"`` its outputs (weight rows and bias entries).
        name: what the site is called, with ``\1`` for the path's groups; "": as the path.
        also: other Linears whose inputs carry the same gates, with ``\1`` for the path's groups.
        heads: how many heads share the axis; or ``like``: weights, with ``\1``, the first of which that exists is as long as
            one head; or ``width``: how many neighbours one gate covers.
        part: ``"first"``: the first columns only, as many as there are outputs; ``"rest"``: those behind them.
        chunks: (k, n): only the first k of n equal parts of the axis.
    """

    kind: str
    path: str
    axis: str = "in"
    name: str = ""
    also: tuple[str, ...] = ()
    width: int = 1
    heads: int = 0
    like: tuple[str, ...] = ()
    part: str = ""
    chunks: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Key:
    """A weight that tells a family.

    Attributes:
        name: regular expression of its whole name (relative to the diffusion model).
        ndim: number of dimensions; 0: any.
        columns: sizes that its second dimension may have; (): any.
    """

    name: str
    ndim: int = 0
    columns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Alias:
    """Where another naming keeps the same module.

    ``{}`` in both paths stands for a number, ``{*}`` at the end for the rest of the path.

    Attributes:
        canonical, other: the paths. Several aliases of one canonical path: it is stored in pieces there, in this order,
            each with some of its outputs.
        joined: UNets of diffusers count blocks and the layers inside them; the first two numbers ``a, b`` of ``other`` are
            the one number ``joined + a * (layers per block + 1) + b`` here. -1: numbers are the same.
        swapped_chunks: when the Linear has exactly this many output chunks of its input size, the other naming stores the
            two halves of its rows in exchanged order (0: never).
    """

    canonical: str
    other: str
    joined: int = -1
    swapped_chunks: int = 0


@dataclass(frozen=True)
class Naming:
    """Another host's names for a family: what tells it there, which paths mean what, and which have no counterpart and no gate."""

    keys: tuple[Key, ...]
    aliases: tuple[Alias, ...]
    without: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blocks:
    """A row of blocks as artists write it (``IN4-8``); ``path`` matches the start of a site's name, its group is the number."""

    label: str
    path: str


@dataclass(frozen=True)
class Stream:
    """Part of a block with a name of its own, such as its image or its text half; ``path`` is found in the names of its sites."""

    label: str
    path: str


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: short name stored in masks.
        title: what users call it.
        keys: weights that all exist in this family and not all in any other; ``without``: regular expressions of weight
            names none of which exist in it.
        rules: where gates sit.
        blocks: how its blocks are called.
        diffusers: diffusers' naming.
        streams: parts of its blocks that are shown apart; what none of them matches is in no stream.
        plain: regular expressions of the paths of its blocks' other Linears, which hold no gate. A model with a Linear in a block that
            neither a rule nor this knows is no member of the family (see :func:`uniforget.model.detect.detect`).
        hosts: what can load its models.
    """

    name: str
    title: str
    keys: tuple[Key, ...]
    rules: tuple[Rule, ...]
    blocks: tuple[Blocks, ...]
    diffusers: Naming
    without: tuple[str, ...] = ()
    streams: tuple[Stream, ...] = ()
    plain: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ("comfyui", "diffusers")


def same(*paths: tuple[str, str]) -> tuple[Alias, ...]:
    """Aliases ``(canonical, other)`` without anything special about them."""
    return tuple(Alias(canonical, other) for canonical, other in paths)
