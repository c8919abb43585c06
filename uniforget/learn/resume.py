"""Unfinished learning on disk: what a cancelled or killed run needs to reach the same result, bit for bit.

Safetensors files with a note in JSON, written to a temporary name and renamed; nothing in them is code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import atomic, untrusted
from ..config import Settings
from ..errors import LearnError
from ..mask.info import MaskInfo
from ..model.families.schema import KINDS
from . import distributed, memory
from .model import Model, Progress, pairs_of

FORMAT = "uniforget learning 5"
_CURVE = ("step", "steps", "reconstruction", "off_share", "soft", "hard")
_TENSORS = ("params", "first", "second", "generator")
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
        untrusted.header_length(path)
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        expect(found.get("format") == FORMAT, f"format {found.get('format')!r:.80}")
        return make(tensors, untrusted.parse_json(found["note"], untrusted.HEADER))
    except (
        SafetensorError,
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise LearnError(
            f"{path}: learning cannot be resumed from this file ({error!s:.200}). Delete it to start over."
        ) from error


def expect(fits: bool, fault: str) -> None:
    """See that what was read can be what was written.

    Raises:
        ValueError: it cannot.
    """
    if not fits:
        raise ValueError(fault)


def is_count(value: Any) -> bool:
    """Whether a value of a note is a whole number from 0 on, as far as such are counted here."""
    return type(value) is int and 0 <= value < 1 << 53


@dataclass
class State:
    """Everything that the next update depends on.

    Attributes:
        step: updates done.
        params, first, second: what is trained (gate logits, for a mask) and Adam's two moments, float32 (size,).
        generator: state of the generator, uint8.
        left: what is left of the current round over the items.
        memory, rows: how memory is spent (:func:`.memory.choose`): another way rounds differently.
        extra_state: whatever else the next update depends on, by name (the cut, the sparsity weight).
        curve: progress so far.
    """

    step: int
    params: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    generator: torch.Tensor
    left: list[int]
    memory: str
    rows: int
    extra_state: dict[str, float]
    curve: list[Progress]

    def save(self, path: Path) -> None:
        """See :func:`write`."""
        kinds = list(self.curve[0].off) if self.curve else []
        rows = [[*(getattr(p, name) for name in _CURVE), *(p.off[kind] for kind in kinds)] for p in self.curve]
        tensors = {name: getattr(self, name) for name in _TENSORS}
        tensors["curve"] = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(_CURVE) + len(kinds))
        note = {name: getattr(self, name) for name in ("step", "left", "memory", "rows", "extra_state")}
        write(path, tensors, {**note, "kinds": kinds})

    @classmethod
    def load(cls, path: Path, size: int, items: int | None = None, extra: Collection[str] | None = None) -> State | None:
        """The state at `path`; None when there is no file. Errors: see :func:`read`.

        Args:
            size: how many numbers are trained.
            items: how many there are to make batches of; ``extra``: the names in ``extra_state``. None: any.
        """

        def make(tensors: dict[str, torch.Tensor], note: Any) -> State:
            for name in ("params", "first", "second"):
                expect(tensors[name].shape == (size,) and tensors[name].dtype == torch.float32, "it is of another model")
                expect(bool(tensors[name].isfinite().all()), f"{name} are no numbers")
            try:
                torch.Generator().set_state(tensors["generator"])
            except RuntimeError as error:
                raise ValueError("it holds no generator's state") from error
            curve, kinds = tensors.pop("curve"), note.pop("kinds")
            fields: dict[str, Any] = {**{name: tensors[name] for name in _TENSORS}, **note}
            expect(isinstance(kinds, list) and set(kinds) <= {*KINDS, "all"}, "its kinds are none")
            expect(curve.dtype == torch.float64 and curve.shape == (note["step"], len(_CURVE) + len(kinds)), "its curve is none")
            found = cls(**fields, curve=[_point(values, kinds) for values in curve.tolist()])
            expect(is_count(found.step) and found.step > 0, "its step is none")
            expect(
                isinstance(found.left, list) and all(map(is_count, found.left)), "what is left of its round is no list of numbers"
            )
            expect(items is None or all(i < items for i in found.left), "it is of other prompts")
            expect(found.memory in memory.MODES and is_count(found.rows) and found.rows > 0, "how it spends memory is unknown")
            numbers = found.extra_state
            expect(isinstance(numbers, dict) and all(map(untrusted.is_number, numbers.values())), "its numbers are none")
            expect(extra is None or numbers.keys() == set(extra), "it is of another method")
            return found

        return read(path, make) if path.is_file() else None


def _point(values: list[float], kinds: list[str]) -> Progress:
    """One point of a curve out of its row."""
    step, steps, *losses = values[: len(_CURVE)]
    named: dict[str, Any] = dict(zip(_CURVE[2:], losses, strict=True))
    return Progress(int(step), int(steps), **named, off=dict(zip(kinds, values[len(_CURVE) :], strict=True)))


def run_key(model: Model, settings: Settings, info: MaskInfo) -> str:
    """Sixteen hexadecimal digits that tell runs apart which would not give the same mask."""
    asked = asdict(settings)
    del asked["memory"]  # how memory is spent changes no result beyond rounding
    del asked["threshold"]  # chosen after everything was looked at
    shape = list(model.initial(1, torch.Generator().manual_seed(0)).shape[1:])
    sites = [(s.name, s.units) for s in model.sites]
    run = [asked, info.family, info.base, info.prompts_hash, pairs_of(model), model.sigmas.tolist(), shape, sites]
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
