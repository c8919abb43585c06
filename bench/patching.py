"""Measures a mask and a LoRA on the same weights of one FLUX model; :mod:`bench.apply` says what and why.

Needs ComfyUI and the pack in this process: see :mod:`launcher.inside`.
"""

import statistics
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import comfy.weight_adapter
import comfyui_version
import torch
from comfy.ldm.flux.model import FluxParams
from uniforget_pack.uniforget.hosts.comfy import apply as host
from uniforget_pack.uniforget.mask.info import GateMask, MaskInfo
from uniforget_pack.uniforget.model import sites
from uniforget_pack.uniforget.model.fingerprint import same_base

from .common import allocated, machine, resident, seconds

CPU = torch.device("cpu")
DTYPE = torch.bfloat16
KINDS = ("ffn", "norm")  # what masks are learned for by default
OFF = 1 / 3
RANK = 16
FLUX_DEV = {
    "image_model": "flux", "axes_dim": [16, 56, 56], "num_heads": 24, "mlp_ratio": 4.0, "theta": 10000, "out_channels": 16,
    "qkv_bias": True, "patch_size": 2, "in_channels": 16, "hidden_size": 3072, "context_in_dim": 4096, "vec_in_dim": 768,
    "depth": 19, "depth_single_blocks": 38, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


class Nothing(comfy.weight_adapter.WeightAdapterBase):
    """A patch that changes nothing: what ComfyUI's patching costs by itself."""

    name = "nothing"

    def __init__(self, loaded_keys=(), weights=()):
        self.loaded_keys = set(loaded_keys)
        self.weights = weights

    def calculate_weight(self, weight, *arguments, **named):
        return weight


def flux(config: dict[str, Any]) -> comfy.model_patcher.ModelPatcher:
    """FLUX as a loader node hands it out: names, shapes and dtype of all weights, each a view of one value."""
    known = {"image_model", *(f.name for f in fields(FluxParams))}  # earlier versions refuse what later ones ask for
    settings = comfy.supported_models.Flux({name: value for name, value in config.items() if name in known})
    settings.set_inference_dtype(DTYPE, None)
    model = settings.get_model({}, device=torch.device("meta"))
    for key, parameter in list(model.named_parameters()):
        comfy.utils.set_attr_param(model, key, torch.ones(1, dtype=DTYPE).expand(parameter.shape))
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def random_mask(patcher) -> GateMask:
    """A hard mask for all sites of KINDS, as if learned on this very model."""
    family, sites = host.sites_of(patcher)
    base = host.base_fingerprint(patcher)
    generator = torch.Generator().manual_seed(0)
    sites = [s for s in sites if s.kind in KINDS]
    gates = {s.name: (torch.rand(s.units, generator=generator) >= OFF).float() for s in sites}
    info = MaskInfo(family=family.name, base=base, method="random")
    return GateMask(gates, {s.name: s.kind for s in sites}, info)


def random_lora(patcher, keys: list[str]) -> dict[str, torch.Tensor]:
    """A LoRA file's tensors that patch exactly these weights and biases."""
    state = patcher.model.state_dict()
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: (0.01 * torch.randn(*shape, generator=generator)).to(DTYPE)  # noqa: E731
    lora = {}
    for key in keys:
        path, _, leaf = key.rpartition(".")
        shape = state[key].shape
        if leaf == "bias":
            lora[f"{path}.diff_b"] = draw(*shape)
        else:
            lora[f"{path}.lora_up.weight"] = draw(shape[0], RANK)
            lora[f"{path}.lora_down.weight"] = draw(RANK, shape[1])
            lora[f"{path}.alpha"] = torch.tensor(float(RANK))
    return lora


def attach_mask(patcher, mask: GateMask, known: bool = False):
    """What the Apply node does to a model; unless `known`, to one that was never masked before."""
    if not known:
        sites._find.cache_clear()
        host._fingerprints.pop(patcher.model, None)
    patched = host.apply_mask(patcher, mask)
    assert same_base(mask.info.base, host.base_fingerprint(patcher))
    return patched


def attach_lora(patcher, lora: dict[str, torch.Tensor]):
    """What the LoRA loader does to a model once the file is read."""
    return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]


class Weights:
    """Real weights with random values, one for each shape, lent to the model while one of its parameters is patched."""

    def __init__(self):
        self.of: dict[tuple[int, ...], torch.Tensor] = {}

    def lend(self, patcher, key: str) -> torch.Tensor:
        """Makes `key` a real weight; returns what was there."""
        was = comfy.utils.get_attr(patcher.model, key)
        shape = tuple(was.shape)
        if shape not in self.of:
            weight = torch.empty(shape, dtype=DTYPE)
            for row in weight.split(1024):
                row.copy_(torch.randn(row.shape) * 0.05)
            self.of[shape] = weight
        comfy.utils.set_attr_param(patcher.model, key, self.of[shape])
        return was

    def run(self, patcher, key: str, measured: Callable[[Callable[[], Any]], Any], changes: bool = True) -> Any:
        """``measured`` of the call that patches one real weight; the model is as before afterwards."""
        was = self.lend(patcher, key)
        try:
            out = measured(lambda: patcher.patch_weight_to_device(key, device_to=CPU))
            done = comfy.utils.get_attr(patcher.model, key)
            assert torch.equal(done[:64], self.of[tuple(was.shape)][:64]) != changes, f"{key}: patched {not changes}"
        finally:
            comfy.utils.set_attr_param(patcher.model, key, was)
            patcher.backup.pop(key, None)
        return out


@torch.inference_mode()
def measure(config: dict[str, Any], repeats: int, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """All figures, as in docs/bench.md."""
    patcher = flux(config)
    mask = random_mask(patcher)
    masked = attach_mask(patcher, mask)
    lora = random_lora(patcher, list(masked.patches))
    loaded = attach_lora(patcher, lora)
    keys = list(masked.patches)
    assert set(loaded.patches) == set(keys), "both must patch the same weights"
    say(f"{len(keys)} weights of {len(patcher.model.state_dict())} to patch, by a mask and by a LoRA")
    return {
        **_times(patcher, mask, lora, masked, loaded, repeats, say),
        **_memory(patcher, mask, lora, masked, loaded),
        "patched_keys": len(keys),
        "patched_values": sum(comfy.utils.get_attr(patcher.model, k).numel() for k in keys),
        "model_values": sum(p.numel() for p in patcher.model.parameters()),
        "lora_rank": RANK,
        "dtype": str(DTYPE).removeprefix("torch."),
        "comfyui": comfyui_version.__version__,
        "machine": machine(),
    }


def _times(patcher, mask, lora, masked, loaded, repeats, say):
    attach = {"cold": [], "warm": [], "lora": []}
    patch = {"mask": [], "lora": []}
    weights = Weights()
    arms = {"mask": masked, "lora": loaded}
    largest_of_shape = {tuple(comfy.utils.get_attr(patcher.model, k).shape): k for k in masked.patches}
    for key in largest_of_shape.values():  # nobody pays for the first use of a kernel
        for arm in arms.values():
            weights.run(arm, key, seconds)
    for repeat in range(repeats):
        calls = {
            "cold": lambda: attach_mask(patcher, mask),
            "warm": lambda: attach_mask(patcher, mask, known=True),
            "lora": lambda: attach_lora(patcher, lora),
        }
        for name in list(calls) if repeat % 2 else reversed(calls):
            attach[name].append(seconds(calls[name]))
        total = dict.fromkeys(arms, 0.0)
        for i, key in enumerate(masked.patches):
            for name in list(arms) if (i + repeat) % 2 else reversed(arms):
                total[name] += weights.run(arms[name], key, seconds)
        for name, value in total.items():
            patch[name].append(value)
        say(f"repeat {repeat + 1} of {repeats}: mask {total['mask']:.2f} s, LoRA {total['lora']:.2f} s")
    ours = [a + b for a, b in zip(attach["cold"], patch["mask"], strict=True)]
    theirs = [a + b for a, b in zip(attach["lora"], patch["lora"], strict=True)]
    middle = statistics.median
    return {
        "ratio_to_lora": middle(ours) / middle(theirs),
        "seconds": middle(ours),
        "lora_seconds": middle(theirs),
        "attach_seconds": middle(attach["cold"]),
        "attach_seconds_warm": middle(attach["warm"]),
        "lora_attach_seconds": middle(attach["lora"]),
        "patch_seconds": middle(patch["mask"]),
        "lora_patch_seconds": middle(patch["lora"]),
        "seconds_each": ours,
        "lora_seconds_each": theirs,
        "repeats": repeats,
    }


def _memory(patcher, mask, lora, masked, loaded):
    """Bytes; see :mod:`bench.apply` for what they mean."""
    sizes = {k: comfy.utils.get_attr(patcher.model, k).numel() * DTYPE.itemsize for k in masked.patches}
    largest = max(sizes, key=sizes.__getitem__)
    weights = Weights()
    weights.run(masked, largest, lambda run: run())
    nothing = patcher.clone()
    nothing.add_patches({largest: Nothing()})
    peak = lambda run: allocated(run)[0]  # noqa: E731
    held = {
        "mask": allocated(lambda: attach_mask(patcher, mask))[0],
        "lora": sum(t.untyped_storage().nbytes() for t in lora.values()) + allocated(lambda: attach_lora(patcher, lora))[0],
    }
    own = {"mask": _own(masked, sizes), "lora": _own(loaded, sizes)}
    return {
        "extra_bytes": held["mask"] + own["mask"],
        "held_bytes": held["mask"],
        "temporary_bytes": own["mask"],
        "lora_extra_bytes": held["lora"] + own["lora"],
        "lora_held_bytes": held["lora"],
        "lora_temporary_bytes": own["lora"],
        "largest_layer_bytes": sizes[largest],
        "core_temp_bytes": weights.run(nothing, largest, peak, changes=False),
        "core_backup_bytes": sum(sizes.values()),
        "peak_bytes": weights.run(masked, largest, peak),
        "lora_peak_bytes": weights.run(loaded, largest, peak),
        "core_resident_bytes": weights.run(nothing, largest, resident, changes=False),
        "resident_bytes": weights.run(masked, largest, resident),
        "lora_resident_bytes": weights.run(loaded, largest, resident),
    }


def _own(patched, sizes: dict[str, int]) -> int:
    """The most that the patch of one weight allocates beside the fp32 copy it works on, over one weight of each shape."""
    one_of_shape = {tuple(comfy.utils.get_attr(patched.model, k).shape): k for k in sizes}
    most = 0
    for shape, key in one_of_shape.items():
        weight = torch.zeros(shape)
        most = max(most, allocated(lambda k=key, w=weight: comfy.lora.calculate_weight(patched.patches[k], w, k))[0])
    return most
