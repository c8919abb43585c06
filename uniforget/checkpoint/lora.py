"""LoRA files in kohya's format, which ComfyUI, Forge, AUTOMATIC1111 and diffusers read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save as dumps

from .. import __version__, atomic
from ..errors import ModelFileError, SettingError
from ..learn.recover import Lora


def state_dict(lora: Lora, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """``lora_unet_<path>.lora_down.weight`` (rank, in), ``.lora_up.weight`` (out, rank) and ``.alpha`` (the rank) for each layer."""
    out = {}
    for name, down in lora.down.items():
        key = "lora_unet_" + name.replace(".", "_")
        out[f"{key}.lora_down.weight"] = down.to(dtype).contiguous()
        out[f"{key}.lora_up.weight"] = lora.up[name].to(dtype).contiguous()
        out[f"{key}.alpha"] = torch.tensor(float(lora.rank), dtype=dtype)
    return out


def save(lora: Lora, path: Path, overwrite: bool = True) -> None:
    """Write a LoRA, in one step; without `overwrite` only where no file is.

    Raises:
        SettingError: the name does not end in .safetensors.
        ModelFileError: it could not be written; what was there before is unchanged.
    """
    if path.suffix != ".safetensors":
        raise SettingError(f"{path}: expected a name that ends in .safetensors. Change it.")
    state = state_dict(lora)
    sha = hashlib.sha256()
    for name in sorted(state):
        sha.update(name.encode() + state[name].numpy().tobytes())
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.rank),
        "sshs_model_hash": sha.hexdigest(),
        "uniforget": __version__,
        "uniforget_recovers": lora.info.extra.get("recovered", ""),
        "uniforget_family": lora.info.family,
    }
    try:
        atomic.replace(path, dumps(state, metadata), overwrite)
    except OSError as error:
        raise ModelFileError(
            f"{path}: the LoRA could not be saved ({error.strerror or error}). Free some space, or choose another place."
        ) from error
