"""What a generation is asked to forget: from the script's arguments, from the API, and to and from infotext."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...config import WEBUI
from ...errors import SettingError
from ...model.families.schema import KINDS
from .folder import NO_MASK, odd

# How each value is called in infotext. "enabled" is not there: naming a mask means it.
LABELS = {
    "mask": "UniForget mask",
    "strength": "UniForget strength",
    "strength_ffn": "UniForget ffn",
    "strength_norm": "UniForget norm",
    "strength_attn": "UniForget attn",
    "blocks": "UniForget blocks",
    "compare": "UniForget compare",
}
# Infotext cannot hold an empty value; "all" means the same blocks.
_ALL = "all"


@dataclass(frozen=True)
class Request:
    """The values of the script's controls, checked (see ``config.WEBUI``)."""

    enabled: bool = False
    mask: str = NO_MASK
    strength: float = 1.0
    strength_ffn: float = 1.0
    strength_norm: float = 1.0
    strength_attn: float = 1.0
    blocks: str = ""
    compare: bool = False

    @classmethod
    def of(cls, values: Sequence[Any], overrides: Mapping[str, Any] | None = None) -> Request:
        """From the script's arguments, or from one dictionary with values by name, which an API call may send instead.

        Args:
            values: in the order of ``config.WEBUI``; None stands for the default. With a dictionary, "enabled" is True unless it says
                otherwise.
            overrides: values by name that count instead: those of an X/Y/Z plot.

        Raises:
            SettingError: an unknown name, too many values, or one out of its range. Nothing is checked when the script is off.
        """
        if values and isinstance(values[0], Mapping):
            named = {"enabled": True, **values[0]}
            unknown = [name for name in named if name not in WEBUI]
            if unknown:
                raise SettingError(f"UniForget: unknown setting {unknown[0]!r}. Expected some of {', '.join(WEBUI)}.")
        elif len(values) > len(WEBUI):
            raise SettingError(f"UniForget: expected up to {len(WEBUI)} values ({', '.join(WEBUI)}); found {len(values)}.")
        else:
            named = dict(zip(WEBUI, values, strict=False))
        named.update(overrides or {})
        given = {name: value for name, value in named.items() if value is not None}
        if not WEBUI["enabled"].check(given.get("enabled", False)):
            return cls()
        return cls(**{name: WEBUI[name].check(value) for name, value in given.items()})

    @property
    def per_kind(self) -> dict[str, float]:
        """Kind -> strength."""
        return {kind: getattr(self, f"strength_{kind}") for kind in KINDS}

    def infotext(self) -> dict[str, Any]:
        """Every value by its name in infotext; {} when the script is off."""
        if not self.enabled:
            return {}
        return {label: getattr(self, name) for name, label in LABELS.items()} | {LABELS["blocks"]: self.blocks or _ALL}


def from_infotext(name: str, params: Mapping[str, Any]) -> Any:
    """The value of the control called `name` that infotext asks for; None: it does not say, and the control stays.

    A value that cannot be read counts as not said, because infotext comes from strangers.
    """
    if name == "enabled":
        return LABELS["mask"] in params
    text = params.get(LABELS[name])
    if text is None:
        return None
    param = WEBUI[name]
    try:
        if param.kind == "bool":
            return param.check({"True": True, "False": False}.get(str(text), text))
        if param.kind == "float":
            value = float(text)
            return param.check(value) if math.isfinite(value) else None
        value = param.check(text)
        if odd(value):
            return None
    except (SettingError, TypeError, ValueError, OverflowError):
        return None
    return "" if (name, value) == ("blocks", _ALL) else value
