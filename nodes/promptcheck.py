"""Prompt Check: which prompts are memorized? web/promptcheck.js draws the table into the node."""

import csv
import io as text_io
import logging
import math

import comfy.utils
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.checks import prompt as check
from ..uniforget.config.checks import PROMPT_CHECK
from ..uniforget.errors import SettingError
from ..uniforget.hosts.comfy.learn import empty_latent
from ..uniforget.hosts.comfy.predict import predicting
from ..uniforget.prompts import parse_prompts
from .checking import encoder, forgotten, neutral
from .inputs import CATEGORY, MaskType, search, show, to_input

MOST_PROMPTS = 500
VERDICTS = {"memorized": "likely memorized", "unclear": "cannot tell", "usual": "looks usual"}


class PromptCheck(io.ComfyNode):
    """Scores prompts by how hard their text pulls at pure noise, beside everyday prompts."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetPromptCheck",
            display_name="Prompt Check",
            category=CATEGORY,
            description=(
                "Which of my prompts are memorized? Looks at the first sampling step only, so hundreds of prompts take minutes: a memorized "
                "prompt pulls the noise towards its one picture harder than everyday prompts do. Click a column to sort."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model, without the mask."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                MaskType.Input(
                    "mask", optional=True, tooltip="With a mask, the prompts are checked before and after forgetting."
                ),
                to_input(config.STRENGTH),
                *(to_input(p) for p in PROMPT_CHECK.values()),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(id="csv", display_name="csv", tooltip="The table: one line per prompt.")],
            is_output_node=True,
            **search("copyright", "memorization", "memorized prompts"),
        )

    @classmethod
    def execute(cls, model, clip, strength, mask=None, **values):
        config.STRENGTH.check(strength)
        for name, param in PROMPT_CHECK.items():
            values[name] = param.check(values[name])
        prompts = parse_prompts(values["prompts"])
        if not 1 <= len(prompts) <= MOST_PROMPTS:
            raise SettingError(
                f"Prompt Check: expected 1 to {MOST_PROMPTS} different prompts, one a line; found {len(prompts)}. "
                + (
                    "Leave some out, or check them in several runs."
                    if prompts
                    else "Write what you want to check into 'prompts'."
                )
            )
        latent = empty_latent(model, values["width"], values["height"])
        others, encode = neutral(model, values["neutral"]), encoder(clip)
        conditionings, empty = [encode(text) for text in (*prompts, *others)], encode("")
        models = [m for m in (model, forgotten(model, mask, strength)) if m is not None]
        bar = comfy.utils.ProgressBar(len(models) * len(conditionings))

        def run(denoiser):
            found = check.pulls(
                denoiser, len(prompts), len(others), latent.shape[1:], values["seeds"], values["seed"], report=bar.update
            )
            return check.scores(found[: len(prompts)], found[len(prompts) :])

        before, *after = [predicting(one, conditionings, empty, latent, run) for one in models]
        rows = [row(*found) for found in zip(prompts, before, *after, strict=True)]
        text = summary(before, after[0] if after else None)
        logging.info("UniForget: %s", text)
        return io.NodeOutput(table(rows), ui={**show(cls, text).as_dict(), "uniforget_prompts": rows})


def row(prompt, before, after=None):
    """One line of the table, for the node and for files; numbers as JSON knows them."""
    out = {"prompt": prompt, **figures(before)}
    return out | {f"{name}_after": value for name, value in figures(after).items()} if after else out


def figures(score):
    agreement = None if math.isnan(score.agreement) else round(score.agreement, 4)
    return {
        "score": round(score.beyond, 4),
        "pull": round(score.pull, 4),
        "percentile": round(score.percentile, 4),
        "agreement": agreement,
        "verdict": score.verdict,
    }


def table(rows):
    """The rows as comma-separated values."""
    out = text_io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    # a spreadsheet would take such a prompt for a formula
    writer.writerows({**r, "prompt": f"'{r['prompt']}" if r["prompt"][0] in "=+-@" else r["prompt"]} for r in rows)
    return out.getvalue()


def summary(before, after):
    """How many prompts got which verdict, in one sentence."""

    def counts(scores):
        verdicts = [s.verdict for s in scores]
        return ", ".join(f"{verdicts.count(v)} {words}" for v, words in VERDICTS.items() if v in verdicts)

    text = f"{len(before)} prompt{'' if len(before) == 1 else 's'}: {counts(before)}"
    return f"{text}; after forgetting: {counts(after)}." if after else f"{text}."
