"""One generation with a mask, seen from the script: what is applied, what is told, and the comparison with the original.

`p` is what both hosts call their processing object. It is copied and given attributes, as their own X/Y/Z plot does with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...errors import UniForgetError
from ...mask.edit import Mask
from ...untrusted import safe, told
from . import folder
from .request import Request

# Infotext that tells and is not read back.
SITES, HASH, ORIGINAL = "UniForget sites", "UniForget hash", "UniForget original of"


@dataclass(frozen=True)
class Landed:
    """How much of a mask a model took.

    Attributes:
        sites: the mask's sites or layers; all of them, or it would have been refused.
        base: the model's fingerprint; "": its weights cannot be read.
    """

    sites: int
    base: str = ""

    def __str__(self) -> str:
        return f"{self.sites} of {self.sites}"


@dataclass(frozen=True, eq=False)
class Run:
    """A generation's request, and the mask that it asks for with only the chosen blocks."""

    request: Request
    learned: Mask

    @classmethod
    def of(cls, request: Request, masks: Path) -> Run:
        """Read what the request asks for.

        Raises:
            SettingError, MaskFileError, FamilyError: no such mask or blocks, or the file is not right.
        """
        learned = folder.load(folder.find(masks, request.mask))
        if request.blocks.strip():
            learned = learned.select(blocks=request.blocks)
        return cls(request, learned)

    @property
    def strength(self) -> float:
        return self.request.strength

    @property
    def per_kind(self) -> dict[str, float]:
        return self.request.per_kind

    def key(self) -> str:
        """A name that is another one whenever the weights would be: hosts keep patched weights by it."""
        strengths = " ".join(f"{kind}={value!r}" for kind, value in self.per_kind.items())
        return f"uniforget {self.learned.digest()} {self.strength!r} {strengths}"

    def begin(self, p: Any) -> None:
        """Put every value into the infotext of `p`."""
        p.extra_generation_params.update(self.request.infotext())
        p.extra_generation_params[HASH] = self.learned.digest()

    def tell(self, p: Any, landed: Landed) -> None:
        """Say in the infotext of `p`, and below its pictures where something is odd, what has happened."""
        p.extra_generation_params[SITES] = str(landed)
        logging.info("UniForget: %s landed on %s sites", self.request.mask, landed)
        for caution in self.learned.cautions(landed.base):
            note(p, caution)


def note(p: Any, text: str) -> None:
    """Show `text` below the pictures of `p`, and in the console."""
    text = safe(text, page=True, line=True)
    logging.warning("UniForget: %s", text)
    p.comment(f"UniForget: {text}")


def refuse(p: Any, error: Exception) -> None:
    """Make the generation of `p` fail with `error`, so that nobody takes an unmasked picture for a masked one.

    Hosts only log what a script raises and go on; what sampling raises, they show.
    """

    raised = refusal(error)

    def sample(*args: Any, **kwargs: Any) -> NoReturn:
        raise raised

    p.sample = sample


def refusal(error: Exception) -> UniForgetError:
    """`error` in words that are safe for the host's page, which shows the message of what is raised."""
    words = told(error, "the console")
    made = type(error)(words) if isinstance(error, UniForgetError) else UniForgetError(words)
    made.__cause__ = error
    return made


def comparison(p: Any) -> Any:
    """A copy of `p` from before it was processed, whose lists and dictionaries are its own."""
    twin = copy(p)
    for name, value in list(vars(twin).items()):
        if type(value) in (list, dict):
            twin.__dict__[name] = copy(value)
    return twin


def original_of(twin: Any, p: Any, mask: str) -> Any:
    """`twin`, a :func:`comparison`, set up to draw what `p` has drawn, with the model as it was."""
    twin.uniforget = {"enabled": False}
    # Seeds and prompts are known only now: seed -1 has been drawn, styles are in the prompts.
    twin.seed, twin.subseed = list(p.all_seeds), list(p.all_subseeds)
    twin.prompt, twin.negative_prompt, twin.styles = list(p.all_prompts), list(p.all_negative_prompts), []
    if getattr(p, "enable_hr", False):
        twin.hr_prompt, twin.hr_negative_prompt = list(p.all_hr_prompts), list(p.all_hr_negative_prompts)
    twin.do_not_save_grid = True
    twin.extra_generation_params[ORIGINAL] = mask
    return twin


def merge(processed: Any, other: Any) -> None:
    """Put the pictures of `other` behind those of `processed`, each with its infotext."""
    first = other.index_of_first_image
    # Inpainting masks have pictures and no infotext; the gallery finds infotext by position.
    processed.infotexts += [processed.infotexts[-1]] * (len(processed.images) - len(processed.infotexts))
    processed.images += other.images[first:]
    processed.infotexts += other.infotexts[first:]
    for name in ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds"):
        setattr(processed, name, [*getattr(processed, name), *getattr(other, name)])


def overridden(p: Any) -> Mapping[str, Any]:
    """Values that an X/Y/Z plot or a comparison has set on `p`, by name."""
    return getattr(p, "uniforget", {})
