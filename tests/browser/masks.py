"""Workflows with masks, and the masks in them."""

import torch

from uniforget.mask import text as masktext
from uniforget.mask.info import GateMask, MaskInfo

MASK = "UNIFORGET_MASK"


def off(share, units=1000):
    """Gates with this share of them off."""
    return (torch.arange(units) >= round(share * units)).float()


def four_blocks():
    """A mask of a small SD3: 10, 20, 30 and 40 % of the image's neurons off in blocks 0 to 3, none of the text's, half of one norm."""
    gates = {}
    for i in range(4):
        gates[f"joint_blocks.{i}.x_block.mlp.fc2"] = off(0.1 * (i + 1))
        gates[f"joint_blocks.{i}.context_block.mlp.fc2"] = off(0)
    kinds = dict.fromkeys(gates, "ffn")
    gates["joint_blocks.1.x_block.adaLN_modulation.1"] = off(0.4, 600)
    return GateMask(gates, {**kinds, "joint_blocks.1.x_block.adaLN_modulation.1": "norm"}, MaskInfo("sd3", "", "Small SD3"))


def flux():
    """As many blocks as FLUX.1 has, other shares in each."""
    gates, kinds = {}, {}

    def put(kind, name, share):
        gates[name], kinds[name] = off(share), kind

    for i in range(19):
        for n, stream in enumerate(("img", "txt")):
            put("ffn", f"double_blocks.{i}.{stream}_mlp.2", 0.2 + 0.02 * i - 0.1 * n)
            put("norm", f"double_blocks.{i}.{stream}_mod.lin", 0.2 - 0.01 * i)
    for i in range(38):
        put("ffn", f"single_blocks.{i}.linear2.mlp", 0.5 - 0.01 * i)
        put("norm", f"single_blocks.{i}.modulation.lin", 0.1)
        put("attn", f"single_blocks.{i}.linear2.attn", 0.002 * i)
    return GateMask(gates, kinds, MaskInfo("flux", "", "flux1-schnell"))


def unet():
    """The blocks of SD1.5."""
    gates, kinds = {}, {}
    rows = [*(f"input_blocks.{i}" for i in (1, 2, 4, 5, 7, 8)), "middle_block", *(f"output_blocks.{i}" for i in range(3, 12))]
    for i, row in enumerate(rows):
        for kind, leaf, share in (
            ("ffn", "ff.net.2", 0.1 + 0.02 * i),
            ("norm", "norm1", 0.15),
            ("attn", "attn1.to_out.0", 0.02 * (i % 3)),
        ):
            name = f"{row}.1.transformer_blocks.0.{leaf}"
            gates[name], kinds[name] = off(share), kind
        gates[f"{row}.1.transformer_blocks.0.attn2.to_out.0"] = off(0.3)
        kinds[f"{row}.1.transformer_blocks.0.attn2.to_out.0"] = "attn"
    return GateMask(gates, kinds, MaskInfo("sd1", "", "v1-5-pruned-emaonly", preset="medium"))


def node(ident, kind, values, inputs=(), outputs=(), pos=(0, 0), size=(400, 300), **extra):
    """A node in the editor's format; `inputs` are (name, type, link), `outputs` (name, type, links)."""
    made = {"id": ident, "type": kind, "pos": list(pos), "size": list(size), "flags": {}, "order": ident, "mode": 0}
    return made | {
        "properties": {},
        "widgets_values": list(values),
        "inputs": [{"name": name, "type": of, "link": link} for name, of, link in inputs],
        "outputs": [
            {"name": name, "type": of, "links": list(links), "slot_index": i} for i, (name, of, links) in enumerate(outputs)
        ],
        **extra,
    }


def workflow(nodes, links):
    """The whole; `links` are (from, slot, to, slot, type)."""
    return {
        "last_node_id": max(n["id"] for n in nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": [[i, *link] for i, link in enumerate(links, 1)],
        "groups": [],
        "version": 0.4,
    }


MAP_OUTPUTS = (("mask", MASK, ()), ("blocks", "STRING", ()), ("picture", "IMAGE", ()))


def mapped(mask, blocks="", size=(560, 420), **extra):
    """Embedded Mask (1) into Mask Map (2)."""
    text = masktext.to_text(mask) if isinstance(mask, GateMask) else mask
    nodes = [
        node(1, "UniForgetEmbeddedMask", [text], outputs=[("mask", MASK, [1])]),
        node(2, "UniForgetMaskMap", [blocks, "dark"], [("mask", MASK, 1)], MAP_OUTPUTS, (460, 0), size, **extra),
    ]
    return workflow(nodes, [(1, 0, 2, 0, MASK)])


def loaded(name):
    """Load Memorization Mask (1) into Mask Map (2)."""
    nodes = [
        node(1, "UniForgetLoadMask", [name], outputs=[("mask", MASK, [1])], size=(380, 120)),
        node(2, "UniForgetMaskMap", ["", "dark"], [("mask", MASK, 1)], MAP_OUTPUTS, (460, 0), (560, 420)),
    ]
    return workflow(nodes, [(1, 0, 2, 0, MASK)])
