"""Valid files of every kind, small: what damaged ones are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

from tests.unit.tiny import TinyModel, random_mask, tiny_transformer
from tests.unit.tiny_pipelines import pipeline, single_file
from uniforget.checkpoint import compactfile, safefile
from uniforget.learn.model import Progress
from uniforget.learn.resume import State
from uniforget.mask.info import GateMask, MaskInfo
from uniforget.mask.subspace import Basis, SubspaceMask
from uniforget.model.layers import find_layers
from uniforget.model.sites import find_sites

PREFIX = "model.diffusion_model."


def masks() -> list[GateMask]:
    """A hard and a soft one that fit :func:`checkpoint`, and one that says hostile things about itself."""
    model = TinyModel(("ffn", "norm", "attn"))
    hard = random_mask(model)
    odd = "<img src=x onerror=alert(1)> [[a|javascript:alert(1)]]"
    info = MaskInfo("sd3", "", odd, odd, 1.0, odd, ("ffn",), "0", 2**63, 3, 1e299, "0", {"combined_a": odd, "note": "a" * 900})
    return [hard, random_mask(model, 1, hard=False), GateMask(hard.gates, hard.kinds, info)]


def checkpoint(path: Path) -> None:
    """A denoiser, its moving average, and parts that no mask acts on."""
    inner = {name: tensor.half() for name, tensor in tiny_transformer().state_dict().items()}
    tensors = {PREFIX + name: tensor for name, tensor in inner.items()}
    tensors |= {"model_ema." + f"diffusion_model.{name}".replace(".", ""): tensor.clone() for name, tensor in inner.items()}
    tensors |= {"alphas": torch.arange(5), "empty": torch.zeros(0, 4), "first_stage_model.x": torch.tensor(2.0)}
    save_file(tensors, path, {"made": "for attacks"})


def subspace() -> SubspaceMask:
    """Random directions of every layer, half of them kept."""
    family, layers = find_layers({n: tuple(t.shape) for n, t in tiny_transformer().state_dict().items()})
    generator = torch.Generator().manual_seed(2)
    bases = {}
    for layer in layers:
        vectors = torch.linalg.qr(torch.randn(layer.width, layer.width, generator=generator))[0][:, :4]
        bases[layer.name] = Basis(vectors.contiguous(), torch.rand(layer.width, generator=generator).sort(descending=True).values)
    info = MaskInfo(family.name, "", method="subspace")
    return SubspaceMask(bases, {name: name for name in bases}, {x.name: x.kind for x in layers}, 1e-3, info)


def compact_file(folder: Path) -> bytes:
    """A compact checkpoint of a tiny UNet in the original naming, without what is not cut."""
    original = folder / "original.safetensors"
    unet = {n: t.half() for n, t in single_file(pipeline("sd1")).items() if n.startswith(PREFIX)}
    save_file(unet, original)
    inner = {name.removeprefix(PREFIX): tuple(tensor.shape) for name, tensor in unet.items()}
    family, sites = find_sites(inner)
    gates = {site.name: (torch.rand(site.units, generator=torch.Generator().manual_seed(0)) > 0.4).float() for site in sites}
    mask = GateMask(gates, {site.name: site.kind for site in sites}, MaskInfo(family.name, ""))
    made = folder / "compact.safetensors"
    compactfile.save(original, made, mask, 8)
    # Only what the note speaks of, so that damage hits it.
    header = safefile.read_header(made)
    named = json.loads(header.metadata[compactfile.NOTE])["cuts"]
    kept = {n: t for n, t in load_file(made).items() if n.removeprefix(PREFIX).rsplit(".", 1)[0] in named}
    return save(kept, header.metadata)


def lora() -> bytes:
    """As Recover writes them, and as others do."""
    tensors = {}
    for i in range(3):
        key = f"lora_unet_down_blocks_{i}_attn1_to_q"
        tensors |= {f"{key}.lora_down.weight": torch.rand(4, 32).half(), f"{key}.lora_up.weight": torch.rand(32, 4).half()}
        tensors[f"{key}.alpha"] = torch.tensor(4.0)
    notes = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "uniforget": "0.1.0",
        "uniforget_recovers": "0123456789",
    }
    return save(tensors, notes)


def unfinished(path: Path) -> None:
    """The state of a learning that was stopped."""
    generator = torch.Generator().manual_seed(0)
    curve = [Progress(i, 9, 0.1, 0.2, off={"ffn": 0.1}) for i in range(3)]
    numbers = torch.rand(3, 32)
    State(3, *numbers, generator.get_state()[:64], [1, 2], {"cut": 0.5, "beta": 1.0}, curve).save(path)


GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "UniForgetLoadMask", "inputs": {"mask_name": "m.safetensors"}, "_meta": {"title": "Mask"}},
    "3": {"class_type": "UniForgetApply", "inputs": {"model": ["1", 0], "mask": ["2", 0], "strength": 0.8}},
    "4": {"class_type": "KSampler", "inputs": {"model": ["3", 0], "seed": 7, "steps": 12, "cfg": 3.5, "positive": ["1", 1]}},
    "5": {"class_type": "UniForgetReport", "inputs": {"model": ["3", 0], "images": ["4", 0], "filename_prefix": "report"}},
}  # fmt: skip
