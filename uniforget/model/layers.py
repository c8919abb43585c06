"""The Linears inside a model's blocks, whose inputs subspace forgetting looks at, read off weight names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .blocks import block_of
from .detect import canonical, detect
from .families.schema import Family
from .sites import find_sites

# Modulation and embeddings: they see the noise level or a pooled prompt, one vector per picture, and no tokens.
_ASIDE = re.compile(
    r"(?:^|[._])(?:adaln\w*|mod|modulation|emb|embed\w*|emb_layers|time_emb\w*|norm\d?\w*|scale_shift\w*)(?:[._]|$)",
    re.IGNORECASE,
)
_ATTENTION = re.compile(
    r"attn|attention|qkv|(?:^|[._])(?:to_)?[qkvo](?:_proj|_linear|_norm)?(?:[._]|$)|to_out|to_add_out", re.IGNORECASE
)


@dataclass(frozen=True)
class Layer:
    """One Linear.

    Attributes:
        name: ComfyUI's path of it, whatever the host's naming.
        kind: "ffn" or "attn", as far as its name tells; a Linear that serves both counts as "ffn".
        width: number of its inputs.
        paths: the host's modules that it is kept in; all read the same input.
    """

    name: str
    kind: str
    width: int
    paths: tuple[str, ...]


def find_layers(shapes: Mapping[str, Sequence[int]]) -> tuple[Family, list[Layer]]:
    """The model's family and the Linears of its blocks, in the order of `shapes`.

    Args:
        shapes: weight name, relative to the diffusion model -> shape, in ComfyUI's or diffusers' naming.

    Raises:
        FamilyError: the family is unknown.
        MismatchError: see :func:`uniforget.model.sites.find_sites`.
    """
    family, naming = detect(shapes)
    known, origin = canonical(shapes, naming)
    kinds: dict[str, set[str]] = {}
    aside = set()
    for site in find_sites(shapes)[1]:
        for place in site.places:
            if site.kind == "norm" and place.axis == "out":
                aside.add(place.path)
            elif site.kind != "norm":
                kinds.setdefault(place.path, set()).add(site.kind)
    layers = []
    for weight, shape in known.items():
        name = weight.removesuffix(".weight")
        if name == weight or len(shape) != 2 or block_of(family, name) is None:
            continue
        paths = tuple(piece.path for piece in origin[name])
        if aside.intersection(paths) or _ASIDE.search(name):
            continue
        found = kinds.get(paths[0], {"attn" if _ATTENTION.search(name) else "ffn"})
        layers.append(Layer(name, "ffn" if "ffn" in found else "attn", shape[1], paths))
    return family, layers
