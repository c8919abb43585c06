"""Did the model forget? The criteria, in one place, and the table that the demo prints."""

from typing import Any

from .errors import LauncherError

SCORE_KEY = "uniforget_score"
SIX = ("forgotten", "copy", "partial", "broken", "off_prompt", "collapsed")  # shares of what is drawn for memorized captions
SHARES = (
    *SIX,
    "forgotten_reserved",
    "ceiling",
    "twins_copied",
    "copies_before",
    "copies_after",
    "copies_after_heldout",
    "copies_after_indomain",
    "neutral_before",
    "neutral_after",
    "heldout_before",
    "heldout_after",
    "off_share",
)
FIGURES = (*SHARES, "learn_seconds", "strength", "seeds")

SAID = {
    "copy": "a copy",
    "partial": "a copy of a part",
    "broken": "broken",
    "off_prompt": "not what the caption says",
    "collapsed": "new, but the same for every seed",
}

# The demo's exit code is 0 only when all of these hold.
MIN_COPIES_BEFORE = 0.5
MAX_COPIES = 0.05  # whole and partial ones
MAX_NEUTRAL_LOSS = 0.05
MAX_HELDOUT_LOSS = 0.08


def check_figures(figures: Any) -> dict[str, Any]:
    """Figures of the score node, complete and in range.

    Raises:
        LauncherError: a key is missing, or a share is not a number in [0, 1].
    """
    if not isinstance(figures, dict):
        raise LauncherError(f"The score node should report an object of figures, found {figures!r}.")
    missing = [key for key in FIGURES if key not in figures]
    if missing:
        raise LauncherError(f"The score node reported no {', '.join(missing)}. It and run.py are of different versions.")
    for key in SHARES:
        value = figures[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise LauncherError(f"The score node reported {key} = {value!r}; expected a share between 0 and 1.")
    return figures


def reasons_against(figures: dict[str, Any]) -> list[str]:
    """Why this does not count as forgetting; empty when the model really forgot."""
    f, reasons = figures, []
    if f["copies_before"] < MIN_COPIES_BEFORE:
        reasons.append(
            f"only {percent(f['copies_before'])} copies before the mask: this model hardly memorized, nothing is shown"
        )
    if f["copy"] + f["partial"] > MAX_COPIES:
        left = percent(f["copy"] + f["partial"])
        reasons.append(f"{left} copies and partial copies are left, at most {percent(MAX_COPIES)} are allowed")
    if f["neutral_after"] < f["neutral_before"] - MAX_NEUTRAL_LOSS:
        allowed = percent(max(0.0, f["neutral_before"] - MAX_NEUTRAL_LOSS))
        reasons.append(f"quality on neutral prompts fell to {percent(f['neutral_after'])}, at least {allowed} is expected")
    if f["heldout_after"] < f["heldout_before"] - MAX_HELDOUT_LOSS:
        allowed = percent(max(0.0, f["heldout_before"] - MAX_HELDOUT_LOSS))
        reasons.append(
            f"quality on concepts never calibrated on fell to {percent(f['heldout_after'])}, at least {allowed} is expected"
        )
    return reasons


def percent(share: float) -> str:
    """``0.125`` -> ``12.5 %``."""
    return f"{100 * share:.1f} %"


def table(figures: dict[str, Any]) -> str:
    """The before/after table, ready to print."""
    f = figures
    rows = [
        ("", "before", "after"),
        ("forgotten: a new, whole, right picture", "", percent(f["forgotten"])),
        ("  of captions kept out of tuning", "", percent(f["forgotten_reserved"])),
        ("  the ceiling: captions never trained on", percent(f["ceiling"]), ""),
        *((f"  {SAID[key]}", "", percent(f[key])) for key in SIX[1:]),
        ("copies of training pictures", percent(f["copies_before"]), percent(f["copies_after"])),
        ("  of captions kept out of tuning", "", percent(f["copies_after_heldout"])),
        ("  of scenes", "", percent(f["copies_after_indomain"])),
        ("quality, neutral prompts", percent(f["neutral_before"]), percent(f["neutral_after"])),
        ("quality, concepts never calibrated on", percent(f["heldout_before"]), percent(f["heldout_after"])),
        ("share of the model switched off", percent(0), percent(f["off_share"])),
    ]
    lines = [f"{name:<42}{before:>10}{after:>10}" for name, before, after in rows]
    lines.insert(1, "-" * 62)
    seconds = f"learned in {f['learn_seconds']:.0f} s"
    if f.get("score_seconds"):
        seconds += f", scored in {f['score_seconds']:.0f} s"
    lines.append(f"{seconds}; strength {f['strength']:g}, {f['seeds']} seeds per prompt")
    return "\n".join(lines)
