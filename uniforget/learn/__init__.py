"""Where masks come from: learned from neutral prompts with gradients, or from what the model does on them without.

:data:`uniforget.config.METHODS` lists the ways; each is a module here with ``run(model, settings, info, session)``. Under
classifier-free guidance both branches are matched.
"""

import sys
from types import ModuleType
from typing import Any

from ..config import METHODS, Settings
from .methods import Cost, describe, learn, measure
from .model import CURVE_BEGINS, Model, Progress, Result, Session, curve_csv, euler, guided

__all__ = [
    "CURVE_BEGINS",
    "METHODS",
    "Cost",
    "Model",
    "Progress",
    "Result",
    "Session",
    "Settings",
    "curve_csv",
    "describe",
    "euler",
    "guided",
    "learn",
    "measure",
]


class _Verb(ModuleType):
    """``uniforget.learn(...)`` is :func:`learn`: the package has its name, and is loaded no sooner than it is used."""

    def __call__(self, *given: Any, **named: Any) -> Result:
        return learn(*given, **named)


sys.modules[__name__].__class__ = _Verb
