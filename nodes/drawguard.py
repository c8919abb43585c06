"""Memorization Guard: looks at pictures while they are drawn."""

import hashlib
import json
import logging
import sys
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..uniforget import __version__, atomic, untrusted
from ..uniforget.checks.bands import Bands
from ..uniforget.config.copies import GUARD
from ..uniforget.hosts.comfy import apply as host
from ..uniforget.hosts.comfy.guard import KEY, guarded, measured
from ..uniforget.hosts.comfy.learn import empty_latent
from .checking import encoder, neutral
from .inputs import CATEGORY, say, search, show, to_input

LARGEST = 1 << 20  # bytes of a file of bands


class MemorizationGuard(io.ComfyNode):
    """A model that tells, redraws or steers when a prompt pulls a picture out of its memory."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="UniForgetGuard",
            display_name="Memorization Guard",
            category=CATEGORY,
            description=(
                "Looks at every picture while it is drawn: does the prompt pull it to one place, as memorized prompts do? Then it tells, draws again "
                "or steers away. Works with any sampler, with and without a mask; other pictures stay exactly what they were."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The model to draw with; after LoRAs and masks."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model."),
                *(to_input(p) for p in GUARD.values()),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(id="guarded", display_name="MODEL", tooltip="The same model, looked at while it draws.")],
            **search("memorization", "copyright", "regurgitation", "safety", "steer"),
        )

    @classmethod
    def execute(cls, model, clip, **values):
        values = {name: param.check(values[name]) for name, param in GUARD.items()}
        bands, kept = bands_of(model, clip, values)
        heard = [0, 0]

        def tell(told):
            heard[0] += len(told.worst)
            heard[1] += told.alarms
            if told.alarms:
                mark(told)
                logging.warning("UniForget: %s", words(told))
            say(cls, f"{words(told)}\nin all {heard[1]} of {heard[0]} pictures were not usual")

        text = f"guarding: {values['action']}; what is usual was {'known' if kept else 'learned'} from {values['neutral']} everyday prompts"
        return io.NodeOutput(guarded(model, bands, values["action"], values["tries"], tell), ui=show(cls, text))


def words(told):
    """What came of one sampling, in a sentence."""
    if not told.alarms:
        return f"{len(told.worst)} picture{'s' * (len(told.worst) > 1)} drawn as usual"
    text = f"{told.alarms} of {len(told.worst)} pictures: this prompt is likely memorized ({max(told.worst):.1f} times what is usual at most)"
    if told.action == "redraws":
        done = "and the last one is not usual either" if told.still else "and the last one is usual"
        return f"{text}; drawn {told.tries} times, {done}"
    return f"{text}; steered" if told.action == "steers" else text


def mark(told):
    """Note an alarm in the metadata of the pictures that the running workflow saves."""
    server = sys.modules.get("server")
    queue = getattr(getattr(getattr(server, "PromptServer", None), "instance", None), "prompt_queue", None)
    note = {
        "version": __version__,
        "action": told.action,
        "alarms": told.alarms,
        "worst": [round(value, 3) for value in told.worst],
        "tries": told.tries,
        "still": told.still,
    }
    for item in list(getattr(queue, "currently_running", {}).values()):
        # (number, id, graph, what came with it, ...): saving nodes write "extra_pnginfo" of the latter
        if len(item) > 3 and isinstance(item[3], dict):
            item[3]["extra_pnginfo"] = {**(item[3].get("extra_pnginfo") or {}), KEY: note}


def bands_of(model, clip, values):
    """``(bands, whether they were known)`` of a model, kept for the next run with the same model and settings."""
    latent = empty_latent(model, values["width"], values["height"])
    about = [__version__, host.base_fingerprint(model), host.applied(model), len(model.patches)]
    about += [values[name] for name in ("neutral", "sampling_steps", "cfg", "width", "height", "seed")]
    folder = Path(folder_paths.get_output_directory(), "uniforget", "guard")
    path = folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]}.json"
    if about[1] and (known := read(path)):
        return known, True
    prompts, encode = neutral(model, values["neutral"]), encoder(clip)
    bar = comfy.utils.ProgressBar(len(prompts))
    made = measured(
        model, [encode(text) for text in prompts], encode(""), latent, values["sampling_steps"], values["cfg"], values["seed"],
        lambda: bar.update(1),
    )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.replace(path, json.dumps({KEY: __version__, "bands": made.as_dict()}).encode())
    except OSError as error:
        logging.warning("UniForget: what is usual for this model could not be kept (%s), and will be learned again.", error)
    return made, False


def read(path):
    """Bands in a file; None if there is none, or it holds something else."""
    try:
        with open(path, "rb") as file:
            return Bands.from_dict(untrusted.parse_json(file.read(LARGEST + 1), LARGEST)["bands"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
