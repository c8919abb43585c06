"""What was done to a sanitized file, proved from the file, and from its source where that is at hand."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import MaskFileError, ModelFileError
from ..mask import file as maskfile
from ..mask.info import MaskSet
from ..mask.subspace import Subspace
from . import safefile
from .fileplan import Steps, Use, changes
from .safefile import Header
from .sanitize import denoiser_files, marked, notes


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        ok: None: it could not be checked.
    """

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What a file says was applied to it, and whether that is true."""

    applied: tuple[dict[str, Any], ...]
    source: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Nothing is wrong, and nothing needed was out of reach."""
        return bool(self.applied) and all(check.ok is not False for check in self.checks)


def verify(
    path: Path,
    source: Path | None = None,
    learned: Sequence[MaskSet | Subspace] = (),
    report: Callable[[int], None] = lambda count: None,
) -> Verdict:
    """Check a sanitized file, or a sanitized diffusers folder.

    Args:
        source: what it was made from: everything that no mask acts on must be the same byte for byte, and everything else what
            the masks make of it.
        learned: masks and subspaces that were applied; needed for subspaces only, whose files are too large to travel along.

    Raises:
        ModelFileError: a file cannot be read, or was never sanitized.
    """
    groups = denoiser_files(path)[1] if path.is_dir() else [[path]]
    sources = {p.name: p for group in denoiser_files(source)[1] for p in group} if source and source.is_dir() else {}
    checks: list[Check] = []
    said: list[dict[str, Any]] = []
    first = ""
    for group in groups:
        headers = [safefile.read_header(file) for file in group]
        for number, header in enumerate(headers):
            found = notes(header)
            if not found:
                raise ModelFileError(
                    f"{header.path}: UniForget left no note in this file, so nothing was applied to it, or another program wrote it since "
                    "(which loses notes). Nothing can be proved."
                )
            origin = sources.get(header.path.name) if source and path.is_dir() else source
            if source and origin is None:
                raise ModelFileError(f"{source}: expected a file {header.path.name} in it, as in {path}; found none.")
            mine = _file(headers, number, found[-1], origin, learned, report)
            where = f"{header.path.name}: " if len(groups) + len(headers) > 2 else ""
            checks += [replace(check, name=where + check.name) for check in mine]
            if not said:
                first = str(found[-1].get("source", ""))
                said = [{k: v for k, v in entry.items() if k != "gates"} for n in found for entry in n["applied"]]
    return Verdict(tuple(said), first, tuple(checks))


def _file(
    headers: Sequence[Header],
    number: int,
    note: dict[str, Any],
    source: Path | None,
    learned: Sequence[MaskSet | Subspace],
    report: Callable[[int], None],
) -> list[Check]:
    """Check one of the files that hold a denoiser together."""
    header = headers[number]
    names = marked(header, note)
    same = safefile.digest(header, names, report) == note["after"]
    count = f"{len(names)} changed tensors"
    checks = [Check("weights", same, f"{count}, as they were written" if same else f"{count} are not as they were written")]
    uses, missing = _uses(note, learned, checks, header.path)
    planned = {n: steps for n, steps in changes(headers, uses).items() if n in header.entries} if not missing else {}
    if not missing and all(isinstance(use.learned, MaskSet) for use in uses):
        checks.append(_zeros(header, planned))
    if source is not None:
        checks += _against(header, safefile.read_header(source), note, names, planned, bool(missing))
    else:
        checks.append(Check("source", None, f"not given; it was {note.get('source', 'unknown')}"))
    return checks


def _uses(
    note: dict[str, Any], learned: Sequence[MaskSet | Subspace], checks: list[Check], path: Path
) -> tuple[list[Use], list[str]]:
    """What was applied, from the file or from `learned`; and the digests of what is in neither."""
    given = {one.digest(): one for one in learned}
    uses, missing = [], []
    for entry in note["applied"]:
        name = str(entry.get("mask"))
        if entry.get("gates"):
            try:
                mask: MaskSet | Subspace | None = maskfile.loads(
                    base64.b64decode(entry["gates"], validate=True), f"{path}, mask {name}"
                )
            except (MaskFileError, binascii.Error, ValueError) as error:
                raise ModelFileError(f"{path}: the mask inside this file is damaged ({error}). Sanitize it anew.") from error
            assert mask is not None
            same = mask.digest() == name
            checks.append(
                Check(f"mask {name}", same, "is in the file" if same else f"the mask in the file is another one, {mask.digest()}")
            )
        else:
            mask = given.get(name)
            checks.append(
                Check(f"subspace {name}", None if mask is None else True, "was given" if mask else "give its file to check more")
            )
        if mask is None:
            missing.append(name)
        else:
            uses.append(Use(mask, float(entry["strength"]), {k: float(v) for k, v in entry.get("per_kind", {}).items()}))
    return uses, missing


def _zeros(header: Header, planned: dict[str, Steps]) -> Check:
    """At full strength, what is switched off is exactly zero."""
    wanted = kept = 0
    with safefile.mapped(header) as view:
        for name, steps in planned.items():
            entry = header.entries[name]
            columns = [step.scale == 0 for step in steps.steps if step.axis == "in" and step.scale is not None]
            if not columns or not torch.stack(columns).any():
                continue
            off = torch.stack(columns).any(0)
            alive = torch.zeros_like(off)
            for start, end, _ in safefile.chunks(entry):
                with view(start, end) as piece:
                    rows = safefile.tensor(piece, entry).float()
                alive |= (rows.reshape(-1, rows.shape[-1]) != 0).any(0)
            wanted += int(off.sum())
            kept += int((off & alive).sum())
    if not wanted:
        return Check("zeros", None, "nothing is switched off completely, so the file alone cannot show it")
    return Check("zeros", not kept, f"{wanted - kept:,} of {wanted:,} columns that must be zero are zero")


def _against(
    header: Header, source: Header, note: dict[str, Any], names: set[str], planned: dict[str, Steps], unknown: bool
) -> list[Check]:
    """Compare with the source, tensor by tensor."""
    same = safefile.digest(source, names) == note["before"]
    checks = [
        Check("source", same, "is the one" if same else f"is another model than the one it was made from ({note.get('source')})")
    ]
    if header.entries.keys() != source.entries.keys():
        return [*checks, Check("tensors", False, "the two files do not have the same tensors")]
    wrong = []
    with safefile.mapped(header) as new, safefile.mapped(source) as old:
        for name, entry in header.entries.items():
            was, steps = source.entries[name], planned.get(name)
            if (entry.dtype, entry.shape) != (was.dtype, was.shape):
                wrong.append(name)
            elif not (unknown and name in names):
                for (start, end, row), (first, last, _) in zip(safefile.chunks(entry), safefile.chunks(was), strict=True):
                    with new(start, end) as a, old(first, last) as b:
                        if not _equal(a, b, was, row, steps):
                            wrong.append(name)
                            break
    said = (
        f"{len(wrong)} tensors are not as they must be, such as {wrong[0]}"
        if wrong
        else "nothing else, and these as the masks make them"
    )
    if unknown and not wrong:
        return [*checks, Check("changes", None, "nothing else was changed; give the subspace's file to check what was")]
    return [*checks, Check("changes", not wrong, said)]


def _equal(a: memoryview, b: memoryview, entry: safefile.Entry, row: int, steps: Steps | None) -> bool:
    if steps is None:
        return a == b
    found, wanted = safefile.tensor(a, entry), steps(safefile.tensor(b, entry), row)
    return torch.equal(found.view(torch.uint8), wanted.contiguous().view(torch.uint8))
