"""Ways of loading, as docs/loading.md lists them: what steers or speeds up a model while it samples."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import comfy_extras.nodes_freelunch as freelunch
import comfy_extras.nodes_torch_compile as compiling
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from uniforget_pack.uniforget.hosts.comfy.apply import apply_mask

import nodes
from tests.comfyui.inside import zoo
from tests.comfyui.inside.ways import CPU, difference, holds, prompt, random_mask, run, sample

UNET, DIT = "sd1", "sd3"


def check(name, way, result=None):
    """A mask holds with the way, and the way does something."""
    result = result or (lambda model: sample(model, name))
    model = zoo.patcher(name)
    assert difference(result(way(model)), sample(model, name)) > 0.01, "the way of loading must change something"
    holds(model, zoo.patcher(name), way, result, random_mask(model, hard=False))


def controlnet():
    """A ControlNet for the small UNet, of ComfyUI's own classes, with random weights."""
    config = {k: v for k, v in zoo.ARCHITECTURES[UNET][2].items() if k not in ("out_channels",)}
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    for weight in network.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * min(0.3, 1 / max(1, weight[0].numel()) ** 0.5))
    return comfy.controlnet.ControlNet(network.eval(), load_device=CPU)


def test_controlnet():
    net = controlnet()
    image = torch.rand(1, 96, 96, 3, generator=torch.Generator().manual_seed(5))

    def result(model):
        settings = {"control_net": net, "image": image, "strength": 0.8, "start_percent": 0.0, "end_percent": 1.0}
        conditions = {"positive": prompt(UNET, 1), "negative": prompt(UNET, 2)}
        steered = nodes.ControlNetApplyAdvanced().apply_controlnet(**conditions, **settings)
        return sample(model, UNET, *steered)

    check(UNET, lambda model: model, result)


def picture_prompt(width=128, tokens=3):
    """What an IPAdapter gets out of a reference picture."""
    return torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(6))


def attention_with_picture(q, k, v, extra_options):
    """An attention replaced as IPAdapter does it: that of the prompt, and another one to the picture."""
    heads = extra_options["n_heads"]
    other = picture_prompt(q.shape[-1]).expand(q.shape[0], -1, -1)
    return optimized_attention(q, k, v, heads) + 0.7 * optimized_attention(q, other, other.flip(1), heads)


def more_tokens(n, context, value, extra_options):
    """The prompt's tokens with the picture's behind them."""
    other = picture_prompt(context.shape[-1]).expand(context.shape[0], -1, -1)
    return n, torch.cat([context, other], 1), torch.cat([value, 0.5 * other], 1)


def scaled_output(n, extra_options):
    return n * 1.3


@pytest.mark.parametrize("kind", ["replace", "tokens", "output"])
def test_ipadapter_type_patches(kind):
    def way(model):
        clone = model.clone()
        if kind == "replace":
            for block, number in (("input", 1), ("input", 4), ("middle", 0), ("output", 0), ("output", 2)):
                clone.set_model_attn2_replace(attention_with_picture, block, number)
                clone.set_model_attn1_replace(attention_with_picture, block, number, 0)
        elif kind == "tokens":
            clone.set_model_attn2_patch(more_tokens)
            clone.set_model_attn1_patch(more_tokens)
        else:
            clone.set_model_attn1_output_patch(scaled_output)
            clone.set_model_attn2_output_patch(scaled_output)
        return clone

    check(UNET, way)


def test_replaced_blocks_of_a_transformer():
    def block(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": 1.2 * out["img"]}

    def way(model):
        clone = model.clone()
        clone.set_model_patch_replace(block, "dit", "double_block", 0)
        return clone

    check(DIT, way)


@pytest.mark.parametrize("node", [freelunch.FreeU, freelunch.FreeU_V2])
def test_freeu(node):
    check(UNET, lambda model: run(node, model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2))


def test_torch_compile():
    """Compiled once, whatever masks come and go: a new mask or strength must not cost another minute."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def way(model):
        return run(compiling.TorchCompileModel, model=model, backend=backend)

    def result(model):
        return sample(model, DIT)

    model, twin = zoo.patcher(DIT), zoo.patcher(DIT)
    for each in (model, twin):  # the attention that graphics cards use; the one for processors cannot be traced in one piece
        each.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: attention_pytorch(*a, **k)
    torch._dynamo.reset()
    plain, compiled = result(model), result(way(model))
    assert graphs and difference(compiled, plain) < 1e-5
    own = len(graphs)
    holds(model, twin, way, result, random_mask(model, hard=False), strength=0.6)
    result(apply_mask(way(model), random_mask(model, seed=1)))
    assert len(graphs) <= 2 * own, "at most the twin, which is another network, is compiled anew"
