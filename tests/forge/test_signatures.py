"""The doubles of tests/unit are called like the real thing (read from Forge's source, nothing is imported)."""

import ast
import inspect

import pytest

from tests.unit.webui_host import REAL


def real(path, name):
    """Names of the arguments of a function or method in a source file."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        # the last one counts: Forge defines some methods twice
        [*_, found] = [node for node in body if getattr(node, "name", None) == part]
        body = found.body
    found.args.defaults = [ast.Constant(None)] * len(found.args.defaults)  # that there is one is all that counts
    found.args.kw_defaults = [default and ast.Constant(None) for default in found.args.kw_defaults]
    for argument in ast.walk(found.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return inspect.signature(eval(f"lambda {ast.unparse(found.args)}: 0"))


@pytest.mark.parametrize("double", REAL, ids=lambda d: d.__qualname__)
def test_a_double_has_the_real_signature(forge_path, double):
    path, name = REAL[double]
    found = real(forge_path / path, name)

    def names(signature):
        return [(p.name, p.kind, p.default is not p.empty) for p in signature.parameters.values()]

    assert names(inspect.signature(double)) == names(found)


def test_forge_still_works_as_we_rely_on(forge_path):
    lora = (forge_path / "backend/patcher/lora.py").read_text(encoding="utf-8")
    assert "extra_weight_calculators[patch_type](weight, strength, v)" in lora
    processing = (forge_path / "modules/processing.py").read_text(encoding="utf-8")
    assert (
        "= p.sample(" in processing
        and "self.sampler.sample(self," in processing
        and "self.sampler.sample_img2img(self," in processing
    )
