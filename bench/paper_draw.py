"""The pictures of bench.paper: the original, each mask, and each mask with its recovery, drawn with diffusers. What is there is not drawn again."""

from __future__ import annotations

import gc
import hashlib
import inspect
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from safetensors.torch import load_file

from uniforget import apply, atomic
from uniforget.checkpoint import safefile
from uniforget.cli.learn import DTYPES
from uniforget.errors import LearnError, ModelFileError, SettingError
from uniforget.hosts.diffusers.apply import layers_of, lora_
from uniforget.hosts.diffusers.listener import denoiser
from uniforget.hosts.diffusers.load import load_pipeline
from uniforget.learn.recover import Lora
from uniforget.mask import files
from uniforget.mask.edit import Mask
from uniforget.mask.info import MaskInfo

from .paper_lists import PromptList, labelled

ORIGINAL = "original"
RECOVERY = " + recovery"
KOHYA = "lora_unet_"
PATIENCE = 10.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Row:
    """One model of the table: what is merged into the original, one after the other, and the LoRA that is added at the end."""

    name: str
    masks: tuple[Mask, ...] = ()
    lora: Path | None = None

    @property
    def digests(self) -> list[str]:
        return [mask.digest() for mask in self.masks]

    def key(self) -> dict[str, Any]:
        """What its pictures depend on beside how they are drawn."""
        return {"masks": self.digests, "lora": sha(self.lora.read_bytes()) if self.lora else ""}


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; what is None is left to the pipeline.

    Attributes:
        model: a diffusers folder or a single-file checkpoint, with `config` then a folder for what the file lacks.
        dtype: "fp32", "bf16" or "fp16".
        seeds: pictures of each prompt, from the seeds 0, 1, ...; `batch` of them at once.
        call: further arguments of the pipeline's call, such as ``{"max_sequence_length": 256}``.
    """

    model: Path
    config: Path | None = None
    dtype: str = "bf16"
    device: str | None = None
    steps: int | None = None
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    seeds: int = 1
    batch: int = 4
    call: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """See that nothing here asks for what is not on the disk.

        Raises:
            SettingError: it does, or a number is out of its range.
        """
        if not self.model.exists():
            raise SettingError(
                f"MODEL {self.model}: expected a diffusers folder or a .safetensors file on your disk; found none."
            )
        if self.model.is_file() and (self.config is None or not self.config.is_dir()):
            raise SettingError(
                f"--config: expected a diffusers folder of the same kind of model, as {self.model} is a single file, whose settings would be "
                "fetched from the network otherwise. Name one."
            )
        if self.dtype not in DTYPES:
            raise SettingError(f"--dtype: expected one of {', '.join(DTYPES)}; found {self.dtype!r}.")
        for name in ("seeds", "batch"):
            if getattr(self, name) < 1:
                raise SettingError(f"--{name}: expected at least 1; found {getattr(self, name)}.")

    def key(self) -> dict[str, Any]:
        """What pictures depend on; not where the model lies, nor on which device it runs."""
        places = [place for place in (self.model, self.config) if place]
        weights = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*.safetensors")))]
        found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
        left_out = ("model", "config", "device", "seeds", "batch")
        return {"weights": found} | {k: v for k, v in asdict(self).items() if k not in left_out}

    def arguments(self) -> dict[str, Any]:
        """Of the pipeline's call, without prompt and generator."""
        own = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "width": self.width, "height": self.height}
        return {name: value for name, value in own.items() if value is not None} | self.call


def rows_of(masks: Sequence[str], recoveries: Sequence[str]) -> list[Row]:
    """The rows: the original, a row for each label, and each with its recovery.

    Args:
        masks: ``LABEL=FILE`` or ``FILE``, whose label is the preset it was learned with. Files with the same LABEL are one row: merged one
            after the other.
        recoveries: LoRAs that ``uniforget recover`` wrote. Each says for which masks; a LABEL says it, too.

    Raises:
        MaskFileError, ModelFileError: a file cannot be read.
        SettingError: two files have the same label and neither was given it, or a recovery belongs to no row.
    """
    found: dict[str, list[Mask]] = {}
    for text in masks:
        label, path = labelled(text)
        mask = files.load(path)
        preset = mask.info.preset
        name = label or (preset if preset and preset != "custom" else path.stem)
        if name in found and not label:
            raise SettingError(f"--mask {path}: a second mask that is called {name}. Name them LABEL=FILE.")
        if name == ORIGINAL:
            raise SettingError(f"--mask {path}: 'original' is the model without masks. Choose another label.")
        found.setdefault(name, []).append(mask)
    rows = {name: Row(name, tuple(several)) for name, several in found.items()}
    recovered: dict[str, Row] = {}
    for text in recoveries:
        label, path = labelled(text)
        own = recovers(path)
        fits = [row for row in rows.values() if row.name == label or (not label and sorted(row.digests) == sorted(own))]
        if len(fits) != 1:
            called = ", ".join(f"{row.name} ({' '.join(row.digests)})" for row in rows.values())
            raise SettingError(
                f"--recovery {path}: expected a LoRA for one of the rows {called}; found one for {' '.join(own)}. Give the mask that it was "
                "trained with, or name it LABEL=FILE."
            )
        [row] = fits
        recovered[row.name] = Row(row.name + RECOVERY, row.masks, path)
    out = [Row(ORIGINAL)]
    for name, row in rows.items():
        out += [row, *([recovered[name]] if name in recovered else [])]
    return out


def recovers(path: Path) -> list[str]:
    """Digests of the masks that a LoRA file of ``uniforget recover`` is for.

    Raises:
        ModelFileError: it is no such file.
    """
    found = safefile.read_header(path).metadata.get("uniforget_recovers", "").split()
    if not found:
        raise ModelFileError(f"{path}: expected a LoRA that `uniforget recover` wrote; found another file. Train one with it.")
    return found


def load_lora(path: Path, network: torch.nn.Module) -> Lora:
    """A recovery LoRA for `network`.

    Raises:
        ModelFileError: it cannot be read, or changes layers that `network` lacks.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"{path}: this LoRA cannot be read ({error}). Train it again.") from error
    names = {KOHYA + layer.name.replace(".", "_"): layer.name for layer in layers_of(network)[1]}
    down, up = {}, {}
    for name, tensor in tensors.items():
        key, _, part = name.partition(".")
        if key not in names:
            raise ModelFileError(f"{path}: expected layers of this model; found {name:.80}. Use a LoRA that was trained for it.")
        if part in ("lora_down.weight", "lora_up.weight"):
            (down if part == "lora_down.weight" else up)[names[key]] = tensor.float()
    if not down or down.keys() != up.keys():
        raise ModelFileError(f"{path}: expected both factors of every layer; some are missing. Train it again.")
    return Lora(down, up, MaskInfo(family="lora", base=""))


def model_of(row: Row, sampling: Sampling) -> tuple[Any, Any]:
    """A pipeline of the row on its device, and its denoiser.

    Raises:
        UniForgetError: it cannot be loaded, or masks do not fit it.
    """
    pipe = load_pipeline(str(sampling.model), DTYPES[sampling.dtype], str(sampling.config) if sampling.config else None)
    network = denoiser(pipe)[1]
    for mask in row.masks:
        apply(pipe, mask)
    if row.lora:
        lora_(network, load_lora(row.lora, network))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(sampling.device or ("cuda" if torch.cuda.is_available() else "cpu")), network


class Album:
    """Where the pictures of a run lie: a folder for each row and way of drawing, in it a file for each prompt and seed."""

    def __init__(self, root: Path, sampling: Sampling):
        self.root, self.sampling, self._drawn = root, sampling, sampling.key()
        self._folders: dict[str, Path] = {}

    def key(self, row: Row) -> dict[str, Any]:
        """All that the pictures of a row depend on."""
        return self._drawn | row.key()

    def folder(self, row: Row) -> Path:
        """That of a row; another mask or another way of drawing has another one."""
        if row.name not in self._folders:
            token = sha(json.dumps(self.key(row), sort_keys=True, default=str).encode())
            label = "".join(c if c.isalnum() or c in "-_" else "_" for c in row.name)[:40]
            self._folders[row.name] = self.root / f"{label}-{token}"
        return self._folders[row.name]

    def path(self, row: Row, prompt: str, seed: int) -> Path:
        """Of one picture."""
        return self.folder(row) / f"{sha(prompt.encode())}_{seed:04}.png"

    def missing(self, row: Row, lists: Sequence[PromptList]) -> dict[str, list[int]]:
        """Seeds without a picture, by prompt."""
        prompts = dict.fromkeys(item.prompt for one in lists for item in one.items)
        lacking = {p: [s for s in range(self.sampling.seeds) if not self.path(row, p, s).is_file()] for p in prompts}
        return {prompt: seeds for prompt, seeds in lacking.items() if seeds}

    def draw(self, rows: Sequence[Row], lists: Sequence[PromptList]) -> int:
        """Draw what is missing; returns how many that were. Stopped at any moment, it goes on later.

        Raises:
            UniForgetError: the model or a mask cannot be used, or a picture not be saved.
        """
        todo = {row.name: self.missing(row, lists) for row in rows}
        progress = Remaining("drawing", sum(len(seeds) for asked in todo.values() for seeds in asked.values()))
        for row in rows:
            if not todo[row.name]:
                continue
            pipe, _ = model_of(row, self.sampling)
            _check_call(pipe, self.sampling.arguments())
            self.folder(row).mkdir(parents=True, exist_ok=True)
            for prompt, seeds in todo[row.name].items():
                for at in range(0, len(seeds), self.sampling.batch):
                    some = seeds[at : at + self.sampling.batch]
                    for seed, picture in zip(some, self._pictures(pipe, prompt, some), strict=True):
                        _save(picture, self.path(row, prompt, seed), prompt)
                    progress(len(some), row.name)
            del pipe
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return progress.count

    def _pictures(self, pipe: Any, prompt: str, seeds: list[int]) -> Iterator[Any]:
        # The noise comes from the CPU: the same on every machine.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        try:
            found = pipe(
                prompt=prompt,
                generator=generators,
                num_images_per_prompt=len(seeds),
                output_type="pil",
                **self.sampling.arguments(),
            )
        except torch.cuda.OutOfMemoryError as error:
            raise LearnError(
                "The GPU's memory is full. Use a smaller --batch, --width and --height, or another --device."
            ) from error
        except (ValueError, TypeError) as error:
            raise LearnError(f"{type(pipe).__name__} does not draw with these settings ({error}). Change them.") from error
        yield from found.images


class Remaining:
    """Tells how far the work is and how long it still takes, in lines on stderr at most every ``PATIENCE`` seconds."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.count = what, total, 0
        self.began, self.told = time.monotonic(), -PATIENCE

    def __call__(self, count: int, about: str) -> None:
        """`count` more are done."""
        self.count += count
        now = time.monotonic()
        if now - self.told >= PATIENCE or self.count == self.total:
            self.told = now
            left = (now - self.began) / self.count * (self.total - self.count)
            print(f"{self.what} {self.count}/{self.total} ({about}), {duration(left)} left", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """ "2 h 05 min", "3 min 20 s" or "15 s"."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _check_call(pipe: Any, arguments: dict[str, Any]) -> None:
    known = inspect.signature(type(pipe).__call__).parameters
    odd = [name for name in ("generator", "num_images_per_prompt", *arguments) if name not in known]
    if odd:
        raise SettingError(
            f"--call: {type(pipe).__name__} takes no {odd[0]}. It takes {', '.join(list(known)[1:])}. Leave it out, or write it as it is called there."
        )


def _save(picture: Any, path: Path, prompt: str) -> None:
    data, about = io.BytesIO(), PngInfo()
    about.add_itxt("prompt", prompt)  # for whoever looks at a picture: the names of files do not tell
    picture.save(data, "PNG", pnginfo=about)
    try:
        atomic.replace(path, data.getvalue())
    except OSError as error:
        raise SettingError(
            f"{path}: the picture cannot be saved ({error.strerror or error}). Free some space, or name another --pictures."
        ) from error


def sha(data: bytes) -> str:
    """Sixteen hexadecimal digits that tell contents apart."""
    return hashlib.sha256(data).hexdigest()[:16]
