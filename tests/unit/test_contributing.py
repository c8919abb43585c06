"""The example of CONTRIBUTING.md is a family that works, and the tests that SECURITY.md names are there."""

import re
from pathlib import Path

from uniforget.model import detect
from uniforget.model.families import schema as archs
from uniforget.model.sites import find_sites

ROOT = Path(__file__).resolve().parents[2]


def weights(shapes):
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def test_the_example_family_works(monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    names = dict(vars(archs))
    exec(code, names)
    monkeypatch.setattr(detect, "FAMILIES", (*detect.FAMILIES, names["EXAMPLE"]))
    block = {"attn.qkv": (24, 8), "attn.q_norm": (4,), "attn.proj": (8, 8), "mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}
    comfy = weights({"shared_modulation": (48, 8)} | {f"blocks.{i}.{k}": v for i in (0, 1) for k, v in block.items()})
    family, sites = find_sites(comfy)
    found = {s.name: (s.kind, s.units) for s in sites}
    assert family.name == "example"
    assert found == {
        "blocks.0.norm1": ("norm", 8), "blocks.0.attn.proj": ("attn", 2), "blocks.0.mlp.fc2": ("ffn", 32),
        "blocks.1.norm1": ("norm", 8), "blocks.1.attn.proj": ("attn", 2),
    }  # fmt: skip
    block = {"attn.to_q": (8, 8), "attn.to_k": (8, 8), "attn.to_v": (8, 8), "attn.norm_q": (4,), "attn.to_out.0": (8, 8)}
    block |= {"ff.net.0.proj": (32, 8), "ff.net.2": (8, 32)}
    there = {f"transformer_blocks.{i}.{k}": v for i in (0, 1) for k, v in block.items()}
    _, theirs = find_sites(weights({"transformer_blocks.0.shared_norm": (8,)} | there))
    assert {s.name: (s.kind, s.units) for s in theirs} == found
    norm = next(s for s in theirs if s.name == "blocks.1.norm1")
    assert [p.path for p in norm.places] == [f"transformer_blocks.1.attn.to_{x}" for x in "qkv"]


def test_the_tests_that_security_promises_are_there():
    folder, found = "", 0
    for name in re.findall(r"`((?:tests/[\w/]+/)?(?:test_\w+\.py))`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")):
        # a name alone is in the folder of the one before it
        folder = name.rpartition("/")[0] or folder
        assert (ROOT / folder / name.rpartition("/")[2]).is_file(), f"{folder}/{name}"
        found += 1
    assert found > 10
