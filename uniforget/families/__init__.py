"""The model families: how to recognise one, where its gates sit, and what diffusers calls the same weights.

Adding a family is adding one :class:`~uniforget.archs.Family` to :data:`FAMILIES`; nothing else branches on families.
"""

from ..archs import Family
from .dit import AURAFLOW, HUNYUANDIT, PIXART, QWEN_IMAGE, SD3, WAN
from .flux import CHROMA, FLUX, FLUX2
from .lumina import LUMINA2, Z_IMAGE
from .unet import SD1, SD2, SDXL

FAMILIES: tuple[Family, ...] = (
    *(SD1, SD2, SDXL),
    *(SD3, FLUX, FLUX2, CHROMA),
    *(PIXART, HUNYUANDIT, LUMINA2, Z_IMAGE, QWEN_IMAGE, AURAFLOW, WAN),
)
