"""Subspace forgetting: what neutral prompts never look at, a model's Linears need not read.

Gradient-free: watch the model draw neutral prompts (:mod:`.moments`), keep the directions that hold nearly all the energy of
each Linear's inputs (:mod:`.subspace`), and project the weights onto them.
"""

from .layers import Layer, find_layers
from .moments import Moments, collect
from .subspace import Basis, Subspace, effective, match_layers, project, subspace_of

__all__ = [
    "Basis",
    "Layer",
    "Moments",
    "Subspace",
    "collect",
    "effective",
    "find_layers",
    "match_layers",
    "project",
    "subspace_of",
]
