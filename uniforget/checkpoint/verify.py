"""What was done to a sanitized file, proved from the file, and from its source where that is at hand.

The note in the file says what was done, and anybody can write a note. So it proves nothing: what counts are the weights. A hard mask at full
strength leaves columns and rows that are exactly zero, which the file alone shows; everything else takes the source, or stays unknown.
"""

from __future__ import annotations

import base64
import binascii
import filecmp
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import MaskFileError, ModelFileError
from ..mask import file as maskfile
from ..mask.edit import Chain, Mask
from . import safefile
from .fileplan import Use, changes
from .folder import called, denoiser_files, fingerprint_of, others, parts
from .safefile import Header
from .sanitize import NOTE, marked, notes


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
    """What a file says was applied to it, and whether that is true.

    Attributes:
        proved: the checks that were possible suffice to prove it, if none of them is wrong.
    """

    applied: tuple[dict[str, Any], ...]
    source: str
    checks: tuple[Check, ...]
    proved: bool

    @property
    def ok(self) -> bool | None:
        """True: proved. False: something is not as it is said to be. None: unknown."""
        if any(check.ok is False for check in self.checks):
            return False
        return True if self.proved else None


def verify(
    path: Path,
    source: Path | None = None,
    learned: Sequence[Mask] = (),
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
    folder = os.path.isdir(path)
    groups, left = _contents(path) if folder else ([[path]], [])
    if source is not None and os.path.isdir(source) != folder:
        raise ModelFileError(f"{source}: expected a {'folder' if folder else 'file'}, as {path} is. Give what it was made from.")
    found = [_Group([safefile.read_header(file) for file in group], learned, report) for group in groups]
    checks: list[Check] = []
    for group in found:
        origins = _sources(source, path, group.headers) if source is not None else None
        group.check(origins)
        several = len(groups) + len(group.headers) > 2
        checks += [
            replace(check, name=f"{file}: {check.name}" if several and file else check.name) for file, check in group.checks
        ]
    first = found[0]
    if any(group.chain != first.chain for group in found):
        checks.append(Check("notes", False, "the variants of this model do not say the same"))
    if folder and source is not None:
        checks.append(_others(path, source, {header.path for group in found for header in group.headers}))
    if left:
        some = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        checks.append(
            Check("left", False, f"copied as they were, and may still remember: {some}. Apply to them too, or remove them")
        )
    if source is None:
        checks.append(Check("source", None, f"not given; it was {first.notes[-1]['source'] or 'unknown'}"))
    applied = tuple({k: v for k, v in entry.items() if k != "gates"} for note in first.notes for entry in note["applied"])
    return Verdict(applied, first.notes[-1]["source"], tuple(checks), all(group.proved for group in found))


def _contents(path: Path) -> tuple[list[list[Path]], list[str]]:
    """Weights in a folder that masks were applied to, and what may hold a denoiser that none was applied to."""
    inner, groups = denoiser_files(path)
    left = []
    for headers, file in others(path, parts(path), {file for group in groups for file in group}):
        if headers and any(notes(header) for header in headers):
            groups.append([header.path for header in headers])
        elif not headers or fingerprint_of(headers) is not None:
            left.append(called(path, inner, file))
    return groups, left


def _sources(source: Path, path: Path, headers: Sequence[Header]) -> list[Header]:
    """The files that `headers` of `path` were made from, in the same order."""
    if not os.path.isdir(source):
        return [safefile.read_header(source)]
    found = [source / header.path.relative_to(path) for header in headers]
    for file, header in zip(found, headers, strict=True):
        if not file.is_file():
            raise ModelFileError(f"{source}: expected a file {file.name} in it, as in {header.path.parent}; found none.")
    return [safefile.read_header(file) for file in found]


def _others(path: Path, source: Path, weights: Collection[Path]) -> Check:
    """Whether two folders have the same other files than `weights` of the first one."""
    changed = {file.relative_to(path).as_posix() for file in weights}
    here, there = (
        {name: file for file in parts(folder) if (name := file.relative_to(folder).as_posix()) not in changed}
        for folder in (path, source)
    )
    wrong = sorted(here.keys() ^ there.keys()) or [n for n in here if not filecmp.cmp(here[n], there[n], shallow=False)]
    detail = f"{len(wrong)} are not as in the source, such as {wrong[0]}" if wrong else f"{len(here)}, as in the source"
    return Check("other files", not wrong, detail)


class _Group:
    """The files that hold one denoiser together.

    Attributes:
        notes: of the first file; the others must say the same.
        chain: what all notes say was applied, in short.
        checks: ``(file name, check)``; the name is "" for all files together.
        proved: see :class:`Verdict`.
    """

    def __init__(self, headers: list[Header], learned: Sequence[Mask], report: Callable[[int], None]):
        self.headers, self.report = headers, report
        self.checks: list[tuple[str, Check]] = []
        self.proved = False
        each = [notes(header) for header in headers]
        for header, there in zip(headers, each, strict=True):
            if not there:
                raise ModelFileError(
                    f"{header.path}: UniForget left no note in this file, so nothing was applied to it, or another program wrote it since "
                    "(which loses notes). Nothing can be proved."
                )
        self.notes, self.last = each[0], [there[-1] for there in each]
        self.chain = [[(e["mask"], e["strength"], e["per_kind"]) for e in note["applied"]] for note in self.notes]
        if any([note["applied"] for note in there] != [note["applied"] for note in self.notes] for there in each):
            self.add("notes", False, "the files of this model do not say the same")
        given = {one.digest(): one for one in learned}
        self.uses = [self._uses(note, given) for note in self.notes]

    def add(self, name: str, ok: bool | None, detail: str, file: str = "") -> None:
        self.checks.append((file, Check(name, ok, detail)))

    def check(self, sources: Sequence[Header] | None) -> None:
        """Make all checks."""
        last = self.uses[-1]
        planned = changes(self.headers, last) if last is not None else None
        for header, note in zip(self.headers, self.last, strict=True):
            self._written(header, note, planned)
        alone = [self._zeros(number) for number in range(len(self.uses))]
        idle = [use.learned.digest() for uses in self.uses for use in uses or () if not changes(self.headers, [use])]
        for digest in idle:
            self.add("strength", None, f"{digest} changes nothing at this strength, so that it was applied is true of every file")
        compared = sources is not None and planned is not None
        if sources is not None:
            moved = [
                self._against(header, source, note, planned)
                for header, source, note in zip(self.headers, sources, self.last, strict=True)
            ]
            if compared and planned and not any(moved):
                self.add("strength", None, "at this strength the masks change no weight of this model")
                compared = False
        self.proved = bool(planned) and not idle and (alone[-1] or compared) and all(alone[:-1])
        if not all(alone[:-1]):
            self.add("earlier", None, "something was applied before, which this file does not show; verify its source as well")

    def _written(self, header: Header, note: dict[str, Any], planned: dict[str, Chain] | None) -> None:
        """The marked tensors are those that the masks change, and as they were written."""
        names, file = marked(header, note), header.path.name
        same = safefile.digest(header, names, self.report) == note["after"]
        count = f"{len(names)} changed tensors"
        self.add("weights", same, f"{count}, as they were written" if same else f"{count} are not as they were written", file)
        if planned is not None and names != {name for name in planned if name in header.entries}:
            self.add("tensors", False, "the note marks other tensors than the masks change", file)

    def _uses(self, note: dict[str, Any], given: dict[str, Mask]) -> list[Use] | None:
        """What was applied, from the file or from `given`; None: something is in neither."""
        path, uses, whole = self.headers[0].path, [], True
        for entry in note["applied"]:
            name, mask = entry["mask"], given.get(entry["mask"])
            if entry["gates"]:
                try:
                    mask = maskfile.loads(base64.b64decode(entry["gates"], validate=True), f"{path}, mask {name}")
                except (MaskFileError, binascii.Error, ValueError) as error:
                    raise ModelFileError(f"{path}: the mask inside this file is damaged ({error}). Sanitize it anew.") from error
                same = mask.digest() == name
                self.add(
                    f"mask {name}", same, "is in the file" if same else f"the mask in the file is another one, {mask.digest()}"
                )
            else:
                self.add(f"subspace {name}", True if mask else None, "was given" if mask else "give its file to check more")
            if mask is None:
                whole = False
            else:
                uses.append(Use(mask, entry["strength"], entry["per_kind"]))
        return uses if whole else None

    def _zeros(self, number: int) -> bool:
        """Whether what note `number` says was applied can be seen in the weights alone: zeros, wherever something was switched off."""
        uses = self.uses[number]
        later = self.uses[number + 1 :]
        # What a subspace does comes after: it mixes columns, and zeros do not stay.
        if uses is None or any(more is None for more in later):
            return False
        if any(use.learned.what == "subspace" for more in [uses, *(more or [] for more in later)] for use in more):
            return False
        found = [_zeros(header, changes(self.headers, uses), self.report) for header in self.headers]
        wanted, kept, partly = (sum(counts) for counts in zip(*found, strict=True))
        last = number == len(self.uses) - 1
        if kept or last:
            if not wanted:
                said = "nothing is switched off completely, so the file alone cannot show it"
            else:
                said = f"{wanted - kept:,} of {wanted:,} columns and rows that must be zero are zero"
                said += f"; {partly} weights are changed in part, which takes the source to show" if partly else ""
            self.add("zeros", False if kept else None if partly or not wanted else True, said)
        return bool(wanted) and not kept and not partly

    def _against(self, header: Header, source: Header, note: dict[str, Any], planned: dict[str, Chain] | None) -> bool:
        """Compare with the source, tensor by tensor; whether anything is another."""
        names, file = marked(header, note), header.path.name
        same = safefile.digest(source, names) == note["before"]
        self.add(
            "source", same, "is the one" if same else f"is another model than the one it was made from ({note['source']})", file
        )
        metadata = {key: value for key, value in header.metadata.items() if key != NOTE}
        if metadata != {key: value for key, value in source.metadata.items() if key != NOTE}:
            self.add("metadata", False, "the two files do not have the same texts", file)
        if notes(source) != notes(header)[:-1]:
            self.add("earlier", False, "the two files do not say the same about what was applied before", file)
        if header.entries.keys() != source.entries.keys():
            self.add("tensors", False, "the two files do not have the same tensors", file)
            return False
        moved, wrong = False, []
        with safefile.mapped(header) as new, safefile.mapped(source) as old:
            for entry in header.ordered():
                was = source.entries[entry.name]
                if (entry.dtype, entry.shape) != (was.dtype, was.shape):
                    wrong.append(entry.name)
                elif planned is not None or entry.name not in names:
                    fits, same = _compare(new, old, entry, was, (planned or {}).get(entry.name))
                    moved = moved or not same
                    if not fits:
                        wrong.append(entry.name)
                self.report(entry.end - entry.start)
        if wrong:
            self.add("changes", False, f"{len(wrong)} tensors are not as they must be, such as {wrong[0]}", file)
        elif planned is None:
            self.add("changes", None, "nothing else was changed; give the subspace's file to check what was", file)
        else:
            self.add("changes", True, "nothing else, and these as the masks make them", file)
        return moved


View = Callable[[int, int], memoryview]


def _compare(new: View, old: View, entry: safefile.Entry, was: safefile.Entry, steps: Chain | None) -> tuple[bool, bool]:
    """Whether a tensor is what `steps` make of the source's, and whether it is the source's."""
    same = True
    for (start, end, row), (first, last, _) in zip(safefile.chunks(entry), safefile.chunks(was), strict=True):
        with new(start, end) as a, old(first, last) as b:
            equal = a == b
            same = same and equal
            if steps is None:
                if not equal:
                    return False, False
                continue
            found, wanted = safefile.tensor(a, entry), steps(safefile.tensor(b, was), row)
            if not torch.equal(found.view(torch.uint8), wanted.contiguous().view(torch.uint8)):
                return False, False
    return True, same


def _zeros(header: Header, planned: dict[str, Chain], report: Callable[[int], None]) -> tuple[int, int, int]:
    """Columns and rows of this file's weights that must be zero, how many of them are not, and how many weights are changed otherwise."""
    wanted = kept = partly = 0
    with safefile.mapped(header) as view:
        for name in (entry.name for entry in header.ordered() if entry.name in planned):
            entry, scales = header.entries[name], planned[name].factors()
            partly += any(bool(((scale != 0) & (scale != 1)).any()) for _, scale in scales)
            for axis in ("in", "out"):
                off = [scale == 0 for along, scale in scales if along == axis]
                if not off or not (gone := torch.stack(off).any(0)).any():
                    continue
                alive = torch.zeros_like(gone)
                for start, end, row in safefile.chunks(entry):
                    with view(start, end) as piece:
                        rows = safefile.tensor(piece, entry).float() != 0
                    if axis == "in" and rows.ndim > 1:
                        alive |= rows.reshape(-1, rows.shape[-1]).any(0)
                    else:
                        alive[row : row + len(rows)] |= rows.reshape(len(rows), -1).any(1)
                    report(end - start)
                wanted += int(gone.sum())
                kept += int((gone & alive).sum())
    return wanted, kept, partly
