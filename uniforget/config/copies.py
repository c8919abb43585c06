"""Settings of what finds and stops copies: Clean LoRA."""

from __future__ import annotations

from ..param import Param, table

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
