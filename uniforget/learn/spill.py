"""Text encodings that need not stay in memory."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from .trajectories import MAPPED_ABOVE

_ALIGNED = 64  # bytes; a multiple of every element's size


class Spill:
    """Keeps tensors in memory up to a size, and the others in a file that is mapped into memory.

    The file has no name where the system allows that, and is gone with the last of its tensors or with the process, however that ends.

    Args:
        folder: where the file is made, when it is needed; None: everything stays in memory.
        limit: bytes that stay in memory.
    """

    def __init__(self, folder: Path | None, limit: int = MAPPED_ABOVE):
        self.folder, self.limit = folder, limit
        self.held = self.written = 0
        self._file: Any = None

    def keep(self, value: Any) -> Any:
        """`value` (a tensor, or lists, tuples and dicts of anything) with the same contents.

        Tensors on other devices than the CPU stay where they are. No tensor of the result is an inference tensor, whatever it was and
        whatever mode this runs in: whoever learns on it would have to clone it back into memory.
        """
        with torch.inference_mode(False):
            return tree_map(lambda part: self._keep(part) if isinstance(part, torch.Tensor) else part, value)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        size = tensor.numel() * tensor.element_size()
        if self.folder is None or tensor.device.type != "cpu" or self.held + size <= self.limit or not size:
            self.held += size
            return tensor.clone() if tensor.is_inference() else tensor
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder, prefix="encodings.")  # noqa: SIM115 lives as long as this
            weakref.finalize(self, self._file.close)  # mappings outlive it
        start = -(-self._file.seek(0, 2) // _ALIGNED) * _ALIGNED
        self._file.seek(start)
        self._file.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        self._file.flush()
        self.written += size
        mapped = np.memmap(self._file, dtype=np.uint8, mode="r+", offset=start, shape=(size,))
        return torch.from_numpy(mapped).view(tensor.dtype).view(tensor.shape)
