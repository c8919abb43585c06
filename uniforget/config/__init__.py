"""Every setting that users see, defined once: name, default, range and what to tell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..param import Param, params, setting, table

PRESETS = {"weak": 1.0, "medium": 2.0, "strong": 5.0}
_BETAS = ", ".join(f"{name} is {beta:g}" for name, beta in PRESETS.items())


@dataclass(frozen=True)
class Method:
    """A way of finding what to switch off.

    Attributes:
        module: of :mod:`uniforget.learn`, whose ``run`` does it. Imported when it is used: it needs torch.
        text: what users are told.
        amounts: what the presets mean to it.
        trains: whether it moves something by gradients, update after update.
        needs: what of a model it works on: "sites" (gates) or "layers" (directions).
    """

    module: str
    text: str
    amounts: Mapping[str, Any]
    trains: bool = True
    needs: str = "sites"

    def amount(self, preset: str) -> Any:
        """What `preset` means; what medium does for one that this method does not know."""
        return self.amounts.get(preset, self.amounts["medium"])


METHODS = {
    "stepwise": Method("gates", "Stepwise compares single sampling steps: fast, little memory.", PRESETS),
    "trajectory": Method("gates", "Trajectory compares finished pictures, as in the paper: several times slower.", PRESETS),
    "scores": Method(
        "scores",
        "Scores needs no training at all: one look at the model at work, works on any model that runs, and is less exact.",
        # Shares of each kind: what the paper's masks switch off on FLUX.1-schnell (supplement).
        {
            "weak": {"ffn": 0.242, "norm": 0.056, "attn": 0.056},
            "medium": {"ffn": 0.350, "norm": 0.123, "attn": 0.123},
            "strong": {"ffn": 0.453, "norm": 0.191, "attn": 0.191},
        },
        trains=False,
    ),
    "subspace": Method(
        "subspace",
        "Subspace forgets the most and holds best against people who try to get the pictures back: one look as well, but its file is large; "
        "save a sanitized model instead if you only need that.",
        # Share of the energy on neutral prompts that is given up. docs/forgetting.md has what each costs and brings.
        {"weak": 0.007, "medium": 0.01, "strong": 0.015},
        trains=False,
        needs="layers",
    ),
}


@dataclass(frozen=True)
class Settings:
    """How to learn: what users choose, in the order in which they see it, and what only tests and benchmarks do. ``beta`` is what counts.

    Attributes:
        noises: the teacher's trajectories per prompt; 0: as many as the updates can use, and about 512 in all at most.
        harden: share of the updates, the last ones, that train the mask as it ships, with hard gates.
    """

    prompts: str = setting(
        "",
        "Neutral prompts, one a line or as JSONL: everyday things, nothing you want forgotten. Leave it empty to use the bundled list that "
        "fits the model. The more varied, the better everything else survives.",
        kind="text",
    )
    preset: str = setting(
        "medium",
        "How much to forget. Weak is careful, medium suits most models, strong forgets the most and may cost some "
        "quality. Custom uses the beta below.",
        choices=(*PRESETS, "custom"),
    )
    beta: float = setting(
        2.0,
        f"How hard the mask is pushed to switch things off. Only used when the preset is custom: {_BETAS}.",
        span=(0.0, 100.0, 0.1),
        advanced=True,
    )
    targets: str = setting(
        "ffn + norm",
        "Which parts of the model may be switched off: neurons (ffn), modulation channels (norm), attention heads "
        "(attn). 'ffn + norm' forgets best at the least cost.",
        choices=("ffn + norm", "ffn", "ffn + norm + attn", "norm", "attn"),
    )
    steps: int = setting(
        400, "How long to learn. More steps give a cleaner mask and take proportionally longer.", span=(1, 20000, 1)
    )
    learning_rate: float = setting(
        0.1,
        "How fast the mask may change. Lower it if the loss picture jumps up and down; raise it if the mask stays almost empty.",
        span=(0.0001, 5.0, 0.0001),
        advanced=True,
    )
    batch: int = setting(
        16, "How many pictures are compared at once. Lower it if you run out of memory.", span=(1, 256, 1), advanced=True
    )
    sampling_steps: int = setting(
        8,
        "Sampling steps of the pictures that the model must still draw the same. More is closer to your real work and slower.",
        span=(1, 50, 1),
        advanced=True,
    )
    cfg: float = setting(
        3.0,
        "Guidance (CFG) while learning. Use about what you generate with; 1 for models that need no guidance.",
        span=(0.0, 30.0, 0.1),
    )
    width: int = setting(
        512, "Width of the pictures used for learning. Smaller is faster and needs less memory.", span=(64, 2048, 8)
    )
    height: int = setting(
        512, "Height of the pictures used for learning. Smaller is faster and needs less memory.", span=(64, 2048, 8)
    )
    seed: int = setting(0, "Same seed and settings on the same machine, same mask.", span=(0, 2**64 - 1, 1), advanced=True)
    objective: str = setting(
        "stepwise",
        " ".join(["How the mask is found.", *(method.text for method in METHODS.values())]),
        choices=tuple(METHODS),
        advanced=True,
    )
    along: str = setting(
        "teacher",
        "Which pictures stepwise looks at on their way: those of the original model (teacher), or those that the "
        "model with the mask draws itself (student: about as slow as trajectory, closer to what you will see).",
        choices=("teacher", "student"),
        advanced=True,
    )
    target_sparsity: float = setting(
        0.0,
        "Switch off this share of the gates, instead of what the preset leads to. 0.3 is 30 %. 0: not used.",
        span=(0.0, 0.95, 0.01),
        advanced=True,
    )
    max_neutral_loss: float = setting(
        0.0,
        "Switch off as much as possible while everyday prompts change less than this (0.02 is careful, 0.1 a lot). 0: not used.",
        span=(0.0, 1.0, 0.005),
        advanced=True,
    )
    memory: str = setting(
        "auto",
        "Memory against speed. Auto takes the fastest way that fits. Keep is fastest and needs the most; micro takes a few pictures at a "
        "time; step re-computes one sampling step at a time; block one block of the model at a time: slowest, fits the smallest cards.",
        choices=("auto", "keep", "micro", "step", "block"),
        advanced=True,
    )
    threshold: float = setting(
        0.0,
        "Subspace only: how much of what everyday prompts use in the model may go along. 0.01 is 1 %; more forgets "
        "more and costs more quality. 0: what the preset says. It can still be moved afterwards, with Set Subspace "
        "Threshold.",
        span=(0.0, 0.2, 0.001),
        advanced=True,
    )
    noises: int = 0
    harden: float = 0.3

    @classmethod
    def checked(cls, values: Mapping[str, Any], table: Mapping[str, Param] | None = None) -> Settings:
        """Settings of those among `values` that are settings, each checked; the preset decides beta.

        Args:
            table: the settings that count, with their ranges; None: all of learning's.

        Raises:
            SettingError: one has another type or is out of range.
        """
        table = LEARN if table is None else table
        known = {name: param.check(values[name]) for name, param in table.items() if name in values and name in LEARN}
        if (preset := known.get("preset")) in PRESETS:
            known["beta"] = PRESETS[preset]
        return cls(**known)


LEARN = params(Settings)

FIND = table(*(LEARN[name] for name in ("sampling_steps", "batch", "width", "height", "seed")))
# What the node asks beside that; on the command line, lists of prompts are files.
FIND_IN = table(
    Param(
        "pool",
        "",
        "Prompts or captions to look through, one a line: your own, or a list from the internet. The more, the better; each takes as long "
        "as two pictures of the size below.",
        "text",
    ),
    LEARN["prompts"],
    *FIND.values(),
)

APPLY = table(
    Param(
        "strength",
        1.0,
        "How much of the mask to use. 1 forgets all that the mask was made to forget, 0 leaves the model exactly as it was. On most models "
        "little happens below 0.5 and most between 0.5 and 1: Strength Sweep finds the least that is enough.",
        "float",
        0.0,
        1.0,
        0.01,
    ),
    *(
        Param(
            f"strength_{kind}",
            1.0,
            f"How much of the mask to use on {what} ({kind}). Multiplies the strength above; 0 leaves them alone.",
            "float",
            0.0,
            1.0,
            0.01,
            advanced=True,
        )
        for kind, what in (("ffn", "neurons"), ("norm", "modulation channels"), ("attn", "attention heads"))
    ),
)

# As the stock KSampler has them; samplers and schedulers are the host's.
SAMPLING = table(
    Param("seed", 0, "The noise to start from. Same seed and settings, same picture.", "int", 0, 2**64 - 1, 1),
    Param("steps", 20, "How many sampling steps. More is slower and often finer.", "int", 1, 10000, 1),
    Param(
        "cfg",
        8.0,
        "How closely to follow the prompt (guidance). Use what you generate with; 1 for models that need no guidance.",
        "float",
        0.0,
        100.0,
        0.1,
    ),
    Param(
        "denoise",
        1.0,
        "How much of the latent to draw anew. 1 draws all of it; less keeps more of a picture that you put in.",
        "float",
        0.0,
        1.0,
        0.01,
        advanced=True,
    ),
)

SWEEP = table(
    Param("prompts", "", "What the model copies, one prompt a line. Each prompt makes a row of the grid.", "text"),
    Param("everyday", "", "Prompts that should stay as they are, one a line; rows below the others. Empty is fine.", "text"),
    Param("negative", "", "What the pictures should not show. Empty is fine.", "text"),
    Param(
        "strengths",
        "0, 0.25, 0.5, 0.75, 1",
        "The strengths to try, with a comma between them. Each makes a column; 0 is the original and always there.",
        "line",
    ),
    Param(
        "find",
        False,
        "On: also searches for the least strength at which the pictures of the first box are gone, and adds what it tried to the grid. "
        "The everyday prompts show what that costs.",
        "bool",
    ),
    Param("seeds", 1, "How many seeds per prompt, counted up from the seed below. Each makes a row.", "int", 1, 64, 1),
)

VARIETY = Param("seeds", 4, "How many seeds to draw, counted up from the seed below.", "int", 2, 16, 1)

COMBINE = table(
    Param(
        "mode",
        "union",
        "What to make of the two masks. Union forgets what either forgets, intersection only what both forget, difference what A "
        "forgets and B does not; blend mixes them by weight. Not used without a mask B.",
        "choice",
        choices=("union", "intersection", "difference", "blend"),
    ),
    Param(
        "weight",
        0.5,
        "How much of mask B a blend has: 0 is mask A, 1 is mask B. Only used when the mode is blend.",
        "float",
        0.0,
        1.0,
        0.01,
    ),
    Param(
        "kinds",
        "all",
        "Which kinds of parts the result may switch off: neurons (ffn), modulation channels (norm), attention heads (attn). The "
        "others are left alone.",
        "choice",
        choices=("all", "ffn", "norm", "attn", "ffn + norm", "ffn + attn", "norm + attn"),
    ),
    Param(
        "blocks",
        "",
        "Which blocks of the model the result may switch off, such as 'IN4-8, MID' (SD1.5, SDXL), 'double 0-7, single 10-20' (FLUX) "
        "or '3-9, 12' (SD3 and others); 'not MID' leaves one out. Empty means all. The node lists the blocks that a mask has.",
        "text",
    ),
)

THRESHOLD = Param(
    "threshold",
    0.01,
    "How much of what everyday prompts use in the model may go along: 0.01 is 1 %. More forgets more and costs more quality. The node "
    "shows which values the subspace allows.",
    "float",
    0.0,
    0.2,
    0.001,
)

MAP_THEME = Param(
    "theme",
    "dark",
    "Colours of the picture that this node hands out: for dark or for white pages. The panel in the node follows ComfyUI's own theme.",
    "choice",
    choices=("dark", "light"),
)

RECOVER = table(
    *(LEARN[name] for name in ("prompts", "steps", "batch", "sampling_steps", "cfg", "width", "height", "seed", "memory")),
    Param(
        "learning_rate",
        0.001,
        "How fast the LoRA may change. Lower it if the loss picture jumps up and down.",
        "float",
        0.00001,
        1.0,
        0.00001,
        advanced=True,
    ),
    Param("rank", 16, "Size of the LoRA. Larger recovers more and makes a larger file.", "int", 1, 256, 1),
)

STRENGTH = APPLY["strength"]

MULTIPLE = Param(
    "multiple",
    "64",
    "Widths are rounded up to a multiple of this, because graphics cards like round numbers: 64 is fastest on most, 8 is smallest.",
    "choice",
    choices=("1", "8", "16", "32", "64", "128"),
)

# What the script for Automatic1111 and Forge asks, in the order of its arguments.
WEBUI = table(
    Param("enabled", False, "Make the model forget what the mask below marks. Off leaves it as it is.", "bool"),
    Param(
        "mask",
        "None",
        "A mask (or subspace) that was learned for this model. Press the button beside it after adding files to the folder of masks.",
        "text",
    ),
    *APPLY.values(),
    replace(
        COMBINE["blocks"],
        tooltip="Which blocks of the model may change, such as 'IN4-8, MID' (SD1.5, SDXL), 'double 0-7, single 10-20' (FLUX) or '3-9, 12' "
        "(SD3 and others); 'not MID' leaves one out. Empty means all that the mask has.",
    ),
    Param(
        "compare",
        False,
        "Also make each picture with the original model, from the same seed, and put both into the gallery. Takes twice as long.",
        "bool",
    ),
)
