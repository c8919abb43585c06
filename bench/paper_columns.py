"""The columns of bench.paper: what each judge sees in a picture, and the figures that a row of the table gets of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from testbed.verdict import interval
from uniforget.checks import likeness
from uniforget.errors import SettingError

from . import paper_judges as judges
from .paper_lists import Asked

COPY = 0.5  # MemBench: a picture whose embedding is more alike than that is a copy
TOP = 3


@dataclass(frozen=True)
class Seen:
    """What one judge saw of a row and a list.

    Attributes:
        items: what was asked for, one after the other with all its seeds; ``values``: of each picture.
        references: of the list's reference pictures, by path.
        original: of the original's pictures, in the same order; None where it is the original itself, or they are not needed.
    """

    items: Sequence[Asked]
    values: Sequence[Any]
    references: dict[Path, Any]
    original: Sequence[Any] | None = None


class Judge:
    """Looks at pictures, some at a time, and says figures of many.

    Attributes:
        name: of the judge in the JSON file; ``stamp`` tells it from others of its kind.
        compares: whether it needs the reference pictures; ``pairs``: whether it needs the original's pictures where there are none.
    """

    name: ClassVar[str]
    compares: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    stamp: Any = None

    def look(self, pictures: Sequence[Image.Image], items: Sequence[Asked] | None) -> Sequence[Any]:
        """What there is to note of each picture; `items` is None for reference pictures."""
        raise NotImplementedError

    def columns(self, seen: Seen) -> dict[str, Any]:
        """The row's figures."""
        raise NotImplementedError


class Structure(Judge):
    """The structural verdict: could the reference, or where there is none the original's picture, be picked out by its likeness alone?

    Of several references the one that is most alike counts. Pictures of one colour are counted, too: a safety checker paints such, and
    a model whose numbers overflow.
    """

    name, compares, pairs, stamp = "structure", True, True, 1

    def look(self, pictures: Sequence[Image.Image], items: Sequence[Asked] | None) -> Sequence[Any]:
        small = []
        for picture in pictures:
            x = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]
            small.append((likeness.planes(x)[0].movedim(0, -1) / 255, bool(x[0].flatten(0, 1).std(0).max() < 1 / 255)))
        return small

    def columns(self, seen: Seen) -> dict[str, Any]:
        found: dict[str, Any] = {"blank": float(np.mean([blank for _, blank in seen.values]))}
        values = []
        for i, (item, (picture, _)) in enumerate(zip(seen.items, seen.values, strict=True)):
            if item.references:
                others = [seen.references[path][0] for path in item.references]
            else:
                others = [seen.original[i][0]] if seen.original else []
            if others:
                values.append(max(likeness.likeness(picture[None].expand(len(others), -1, -1, -1), torch.stack(others))))
        if not values:
            return found
        given = {bool(item.references) for item in seen.items}
        words = [likeness.word(value) for value in values]
        found["alike_to"] = "references" if given == {True} else "original" if given == {False} else "references, else original"
        for word in likeness.WORDS:
            found |= share(word, [w == word for w in words])
        return found


class ClipScore(Judge):
    """The CLIP score: how well pictures fit their prompts, mean cosine as the paper has it (0.29)."""

    name = "clip"

    def __init__(self, clip: judges.Clip, stamp: Any):
        self.clip, self.stamp = clip, stamp

    def look(self, pictures: Sequence[Image.Image], items: Sequence[Asked] | None) -> Sequence[Any]:
        return (self.clip.pictures(pictures) * self.clip.texts([item.prompt for item in items or ()])).sum(1).tolist()

    def columns(self, seen: Seen) -> dict[str, Any]:
        return mean("clip", np.maximum(seen.values, 0))


class Fid(Judge):
    """The distance of all pictures to all reference pictures. ``fid_of_few``: there are fewer pictures than features, so it says little."""

    name, compares = "fid", True

    def __init__(self, model: judges.Onnx, stamp: Any):
        self.model, self.stamp = model, stamp

    def look(self, pictures: Sequence[Image.Image], items: Sequence[Asked] | None) -> Sequence[Any]:
        return list(self.model(pictures))

    def columns(self, seen: Seen) -> dict[str, Any]:
        real = list(seen.references.values())
        if len(real) < 2 or len(seen.values) < 2:
            return {}
        few = min(len(real), len(seen.values)) < real[0].size
        return {"fid": judges.fid(np.stack(real), np.stack(seen.values)), "fid_references": len(real), "fid_of_few": few}


class Copies(Judge):
    """What a copy detector says, as MemBench reports it: means over prompts of the highest cosine of a prompt's pictures to its references
    and of its ``TOP`` highest, and the share of pictures above ``COPY``."""

    name, compares = "copies", True

    def __init__(self, model: judges.Onnx, stamp: Any):
        self.model, self.stamp = model, stamp

    def look(self, pictures: Sequence[Image.Image], items: Sequence[Asked] | None) -> Sequence[Any]:
        found = self.model(pictures)
        return list(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))

    def columns(self, seen: Seen) -> dict[str, Any]:
        by_prompt: dict[str, list[float]] = {}
        for item, value in zip(seen.items, seen.values, strict=True):
            if item.references:
                most = max(float(value @ seen.references[path]) for path in item.references)
                by_prompt.setdefault(item.prompt, []).append(most)
        if not by_prompt:
            return {}
        ordered = [sorted(values, reverse=True) for values in by_prompt.values()]
        out = {"copies_max": float(np.mean([v[0] for v in ordered]))}
        out["copies_top3"] = float(np.mean([np.mean(v[:TOP]) for v in ordered]))
        return out | share("copies", [value > COPY for values in ordered for value in values])


class YesNo(Judge):
    """The paper's Acc_g or Acc_l: the share of pictures that a vision-language model says yes to."""

    name = "ask"

    def __init__(self, asker: judges.Asker, stamp: Any):
        self.asker, self.stamp = asker, stamp

    def look(self, pictures: Sequence[Image.Image], items: Sequence[Asked] | None) -> Sequence[Any]:
        return [self.asker(picture, item.subject) for picture, item in zip(pictures, items or (), strict=True)]

    def columns(self, seen: Seen) -> dict[str, Any]:
        unclear = float(np.mean([not clear for _, clear in seen.values]))
        return share("acc", [yes for yes, _ in seen.values]) | {"acc_unclear": unclear}


class Aesthetics(Judge):
    """The mean of a scorer that takes pictures, or CLIP's embeddings of them."""

    name = "aesthetics"

    def __init__(self, model: judges.Onnx, clip: judges.Clip | None, stamp: Any):
        if model.vectors and clip is None:
            raise SettingError(
                f"--aesthetics {model.path}: it takes embeddings of CLIP, and there is no CLIP. Give its folder as --clip."
            )
        self.model, self.clip, self.stamp = model, clip, stamp

    def look(self, pictures: Sequence[Image.Image], items: Sequence[Asked] | None) -> Sequence[Any]:
        found = self.model(self.clip.pictures(pictures) if self.model.vectors and self.clip else pictures)
        if found.shape[1] != 1:
            raise SettingError(
                f"--aesthetics {self.model.path}: expected one score for each picture; found {found.shape[1]}. Give a scorer."
            )
        return found[:, 0].tolist()

    def columns(self, seen: Seen) -> dict[str, Any]:
        return mean("aesthetics", seen.values)


def share(name: str, hits: Sequence[bool]) -> dict[str, Any]:
    """A share and its 95 % interval (Wilson, over pictures)."""
    return {name: sum(hits) / len(hits), f"{name}_interval": list(interval(sum(hits), len(hits)))}


def mean(name: str, values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """A mean and its 95 % interval (normal, over pictures)."""
    middle, half = float(np.mean(values)), 1.96 * float(np.std(values)) / math.sqrt(len(values))
    return {name: middle, f"{name}_interval": [middle - half, middle + half]}
