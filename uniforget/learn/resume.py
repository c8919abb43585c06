"""Unfinished learning on disk: what a cancelled or killed run needs to reach the same result, bit for bit.

Safetensors files with a note in JSON, written to a temporary name and renamed; nothing in them is code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import atomic
from ..config import Settings
from ..errors import LearnError
from ..mask.info import MaskInfo
from . import distributed
from .model import Model, Progress

FORMAT = "uniforget learning 4"
_CURVE = ("step", "steps", "reconstruction", "off_share", "soft", "hard", "off")
T = TypeVar("T")


def write(path: Path, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
    """Replace the file at `path` in one step; numbers in the note come back exactly.

    Raises:
        LearnError: it could not be written; the one before is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        atomic.replace(path, save(kept, {"format": FORMAT, "note": json.dumps(note)}))
    except OSError as error:
        raise LearnError(
            f"{path}: progress could not be saved ({error.strerror or error}); what was saved before is unchanged. "
            "Free some space or choose another folder, and start again: learning goes on from there."
        ) from error


def read(path: Path, make: Callable[[dict[str, torch.Tensor], Any], T]) -> T:
    """What `make` makes of the tensors and the note at `path`.

    Raises:
        LearnError: the file is damaged, or something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        if found.get("format") != FORMAT:
            raise ValueError(f"format {found.get('format')!r}")
        return make(tensors, json.loads(found["note"]))
    except (
        SafetensorError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise LearnError(f"{path}: learning cannot be resumed from this file ({error}). Delete it to start over.") from error


@dataclass
class State:
    """Everything that the next update depends on.

    Attributes:
        step: updates done.
        params, first, second: what is trained (gate logits, for a mask) and Adam's two moments, float32 (size,).
        generator: state of the generator, uint8.
        left: what is left of the current round over the items.
        extra_state: whatever else the next update depends on, by name (the cut, the sparsity weight).
        curve: progress so far.
    """

    step: int
    params: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    generator: torch.Tensor
    left: list[int]
    extra_state: dict[str, float]
    curve: list[Progress]

    def save(self, path: Path) -> None:
        """See :func:`write`."""
        tensors = {"params": self.params, "first": self.first, "second": self.second, "generator": self.generator}
        curve = [[getattr(p, name) for name in _CURVE] for p in self.curve]
        write(path, tensors, {"step": self.step, "left": self.left, "extra_state": self.extra_state, "curve": curve})

    @classmethod
    def load(cls, path: Path, size: int) -> State | None:
        """The state at `path`, with `size` numbers; None when there is no file. Errors: see :func:`read`."""

        def make(tensors: dict[str, torch.Tensor], note: Any) -> State:
            if any(tensors[name].shape != (size,) for name in ("params", "first", "second")):
                raise ValueError("it is of another model")
            curve = [Progress(**dict(zip(_CURVE, values, strict=True))) for values in note.pop("curve")]
            fields: dict[str, Any] = {**tensors, **note, "curve": curve}
            return cls(**fields)

        return read(path, make) if path.is_file() else None


def run_key(model: Model, settings: Settings, info: MaskInfo) -> str:
    """Sixteen hexadecimal digits that tell runs apart which would not give the same mask."""
    asked = asdict(settings)
    del asked["memory"]  # how memory is spent changes no result beyond rounding
    del asked["threshold"]  # chosen after everything was looked at
    shape = list(model.initial(1, torch.Generator().manual_seed(0)).shape[1:])
    sites = [(s.name, s.units) for s in model.sites]
    run = [asked, info.family, info.base, info.prompts_hash, model.sigmas.tolist(), shape, sites]
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]


def path_of(folder: Path, name: str) -> Path:
    """The file that keeps run `name`."""
    return folder / f"{name}.unfinished.safetensors"


@contextlib.contextmanager
def kept(folder: Path | None, name: str) -> Iterator[None]:
    """Around run `name`: no other process learns the same in the same folder, and what was kept is removed when all is well at the end.

    Of several processes that learn together, the first counts.

    Raises:
        LearnError: another one learns the same, or the folder cannot be made.
    """
    if folder is None or distributed.rank():
        yield
        return
    lock = folder / f"{name}{atomic.LOCK}"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(atomic.held(lock))
        except BlockingIOError as error:
            raise LearnError(
                f"{lock}: the same learning is going on in another process, with the same model, prompts and settings. Wait for it, or change a "
                "setting such as the seed."
            ) from error
        except OSError as error:
            raise LearnError(
                f"{folder}: progress cannot be kept there ({error.strerror or error}). Allow writing, or choose another folder."
            ) from error
        yield
        for path in folder.glob(f"{name}.*"):
            if path != lock:
                path.unlink(missing_ok=True)
