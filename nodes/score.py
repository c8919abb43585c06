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

from ..testbed import concepts
from ..testbed.data import to_pixels
from ..testbed.evaluate import evaluate, neutral_prompts
from ..testbed.judge import Judge
from ..uniforget.errors import FamilyError
from ..uniforget.hosts.comfy.apply import applied
from .demo import TestbedModel
from .inputs import CATEGORY, MaskType, show

STEPS, CFG = 12, 3.0
SHOWN = 10


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
                MaskType.Input("mask", tooltip="The mask that was applied; its figures go into the table."),
                io.Int.Input(
                    "seeds", default=16, min=1, max=64, tooltip="Pictures per memorized caption. 16 takes a few minutes."
                ),
                io.Int.Input("neutral", default=96, min=4, max=300, tooltip="Everyday prompts of each kind, four pictures each."),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Image.Output(id="sheet", display_name="sheet", tooltip="Originals above, forgotten below.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, original, forgotten, clip, mask, seeds, neutral):
        for name, model in (("original", original), ("forgotten", forgotten)):
            if not isinstance(model.model, TestbedModel):
                raise FamilyError(
                    f"Demo Score: {name} is not the UniForget Demo Model, and for other models nobody knows the training pictures. "
                    "Connect UniForget Demo Model, or compare your own prompts with the Compare node."
                )
        began = time.monotonic()
        judge = Judge()
        prompts = len(concepts.MEMORIZED) + 2 * neutral
        bar = comfy.utils.ProgressBar(2 * prompts)
        sampler = _Sampler(clip, bar)
        before = evaluate(sampler.bind(original), seeds=seeds, neutral=neutral, judge=judge)
        after = evaluate(sampler.bind(forgotten), seeds=seeds, neutral=neutral, judge=judge)
        strengths = [entry["strength"] for entry in applied(forgotten)]
        figures = {
            "copies_before": before["copies"],
            "copies_after": after["copies"],
            "copies_after_heldout": after["copies_heldout"],
            "copies_after_indomain": after["copies_indomain"],
            "neutral_before": before["neutral"],
            "neutral_after": after["neutral"],
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

    def __init__(self, clip, bar):
        self.encode = lambda text: clip.encode_from_tokens_scheduled(clip.tokenize(text))
        self.negative = self.encode("")
        self.bar = bar

    def bind(self, model):
        """``sample(prompts, seeds) -> uint8 (n, 64, 64, 3)`` for `model`."""

        def sample(prompts, seeds):
            sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
            euler = comfy.samplers.sampler_object("euler")
            out, start = [], 0
            for prompt, run in itertools.groupby(prompts):
                chunk = seeds[start : start + len(list(run))]
                start += len(chunk)
                noise = torch.cat([torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(s)) for s in chunk])
                latent = torch.zeros_like(noise)
                result = comfy.sample.sample_custom(
                    model, noise, CFG, euler, sigmas, self.encode(prompt), self.negative, latent, disable_pbar=True, seed=chunk[0]
                )
                out.append(to_pixels(result))
                self.bar.update(1)
            return np.concatenate(out)

        return sample


def contact_sheet(original, forgotten):
    """Rows of memorized and neutral prompts, original above forgotten, as a labelled PIL image."""
    memorized = list(concepts.PHOTOGRAPHS)[:6] + list(concepts.COMPOSITIONS)[: SHOWN - 6]
    neutral = [item[0] for item in neutral_prompts(False, 60)[8 : 8 + SHOWN // 2]]
    neutral += [item[0] for item in neutral_prompts(True, 60)[5 : 5 + SHOWN - len(neutral)]]
    scale, gap, label = 2, 6, 22
    side = concepts.CANVAS * scale
    width = SHOWN * (side + gap) + gap
    block = label + 2 * (side + gap)
    sheet = Image.new("RGB", (width, 2 * block + gap), (24, 26, 31))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    rows = (
        ("captions it memorized: original above, after forgetting below", memorized),
        ("everyday captions: original above, after forgetting below (right half: concepts that learning never saw)", neutral),
    )
    for r, (title, prompts) in enumerate(rows):
        top = gap + r * block
        draw.text((gap, top + 1), title, fill=(225, 228, 235), font=font)
        seeds = [7 + i for i in range(len(prompts))]
        for k, model in enumerate((original, forgotten)):
            for i, picture in enumerate(model(prompts, seeds)):
                tile = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(tile, (gap + i * (side + gap), top + label + k * (side + gap)))
    return sheet


def table(f):
    """The figures as plain text for the node."""
    rows = [
        ("copies of training pictures", f["copies_before"], f["copies_after"]),
        ("everyday prompts right", f["neutral_before"], f["neutral_after"]),
        ("unseen everyday prompts right", f["heldout_before"], f["heldout_after"]),
    ]
    lines = [f"{'':32}before   after"] + [f"{n:32}{a:6.1%}  {b:6.1%}" for n, a, b in rows]
    return "\n".join(
        [*lines, f"switched off {f['off_share']:.1%}; strength {f['strength']:g}; learned in {f['learn_seconds']:.0f} s"]
    )
