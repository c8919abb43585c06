"""Own-Picture Check: does the model know this picture, and does it still after forgetting?"""

import logging

import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checks import picture as check
from ..uniforget.config.checks import PICTURE_CHECK
from ..uniforget.errors import SettingError
from ..uniforget.hosts.comfy.learn import empty_latent
from ..uniforget.hosts.comfy.predict import predicting
from .checkbars import bars
from .checking import drawn, encoder, forgotten, neutral
from .inputs import CATEGORY, MaskType, say, search, show, to_input
from .progress import Countdown

MOST_PICTURES = 64
VERSIONS = 4  # of each picture: itself, mirrored, moved left and right


class PictureCheck(io.ComfyNode):
    """Says whether a model restores pictures better than it should if it had never seen them."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetPictureCheck",
            display_name="Own-Picture Check (Copyright)",
            category=CATEGORY,
            description=(
                "Does it still know my picture? Noises the picture, lets the model restore it, and compares how well that goes with moved and "
                "mirrored copies of the same picture and with everyday pictures of the model's own. Nothing is downloaded, nothing leaves your computer."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model, without the mask."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model."),
                io.Image.Input("images", tooltip="Your pictures. Each one is checked by itself."),
                MaskType.Input("mask", optional=True, tooltip="With a mask, the model is checked before and after forgetting."),
                to_input(config.STRENGTH),
                *(to_input(p) for p in PICTURE_CHECK.values()),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(id="chart", display_name="chart", tooltip="A bar with its interval for each picture."),
                io.String.Output(id="report", display_name="report", tooltip="What was found, in words."),
                io.String.Output(id="csv", display_name="csv", tooltip="The figures as a table: one line per picture and model."),
            ],
            is_output_node=True,
            **search("copyright", "memorization", "my picture", "training data", "membership"),
        )

    @classmethod
    def execute(cls, model, clip, vae, images, strength, mask=None, **values):
        config.STRENGTH.check(strength)
        for name, param in PICTURE_CHECK.items():
            values[name] = param.check(values[name])
        pictures = cropped(images, values["width"], values["height"])
        captions = captions_for(values["caption"], len(pictures))
        latent = empty_latent(model, values["width"], values["height"])
        models = [m for m in (model, forgotten(model, mask, strength)) if m is not None]

        prompts, encode = neutral(model, values["baseline"]), encoder(clip)
        # In looks of the model at one picture: what the time depends on.
        looks = VERSIONS * len(models) * (len(pictures) + len(prompts)) * values["noises"] * len(check.LEVELS)
        per_drawing = values["sampling_steps"] * (1 if values["cfg"] == 1 else 2)
        say(cls, f"{looks + per_drawing * len(prompts)} looks at pictures; the first ones tell how long that takes.")
        countdown = Countdown(cls, looks + per_drawing * len(prompts))
        own = drawn(
            *(model, vae, encode, prompts, latent, values["sampling_steps"], values["cfg"], values["seed"]),
            lambda: countdown.done(per_drawing),
        )
        if not countdown.finished:  # drawn before
            countdown.leave_out(per_drawing * len(prompts))
        advance = lambda: countdown.done(VERSIONS)  # noqa: E731
        asked = [*captions, *(prompts if any(captions) else [""] * len(prompts))]
        versions = check.with_copies(torch.cat([pictures, own]))
        latents = torch.stack([vae.encode(version) for version in versions]).float().cpu()
        texts = list(dict.fromkeys(text for text in asked if text))
        which = [texts.index(text) if text else -1 for text in asked]
        conditionings, empty = [encode(text) for text in texts], encode("")
        found = []
        for one in models:

            def run(denoiser):
                targets = torch.stack([denoiser.clean(version) for version in latents])
                return check.gains(denoiser, latents, targets, which, values["noises"], values["seed"], report=advance)

            gains = predicting(one, conditionings, empty, latent, run)
            found.append(check.findings(gains[: len(pictures)], gains[len(pictures) :]))
        before, after = found[0], found[1] if len(found) > 1 else [None] * len(pictures)
        text = "\n".join(words(before, after))
        logging.info("UniForget: %s", text)
        chart = torch.from_numpy(np.asarray(bars(pictures, before, after), dtype=np.float32) / 255)[None]
        return io.NodeOutput(chart, text, table(captions, before, after), ui=show(cls, text))


def cropped(images, width, height, at="Own-Picture Check", name="images"):
    """The pictures (n, height, width, 3) of that size, cropped in the middle; they came in at the input `name` of the node `at`.

    Raises:
        SettingError: no pictures, or too many.
    """
    if images is None or images.ndim != 4 or not len(images) or not min(images.shape[1:3]) or images.shape[-1] < 3:
        found = "nothing" if images is None else f"a tensor of shape {tuple(images.shape)}"
        raise SettingError(
            f"{at}: expected at least one colour picture in {name!r}; found {found}. Connect an IMAGE output, such as Load Image's."
        )
    if len(images) > MOST_PICTURES:
        raise SettingError(
            f"{at}: expected at most {MOST_PICTURES} pictures at a time; found {len(images)}. Check them in several runs."
        )
    channels = images[..., :3].float().movedim(-1, 1)
    if channels.shape[-2:] != (height, width):
        channels = comfy.utils.common_upscale(channels, width, height, "bicubic", "center").clamp(0, 1)
    return channels.movedim(1, -1)


def captions_for(text, count):
    """One caption per picture from the lines of `text`; empty ones ask without words.

    Raises:
        SettingError: neither none, nor one, nor one for each.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) not in (0, 1, count):
        raise SettingError(
            f"Own-Picture Check: expected no caption, one, or one line for each of the {count} pictures; found {len(lines)} lines."
        )
    return lines * count if len(lines) == 1 else lines or [""] * count


def words(before, after):
    """One sentence per picture."""
    many = len(before) > 1
    return [
        check.sentence(b, a, f"picture {i + 1}" if many else "this picture")
        for i, (b, a) in enumerate(zip(before, after, strict=True))
    ]


def table(captions, before, after):
    """The findings as comma-separated values."""
    lines = ["picture,model,gain,low,high,usual,bound,verdict"]
    for i, pair in enumerate(zip(before, after, strict=True)):
        for name, f in zip(("original", "forgotten"), pair, strict=True):
            if f is not None:
                figures = ",".join(f"{v:.4f}" for v in (f.gain, f.low, f.high, f.usual, f.bound))
                lines.append(f"{i + 1},{name},{figures},{f.verdict}")
    return "\n".join(lines) + "\n"
