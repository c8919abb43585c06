"""Settings of the checks: Own-Picture Check and Prompt Check."""

from __future__ import annotations

from ..param import Param, table
from . import LEARN

PICTURE_CHECK = table(
    Param(
        "caption",
        "",
        "What the picture was called in training, if you know it: one line for all pictures, or one line for each. Empty asks without words.",
        "text",
    ),
    Param(
        "noises",
        6,
        "How often each picture is noised and restored: the time it takes goes with it. More makes the answer surer, 2 is quickest.",
        "int",
        2,
        64,
        1,
    ),
    Param(
        "baseline",
        12,
        "How many everyday pictures the model draws itself, to see what is usual for it. They are kept until the settings change.",
        "int",
        4,
        64,
        1,
    ),
    *(LEARN[name] for name in ("sampling_steps", "cfg")),
    Param("width", 512, "Pictures are cropped and scaled to this width. Use what the model was trained at.", "int", 64, 2048, 8),
    Param(
        "height", 512, "Pictures are cropped and scaled to this height. Use what the model was trained at.", "int", 64, 2048, 8
    ),
    Param("seed", 0, "Same seed and settings on the same machine, same answer.", "int", 0, 2**64 - 1, 1),
)

PROMPT_CHECK = table(
    Param("prompts", "", "The prompts to check, one a line.", "text"),
    Param(
        "seeds",
        4,
        "From how many noises each prompt is looked at. One already tells most; two and more also show whether all lead to the same picture.",
        "int",
        1,
        32,
        1,
    ),
    Param("neutral", 128, "How many bundled everyday prompts they are compared with.", "int", 8, 256, 1),
    Param("width", 512, "Width of the pictures that the prompts would be used for.", "int", 64, 2048, 8),
    Param("height", 512, "Height of the pictures that the prompts would be used for.", "int", 64, 2048, 8),
    Param("seed", 0, "Same seed and settings on the same machine, same answer.", "int", 0, 2**64 - 1, 1),
)
