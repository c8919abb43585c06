"""``uniforget learn`` and ``recover``: on a diffusers pipeline, with progress, on one or several devices."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from .. import atomic, config, outputs, untrusted
from ..checkpoint import lora as lorafile
from ..errors import LearnError, SettingError
from ..learn import CURVE_BEGINS, Progress, Session, Settings, curve_csv, describe, distributed, learn, measure
from ..learn.found import find, summary, to_learn
from ..learn.recover import one_of_each, recover
from ..mask import files
from ..mask.gates import match_sites
from ..mask.subspace import match_layers
from ..model.families.schema import KINDS
from ..model.sites import target_kinds
from ..prompts import neutral_prompts, prompts_hash, read_prompts, to_jsonl

LARGEST_SETTINGS = 1 << 20
FOUND = b"# Found by UniForget: prompts, and what to answer memorized ones like"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def read_settings(path: Path) -> dict[str, Any]:
    """Values for the options of ``learn`` out of a JSON file.

    Raises:
        SettingError: it cannot be read, or holds something else.
    """
    known = {*config.LEARN, "dtype", "device"} - {"prompts"}
    try:
        with open(path, "rb") as file:
            found = untrusted.parse_json(file.read(LARGEST_SETTINGS + 1), LARGEST_SETTINGS)
    except (OSError, ValueError) as error:
        raise SettingError(f"--settings {path}: expected a JSON file that can be read ({error}).") from error
    wrong = [name for name in found if name not in known] if isinstance(found, dict) else [str(found)[:40]]
    if wrong:
        raise SettingError(
            f"--settings {path}: expected an object with names among {', '.join(sorted(known))}; found {wrong[0]!r}."
        )
    return {name: config.LEARN[name].check(value) if name in config.LEARN else str(value) for name, value in found.items()}


@dataclass(frozen=True)
class Host:
    """What to learn on, as the command line names it.

    Attributes:
        model: a diffusers folder, a single-file checkpoint, or an identifier of the Hub; ``config``: see :func:`.load_pipeline`.
        prompts: a file; None: the bundled list.
        device: None: a GPU if there is one.
    """

    model: str
    prompts: Path | None = None
    dtype: str = "bf16"
    device: str | None = None
    config: str | None = None

    def check(self, output: Path | None, overwrite: bool, *others: Path | None) -> list[str]:
        """The prompts, after everything was looked at that can be wrong before a model is loaded.

        Args:
            output: a file of tensors; None: what is written is no such file, and looked at elsewhere.
            others: further files that are read.

        Raises:
            UniForgetError: something is wrong.
        """
        if self.dtype not in DTYPES:
            raise SettingError(f"--dtype: expected one of {', '.join(DTYPES)}; found {self.dtype!r}.")
        if output:
            outputs.check(output, overwrite, self.inputs(*others))
        if importlib.util.find_spec("diffusers") is None:
            raise LearnError(
                "Learning from the command line needs the packages diffusers and transformers. Run: pip install 'diffusers>=0.35.2' transformers"
            )
        return read_prompts(self.prompts) if self.prompts else neutral_prompts()

    def inputs(self, *others: Path | None) -> list[str | Path]:
        """What is read."""
        return [one for one in (self.model, self.prompts, self.config, *others) if one]

    def load(
        self, lines: list[str], settings: Settings, kinds: tuple[str, ...], unfinished: Path | None = None, pipe: Any = None
    ) -> Any:
        """The pipeline as :class:`uniforget.learn.Model`; `pipe`: as :meth:`pipeline` gives it, loaded if left out."""
        from ..hosts.diffusers.pipeline import PipelineModel

        place = "cpu"
        if torch.cuda.is_available():
            place = f"cuda:{distributed.local_rank()}"
        pipe = pipe or self.pipeline()
        return PipelineModel(
            pipe, lines, steps=settings.sampling_steps, width=settings.width, height=settings.height, kinds=kinds, cfg=settings.cfg,
            device=self.device or place, folder=unfinished,
        )  # fmt: skip

    def pipeline(self) -> Any:
        """Loaded."""
        from ..hosts.diffusers.load import load_pipeline

        return load_pipeline(self.model, DTYPES[self.dtype], self.config)


@dataclass(frozen=True)
class Outputs:
    """What ``learn`` writes: the mask, and if asked for the curve and TensorBoard's logs."""

    mask: Path
    curve: Path | None = None
    tensorboard: Path | None = None
    overwrite: bool = False

    def check(self, inputs: list[str | Path]) -> None:
        """See that all may be written.

        Raises:
            SettingError: one may not.
        """
        if self.curve:
            outputs.check(self.curve, self.overwrite, inputs, self.curve.suffix, CURVE_BEGINS)
        outputs.distinct(self.mask, self.curve, self.tensorboard)
        if not self.tensorboard:
            return
        if os.path.lexists(self.tensorboard) and not os.path.isdir(self.tensorboard):
            raise SettingError(f"--tensorboard: expected a folder; found a file, {self.tensorboard}. Choose another name.")
        if importlib.util.find_spec("tensorboard") is None:
            raise SettingError("--tensorboard: the package tensorboard is not installed. Install it, or leave the option out.")
        try:
            os.makedirs(self.tensorboard, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"--tensorboard: {self.tensorboard} cannot be made ({error.strerror or error}). Choose another place."
            ) from error


def learn_run(
    host: Host, out: Outputs, settings_file: Path | None, dry_run: bool, values: dict[str, Any]
) -> dict[str, Any] | None:
    """Learn and save; returns what ``--json`` prints, or None in all but the first of several processes.

    Args:
        settings_file: what some of the values were read from.

    Raises:
        UniForgetError: a setting, the prompts, the model or an output is wrong.
    """
    settings, kinds = Settings.checked(values), target_kinds(values["targets"])
    lines = host.check(out.mask, out.overwrite, settings_file)
    out.check(host.inputs(settings_file))
    from ..hosts.diffusers.apply import base_fingerprint

    distributed.join()
    unfinished = out.mask.parent / ".uniforget-unfinished"
    try:
        model = host.load(lines, settings, kinds, unfinished)
        name = untrusted.safe(Path(host.model).name, line=True, most=untrusted.TEXT // 2)
        info = describe(settings, model.family.name, base_fingerprint(model.denoiser), name, kinds, lines)
        if dry_run:
            cost = measure(model, settings, info)
            return None if distributed.rank() else {**vars(cost), "summary": str(cost)}
        save = lambda found: None if distributed.rank() else files.save(found.mask, out.mask, out.overwrite)  # noqa: E731
        with _Report(settings.steps, out.tensorboard) as report:
            result = learn(model, settings, info, Session(report, unfinished, log=report.log, save=save))
        if distributed.rank():
            return None
        cautions = list(report.cautions)
        if out.curve:
            try:
                atomic.replace(out.curve, curve_csv(result.curve).encode(), out.overwrite)
            except OSError as error:
                cautions.append(f"Careful: the curve was not saved as {out.curve} ({error.strerror or error}). The mask was.")
        return {
            "mask": str(out.mask),
            "digest": result.mask.digest(),
            "sparsity": result.mask.sparsity(),
            "learn_seconds": result.mask.info.learn_seconds,
            "cautions": cautions,
            "summary": "\n".join([f"saved as {out.mask}", result.mask.summary(), *cautions]),
        }
    finally:
        distributed.leave()


def recover_run(host: Host, masks: list[Path], output: Path, overwrite: bool, values: dict[str, Any]) -> dict[str, Any] | None:
    """Train a recovery LoRA and save it; returns what ``--json`` prints, or None in all but the first of several processes.

    Raises:
        UniForgetError: a setting, the prompts, the model, the mask or the output is wrong.
    """
    settings, rank = Settings.checked(values, config.RECOVER), config.RECOVER["rank"].check(values["rank"])
    mask, subspace = one_of_each([files.load(path) for path in masks])
    lines = host.check(output, overwrite, *masks)
    from ..hosts.diffusers.apply import base_fingerprint

    distributed.join()
    unfinished = output.parent / ".uniforget-unfinished"
    try:
        model = host.load(lines, settings, KINDS, unfinished)
        model.sites = match_sites(mask, model.family, model.sites) if mask else []
        if subspace:
            match_layers(subspace, model.family.name, model.layers)
        about = f"{base_fingerprint(model.denoiser)} {prompts_hash(lines)}"
        save = lambda found: None if distributed.rank() else lorafile.save(found, output, overwrite)  # noqa: E731
        with _Report(settings.steps, None) as report:
            lora = recover(model, mask, settings, rank, subspace, about, Session(report, unfinished, save=save))
        if distributed.rank():
            return None
        first, last = lora.curve[0].reconstruction, lora.curve[-1].reconstruction
        return {
            "lora": str(output),
            "masks": [one.digest() for one in (mask, subspace) if one],
            "rank": lora.rank,
            "loss_first": first,
            "loss_last": last,
            "summary": f"saved as {output}\ndifference to the original on neutral prompts: {first:.4f} -> {last:.4f}",
        }
    finally:
        distributed.leave()


def find_run(host: Host, pool: Path, output: Path, overwrite: bool, values: dict[str, Any]) -> dict[str, Any]:
    """Look for memorized prompts in a file and write what to learn from; returns what ``--json`` prints.

    Raises:
        UniForgetError: a setting, a list of prompts, the model or the output is wrong.
    """
    settings = Settings.checked(values)
    outputs.check(output, overwrite, host.inputs(pool), ".jsonl", FOUND)
    neutral, asked = host.check(None, overwrite), read_prompts(pool)
    pipe = host.pipeline()
    columns = (BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("asking the model")
        report = lambda state: bar.update(task, completed=state.step, total=state.steps, description=str(state))  # noqa: E731
        ask = lambda texts, run: run(host.load(texts, settings, KINDS, pipe=pipe))  # noqa: E731
        found = find(ask, asked, neutral, settings, report)
    atomic.replace(output, FOUND + b"\n" + to_jsonl(to_learn(found, neutral)).encode(), overwrite)
    known = [
        {"prompt": str(one.prompt), "agreement": one.agreement, "answers": len(one.prompt.answers)}
        for one in found
        if one.memorized
    ]
    lines = [
        *(f"  {one['prompt']} ({one['answers']} answers)" for one in known),
        f"saved as {output}: give it to learn as --prompts",
    ]
    return {"prompts": str(output), "asked": len(asked), "memorized": known, "summary": "\n".join([f"{summary(found)}:", *lines])}


class _Report:
    """Progress on the terminal, and in TensorBoard if asked for."""

    def __init__(self, steps: int, tensorboard: Path | None):
        self.steps = steps
        self.writer: Any = None
        self.cautions: list[str] = []
        if tensorboard and not distributed.rank():
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(tensorboard))
        columns = (BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.bar = Bar(*columns, console=Console(stderr=True), disable=bool(distributed.rank()))

    def __enter__(self) -> _Report:
        self.bar.start()
        self.tasks = {
            "teacher": self.bar.add_task("watching the model"),
            "learning": self.bar.add_task("learning", total=self.steps),
        }
        return self

    def __exit__(self, *problem: object) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()

    def log(self, text: str) -> None:
        """Words worth showing above the bars."""
        self.bar.console.print(text)

    def __call__(self, state: Progress) -> None:
        self.bar.update(self.tasks[state.stage], completed=state.step, total=state.steps, description=str(state))
        try:
            if self.writer and state.stage == "learning":
                self._write(state)
        except Exception as error:  # of TensorBoard, which costs no mask
            self.cautions.append(f"Careful: TensorBoard's log ends at step {state.step} ({type(error).__name__}: {error}).")
            self.writer = None

    def _write(self, state: Progress) -> None:
        self.writer.add_scalar("reconstruction", state.reconstruction, state.step)
        self.writer.add_scalar("off/all", state.off_share, state.step)
        for kind, share in state.off.items():
            self.writer.add_scalar(f"off/{kind}", share, state.step)
        if state.hard == state.hard:
            self.writer.add_scalars("gap", {"soft": state.soft, "hard": state.hard}, state.step)
