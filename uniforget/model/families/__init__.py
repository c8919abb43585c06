"""The model families: how to recognise one, where its gates sit, and what diffusers calls the same weights.

Adding a family is adding one :class:`~uniforget.model.families.schema.Family` to :data:`FAMILIES`; nothing else branches on families.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from .dit import AURAFLOW, HUNYUANDIT, PIXART, QWEN_IMAGE, SD3, WAN
from .flux import CHROMA, CHROMA_RADIANCE, FLUX, FLUX2, HUNYUAN_IMAGE
from .lumina import LUMINA2, OMNIGEN2, Z_IMAGE
from .newer import COSMOS, ERNIE, HIDREAM, IDEOGRAM4, KANDINSKY5, KREA2, LENS
from .schema import Family
from .unet import SD1, SD2, SDXL

FAMILIES: tuple[Family, ...] = (
    *(SD1, SD2, SDXL),
    *(SD3, FLUX, FLUX2, CHROMA),
    *(PIXART, HUNYUANDIT, LUMINA2, Z_IMAGE, QWEN_IMAGE, AURAFLOW, WAN),
    *(COSMOS, KREA2, IDEOGRAM4, ERNIE, CHROMA_RADIANCE, LENS, HUNYUAN_IMAGE, KANDINSKY5, HIDREAM, OMNIGEN2),
)


@cache
def sizes() -> dict[str, dict[str, Any]]:
    """Published models: variant -> its ``family``, ``title``, and per kind its number of ``sites`` and ``gates``, and what is
    ``tested`` (sizes.json). A test builds each of them on the meta device and compares.

    A variant with the architecture of another names that one as ``like``; its numbers are the same.
    """
    listed = json.loads(Path(__file__).with_name("sizes.json").read_text(encoding="utf-8"))
    return {name: {**listed.get(entry.get("like"), {}), **entry} for name, entry in listed.items()}
