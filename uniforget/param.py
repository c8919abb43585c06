"""One setting that users see: its name, default, range and what to tell them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import SettingError


@dataclass(frozen=True)
class Param:
    """One setting.

    Attributes:
        kind: "float", "int", "bool", "choice", "text" or "line", which is text of one line.
        minimum, maximum: inclusive range of numbers.
        step: what one click changes; an integer must also be ``minimum`` plus a multiple of it.
        choices: what a "choice" may be.
        advanced: whether it can be hidden from beginners.
    """

    name: str
    default: Any
    tooltip: str
    kind: str
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False

    def check(self, value: Any) -> Any:
        """`value` as this setting's type.

        Raises:
            SettingError: it has another type or is out of range.
        """
        # Not isfinite of an int, which can be too large for it.
        number = (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and math.isfinite(value))
        valid = {
            "float": number,
            "int": number and value == int(value),
            "bool": isinstance(value, bool),
            "choice": isinstance(value, str) and value in self.choices,
            "text": isinstance(value, str),
            "line": isinstance(value, str),
        }[self.kind]
        if valid and self.kind in ("float", "int"):
            valid = (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)
            if valid and self.kind == "int":
                value = int(value)
                valid = self.step is None or (value - int(self.minimum or 0)) % int(self.step) == 0
            elif valid:
                value = float(value)
        if not valid:
            raise SettingError(f"Setting {self.name!r}: expected {self.expected()}; found {value!r}.")
        return value

    def expected(self) -> str:
        """The range in words, for messages."""
        if self.kind == "choice":
            return "one of " + ", ".join(f"{c!r}" for c in self.choices)
        if self.kind == "bool":
            return "True or False"
        if self.kind in ("text", "line"):
            return "text"
        words = "a whole number" if self.kind == "int" else "a number"
        if self.minimum is not None and self.maximum is not None:
            words += f" from {self.minimum:.17g} to {self.maximum:.17g}"
        if self.kind == "int" and self.step not in (None, 1):
            words += f" in steps of {self.step:g}"
        return words


def table(*params: Param) -> dict[str, Param]:
    """Settings by name."""
    return {p.name: p for p in params}


def setting(
    default: Any,
    tooltip: str,
    span: tuple[float | None, float | None, float | None] = (None, None, None),
    choices: tuple[str, ...] = (),
    kind: str = "",
    advanced: bool = False,
) -> Any:
    """A field of a dataclass that is a setting at the same time: see :class:`Param` and :func:`params`.

    Args:
        span: of numbers: minimum, maximum, and what one click changes.
        kind: "": a choice where there are choices, else the default's type.
    """
    kind = kind or ("choice" if choices else type(default).__name__)
    param = Param("", default, tooltip, kind, *span, choices, advanced)
    return field(default=default, metadata={"param": param})


def params(kind: type) -> dict[str, Param]:
    """The settings among the fields of a dataclass, by name."""
    return table(*(replace(f.metadata["param"], name=f.name) for f in fields(kind) if "param" in f.metadata))
