"""``uniforget attack``: could somebody dig a picture out of a diffusers pipeline again?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress, TaskID

from ..checks import attack as check
from ..config.copies import ATTACK
from ..errors import LearnError, SettingError
from ..mask import files
from ..mask.edit import merge_
from .learn import DTYPES

FORMATS = ("PNG", "JPEG", "WEBP")


def picture(path: Path, option: str, width: int, height: int) -> torch.Tensor:
    """A picture of that size, cropped in the middle: float32 (height, width, 3) in [0, 1].

    Raises:
        SettingError: it cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SettingError(f"{option} {path}: expected a picture ({', '.join(FORMATS)}) that can be read ({error}).") from error
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255)


class Coder:
    """A pipeline's VAE, between pictures (n, height, width, 3) in [0, 1] and latents as its scheduler has them."""

    def __init__(self, pipe: Any):
        self.vae = pipe.vae
        config = self.vae.config
        self.scale, self.shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        found = self.vae.encode((2 * pictures.movedim(-1, 1) - 1).to(self.vae.device, self.vae.dtype))
        return (found.latent_dist.mode().float() - self.shift) * self.scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        found = self.vae.decode((latents / self.scale + self.shift).to(self.vae.device, self.vae.dtype), return_dict=False)[0]
        return (found.float().movedim(1, -1) / 2 + 0.5).clamp(0, 1)


def attack_run(
    model: str,
    own: Path,
    control: Path,
    masks: Sequence[Path],
    strength: float,
    dtype: str,
    device: str | None,
    config: str | None,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """Attack a model, and again with masks; returns what ``--json`` prints.

    Raises:
        UniForgetError: a setting, a picture, the model or a mask is wrong.
    """
    values = {name: param.check(values[name]) for name, param in ATTACK.items()}
    if dtype not in DTYPES:
        raise SettingError(f"--dtype: expected one of {', '.join(DTYPES)}; found {dtype!r}.")
    learned = [files.load(path) for path in masks]
    size = values["width"], values["height"]
    pair = torch.stack([picture(own, "--picture", *size), picture(control, "--control", *size)])
    if torch.equal(pair[0], pair[1]):
        raise SettingError("--control: this is the same picture. Give one that the model cannot know.")
    from ..hosts.diffusers.load import load_pipeline
    from ..hosts.diffusers.pipeline import PipelineModel

    pipe = load_pipeline(model, DTYPES[dtype], config)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    coder = Coder(pipe)
    with torch.no_grad():
        latents = coder.encode(pair)
    victim = PipelineModel(pipe, [values["caption"]], steps=values["sampling_steps"], width=size[0], height=size[1], device=place)
    wanted = victim.initial(1, torch.Generator()).shape[1:]
    if latents.shape[1:] != wanted or not victim.embedding(0):
        raise LearnError(
            f"{type(pipe).__name__} packs its latents (its scheduler sees {list(wanted)}, its VAE {list(latents.shape[1:])}), which the command line cannot "
            "attack. Use the node Attack Check in ComfyUI."
        )
    found: list[check.Dug] = []
    told: list[check.Cost] = []
    with Progress(console=Console(stderr=True)) as bar:
        for one in [None, learned] if learned else [None]:
            for mask in one or ():
                with torch.no_grad():
                    merge_(victim.denoiser, mask, strength)
            task = bar.add_task("after forgetting" if one else "attacking", total=2 * values["steps"])

            def tell(cost: check.Cost) -> None:
                told.append(cost)
                bar.console.print(f"{2 + 2 * bool(learned)} attacks of {values['steps']} steps: {cost}")

            def advance(done: int, of: int, task: TaskID = task) -> None:
                bar.update(task, completed=done)

            drawn = check.attack(
                victim, latents.to(place), values["tries"], values["cfg"], values["steps"], values["seed"], advance, tell,
                list(victim.denoiser.parameters()),
            )  # fmt: skip
            with torch.no_grad():
                shown = [coder.decode(tries).cpu() for tries in drawn]
            found.append(check.Dug(*(check.likeness(tries, target) for tries, target in zip(shown, pair, strict=True))))
    last = found[-1]
    return {
        "verdict": last.verdict,
        **{
            name: {
                "picture": dug.share,
                "control": dug.control_share,
                "likeness": [*dug.picture],
                "control_likeness": [*dug.control],
            }
            for name, dug in zip(("before", "after"), found, strict=False)
        },
        "seconds_each": told[0].seconds,
        "bytes": told[0].memory,
        "summary": check.sentence(*found, *[None] * (2 - len(found))),
    }
