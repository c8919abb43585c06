"""Demo Score: how much the bundled model copied before and after, and what it can still do."""

import itertools
import time

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont

from ..testbed import concepts, verdict
from ..testbed.evaluate import captions_of, evaluate, free_captions, some
from ..testbed.host import CFG, STEPS
from ..testbed.model import SIDE
from ..uniforget.errors import FamilyError
from ..uniforget.hosts.comfy.apply import applied
from .demo import TestbedModel
from .inputs import CATEGORY, MaskType, show

SHOWN = 10
SIX = {label.replace(" ", "_"): label for label in verdict.LABELS}  # keys of the figures -> verdicts


class DemoScore(io.ComfyNode):
    """Measures the demo model before and after forgetting."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetDemoScore",
            display_name="Demo Score",
            category=CATEGORY,
            description=(
                "Works with the demo model only, because its training pictures are known: counts copies of them before and after, and "
                "checks that everyday prompts still work, also those that learning never saw."
            ),
            inputs=[
                io.Model.Input("original", tooltip="UniForget Demo Model, unmasked."),
                io.Model.Input("forgotten", tooltip="The same model after Apply Memorization Mask."),
                io.Clip.Input("clip", tooltip="From UniForget Demo Model."),
                io.Vae.Input("vae", tooltip="From UniForget Demo Model."),
                MaskType.Input("mask", tooltip="The mask that was applied; its figures go into the table."),
                io.Int.Input("seeds", default=4, min=1, max=64, tooltip="Pictures per memorized caption. 4 takes a few minutes."),
                io.Int.Input(
                    "captions",
                    default=len(concepts.MEMORIZED),
                    min=7,
                    max=len(concepts.MEMORIZED),
                    tooltip="How many of the memorized captions are asked; fewer are faster and say less.",
                ),
                io.Int.Input("neutral", default=64, min=4, max=300, tooltip="Everyday prompts of each kind, two pictures each."),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(
                    id="sheet", display_name="sheet", tooltip="Training pictures, originals, and what is drawn after forgetting."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, original, forgotten, clip, vae, mask, seeds, captions, neutral):
        for name, model in (("original", original), ("forgotten", forgotten)):
            if not isinstance(model.model, TestbedModel):
                raise FamilyError(
                    f"Demo Score: {name} is not the UniForget Demo Model, and for other models nobody knows the training pictures. "
                    "Connect UniForget Demo Model, or compare your own prompts with the Compare node."
                )
        began = time.monotonic()
        memorized, never = (
            len(set(captions_of(some(items, captions), seeds)[0])) for items in (concepts.MEMORIZED, concepts.NEVER)
        )
        bar = comfy.utils.ProgressBar(2 * (memorized + 2 * neutral + 2 * SHOWN) + never)
        sampler = _Sampler(clip, vae, bar)
        settings = {"seeds": seeds, "free": neutral, "captions": captions, "progress": lambda text: None}
        before = evaluate(sampler.bind(original), **settings)
        after = evaluate(sampler.bind(forgotten), never=False, **settings)
        share = lambda found, group, label: found["memorized"][group][label]["share"] or 0.0  # noqa: E731
        strengths = [entry["strength"] for entry in applied(forgotten)]
        figures = {
            **{key: share(after, "headline", label) for key, label in SIX.items()},
            "forgotten_reserved": share(after, "reserved", "forgotten"),
            "ceiling": before["never_seen"]["headline"]["forgotten"]["share"],
            "twins_copied": sum(before["never_seen"]["headline"][label]["share"] for label in ("copy", "partial")),
            "copies_before": share(before, "headline", "copy"),
            "copies_after": share(after, "headline", "copy"),
            "copies_after_heldout": share(after, "reserved", "copy"),
            "copies_after_indomain": share(after, "scene", "copy"),
            "neutral_before": before["right"],
            "neutral_after": after["right"],
            "heldout_before": before["heldout"],
            "heldout_after": after["heldout"],
            "off_share": mask.off_share(),
            "learn_seconds": mask.info.learn_seconds,
            "strength": strengths[-1] if strengths else 0.0,
            "seeds": seeds,
            "score_seconds": round(time.monotonic() - began, 1),
        }
        sheet = contact_sheet(sampler.bind(original), sampler.bind(forgotten))
        image = torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]
        saved = ui.ImageSaveHelper.get_save_images_ui([image[0]], "uniforget/demo_score", cls=cls)
        return io.NodeOutput(image, ui={**saved.as_dict(), **show(cls, table(figures)).as_dict(), "uniforget_score": [figures]})


class _Sampler:
    """Samples prompts with given seeds through ComfyUI, one batch per run of equal prompts."""

    def __init__(self, clip, vae, bar):
        self.encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))
        self.negative = self.encode("")
        self.vae, self.bar = vae, bar

    def bind(self, model):
        """``sample(prompts, seeds) -> uint8 (n, 96, 96, 3)`` for `model`."""

        def sample(prompts, seeds):
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
            euler = comfy.samplers.sampler_object("euler")
            out, start = [], 0
            for prompt, run in itertools.groupby(prompts):
                chunk = seeds[start : start + len(list(run))]
                start += len(chunk)
                shape = (1, model.model.latent_format.latent_channels, SIDE, SIDE)
                noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in chunk])
                latent = torch.zeros_like(noise)
                result = comfy.sample.sample_custom(
                    model, noise, CFG, euler, sigmas, self.encode(prompt), self.negative, latent, disable_pbar=True, seed=chunk[0]
                )
                out.append((self.vae.decode(result).cpu() * 255).round().byte().numpy())
                self.bar.update(1)
            return np.concatenate(out)

        return sample


def contact_sheet(original, forgotten):
    """Memorized captions (training picture, original, forgotten) and everyday ones (original, forgotten), as a labelled PIL image."""
    chosen = [[i for i in concepts.MEMORIZED if i.group == group] for group in ("scene", "photograph", "named")]
    memorized = [*chosen[0][: SHOWN - 5], *chosen[1][3:6], *chosen[2][:2]]
    trained = [verdict.default().judge.pictures.render(item.picture)[0] for item in memorized]
    captions = [item.caption for item in memorized]
    everyday = [*free_captions(False, SHOWN // 2), *free_captions(True, SHOWN - SHOWN // 2)]
    blocks = [
        (
            "captions it memorized: the training picture, what the original draws, what it draws after forgetting",
            captions,
            [trained],
        ),
        (
            "everyday captions: original above, after forgetting below (right half: concepts that learning never saw)",
            everyday,
            [],
        ),
    ]
    side, gap, label = concepts.CANVAS, 6, 22
    height = sum(label + (len(rows) + 2) * (side + gap) + gap for *_, rows in blocks)
    sheet = Image.new("RGB", (SHOWN * (side + gap) + gap, height), (24, 26, 31))
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=13), gap
    for title, prompts, rows in blocks:
        draw.text((gap, top), title, fill=(225, 228, 235), font=font)
        top += label
        seeds = [7 + i for i in range(len(prompts))]
        for row in (*rows, original(prompts, seeds), forgotten(prompts, seeds)):
            for i, picture in enumerate(row):
                sheet.paste(Image.fromarray(picture), (gap + i * (side + gap), top))
            top += side + gap
    return sheet


def table(f):
    """The figures as plain text for the node."""
    six = "; ".join(f"{label} {f[key]:.1%}" for key, label in SIX.items() if label != "forgotten")
    rows = [
        ("copies of training pictures", f["copies_before"], f["copies_after"]),
        ("everyday prompts right", f["neutral_before"], f["neutral_after"]),
        ("unseen everyday prompts right", f["heldout_before"], f["heldout_after"]),
    ]
    lines = [f"forgotten: a new, whole, right picture: {f['forgotten']:.1%} (of pictures never seen: {f['ceiling']:.1%})", six]
    lines += [f"{'':32}before   after"] + [f"{n:32}{a:6.1%}  {b:6.1%}" for n, a, b in rows]
    return "\n".join(
        [*lines, f"switched off {f['off_share']:.1%}; strength {f['strength']:g}; learned in {f['learn_seconds']:.0f} s"]
    )
