"""Learning on models that other packs have compiled, whole or in part."""

import comfy.model_management as management
import comfy_extras.nodes_torch_compile as compiling
import pytest
import torch
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask

from tests.comfyui.inside import zoo
from tests.comfyui.inside.test_learn_loading import agreement, learn
from tests.comfyui.inside.test_loading_formats import NAME, predict
from tests.comfyui.inside.test_other_packs import BLOCKS, compiled
from tests.comfyui.inside.ways import run, sample

WAYS = {
    "blocks": lambda model, backend: compiled(model, BLOCKS, backend),
    "model": lambda model, backend: compiled(model, ("diffusion_model",), backend),
    "node": lambda model, backend: run(compiling.TorchCompileModel, model=model, backend=backend),
}
LEARNING = {
    "stepwise": {},
    "trajectory": {"objective": "trajectory"},
    "scores": {"objective": "scores"},
    "subspace": {"objective": "subspace"},
    "blocks recomputed": {"memory": "block"},
}


@pytest.mark.parametrize(
    ("way", "learning"), [*((way, "stepwise") for way in WAYS), *(("blocks", learning) for learning in LEARNING if learning != "stepwise")]
)  # fmt: skip
def test_what_is_learned_is_what_the_plain_model_teaches(way, learning):
    settings, graphs = LEARNING[learning], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model = zoo.patcher(NAME)
    wanted = learn(model, **settings).mask
    before, fast = predict(model), WAYS[way](model, backend)
    sample(fast, NAME)
    assert (compiled_now := len(graphs)), "it must have been compiled, without gates"
    found = learn(fast, **settings).mask
    assert len(graphs) == compiled_now, "while it is learned from it runs as it was written"
    assert found.names == wanted.names and 0 < wanted.off_share() < 1
    if wanted.what == "subspace":
        for name, basis in wanted.bases.items():
            torch.testing.assert_close(found.bases[name].energy, basis.energy, rtol=1e-3, atol=1e-5)
    else:
        assert agreement(found, wanted) > 0.99
    assert not torch.equal(predict(apply_mask(model, found)), before)
    management.unload_all_models()
    assert torch.equal(predict(model), before), "the model must be as it was"
