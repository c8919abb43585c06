"""UniForget: make text-to-image models forget what they memorized, without naming it.

The package imports no host and does nothing at import. Beside the names below, see ``learn``, ``mask`` and ``hosts``.
"""

__version__ = "0.1.0"

from .errors import (
    FamilyError,
    LearnError,
    MaskError,
    MaskFileError,
    MismatchError,
    SettingError,
    UniForgetError,
)
from .mask.file import load, save
from .mask.info import MaskInfo, MaskSet

__all__ = [
    "FamilyError",
    "LearnError",
    "MaskError",
    "MaskFileError",
    "MaskInfo",
    "MaskSet",
    "MismatchError",
    "SettingError",
    "UniForgetError",
    "__version__",
    "load",
    "save",
]
