"""Forge's own modules, patcher and LoRA loader, without a server: see inside.py."""

import pytest

from tests.unit import diffusers_zoo as zoo
from uniforget.hosts.diffusers.apply import find_modules


@pytest.fixture(scope="module")
def lines(run_in_forge):
    return run_in_forge("inside.py").splitlines()


@pytest.mark.parametrize("way", ["fp32", "fp16", "fp8", "GGUF Q8_0"])
def test_masked_is_what_hooks_make_of_it_and_goes_again(lines, way):
    found = [line for line in lines if line.startswith(f"{way}, strength")]
    assert len(found) == 2 and all("42 of 42 sites" in line for line in found)


def test_loras_and_fused_layers(lines):
    assert {"LoRA offline", "LoRA online", "FLUX"} <= {line.partition(":")[0] for line in lines}


def test_a_mask_of_stable_diffusion_1_lands_on_all_its_sites(lines):
    """Site by site the names that the engine gives the published model in another naming, which are ComfyUI's."""
    [line] = [line for line in lines if line.startswith("real sd1: ")]
    found = set(line.split(" sites ")[1].split())
    _, sites, _ = find_modules(zoo.real("sd1"))
    assert found == {f"{site.name}:{site.kind}:{site.units}" for site in sites} and len(found) == 96
