"""The node's progress while something is learned: a bar with the learning curve as its preview, and what is left in words."""

import logging
import math
import time

import comfy.model_management
import comfy.utils

from ..uniforget.learn.model import duration
from .inputs import say
from .picture import curve_picture

LOOKING = 100  # steps of the bar for watching the untouched model, before learning starts
PICTURES, SIZE = 40, 512
OFTEN = 1.0  # seconds between two texts


class Countdown:
    """A bar over `total` units of work, and how much time is left, said in the node as soon as it can be told."""

    def __init__(self, node, total):
        self.node, self.total, self.finished = node, total, 0
        self.bar, self.began, self.said = comfy.utils.ProgressBar(total), time.monotonic(), -math.inf

    def done(self, units=1):
        self.finished += units
        self.bar.update_absolute(self.finished, self.total)
        now = time.monotonic()
        if now - self.said > OFTEN and self.finished < self.total:
            self.said = now
            left = (now - self.began) / self.finished * (self.total - self.finished)
            say(self.node, f"{100 * self.finished // self.total} % done, about {duration(left)} left")

    def leave_out(self, units):
        """Less work than was thought."""
        self.total -= units


def learning_report(node, steps):
    """What learning calls after every update; raises ComfyUI's own exception when the user has cancelled."""
    bar, total, curve, said = comfy.utils.ProgressBar(LOOKING + steps), LOOKING + steps, [], [0.0]

    def report(progress):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if telling := (now := time.monotonic()) - said[0] > OFTEN:
            said[0] = now
            say(node, str(progress))
        if progress.stage == "teacher":
            image = curve_image([], steps, str(progress)) if telling else None
            bar.update_absolute(LOOKING * progress.step // progress.steps, total, ("JPEG", image, SIZE) if image else None)
            return
        curve.append(progress)
        often = progress.step % max(1, steps // PICTURES) == 0
        image = curve_image(curve, steps) if often else None
        bar.update_absolute(LOOKING + progress.step, total, ("JPEG", image, SIZE) if image else None)

    return report


def curve_image(curve, steps, said=""):
    """The picture of a learning curve; None if it cannot be drawn, which learning is not to fail for."""
    try:
        return curve_picture(curve, steps, said)
    except Exception:
        logging.warning("UniForget: the learning curve cannot be drawn", exc_info=True)
        return None
