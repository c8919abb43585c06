"""Settings of what finds and stops copies: Clean LoRA, Attack Check, Memorization Guard."""

from __future__ import annotations

from ..param import Param, table
from . import LEARN
from .checks import PICTURE_CHECK

CLEAN_LORA = table(
    Param(
        "strength",
        1.0,
        "How much of what was found is taken out of the LoRA. 1 takes all of it out, 0 leaves the LoRA as it is.",
        "float",
        0.0,
        1.0,
        0.01,
    ),
    Param(
        "keep",
        0.5,
        "How much of the LoRA to keep: what fits the base model best stays, the rest goes. Lower it if pictures are still copied, raise it if the style "
        "or subject is lost.",
        "float",
        0.0,
        1.0,
        0.01,
    ),
)

ATTACK = table(
    Param(
        "caption",
        "",
        "What the picture was called in training, if you know it: the attack begins there. Empty begins without words.",
        "line",
    ),
    Param("tries", 4, "How many pictures are drawn after each attack, each from a noise of its own.", "int", 1, 32, 1),
    Param(
        "steps",
        50,
        "How long to attack. Far more than 50 paints any picture into any model: look at the control.",
        "int",
        1,
        1000,
        1,
        advanced=True,
    ),
    *(LEARN[name] for name in ("sampling_steps", "cfg")),
    *(PICTURE_CHECK[name] for name in ("width", "height", "seed")),
)

GUARD = table(
    Param(
        "action",
        "tells",
        "What to do about a memorized prompt. Tells: draw the picture, and say so in the node and in the picture's metadata. Redraws: also begin "
        "again with other noise. Steers: keep the noise, and hold the picture back from where it is pulled.",
        "choice",
        choices=("tells", "redraws", "steers"),
    ),
    Param("tries", 3, "How often a picture is drawn at most, with other noise each time. Only used by redraws.", "int", 2, 16, 1),
    Param(
        "neutral",
        48,
        "From how many bundled everyday prompts it is learned what is usual for this model. Done once for each model, and kept.",
        "int",
        16,
        256,
        1,
    ),
    *(LEARN[name] for name in ("sampling_steps", "cfg")),
    Param("width", 512, "Width of the pictures from which it is learned what is usual: about what you draw.", "int", 64, 2048, 8),
    Param(
        "height", 512, "Height of the pictures from which it is learned what is usual: about what you draw.", "int", 64, 2048, 8
    ),
    PICTURE_CHECK["seed"],
)
