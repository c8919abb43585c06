"""Run by Forge's Python inside Forge's folder: writes the smallest checkpoint that Forge takes for Stable Diffusion 1.5, with random weights.

Usage: make_checkpoint.py FILE
"""

import sys
from pathlib import Path

sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "packages_3rdparty")]
sys.argv.append("--always-cpu")  # Forge reads its options on import

# ruff: noqa: E402
import torch
from backend.nn.unet import IntegratedUNet2DConditionModel
from backend.nn.vae import IntegratedAutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

REPOSITORY = Path("backend/huggingface/runwayml/stable-diffusion-v1-5")
# Two levels with one block each instead of four with two; 320 channels and 768 inputs of text are what tells SD1.5.
UNET = {
    "in_channels": 4,
    "model_channels": 320,
    "out_channels": 4,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
}


def main() -> None:
    torch.manual_seed(0)
    parts = {
        "model.diffusion_model.": IntegratedUNet2DConditionModel(**UNET),
        "first_stage_model.": IntegratedAutoencoderKL.from_config(IntegratedAutoencoderKL.load_config(str(REPOSITORY / "vae"))),
        "cond_stage_model.transformer.": CLIPTextModel(CLIPTextConfig.from_pretrained(str(REPOSITORY / "text_encoder"))),
    }
    weights = {}
    for prefix, part in parts.items():
        for name, value in part.state_dict().items():
            if value.ndim > 1:  # some start at zero, which would hide everything before them
                value = torch.randn(value.shape) / value[0].numel() ** 0.5
            weights[prefix + name] = value.half() if value.is_floating_point() else value
    save_file(weights, sys.argv[1])


main()
