"""Find Memorized Prompts: which of many does the model know by heart, and what could it answer instead?"""

import logging
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..uniforget import config
from ..uniforget.errors import SettingError
from ..uniforget.hosts.comfy.learn import loaded, prepare
from ..uniforget.learn import Settings
from ..uniforget.learn.found import find, summary, to_learn
from ..uniforget.prompts import parse_prompts, to_jsonl
from .inputs import CATEGORY, search, show, to_input
from .learn import read_prompts

MOST_SHOWN = 12


class FindMemorized(io.ComfyNode):
    """Looks through a list of prompts for those that draw the same picture whatever the noise."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetFind",
            display_name="Find Memorized Prompts",
            category=CATEGORY,
            description=(
                "Looks through a long list of prompts for those that draw the same picture whatever the noise, and for other words that do "
                "not. Connect the output to the prompts of Learn: the model then learns to answer what it knew by heart like the other words."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The original model, without a mask. It is not changed."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                *(to_input(p) for p in config.FIND_IN.values()),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.String.Output(
                    id="found",
                    display_name="found",
                    tooltip="For the prompts of Learn Memorization Mask and Recover Quality.",
                ),
            ],
            is_output_node=True,
            **search("memorized prompts", "captions", "copyright", "memorization"),
        )

    @classmethod
    def execute(cls, model, clip, **values):
        values = {name: param.check(values[name]) for name, param in config.FIND_IN.items()}
        settings, pool = Settings.checked(values, config.FIND), parse_prompts(values["pool"])
        if not pool:
            raise SettingError("Find Memorized Prompts: expected at least one prompt in 'pool', one a line; found none.")
        neutral = read_prompts(values["prompts"], model)
        folder = Path(folder_paths.get_output_directory(), "uniforget", "unfinished")
        bar = comfy.utils.ProgressBar(1)

        def ask(texts, run):
            return loaded(model, [], prepare(model, clip, texts, settings, folder), settings.batch, run)

        found = find(ask, pool, neutral, settings, lambda state: bar.update_absolute(state.step, state.steps))
        known = [one.prompt for one in found if one.memorized]
        more = [f"and {len(known) - MOST_SHOWN} more"] if len(known) > MOST_SHOWN else []
        text = "\n".join([f"{summary(found)}.", *known[:MOST_SHOWN], *more])
        logging.info("UniForget: %s", text)
        return io.NodeOutput(to_jsonl(to_learn(found, neutral)), ui=show(cls, text))
