"""The model families: how to recognise one, where its gates sit, and what diffusers calls the same weights.

Adding a family is adding one :class:`~uniforget.model.families.schema.Family` to :data:`FAMILIES`; nothing else branches on families.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from .dit import AURAFLOW, HUNYUANDIT, PIXART, QWEN_IMAGE, SD3, WAN
from .flux import CHROMA, FLUX, FLUX2
from .lumina import LUMINA2, Z_IMAGE
from .schema import Family
from .unet import SD1, SD2, SDXL

FAMILIES: tuple[Family, ...] = (
    *(SD1, SD2, SDXL),
    *(SD3, FLUX, FLUX2, CHROMA),
    *(PIXART, HUNYUANDIT, LUMINA2, Z_IMAGE, QWEN_IMAGE, AURAFLOW, WAN),
)


@cache
def sizes() -> dict[str, dict[str, Any]]:
    """Published models: variant -> its ``family``, ``title``, and per kind its number of ``sites`` and ``gates``, and what is
    ``tested`` (sizes.json). A test builds each of them on the meta device and compares.
    """
    return json.loads(Path(__file__).with_name("sizes.json").read_text(encoding="utf-8"))
