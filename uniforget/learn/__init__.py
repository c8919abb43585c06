"""Where masks come from: learned from neutral prompts with gradients, or scored without.

* ``trajectory``: the paper's objective. The student samples N steps; the loss compares its final latent with the teacher's.
* ``stepwise``: the student is compared with the teacher at single states; no chain, so one forward and one backward per update.
* ``scores``: activation energies from one pass, no gradient.

Under classifier-free guidance both branches are matched.
"""

from .loop import BETA_UNIT, learn
from .model import CURVE_BEGINS, Model, Progress, Result, Settings, curve_csv, euler, guided
from .objectives import OBJECTIVES
from .teacher import Bank, record_teacher

__all__ = [
    "BETA_UNIT",
    "CURVE_BEGINS",
    "OBJECTIVES",
    "Bank",
    "Model",
    "Progress",
    "Result",
    "Settings",
    "curve_csv",
    "euler",
    "guided",
    "learn",
    "record_teacher",
]
