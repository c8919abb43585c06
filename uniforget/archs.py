"""Model families as data: how to recognise one, and where its gates sit.

Adding a family is adding one :class:`Family` to :data:`FAMILIES`; nothing else in the package branches on families.
Module paths are ComfyUI's (the canonical names that masks are keyed by); ``diffusers`` maps them to diffusers' paths.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import FamilyError

KINDS = ("ffn", "norm", "attn")


@dataclass(frozen=True)
class Rule:
    """One kind of site.

    Attributes:
        kind: ``"ffn"`` (hidden neurons), ``"norm"`` (adaLN modulation channels) or ``"attn"`` (heads).
        path: regular expression that the whole path of the Linear matches (the one the gate folds into).
        axis: ``"in"`` gates the Linear's inputs (weight columns), ``"out"`` its outputs (weight rows and bias entries).
        width: how many neighbouring columns or rows one gate covers (a head's size), else 1.
    """

    kind: str
    path: str
    axis: str
    width: int = 1


@dataclass(frozen=True)
class Alias:
    """Where another naming keeps the same Linear; ``{}`` stands for a block number.

    ``swapped_chunks``: when the Linear has exactly this many output chunks of its input size, the other naming stores the
    two halves of its rows in exchanged order (0: never).
    """

    canonical: str
    other: str
    swapped_chunks: int = 0


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: short name stored in masks.
        title: what users call it.
        keys: weight names (relative to the diffusion model) that all exist in this family and not all in any other.
        rules: where gates sit.
        diffusers: aliases for diffusers' module paths.
        diffusers_class: name of diffusers' class for it.
    """

    name: str
    title: str
    keys: tuple[str, ...]
    rules: tuple[Rule, ...]
    diffusers: tuple[Alias, ...] = ()
    diffusers_class: str = ""

    def rule(self, path: str) -> Rule | None:
        """The rule whose pattern `path` matches, or None."""
        return next((r for r in self.rules if re.fullmatch(r.path, path)), None)


_SD3_STREAM = r"joint_blocks\.\d+\.(?:x|context)_block\."

FAMILIES: tuple[Family, ...] = (
    Family(
        name="sd3",
        title="Stable Diffusion 3 / 3.5",
        keys=("joint_blocks.0.x_block.attn.qkv.weight", "joint_blocks.0.context_block.adaLN_modulation.1.weight"),
        rules=(
            Rule("ffn", _SD3_STREAM + r"mlp\.fc2", axis="in"),
            Rule("norm", _SD3_STREAM + r"adaLN_modulation\.1", axis="out"),
            Rule("attn", _SD3_STREAM + r"attn2?\.proj", axis="in", width=64),
        ),
        diffusers=(
            Alias("joint_blocks.{}.x_block.mlp.fc2", "transformer_blocks.{}.ff.net.2"),
            Alias("joint_blocks.{}.context_block.mlp.fc2", "transformer_blocks.{}.ff_context.net.2"),
            Alias("joint_blocks.{}.x_block.attn.proj", "transformer_blocks.{}.attn.to_out.0"),
            Alias("joint_blocks.{}.x_block.attn2.proj", "transformer_blocks.{}.attn2.to_out.0"),
            Alias("joint_blocks.{}.context_block.attn.proj", "transformer_blocks.{}.attn.to_add_out"),
            Alias("joint_blocks.{}.x_block.adaLN_modulation.1", "transformer_blocks.{}.norm1.linear"),
            Alias(
                "joint_blocks.{}.context_block.adaLN_modulation.1", "transformer_blocks.{}.norm1_context.linear", swapped_chunks=2
            ),
        ),
        diffusers_class="SD3Transformer2DModel",
    ),
)


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


def detect(keys: Iterable[str]) -> Family:
    """The family whose defining weights are all among `keys` (names relative to the diffusion model).

    Raises:
        FamilyError: none matches; the message names some of what was found and the nearest family.
    """
    found = set(keys)
    for entry in FAMILIES:
        if all(k in found for k in entry.keys):
            return entry
    near = max(
        FAMILIES,
        key=lambda f: max((difflib.SequenceMatcher(None, k, n).ratio() for k in f.keys for n in list(found)[:200]), default=0),
    )
    sample = ", ".join(sorted(found)[:3]) or "no weights at all"
    raise FamilyError(
        f"This model is of a family that UniForget cannot mask yet. Found weights such as: {sample}. "
        f"The nearest supported family is {near.title} ({near.name}), which has {near.keys[0]}."
    )
