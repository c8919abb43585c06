"""Families whose classes ComfyUI 0.3.75 lacks, on the weights of the published models as ComfyUI 0.33.0 builds them.

``tests/comfyui/inside/test_variants.py`` compares the file with ComfyUI's classes, and writes it anew.
"""

import json
import re

import pytest

from tests.unit import shapes
from uniforget.errors import FamilyError
from uniforget.model.detect import detect
from uniforget.model.families import FAMILIES, sizes
from uniforget.model.families.schema import KINDS
from uniforget.model.layers import find_layers
from uniforget.model.sites import find_sites

KEPT = shapes.kept()


def test_lines_stand_for_what_they_were_made_of():
    made = {"a.0.x": (2,), "a.1.x": (2,), "a.0.y.1.z": (3,), "a.1.y.1.z": (3,), "b": (1, 2), "a.0.w": (1,), "a.1.w": (2,)}
    lines = shapes.collapse(made)
    assert lines == {"a.{2}.x": [2], "a.0.y.1.z": [3], "a.1.y.1.z": [3], "b": [1, 2], "a.{1}.w": [1], "a.1.w": [2]}
    assert shapes.expand(lines) == made


def test_the_newest_families_are_there():
    assert {sizes()[name]["family"] for name in KEPT} >= {"cosmos", "krea2", "ideogram4", "ernie", "lens", "kandinsky5"}
    assert len(json.loads(shapes.FILE.read_text(encoding="utf-8"))) == len(KEPT)


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("order", [1, -1])
def test_a_published_model_has_the_sites_that_are_listed(name, order, monkeypatch):
    monkeypatch.setattr("uniforget.model.detect.FAMILIES", FAMILIES[::order])
    family, sites = find_sites(KEPT[name])
    found = {k: {"sites": len(c), "gates": sum(s.units for s in c)} for k in KINDS if (c := [s for s in sites if s.kind == k])}
    assert {"family": family.name, **found} == {k: sizes()[name][k] for k in ("family", *KINDS)}
    assert len({s.name for s in sites}) == len(sites)
    for site in sites:
        for place in site.places:
            rows, columns = [*KEPT[name][f"{place.path}.weight"], 0][:2]
            assert place.start + site.units * place.width <= place.size == (columns if place.axis == "in" else rows)


@pytest.mark.parametrize("name", KEPT)
def test_every_linear_of_its_blocks_is_known_by_name(name):
    """Each kind of them is missed when it is called otherwise."""
    family, _ = detect(KEPT[name])
    keys = [re.compile(key.name) for key in family.keys]
    kinds = {
        re.sub(r"(?<=\.)\d+(?=\.)", "0", n): n
        for n, s in KEPT[name].items()
        if len(s) == 2 and re.match(r"(?:.*\.)?\d+\.[a-z].*\.weight", n)
    }
    assert len(kinds) > 4
    for weight in kinds.values():
        if any(key.fullmatch(weight) for key in keys):
            continue
        parent, _, leaf = weight.removesuffix(".weight").rpartition(".")
        renamed = {(f"{parent}.new_{leaf}.weight" if n == weight else n): s for n, s in KEPT[name].items()}
        with pytest.raises(FamilyError, match=f"new_{leaf}"):
            detect(renamed)


@pytest.mark.parametrize("name", KEPT)
def test_subspaces_are_looked_for_in_the_linears_that_see_tokens(name):
    _, sites = find_sites(KEPT[name])
    _, layers = find_layers(KEPT[name])
    down = {s.name for s in sites if s.kind == "ffn"}
    assert down <= {layer.name.removesuffix(".mlp") for layer in layers} | {f"{layer.name}.mlp" for layer in layers}
    assert not [layer.name for layer in layers if "mod" in layer.name.rpartition(".")[0].split(".")[-1]]
