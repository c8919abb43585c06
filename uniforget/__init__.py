"""UniForget: make text-to-image models forget what they memorized, without naming it.

    mask = uniforget.load("mask.safetensors")
    uniforget.apply(pipeline, mask)

The package imports no host and does nothing at import. ``learn`` learns a mask, ``apply`` merges one into a model, ``load`` and ``save``
read and write it, whatever it is made of; ``errors`` has what they raise.
"""

__version__ = "0.1.0"

from . import errors
from .errors import UniForgetError
from .learn import learn
from .mask.edit import Mask, apply
from .mask.files import load, save
from .mask.info import MaskInfo, MaskSet
from .mask.subspace import Subspace

__all__ = [
    "Mask",
    "MaskInfo",
    "MaskSet",
    "Subspace",
    "UniForgetError",
    "__version__",
    "apply",
    "errors",
    "learn",
    "load",
    "save",
]
