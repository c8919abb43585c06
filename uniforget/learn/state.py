"""Unfinished learning on disk: what a cancelled or killed run needs to go on to the same result, bit for bit.

One safetensors file, written to a temporary name and renamed; nothing in it is code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import atomic
from ..errors import LearnError
from ..mask.info import MaskInfo
from ..model.sites import Site
from . import shards
from .model import Progress, Settings

FORMAT = "uniforget learning 2"
_CURVE = ("step", "reconstruction", "off_share", "soft", "hard")


@dataclass
class State:
    """Everything that the next update depends on.

    Attributes:
        step: updates done.
        numbers, first, second: what is trained (gate logits, for a mask) and Adam's two moments, float32 (size,).
        generator: state of the generator, uint8.
        left: what is left of the current round over the items.
        extra: small numbers by name (the cut, the sparsity weight).
        curve: progress so far.
    """

    step: int
    numbers: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    generator: torch.Tensor
    left: list[int]
    extra: dict[str, float]
    curve: list[Progress]


def key(settings: Settings, info: MaskInfo, sites: Sequence[Site], sigmas: torch.Tensor, shape: Sequence[int]) -> str:
    """Sixteen hexadecimal digits that tell runs apart which would not give the same mask."""
    asked = asdict(settings)
    del asked["memory"]  # how memory is spent changes no result beyond rounding
    del asked["threshold"]  # chosen after everything was looked at
    told = [asked, info.family, info.base, info.prompts_hash, sigmas.tolist(), list(shape), [(s.name, s.units) for s in sites]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def path_of(folder: Path, name: str) -> Path:
    """The file that keeps run `name`."""
    return folder / f"{name}.unfinished.safetensors"


def lock_of(folder: Path, name: str) -> Path:
    """The file that says that run `name` is going on."""
    return folder / f"{name}{atomic.LOCK}"


@contextlib.contextmanager
def alone(folder: Path | None, name: str) -> Iterator[None]:
    """Within it, no other process learns the same in the same folder: they would write the same files. Of several that learn together, the first counts.

    Raises:
        LearnError: another one does, or the folder cannot be made.
    """
    with contextlib.ExitStack() as stack:
        if folder is not None and not shards.rank():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(atomic.held(lock_of(folder, name)))
            except BlockingIOError as error:
                raise LearnError(
                    f"{lock_of(folder, name)}: the same learning is going on in another process, with the same model, prompts and settings. Wait for "
                    "it, or change a setting such as the seed."
                ) from error
            except OSError as error:
                raise LearnError(
                    f"{folder}: progress cannot be kept there ({error.strerror or error}). Allow writing, or choose another folder."
                ) from error
        yield


def write(path: Path, state: State) -> None:
    """Replace the checkpoint at `path` in one step.

    Raises:
        LearnError: it could not be written; the one before is unchanged.
    """
    curve = [[float(getattr(p, name)) for name in _CURVE] for p in state.curve]
    tensors = {
        "numbers": state.numbers.detach().cpu(),
        "first": state.first.cpu(),
        "second": state.second.cpu(),
        "generator": state.generator,
        "left": torch.tensor(state.left, dtype=torch.int64),
        "curve": torch.tensor(curve, dtype=torch.float64).view(-1, len(_CURVE)),
    }
    note = {"format": FORMAT, "step": str(state.step), "steps": str(state.curve[-1].steps if state.curve else 0)}
    # Hexadecimal floats come back exactly.
    note["extra"] = json.dumps({name: value.hex() for name, value in state.extra.items()})
    note["off"] = json.dumps([p.off for p in state.curve])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.replace(path, save(tensors, note))
    except OSError as error:
        raise LearnError(
            f"{path}: progress could not be saved ({error.strerror or error}); what was saved before is unchanged. "
            "Free some space or choose another folder, and start again: learning goes on from there."
        ) from error


def read(path: Path, size: int) -> State | None:
    """The checkpoint at `path`; None when there is none.

    Raises:
        LearnError: it is damaged, or of another model.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        if note.get("format") != FORMAT or any(tensors[n].shape != (size,) for n in ("numbers", "first", "second")):
            raise ValueError(f"format {note.get('format')!r}")
        steps, off = int(note["steps"]), json.loads(note["off"])
        curve = [
            Progress(int(row[0]), steps, row[1], row[2], off=shares, soft=row[3], hard=row[4])
            for row, shares in zip(tensors["curve"].tolist(), off, strict=True)
        ]
        extra = {name: float.fromhex(value) for name, value in json.loads(note["extra"]).items()}
        return State(
            int(note["step"]), tensors["numbers"], tensors["first"], tensors["second"], tensors["generator"],
            tensors["left"].tolist(), extra, curve,
        )  # fmt: skip
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, struct.error) as error:
        raise LearnError(
            f"{path}: this is no unfinished learning that can be gone on with ({error}). Delete the file to start anew."
        ) from error
