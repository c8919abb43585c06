"""Weight shapes of whole models, written down in a few lines: ``blocks.{28}.mlp.down.weight`` stands for blocks 0 to 27."""

import itertools
import json
import re
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "fixtures" / "comfyui_0.33.0_shapes.json"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def collapse(shapes):
    """Name -> shape, of names whose numbers count from 0 and have the same shape in one line."""
    kinds = {}
    for name, shape in shapes.items():
        numbers = tuple(int(n) for n in _NUMBER.findall(name))
        kinds.setdefault((_NUMBER.sub("{}", name), tuple(shape)), []).append(numbers)
    out = {}
    for (name, shape), found in kinds.items():
        sizes = [max(column) + 1 for column in zip(*found, strict=True)]
        if set(found) == set(itertools.product(*map(range, sizes))):
            out[name.replace("{}", "{{{}}}").format(*sizes)] = list(shape)
        else:
            out |= {name.format(*numbers): list(shape) for numbers in found}
    return out


def expand(lines):
    """What :func:`collapse` was given, in the order of its lines."""
    out = {}
    for line, shape in lines.items():
        counts = [range(int(n)) for n in re.findall(r"\{(\d+)\}", line)]
        name = re.sub(r"\{\d+\}", "{}", line)
        out |= {name.format(*numbers): tuple(shape) for numbers in itertools.product(*counts)}
    return out


def kept():
    """Published model -> weight name -> shape, of models whose classes diffusers or ComfyUI 0.3.75 lacks."""
    return {name: expand(lines) for name, lines in json.loads(FILE.read_text(encoding="utf-8")).items()}
