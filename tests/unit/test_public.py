"""What ``import uniforget`` gives, for both kinds of mask, and what it does not load."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import uniforget
from tests.unit.tiny import TinyModel, random_mask
from uniforget.mask.info import MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask

NAME = "joint_blocks.0.x_block.mlp.fc2"


def subspace(model):
    width = dict(model.modules)["transformer_blocks.0.ff.net.2"].weight.shape[1]
    energy = torch.cat([torch.full((width // 2,), 2 / width), torch.zeros(width - width // 2)])
    return SubspaceMask(
        {NAME: Basis(torch.eye(width), energy)}, {NAME: NAME}, {NAME: "ffn"}, 0.01, MaskInfo("sd3", "", method="subspace")
    )


def test_all_is_what_is_exported():
    submodules = {name.split(".")[1] for name in sys.modules if name.startswith("uniforget.")} - {"errors", "learn"}
    public = {name for name in vars(uniforget) if not name.startswith("_")} - submodules
    later = {*uniforget._HOME, "learn"}  # loaded when they are used
    assert set(uniforget.__all__) == public | later | {"__version__"} and len(uniforget.__all__) == len(set(uniforget.__all__))
    assert all(getattr(uniforget, name) is not None for name in uniforget.__all__)
    assert callable(uniforget.learn) and issubclass(uniforget.errors.MismatchError, uniforget.UniForgetError)


def test_importing_it_loads_no_host():
    code = "import sys, json; before = set(sys.modules); import uniforget; print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout))
    assert not loaded & {"diffusers", "transformers", "comfy", "gradio", "PIL", "rich", "typer", "scipy", "jinja2"}


@pytest.mark.parametrize("make", [random_mask, subspace])
def test_saved_loaded_and_applied(make, tmp_path):
    model = TinyModel(("ffn", "norm", "attn"))
    mask = make(model)
    uniforget.save(mask, tmp_path / "m.safetensors")
    again = uniforget.load(tmp_path / "m.safetensors")
    assert type(again) is type(mask) and again.digest() == mask.digest() and again.info == mask.info
    before = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    wanted = uniforget.apply(before, mask, 0.5)
    assert any(not torch.equal(wanted[name], value) for name, value in before.items())
    pipeline = SimpleNamespace(transformer=model.transformer, unet=None)
    assert uniforget.apply(pipeline, again, 0.5) is pipeline
    for name, value in model.transformer.state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=1e-2 if make is subspace else 1e-6, rtol=1e-2)
