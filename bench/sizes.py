"""How much is measured on the testbeds."""

from dataclasses import dataclass

from testbed import attack

from .finetune import STEPS


@dataclass
class Size:
    """How much is measured: sampling seeds per memorized caption, free captions and seeds for each, attacked captions, steps of the attack and of
    fine-tuning, updates of learning, its prompts and its batch; at most so many memorized captions; captions of each group in the analysis."""

    seeds: int = 6
    free: int = 96
    free_seeds: int = 2
    attacked: int = 24
    attack_steps: int = attack.STEPS
    tuning_steps: int = STEPS
    steps: int = 400
    prompts: int = 400
    batch: int = 24
    captions: int | None = None
    shown: int = 24


QUICK = Size(seeds=3, free=32, free_seeds=2, attacked=6, steps=150, prompts=200)
SMALLEST = Size(1, 2, 1, attacked=1, attack_steps=1, tuning_steps=1, steps=2, prompts=4, batch=2, captions=15, shown=4)
