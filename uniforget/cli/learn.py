"""``uniforget learn``: a mask from a diffusers pipeline, with progress, on one or several devices."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__, atomic, config, outputs, untrusted
from ..errors import LearnError, SettingError
from ..learn import CURVE_BEGINS, Settings, curve_csv, learn, shards
from ..learn import Progress as State
from ..mask import files
from ..mask.gates import match_sites
from ..mask.info import MaskInfo
from ..mask.subspace import match_layers
from ..model.families.schema import KINDS
from ..model.sites import target_kinds
from ..prompts import neutral_prompts, prompts_hash, read_prompts

LARGEST_SETTINGS = 1 << 20
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


def run(
    model: str, output: Path, prompts: Path | None, dtype: str, device: str | None, overwrite: bool, **values: Any
) -> dict[str, Any] | None:
    """Learn and save; returns what ``--json`` prints, or None in all but the first of several processes.

    Raises:
        UniForgetError: a setting, the prompts, the model or the output is wrong.
    """
    if dtype not in DTYPES:
        raise SettingError(f"--dtype: expected one of {', '.join(DTYPES)}; found {dtype!r}.")
    curve, tensorboard = values["curve"], values["tensorboard"]
    inputs = _given(model, prompts, values["config"], values["settings"])
    outputs.check(output, overwrite, inputs)
    if curve:
        outputs.check(curve, overwrite, inputs, curve.suffix, CURVE_BEGINS)
    if tensorboard and os.path.lexists(tensorboard) and not os.path.isdir(tensorboard):
        raise SettingError(f"--tensorboard: expected a folder; found a file, {tensorboard}. Choose another name.")
    outputs.distinct(output, curve, tensorboard)
    settings = Settings(
        beta=config.resolve_beta(values["preset"], values["beta"]),
        **{name: config.LEARN[name].check(values[name]) for name in config.SETTINGS},
    )
    kinds = target_kinds(values["targets"])
    lines = read_prompts(prompts) if prompts else neutral_prompts()
    if importlib.util.find_spec("diffusers") is None:
        raise LearnError(
            "Learning from the command line needs the packages diffusers and transformers. Run: pip install 'diffusers>=0.35.2' transformers"
        )
    from ..hosts.diffusers.apply import base_fingerprint
    from ..hosts.diffusers.load import load_pipeline
    from ..hosts.diffusers.pipeline import PipelineModel

    shards.join()
    unfinished = output.parent / ".uniforget-unfinished"
    try:
        place = _device(device)
        pipe = load_pipeline(model, DTYPES[dtype], values["config"])
        loaded = PipelineModel(
            pipe, lines, steps=values["sampling_steps"], width=values["width"], height=values["height"], kinds=kinds,
            cfg=settings.cfg, device=place, folder=unfinished,
        )  # fmt: skip
        info = MaskInfo(
            family=loaded.family.name,
            base=base_fingerprint(loaded.denoiser),
            base_name=untrusted.safe(Path(model).name, line=True, most=untrusted.TEXT // 2),
            method=settings.objective,
            beta=settings.beta,
            preset=values["preset"],
            targets=kinds,
            prompts_hash=prompts_hash(lines),
            seed=settings.seed,
            version=__version__,
        )
        with _Report(settings.steps, values["tensorboard"]) as report:
            tell = lambda text: report.bar.console.print(f"learning takes {text}")  # noqa: E731
            save = lambda found: None if shards.rank() else files.save(found.mask, output, overwrite)  # noqa: E731
            result = learn(loaded, settings, info, report, unfinished, tell=tell, save=save)
        if shards.rank():
            return None
        cautions = list(report.cautions)
        if curve:
            try:
                atomic.replace(curve, curve_csv(result.curve).encode(), overwrite)
            except OSError as error:
                cautions.append(f"Careful: the curve was not saved as {curve} ({error.strerror or error}). The mask was.")
        return {
            "mask": str(output),
            "digest": result.mask.digest(),
            "sparsity": result.mask.sparsity(),
            "learn_seconds": result.mask.info.learn_seconds,
            "cautions": cautions,
            "summary": "\n".join([f"saved as {output}", result.mask.summary(), *cautions]),
        }
    finally:
        shards.leave()


def recover_run(
    model: str,
    masks: list[Path],
    output: Path,
    prompts: Path | None,
    dtype: str,
    device: str | None,
    overwrite: bool,
    **values: Any,
) -> dict[str, Any] | None:
    """Train a recovery LoRA and save it; returns what ``--json`` prints, or None in all but the first of several processes.

    Raises:
        UniForgetError: a setting, the prompts, the model, the mask or the output is wrong.
    """
    from ..checkpoint import lora as lorafile
    from ..learn.recover import one_of_each, recover

    if dtype not in DTYPES:
        raise SettingError(f"--dtype: expected one of {', '.join(DTYPES)}; found {dtype!r}.")
    outputs.check(output, overwrite, _given(model, prompts, values["config"], *masks))
    names = ("steps", "batch", "cfg", "seed", "memory", "learning_rate")
    settings = Settings(**{name: config.RECOVER[name].check(values[name]) for name in names})
    mask, subspace = one_of_each([files.load(path) for path in masks])
    lines = read_prompts(prompts) if prompts else neutral_prompts()
    if importlib.util.find_spec("diffusers") is None:
        raise LearnError("This needs the packages diffusers and transformers. Run: pip install 'diffusers>=0.35.2' transformers")
    from ..hosts.diffusers.apply import base_fingerprint
    from ..hosts.diffusers.load import load_pipeline
    from ..hosts.diffusers.pipeline import PipelineModel

    shards.join()
    unfinished = output.parent / ".uniforget-unfinished"
    try:
        pipe = load_pipeline(model, DTYPES[dtype], values["config"])
        loaded = PipelineModel(
            pipe, lines, steps=values["sampling_steps"], width=values["width"], height=values["height"], kinds=KINDS,
            cfg=settings.cfg, device=_device(device), folder=unfinished,
        )  # fmt: skip
        loaded.sites = match_sites(mask, loaded.family, loaded.sites) if mask else []
        if subspace:
            match_layers(subspace, loaded.family.name, loaded.layers)
        rank = config.RECOVER["rank"].check(values["rank"])
        with _Report(settings.steps, None) as report:
            about = f"{base_fingerprint(loaded.denoiser)} {prompts_hash(lines)}"
            save = lambda found: None if shards.rank() else lorafile.save(found, output, overwrite)  # noqa: E731
            lora = recover(loaded, mask, settings, rank, report, unfinished, subspace=subspace, about=about, save=save)
        if shards.rank():
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
        shards.leave()


def _given(*inputs: str | Path | None) -> list[str | Path]:
    return [one for one in inputs if one]


def _device(named: str | None) -> torch.device:
    if named:
        return torch.device(named)
    return torch.device("cuda", shards.local()) if torch.cuda.is_available() else torch.device("cpu")


class _Report:
    """Progress on the terminal, and in TensorBoard if asked for."""

    def __init__(self, steps: int, tensorboard: Path | None):
        self.steps = steps
        self.writer = None
        self.cautions: list[str] = []
        if tensorboard and not shards.rank():
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise SettingError(
                    "--tensorboard: the package tensorboard is not installed. Install it, or leave the option out."
                ) from error
            self.writer = SummaryWriter(str(tensorboard))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.bar = Progress(*columns, console=Console(stderr=True), disable=bool(shards.rank()))

    def __enter__(self) -> _Report:
        self.bar.start()
        self.teacher = self.bar.add_task("watching the model", note="")
        self.learning = self.bar.add_task("learning", total=self.steps, note="")
        return self

    def __exit__(self, *problem: object) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()

    def __call__(self, state: State) -> None:
        if state.stage == "teacher":
            self.bar.update(self.teacher, completed=state.step, total=state.steps)
            return
        note = f"loss {state.reconstruction:.4f}, off {state.off_share:.1%}"
        self.bar.update(self.learning, completed=state.step, total=state.steps, note=note)
        try:
            self._log(state)
        except Exception as error:  # of TensorBoard, which costs no mask
            self.cautions.append(f"Careful: TensorBoard's log ends at step {state.step} ({type(error).__name__}: {error}).")
            self.writer = None

    def _log(self, state: State) -> None:
        if self.writer is None:
            return
        self.writer.add_scalar("reconstruction", state.reconstruction, state.step)
        self.writer.add_scalar("off/all", state.off_share, state.step)
        for kind, share in state.off.items():
            self.writer.add_scalar(f"off/{kind}", share, state.step)
        if state.hard == state.hard:
            self.writer.add_scalars("gap", {"soft": state.soft, "hard": state.hard}, state.step)
