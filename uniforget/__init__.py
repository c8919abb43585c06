"""UniForget: make text-to-image models forget what they memorized, without naming it.

    mask = uniforget.load("mask.safetensors")
    uniforget.apply(pipeline, mask)

The package imports no host and does nothing at import; what needs torch is loaded when it is used, so that ``uniforget --help`` does not
wait for it. ``learn`` learns a mask, ``apply`` merges one into a model, ``load`` and ``save`` read and write it, whatever it is made of;
``errors`` has what they raise.
"""

import importlib as _importlib
import typing as _typing

from . import errors
from .errors import UniForgetError

if _typing.TYPE_CHECKING:
    from .learn import learn
    from .mask.edit import Mask, apply
    from .mask.files import load, save
    from .mask.info import GateMask, MaskInfo
    from .mask.subspace import SubspaceMask

__version__ = "0.1.0"
__all__ = [
    "GateMask",
    "Mask",
    "MaskInfo",
    "SubspaceMask",
    "UniForgetError",
    "__version__",
    "apply",
    "errors",
    "learn",
    "load",
    "save",
]
_HOME = {
    **{"Mask": ".mask.edit", "apply": ".mask.edit", "load": ".mask.files", "save": ".mask.files"},
    **{"MaskInfo": ".mask.info", "GateMask": ".mask.info", "SubspaceMask": ".mask.subspace"},
}


def __getattr__(name: str) -> _typing.Any:
    if name == "learn":
        return _importlib.import_module(".learn", __name__)  # a room that is a verb
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(_HOME[name], __name__), name)
