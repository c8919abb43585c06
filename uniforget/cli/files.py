"""The commands that read and write files: ``apply``, ``lora``, ``verify``, ``inspect``, ``combine``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .. import config, outputs, untrusted
from ..checkpoint import compact as cutting
from ..checkpoint import compactfile, safefile
from ..checkpoint.cleanlora import clean
from ..checkpoint.denoiser import find_denoisers
from ..checkpoint.fileplan import Use
from ..checkpoint.folder import denoiser_files
from ..checkpoint.sanitize import notes, sanitize
from ..checkpoint.verify import verify
from ..errors import ModelFileError, SettingError
from ..mask import combine as combining
from ..mask import file as maskfile
from ..mask import files, subspacefile
from ..model.blocks import describe_blocks
from ..model.detect import family

VERDICTS = {
    True: "proved: what the file says was applied to it is in its weights",
    False: "WRONG: the file is not what it says it is",
    None: "unknown: what the file says may be true, but nothing here proves it; give --source, and --mask for subspaces",
}


class _Bar:
    """Bytes done, on the terminal's error stream."""

    def __init__(self, what: str):
        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task(what, total=None)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.bar.stop()

    def state(self, done: int, of: int) -> None:
        self.bar.update(self.task, completed=done, total=of)

    def more(self, count: int) -> None:
        self.bar.advance(self.task, count)


def uses_of(masks: Sequence[Path], strength: float, threshold: float, **kinds: float) -> list[Use]:
    """Masks and subspaces from files, each at the same strength.

    Raises:
        UniForgetError: a file cannot be read, or a setting is out of range.
    """
    config.APPLY["strength"].check(strength)
    per_kind = {kind: config.APPLY[f"strength_{kind}"].check(value) for kind, value in kinds.items()}
    uses = []
    for path in masks:
        learned = files.load(path)
        if threshold and learned.what == "subspace":
            learned = files.subspace_of(learned, "--threshold").at(threshold)
        uses.append(Use(learned, strength, per_kind, maskfile.read_bytes(path) if learned.what == "mask" else b""))
    if threshold and not any(use.learned.what == "subspace" for use in uses):
        raise SettingError("--threshold: it moves a subspace, and none of these files is one. Leave it out.")
    return uses


def apply(
    model: Path, masks: Sequence[Path], output: Path, overwrite: bool, strength: float, threshold: float, **kinds: float
) -> dict[str, Any]:
    """Sanitize; returns what ``--json`` prints."""
    if os.path.exists(model):
        outputs.check(output, overwrite, [model, *masks], None if os.path.isdir(model) else ".safetensors")
    uses = uses_of(masks, strength, threshold, **kinds)
    with _Bar("writing") as bar:
        done = sanitize(model, output, uses, overwrite, bar.state)
    lines = [f"saved as {output}: {done.changed} tensors changed, {done.kept} as they were"]
    lines += [f"strength {use.strength:g}: {use.learned.summary().splitlines()[0]}" for use in uses]
    lines += done.cautions
    lines += [
        f"Careful: {name} was copied as it is, and may still remember. Apply to it too, or remove it." for name in done.left
    ]
    return {
        "output": str(output),
        "applied": [{k: v for k, v in use.note().items() if k != "gates"} for use in uses],
        "changed": done.changed,
        "kept": done.kept,
        "before": done.before,
        "after": done.after,
        "left": list(done.left),
        "cautions": list(done.cautions),
        "summary": "\n".join(lines),
    }


def compact(model: Path, mask: Path, output: Path, multiple: str, overwrite: bool) -> dict[str, Any]:
    """Cut a model; returns what ``--json`` prints."""
    count = int(config.MULTIPLE.check(multiple))
    outputs.check(output, overwrite, [model, mask])
    learned = files.gates_of(files.load(mask), f"{mask}: compact")
    with _Bar("writing") as bar:
        found = compactfile.save(model, output, learned, count, overwrite, bar.state)
    before, after = found.saved()
    return {
        "output": str(output),
        "mask": learned.digest(),
        "units": {kind: {"before": was, "after": left} for kind, (was, left) in found.units.items()},
        "weights_before": before,
        "weights_after": after,
        "bytes_before": model.stat().st_size,
        "bytes_after": output.stat().st_size,
        "summary": "\n".join(
            [f"saved as {output}, {output.stat().st_size / model.stat().st_size:.0%} of the size", *cutting.report(found)]
        ),
    }


def clean_lora(lora: Path, base: Path, output: Path, overwrite: bool, values: Mapping[str, float]) -> dict[str, Any]:
    """Clean a LoRA; returns what ``--json`` prints."""
    with _Bar("layers") as bar:
        done = clean(lora, base, output, **values, overwrite=overwrite, report=bar.state)
    return {**asdict(done), "target": str(done.target), "cautions": list(done.cautions), "summary": done.summary()}


def check(path: Path, source: Path | None, masks: Sequence[Path]) -> dict[str, Any]:
    """Verify; returns what ``--json`` prints."""
    learned = [files.load(mask) for mask in masks]
    with _Bar("reading") as bar:
        found = verify(path, source, learned, bar.more)
    sign = {True: "ok     ", False: "WRONG  ", None: "unknown"}
    lines = [_applied(entry) for entry in found.applied]
    lines += [f"{sign[c.ok]}  {c.name}: {c.detail}" for c in found.checks]
    lines.append(VERDICTS[found.ok])
    return {
        "file": str(path),
        "verified": bool(found.ok),
        "verdict": {True: "proved", False: "wrong", None: "unknown"}[found.ok],
        "applied": list(found.applied),
        "source": found.source,
        "checks": [asdict(c) for c in found.checks],
        "summary": _lines(lines),
    }


def _applied(entry: Mapping[str, Any]) -> str:
    """What a note says about one mask, in words."""
    kinds = "".join(f", times {value:g} for {kind}" for kind, value in entry["per_kind"].items() if value != 1)
    return f"{entry['mask']} ({entry['method']}) at strength {entry['strength']:g}{kinds}"


def _lines(texts: Sequence[str]) -> str:
    """Texts as that many lines, whatever strangers wrote into them."""
    return "\n".join(untrusted.safe(text, line=True) for text in texts)


def inspect(path: Path) -> dict[str, Any]:
    """What a file is: a mask, a subspace, a model; returns what ``--json`` prints."""
    if os.path.isdir(path):
        return _model([safefile.read_header(p) for p in denoiser_files(path)[1][0]], path)
    if header := _header_of_model(path):
        return _model([header], path)
    learned = files.load(path)
    info = {k: (dict(v) if k == "extra" else list(v) if isinstance(v, tuple) else v) for k, v in vars(learned.info).items()}
    out: dict[str, Any] = {
        "file": str(path),
        "what": learned.what,
        "digest": learned.digest(),
        "family": learned.info.family,
        "sites": len(learned.names),
        "sparsity": learned.sparsity(),
        "info": info,
        "blocks": describe_blocks(family(learned.info.family), learned.names),
    }
    if learned.what == "subspace":
        space = files.subspace_of(learned, "inspect")
        out |= {"threshold": space.threshold, "thresholds": [space.low, space.high]}
    else:
        mask = files.gates_of(learned, "inspect")
        out |= {"gates": sum(g.numel() for g in mask.gates.values()), "hard": mask.hard}
    return out | {"summary": f"{learned.summary()}\nblocks: {out['blocks']}"}


def _header_of_model(path: Path) -> safefile.Header | None:
    """A file's header if it holds weights; masks and subspaces say in their metadata what they are, and tell best what is wrong with them."""
    try:
        header = safefile.read_header(path)
    except ModelFileError:
        return None
    return None if {maskfile.MARK, subspacefile.MARK} & header.metadata.keys() else header


def _model(headers: list[safefile.Header], path: Path) -> dict[str, Any]:
    shapes = {name: shape for header in headers for name, shape in header.shapes().items()}
    denoiser, *copies = find_denoisers(headers)
    found, sites = denoiser.family, denoiser.sites
    applied = [entry for note in notes(headers[0]) for entry in note["applied"]]
    dtypes: dict[str, int] = {}
    for header in headers:
        for entry in header.entries.values():
            dtypes[entry.dtype] = dtypes.get(entry.dtype, 0) + 1
    gates = {kind: sum(s.units for s in sites if s.kind == kind) for kind in ("ffn", "norm", "attn")}
    out: dict[str, Any] = {
        "file": str(path),
        "what": "model",
        "family": found.name,
        "title": found.title,
        "prefix": denoiser.prefix,
        "copies": [copy.prefix for copy in copies],
        "cautions": [*denoiser.cautions(), *(one for header in headers for one in header.cautions())],
        "tensors": len(shapes),
        "bytes": sum(header.size for header in headers),
        "dtypes": dtypes,
        "gates": gates,
        "applied": [{k: v for k, v in entry.items() if k != "gates"} for entry in applied],
    }
    lines = [
        f"{found.title} ({found.name}), {len(shapes)} tensors, {out['bytes'] / 1e9:.2f} GB, {', '.join(f'{n} {d}' for d, n in dtypes.items())}",
        "gates that a mask can have: " + ", ".join(f"{kind} {count:,}" for kind, count in gates.items()),
    ]
    lines += [f"applied: {_applied(entry)}" for entry in out["applied"]] or ["nothing was applied to it"]
    lines += [f"another copy of it, under {copy.prefix!r}" for copy in copies]
    lines += out["cautions"]
    return out | {"summary": _lines(lines)}


def combine(
    a: Path, b: Path | None, output: Path, mode: str, weight: float, kinds: str, blocks: str, overwrite: bool
) -> dict[str, Any]:
    """Combine masks or choose a part of one; returns what ``--json`` prints."""
    values: dict[str, Any] = {"mode": mode, "weight": weight, "kinds": kinds, "blocks": blocks}
    values = {name: config.COMBINE[name].check(value) for name, value in values.items()}
    outputs.check(output, overwrite, [a, *([b] if b else [])])
    first, second = files.load(a), files.load(b) if b else None
    chosen = combining.chosen_kinds(values["kinds"])
    sources, whole = {str(a): first}, first
    if second is not None:
        left, right = (files.gates_of(mask, f"{path}: combine") for path, mask in ((a, first), (b, second)))
        sources[str(b)] = second
        whole = combining.combine(left, right, values["mode"], values["weight"])
    made = whole.select(chosen, values["blocks"])
    files.save(made, output, overwrite)
    return {
        "output": str(output),
        "digest": made.digest(),
        "sparsity": made.sparsity(),
        "cautions": made.cautions(),
        "summary": f"saved as {output}\n{combining.report(made, sources)}",
    }
