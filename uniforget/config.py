"""Every setting that users see, defined once: name, default, range and what to tell them."""

from __future__ import annotations

from dataclasses import replace

from .param import Param, table

PRESETS = {"weak": 1.0, "medium": 2.0, "strong": 5.0}


LEARN = table(
    Param(
        "prompts",
        "",
        "Neutral prompts, one a line or as JSONL: everyday things, nothing you want forgotten. Leave it empty to use the bundled list that "
        "fits the model. The more varied, the better everything else survives.",
        "text",
    ),
    Param(
        "preset",
        "medium",
        "How much to forget. Weak is careful, medium suits most models, strong forgets the most and may cost some quality. "
        "Custom uses the beta below.",
        "choice",
        choices=(*PRESETS, "custom"),
    ),
    Param(
        "beta",
        2.0,
        "How hard the mask is pushed to switch things off. Only used when the preset is custom: "
        + ", ".join(f"{name} is {beta:g}" for name, beta in PRESETS.items())
        + ".",
        "float",
        0.0,
        100.0,
        0.1,
    ),
    Param(
        "targets",
        "ffn + norm",
        "Which parts of the model may be switched off: neurons (ffn), modulation channels (norm), attention heads (attn). "
        "'ffn + norm' forgets best at the least cost.",
        "choice",
        choices=("ffn + norm", "ffn", "ffn + norm + attn", "norm", "attn"),
        advanced=True,
    ),
    Param("steps", 400, "How long to learn. More steps give a cleaner mask and take proportionally longer.", "int", 1, 20000, 1),
    Param(
        "learning_rate",
        0.1,
        "How fast the mask may change. Lower it if the loss picture jumps up and down; raise it if the mask stays almost empty.",
        "float",
        0.0001,
        5.0,
        0.0001,
        advanced=True,
    ),
    Param("batch", 16, "How many pictures are compared at once. Lower it if you run out of memory.", "int", 1, 256, 1),
    Param(
        "sampling_steps",
        8,
        "Sampling steps of the pictures that the model must still draw the same. More is closer to your real work and slower.",
        "int",
        1,
        50,
        1,
        advanced=True,
    ),
    Param(
        "cfg",
        3.0,
        "Guidance (CFG) while learning. Use about what you generate with; 1 for models that need no guidance.",
        "float",
        0.0,
        30.0,
        0.1,
    ),
    Param("width", 512, "Width of the pictures used for learning. Smaller is faster and needs less memory.", "int", 64, 2048, 8),
    Param(
        "height", 512, "Height of the pictures used for learning. Smaller is faster and needs less memory.", "int", 64, 2048, 8
    ),
    Param("seed", 0, "Same seed and settings on the same machine, same mask.", "int", 0, 2**64 - 1, 1),
    Param(
        "objective",
        "stepwise",
        "How the mask is found. Stepwise compares single sampling steps: fast, little memory. Trajectory compares finished pictures, as "
        "in the paper: several times slower. Scores needs no training at all: one look at the model at work, works on any "
        "model that runs, and is less exact. Subspace forgets the most and holds best against people who try to get the pictures back: "
        "one look as well, but its file is large; save a sanitized model instead if you only need that.",
        "choice",
        choices=("stepwise", "trajectory", "scores", "subspace"),
        advanced=True,
    ),
    Param(
        "along",
        "teacher",
        "Which pictures stepwise looks at on their way: those of the original model (teacher), or those that the model with the mask "
        "draws itself (student: about as slow as trajectory, closer to what you will see).",
        "choice",
        choices=("teacher", "student"),
        advanced=True,
    ),
    Param(
        "target_sparsity",
        0.0,
        "Switch off this share of the gates, instead of what the preset leads to. 0.3 is 30 %. 0: not used.",
        "float",
        0.0,
        0.95,
        0.01,
        advanced=True,
    ),
    Param(
        "max_neutral_loss",
        0.0,
        "Switch off as much as possible while everyday prompts change less than this (0.02 is careful, 0.1 a lot). 0: not used.",
        "float",
        0.0,
        1.0,
        0.005,
        advanced=True,
    ),
    Param(
        "memory",
        "auto",
        "Memory against speed. Auto takes the fastest way that fits. Keep is fastest and needs the most, step re-computes one sampling "
        "step at a time, block one block of the model at a time: slowest, fits the smallest cards.",
        "choice",
        choices=("auto", "keep", "step", "block"),
        advanced=True,
    ),
    Param(
        "threshold",
        0.0,
        "Subspace only: how much of what everyday prompts use in the model may go along. 0.01 is 1 %; more forgets more and costs more "
        "quality. 0: what the preset says. It can still be moved afterwards, with Set Subspace Threshold.",
        "float",
        0.0,
        0.2,
        0.001,
        advanced=True,
    ),
)

APPLY = table(
    Param(
        "strength",
        1.0,
        "How much of the mask to use. 1 forgets all that the mask was made to forget, 0 leaves the model exactly as it was.",
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
    Param("prompts", "", "What to draw, one prompt a line. Each prompt makes a row of the grid.", "text"),
    Param("negative", "", "What the pictures should not show. Empty is fine.", "text"),
    Param(
        "strengths",
        "0, 0.25, 0.5, 0.75, 1",
        "The strengths to try, with a comma between them. Each makes a column; 0 is the original and always there.",
        "line",
    ),
    Param("seeds", 1, "How many seeds per prompt, counted up from the seed below. Each makes a row.", "int", 1, 64, 1),
)

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
        "How often each picture is noised and restored. More makes the interval narrower and takes longer.",
        "int",
        3,
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

# What `learn` takes beside beta, which the preset decides.
SETTINGS = (
    *("steps", "learning_rate", "batch", "cfg", "seed", "objective", "along", "target_sparsity", "max_neutral_loss", "memory"),
    "threshold",
)


def resolve_beta(preset: str, beta: float) -> float:
    """The beta to learn with: the preset's, or `beta` for the preset "custom".

    Raises:
        SettingError: either is out of range.
    """
    preset = LEARN["preset"].check(preset)
    return LEARN["beta"].check(PRESETS.get(preset, beta))
