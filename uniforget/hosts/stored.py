"""Weights as ComfyUI and its extensions keep them: single values out of quantized ones, without expanding the whole model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn


class Stored:
    """A module's weight, whose values can be read in whatever format it is kept.

    Attributes:
        shape, ndim: of the weight as the model computes with it, not of the bytes it is packed in.
        coarse: fewer than eight bits per weight, so that its values are only roughly the original's.
        readable: False: an unknown format.
    """

    def __init__(self, module: Any, weight: Any):
        self.module = module
        self.weight = weight
        self.shape = tuple(weight.shape)
        self.ndim = len(self.shape)
        self.coarse = weight.nbytes < math.prod(self.shape)
        self._plain = type(weight) in (torch.Tensor, nn.Parameter)
        # ComfyUI-GGUF's tensors have a tensor_type and its Linears get_weight; ComfyUI's own quantized Linears have convert_weight.
        self._packed = hasattr(weight, "tensor_type")
        known = hasattr(module, "get_weight") if self._packed else self._plain or hasattr(module, "convert_weight")
        self.readable = known and not weight.is_meta

    def __getitem__(self, at: tuple[int, int]) -> torch.Tensor:
        """The value in one row and column."""
        row, column = at
        if self._packed:
            return self._unpacked(row)[column]
        if not hasattr(self.module, "convert_weight"):
            return self.weight[row, column]
        if self._plain:
            return self.module.convert_weight(self.weight[row : row + 1])[0, column]
        # A tensor class of its own: cutting a row out of it would expand it, too.
        return self.module.convert_weight(self.weight)[row, column]

    def _unpacked(self, row: int) -> torch.Tensor:
        """A row of packed bytes as numbers; a tensor made anew has no patches, which get_weight would apply."""
        weight = self.weight
        data = weight.as_subclass(torch.Tensor)[row : row + 1]
        one = type(weight)(data, tensor_type=weight.tensor_type, tensor_shape=torch.Size((1, self.shape[1])))
        return self.module.get_weight(one, torch.float32)[0]
