"""Every model class of ComfyUI is a family of ours, refused by its name, or makes no pictures."""

import ast
import os
from pathlib import Path

import pytest

from uniforget.model.families import FAMILIES
from uniforget.model.families.unsupported import UNSUPPORTED

ROOT = Path(__file__).resolve().parents[2]
TREE = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".cache" / "comfyui").expanduser()
NAMES, TITLES = {family.name for family in FAMILIES}, {model.title for model in UNSUPPORTED}

# family, title of an unsupported model, or (why it is neither) in parentheses; read from comfy/model_detection.py of 0.33.0
CLASSES = {
    **dict.fromkeys(("SD15", "SD15_instructpix2pix", "Stable_Zero123"), "sd1"),
    **dict.fromkeys(("SD20", "SD21UnclipL", "SD21UnclipH", "SD_X4Upscaler", "LotusD"), "sd2"),
    **dict.fromkeys(("SDXL", "SDXLRefiner", "SDXL_instructpix2pix", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"), "sdxl"),
    "SD3": "sd3",
    **dict.fromkeys(("Flux", "FluxInpaint", "FluxSchnell", "LongCatImage"), "flux"),
    "Flux2": "flux2",
    "Chroma": "chroma",
    **dict.fromkeys(("PixArtAlpha", "PixArtSigma"), "pixart"),
    **dict.fromkeys(("HunyuanDiT", "HunyuanDiT1"), "hunyuandit"),
    "Lumina2": "lumina2",
    **dict.fromkeys(("ZImage", "ZImagePixelSpace"), "z_image"),
    **dict.fromkeys(("QwenImage", "MageFlow"), "qwen_image"),
    "AuraFlow": "auraflow",
    **dict.fromkeys(
        (
            *("WAN21_T2V", "WAN21_CausalAR_T2V", "WAN21_I2V", "WAN21_FunControl2V", "WAN21_Vace", "WAN21_Camera", "WAN21_HuMo"),
            *("WAN22_T2V", "WAN22_Camera", "WAN22_S2V", "WAN22_Animate", "WAN_Animate2", "WAN21_FlowRVS", "WAN21_SCAIL"),
            *("WAN21_SCAIL2", "WAN22_WanDancer"),
        ),
        "wan",
    ),
    **dict.fromkeys(("Stable_Cascade_B", "Stable_Cascade_C"), "Stable Cascade"),
    **dict.fromkeys(("SVD_img2vid", "SV3D_u", "SV3D_p"), "a video UNet (Stable Video Diffusion, AnimateDiff, ...)"),
    **dict.fromkeys(("LTXV", "LTXAV"), "LTX-Video"),
    "GenmoMochi": "Mochi",
    **dict.fromkeys(("CosmosT2IPredict2", "CosmosI2VPredict2", "Anima"), "cosmos"),
    "Krea2": "krea2",
    "Ideogram4": "ideogram4",
    "ErnieImage": "ernie",
    "ChromaRadiance": "chroma_radiance",
    "Lens": "lens",
    "HunyuanImage21": "hunyuan_image",
    **dict.fromkeys(("Kandinsky5", "Kandinsky5Image"), "kandinsky5"),
    "HiDream": "hidream",
    "Omnigen2": "omnigen2",
    **dict.fromkeys(
        (
            *("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V", "HunyuanVideo15", "HunyuanVideo15_SR_Distilled"),
            "HunyuanImage21Refiner",
        ),
        "HunyuanVideo, or the refiner of HunyuanImage",
    ),
    **dict.fromkeys(("CosmosT2V", "CosmosI2V"), "the first Cosmos, for videos"),
    **dict.fromkeys(("Hunyuan3Dv2", "Hunyuan3Dv2mini", "Hunyuan3Dv2_1"), "Hunyuan3D"),
    "HiDreamO1": "HiDream-O1",
    "Boogu": "Boogu-Image",
    "JoyImage": "JoyImage",
    **dict.fromkeys(("PixelDiTT2I", "PiD"), "PixelDiT"),
    **dict.fromkeys(("StableAudio", "StableAudio3", "ACEStep", "ACEStep15", "MiniMaxMusic3"), "(makes sound)"),
    **dict.fromkeys(("MiniMaxH3", "CogVideoX_T2V", "CogVideoX_I2V", "CogVideoX_Inpaint", "SeedVR2"), "(makes or mends videos)"),
    **dict.fromkeys(("Trellis2", "TripoSplat"), "(makes shapes)"),
    **dict.fromkeys(("RT_DETR_v4", "DepthAnything3", "SAM3", "SAM31"), "(looks at pictures)"),
}


def test_the_table_names_families_and_unsupported_models_that_there_are():
    wrong = {name: what for name, what in CLASSES.items() if what not in NAMES | TITLES and not what.startswith("(")}
    assert not wrong


def test_every_class_of_comfyui_is_known():
    """With COMFYUI_PATH, of that ComfyUI."""
    file = TREE / "comfy" / "supported_models.py"
    if not file.is_file():
        pytest.skip(f"no ComfyUI at {TREE}")
    found = [
        [name.id for name in node.value.elts]
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "models" and isinstance(node.value, ast.List)
    ]
    assert len(found) == 1 and len(found[0]) > 50, "ComfyUI lists its models otherwise"
    assert not set(found[0]) - CLASSES.keys(), "neither a family, nor refused by name: add them to one of the tables"
