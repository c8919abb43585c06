"""What damaged inputs are made of: small valid files of every kind, and what is made to take much memory or time.

The latter is few kilobytes that unpack to much, long headers, deep nesting, many lines.
"""

from __future__ import annotations

import copy
import functools
import json
import struct
import zlib
from collections.abc import Callable
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

from .mutate import dump, empty_tensors, joined, refit

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


def lora(fits: bool = False) -> bytes:
    """As Recover writes them, and as others do; one that `fits` is for :func:`checkpoint`."""
    tensors, generator = {}, torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.rand(*shape, generator=generator).half()  # noqa: E731
    for i in range(3):
        key = f"lora_unet_transformer_blocks_0_attn_to_{'qkv'[i]}" if fits else f"lora_unet_down_blocks_{i}_attn1_to_q"
        width = tiny_transformer().transformer_blocks[0].attn.to_q.in_features if fits else 32
        tensors |= {f"{key}.lora_down.weight": draw(4, width), f"{key}.lora_up.weight": draw(width, 4)}
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
    numbers = torch.rand(3, 32, generator=generator)
    State(3, *numbers, generator.get_state(), [1, 2], "keep", 4, {"cut": 0.5, "beta": 1.0}, curve).save(path)


GRAPH: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "UniForgetLoadMask", "inputs": {"mask_name": "m.safetensors"}, "_meta": {"title": "Mask"}},
    "3": {"class_type": "UniForgetApply", "inputs": {"model": ["1", 0], "mask": ["2", 0], "strength": 0.8}},
    "4": {"class_type": "KSampler", "inputs": {"model": ["3", 0], "seed": 7, "steps": 12, "cfg": 3.5, "positive": ["1", 1]}},
    "5": {"class_type": "UniForgetReport", "inputs": {"model": ["3", 0], "images": ["4", 0], "filename_prefix": "report"}},
}  # fmt: skip


@functools.lru_cache
def bomb(size: int = 400 << 20) -> bytes:
    """A few hundred kilobytes that zlib would unpack to `size` zeros."""
    packer, block = zlib.compressobj(1), b"\0" * (1 << 20)
    return b"".join([*(packer.compress(block) for _ in range(size >> 20)), packer.flush()])


def bombs(content: bytes) -> list[bytes]:
    """Files that are made to take much memory or time, out of a valid safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    parts = {n: body[slice(*e["data_offsets"])] for n, e in header.items() if n != "__metadata__"}
    notes: dict[str, str] = header.get("__metadata__", {})
    out = [joined(b'{"__metadata__":{"a":"' + unit * (24 << 20) + b'"}}', b"") for unit in (b"x", b"\\n")]
    out += [joined(b"[" * (24 << 20), b""), joined(b'{"a":' * 200_000, body), joined(b'{"a":0,' * (2 << 20) + b'"a":0}', body)]
    out.append(joined(dump(header | empty_tensors(200_000, len(body))).encode(), body))
    out.append(joined(dump(header | {"__metadata__": notes | {f"n{i}": "" for i in range(300_000)}}).encode(), body))
    for name in notes:
        for more in ("9" * (1 << 20), "[" * (1 << 20), "[" + "[]," * (1 << 20) + "0]", '{"a":' * 50_000, "a " * (2 << 20)):
            out.append(joined(dump(header | {"__metadata__": notes | {name: more}}).encode(), body))
    for name, part in parts.items():
        # an announcement of terabytes, then streams that unpack to much: of zeros, of names
        again = copy.deepcopy(header)
        again[name] |= {"shape": [1 << 40], "data_offsets": [0, 1 << 40]}
        out.append(joined(dump(again).encode(), body))
        if part[:1] == b"\x78":
            for held in (bomb(), zlib.compress(b"a" * (30 << 20)), zlib.compress(b"\n".join(b"%x" % i for i in range(1 << 20)))):
                again = copy.deepcopy(header)
                out.append(joined(dump(again).encode(), refit(again, parts | {name: held}, True)))
    return out


def text_bombs(text: str, packed: bytes, wrap: Callable[[bytes], str]) -> list[str]:
    """Texts that are made to take much memory or time."""
    stuffed = [
        text + "A" * (8 << 20),
        " " * (8 << 20) + text,
        "uniforget-mask:" * (1 << 19),
        "\n" * (8 << 20),
        "\ud800" * (1 << 20),
    ]
    return [*stuffed, *(wrap(one) for one in (bomb(), *bombs(zlib.decompress(packed) if packed[:1] == b"\x78" else packed)))]


def line_bombs() -> list[bytes]:
    """Text files that are made to take much memory or time."""
    units = (
        b"\n",
        b"\n#",
        b" ",
        b"[",
        b"a\n",
        b'"a"\n',
        b"\r",
        b"\r\n",
        b'{"prompt":"',
        b"\xef\xbb\xbf",
        b"\0",
        b"\n\xe2\x80\xa8",
        b'{"a":',
    )
    out = [unit * ((8 << 20) // len(unit)) for unit in units]
    return [
        *out,
        b"\n".join(b"%x" % i for i in range(1 << 20)),
        b"\n".join(b'{"text":"%x"}' % i for i in range(1 << 19)),
        b"\n" * (70 << 20),
    ]
