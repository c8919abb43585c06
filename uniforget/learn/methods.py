"""The verb: learn a mask by any of the methods in :data:`uniforget.config.METHODS`, or measure what that would take."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from importlib import import_module

import torch

from .. import __version__
from ..config import METHODS, Settings
from ..errors import LearnError
from ..mask.info import MaskInfo
from ..model.names import eager
from ..prompts import prompts_hash
from . import memory, resume
from .model import Model, Progress, Result, Session, duration, self_found
from .optimize import out_of_memory
from .resume import run_key
from .trajectories import recorded_rows


def learn(model: Model, settings: Settings, info: MaskInfo, session: Session | None = None) -> Result:
    """Learn a mask with ``settings.objective``; hooks are removed whatever happens.

    Deterministic for a seed on one machine; torch's global random state is neither read nor changed. A run with the same settings, model
    and prompts goes on from what is kept in the session's folder.

    Raises:
        LearnError: there is nothing to learn on, memory ran out, the loss is no longer a number, or another process learns the same. What
            was kept stays.
    """
    session = session or Session()
    method = METHODS[settings.objective]
    if method.needs == "sites" and not model.sites:
        raise LearnError("The chosen targets have no sites in this model. Choose other targets, for example 'ffn + norm'.")
    if method.needs == "layers" and not model.layers:
        raise LearnError("This model has no Linears inside blocks, so there is no subspace to learn. Learn a mask instead.")
    try:
        if count := self_found(model):
            info = replace(info, extra={**info.extra, "self_found": str(count)})
        # by name, because the registry is read by the command line, which starts without torch
        run = import_module(f".{method.module}", __package__).run
        with resume.kept(session.folder, run_key(model, settings, info)), eager():
            result = run(model, settings, info, session)
            session.save(result)
        return result
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error, settings, kept=session.folder is not None) from error


def describe(settings: Settings, family: str, base: str, name: str, kinds: tuple[str, ...], prompts: list[str]) -> MaskInfo:
    """Where a mask comes from that is learned with these settings, on a model with this fingerprint and name."""
    return MaskInfo(
        family=family, base=base, base_name=name, method=settings.objective, beta=settings.beta, preset=settings.preset, targets=kinds,
        prompts_hash=prompts_hash(prompts), seed=settings.seed, version=__version__,
    )  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What learning takes, as measured.

    Attributes:
        seconds: of the whole learning; ``update``: of one update, NaN for methods without.
        peak: bytes of the device, or of the process on a CPU, with the model; 0 where that cannot be told.
    """

    seconds: float
    update: float
    peak: int
    device: str

    def __str__(self) -> str:
        each = "" if math.isnan(self.update) else f" ({self.update:.2g} s for each update)"
        peak = (
            f", with up to {self.peak / 1e9:.1f} GB of {'GPU' if self.device == 'cuda' else 'main'} memory" if self.peak else ""
        )
        return f"learning takes about {duration(self.seconds)}{each}{peak}"


class _Enough(Exception):
    """Measured."""


def measure(model: Model, settings: Settings, info: MaskInfo) -> Cost:
    """Run two updates, or watch two batches, for real, and say what the whole would take. Nothing is kept.

    Raises:
        LearnError: as :func:`learn`.
    """
    trains, device = METHODS[settings.objective].trains, model.sigmas.device
    marks = [(time.monotonic(), Progress(0, 1, stage="teacher"))]

    def report(progress: Progress) -> None:
        marks.append((time.monotonic(), progress))
        if not trains and len(marks) == 3:
            raise _Enough

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    small = replace(settings, steps=2, harden=0.0, target_sparsity=0.0, max_neutral_loss=0.0) if trains else settings
    with contextlib.suppress(_Enough):
        learn(model, small, info, Session(report))
    ended, last = marks[-1]
    if not trains:
        began, first = marks[-2]
        seconds, update = (ended - began) / (last.step - first.step) * last.steps, math.nan
    else:
        watched = [mark for mark in marks if mark[1].stage == "teacher"]
        teacher = (watched[-1][0] - watched[0][0]) / watched[-1][1].steps * len(recorded_rows(model, settings))
        update = last.seconds
        # Between updates the gap is measured: after each of these two, and about twelve times in the whole.
        gap = ended - watched[-1][0] - sum(mark[1].seconds for mark in marks[-2:])
        seconds = teacher + update * settings.steps + 6 * gap
    return Cost(seconds, update, memory.peak_bytes(device), device.type)
