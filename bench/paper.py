"""The paper's tables, for whoever has the weights: draws pictures with and without masks, then judges them with what you have.

    python -m bench.paper MODEL --mask FILE ... --prompts FILE ... --json FILE [judges]

MODEL is a diffusers folder (or a single file, with ``--config FOLDER``) on your disk; nothing is fetched from a network. Rows are the original,
each ``--mask [LABEL=]FILE`` (labels come from the mask's preset; files with the same LABEL are merged one after the other) and each of
these with its ``--recovery [LABEL=]FILE``, a LoRA of ``uniforget recover``. Each ``--prompts [LABEL=]FILE`` is a group of columns: text, CSV
or JSONL, with reference pictures beside it (:func:`bench.paper_lists.read_list`).

Pictures are kept (``--pictures``): a run that was stopped goes on, and a judge that is given later only adds its columns.

``gone``, ``traces``, ``recognizable``: shares of the structural verdict (uniforget/checks/likeness.py), to the references, or where a
prompt has none to what the original draws from the same seed; ``blank``: share of pictures of one colour. These need nothing.
``clip``: mean cosine (``--clip``, a CLIP of transformers). ``fid``: torchmetrics' distance to all references of the list (``--fid``, a feature
extractor as ONNX). ``copies_max``, ``copies_top3``, ``copies``: as MemBench has them (``--detector``, SSCD as ONNX): means over prompts of the highest
and the three highest cosines, and the share of pictures above 0.5. ``acc``: share of pictures that a vision-language model says yes to
(``--ask``, a folder of transformers: the paper's Acc_g and Acc_l), ``acc_unclear``: its most likely word was neither yes nor no. ``aesthetics``: mean score
(``--aesthetics``, an ONNX model of pictures, or of CLIP's embeddings). ``off_*``: share switched off. Intervals are of 95 %, over pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uniforget import untrusted
from uniforget.errors import SettingError, UniForgetError

from . import paper_judges as judges
from .common import machine, write_json
from .paper_columns import Aesthetics, ClipScore, Copies, Fid, Judge, Seen, Structure, YesNo
from .paper_draw import ORIGINAL, RECOVERY, Album, Remaining, Row, Sampling, rows_of, sha
from .paper_lists import Asked, PromptList, read_list, read_picture

QUESTION = "Does this picture show {subject}? Answer with yes or no."
SHOWN = {
    "acc": "yes", "copies": "copies", "copies_max": "SSCD", "copies_top3": "SSCD, top 3", "recognizable": "recognizable", "traces": "traces",
    "gone": "gone", "fid": "FID", "clip": "CLIP", "aesthetics": "aesthetics", "blank": "blank",
}  # fmt: skip
SHARES = ("acc", "copies", "recognizable", "traces", "gone", "blank")
LARGEST_JSON = 64 << 20


def judges_of(options: argparse.Namespace, device: str) -> list[Judge]:
    """The judges that were given, loaded.

    Raises:
        SettingError: one cannot be.
    """
    found: list[Judge] = [Structure()]
    clip = judges.Clip(options.clip, device) if options.clip else None
    if clip:
        found.append(ClipScore(clip, judges.stamp(options.clip)))
    if options.fid:
        judges.needed("torchmetrics.image.fid", "--fid")
        model = judges.Onnx(options.fid, "--fid", options.fid_scale, 299)
        found.append(Fid(model, [judges.stamp(options.fid), options.fid_scale]))
    if options.detector:
        model = judges.Onnx(options.detector, "--detector", options.detector_scale, 288, whole=True)
        found.append(Copies(model, [judges.stamp(options.detector), options.detector_scale]))
    if options.aesthetics:
        model = judges.Onnx(options.aesthetics, "--aesthetics", options.aesthetics_scale, 224, vectors=True)
        stamp = [
            judges.stamp(options.aesthetics),
            options.aesthetics_scale,
            judges.stamp(options.clip) if model.vectors else None,
        ]
        found.append(Aesthetics(model, clip, stamp))
    if options.ask:
        asker = judges.Asker(options.ask, device, options.question)
        found.append(YesNo(asker, [judges.stamp(options.ask), options.question]))
    return found


class Table:
    """The JSON file: rows that are measured, kept after each."""

    def __init__(self, file: Path, album: Album):
        self.file, self.album = file, album
        self.rows: list[dict[str, Any]] = _read(file)
        self._references: dict[tuple[str, str], dict[Path, Any]] = {}

    def row(self, row: Row, asked: PromptList) -> dict[str, Any]:
        """That of a model and a list, new where pictures, prompts or references have changed."""
        about = [self.album.key(row), self.album.sampling.seeds]
        about += [[item.prompt, item.subject, [judges.stamp(p) for p in item.references]] for item in asked.items]
        key = _key(about)
        places = [i for i, one in enumerate(self.rows) if (one.get("row"), one.get("list")) == (row.name, asked.label)]
        if places and self.rows[places[0]].get("key") == key:
            return self.rows[places[0]]
        off = {f"off_{kind}": value for mask in row.masks[:1] for kind, value in mask.sparsity().items()}
        fresh: dict[str, Any] = {"row": row.name, "list": asked.label, "recovery": row.name.endswith(RECOVERY)}
        fresh |= {"masks": row.digests, "prompts": len(asked.items), "pictures": len(asked.items) * self.album.sampling.seeds}
        fresh |= off | {"key": key, "judged": {}}
        if places:
            self.rows[places[0]] = fresh
        else:
            self.rows.append(fresh)
        return fresh

    def judge(self, rows: Sequence[Row], lists: Sequence[PromptList], panel: Sequence[Judge]) -> None:
        """Measure what is missing, one row and list after the other.

        Raises:
            UniForgetError: a picture cannot be read, or a judge does not take it.
        """
        original = next(row for row in rows if row.name == ORIGINAL)
        work = []
        for asked in lists:
            for row in rows:
                found = self.row(row, asked)
                due = [judge for judge in panel if found["judged"].get(judge.name) != _key(judge.stamp)]
                work += [(row, asked, found, due)] if due else []
        progress = Remaining("judging", sum(len(asked.items) for _, asked, _, _ in work) * self.album.sampling.seeds)
        for row, asked, found, due in work:
            items = [item for item in asked.items for _ in range(self.album.sampling.seeds)]
            values: dict[str, list[Any]] = {judge.name: [] for judge in due}
            others: dict[str, list[Any]] = {
                j.name: [] for j in due if j.pairs and row is not original and not all(i.references for i in asked.items)
            }
            for part in judges.batches(range(len(items))):
                some = [items[i] for i in part]
                pictures = self._pictures(row, some, part)
                for judge in due:
                    values[judge.name] += judge.look(pictures, some)
                    if judge.name in others:
                        others[judge.name] += judge.look(self._pictures(original, some, part), some)
                progress(len(some), f"{row.name}, {asked.label}")
            for judge in due:
                seen = Seen(items, values[judge.name], self.references(judge, asked), others.get(judge.name))
                found |= judge.columns(seen)
                found["judged"][judge.name] = _key(judge.stamp)
            self.save()

    def references(self, judge: Judge, asked: PromptList) -> dict[Path, Any]:
        """What a judge sees in the reference pictures of a list; empty where it does not compare."""
        key = judge.name, asked.label
        if key not in self._references:
            paths = asked.references if judge.compares else []
            seen = [v for part in judges.batches(paths) for v in judge.look([read_picture(p) for p in part], None)]
            self._references[key] = dict(zip(paths, seen, strict=True))
        return self._references[key]

    def save(self) -> None:
        """Write what there is; rows that nothing was measured of are left out."""
        write_json(self.file, {"rows": [row for row in self.rows if row["judged"]], "machine": machine()})

    def _pictures(self, row: Row, items: Sequence[Asked], numbers: Sequence[int]) -> list[Any]:
        seeds = self.album.sampling.seeds
        return [read_picture(self.album.path(row, item.prompt, i % seeds)) for item, i in zip(items, numbers, strict=True)]


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        found = untrusted.parse_json(file.read_bytes(), LARGEST_JSON)["rows"]
        if not all(isinstance(row, dict) and isinstance(row.get("judged"), dict) for row in found):
            raise ValueError("its rows are others")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingError(
            f"--json {file}: expected the rows of an earlier run of bench.paper, or no file; found another file ({error}). Choose another name."
        ) from error
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table for each list, with the columns that any of its rows has; shares in per cent."""
    parts = []
    for label in dict.fromkeys(row["list"] for row in rows):
        own = [row for row in rows if row["list"] == label]
        shown = [name for name in SHOWN if any(name in row for row in own)]
        lines = [f"{label} ({own[0]['prompts']} prompts, {own[0]['pictures']} pictures)", ""]
        lines += [f"| model | off, ffn / norm | {' | '.join(SHOWN[n] for n in shown)} |", "| --- " * (len(shown) + 2) + "|"]
        for row in own:
            off = [f"{100 * row[k]:.1f}" if k in row else "" for k in ("off_ffn", "off_norm")]
            cells = ["" if n not in row else f"{100 * row[n]:.1f} %" if n in SHARES else f"{row[n]:.3g}" for n in shown]
            lines.append(f"| {row['row']} | {' / '.join(off) if any(off) else ''} | {' | '.join(cells)} |")
        if any(row.get("fid_of_few") for row in own):
            lines += [
                "",
                "Careful: fewer pictures than features, so this FID says little. Give thousands of references and prompts.",
            ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _key(about: Any) -> str:
    return sha(json.dumps(about, sort_keys=True, default=str).encode())


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    out = argparse.ArgumentParser(
        prog="python -m bench.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("model", type=Path, metavar="MODEL")
    out.add_argument("--mask", nargs="+", action="extend", default=[], metavar="[LABEL=]FILE")
    out.add_argument("--recovery", nargs="+", action="extend", default=[], metavar="[LABEL=]FILE")
    out.add_argument("--prompts", nargs="+", action="extend", required=True, metavar="[LABEL=]FILE")
    out.add_argument("--json", type=Path, required=True, metavar="FILE", help="where rows are kept")
    out.add_argument("--pictures", type=Path, metavar="FOLDER", help="where pictures are kept (default: beside the JSON file)")
    drawing = out.add_argument_group("drawing; what is left out is up to the pipeline")
    drawing.add_argument("--config", type=Path, metavar="FOLDER", help="settings, tokenizers and text encoders for a single file")
    drawing.add_argument("--seeds", type=int, default=1, help="pictures of each prompt (default %(default)s)")
    drawing.add_argument("--batch", type=int, default=4, help="pictures at once (default %(default)s)")
    drawing.add_argument("--steps", type=int)
    drawing.add_argument("--guidance", type=float)
    drawing.add_argument("--width", type=int)
    drawing.add_argument("--height", type=int)
    drawing.add_argument("--dtype", default="bf16", help="fp32, bf16 or fp16 (default %(default)s)")
    drawing.add_argument("--device", help="default: a GPU if there is one")
    drawing.add_argument(
        "--call",
        default="{}",
        metavar="JSON",
        help='more arguments of the pipeline\'s call, such as {"max_sequence_length": 256}',
    )
    judging = out.add_argument_group("judges; each is left out where it is not given")
    judging.add_argument("--clip", type=Path, metavar="FOLDER")
    judging.add_argument("--ask", type=Path, metavar="FOLDER", help="a vision-language model of transformers")
    judging.add_argument("--question", default=QUESTION, help="(default: %(default)s)")
    for name, scale in (("fid", "bytes"), ("detector", "imagenet"), ("aesthetics", "clip")):
        judging.add_argument(f"--{name}", type=Path, metavar="ONNX")
        judging.add_argument(
            f"--{name}-scale", choices=judges.SCALES, default=scale, help="of the pictures it takes (default %(default)s)"
        )
    return out


def run(options: argparse.Namespace) -> str:
    """Draw and judge; returns the table.

    Raises:
        UniForgetError: something that was given is wrong; it is looked at before anything is drawn.
    """
    try:
        call = untrusted.parse_json(options.call, 1 << 16)
    except ValueError as error:
        raise SettingError(f"--call: expected JSON; found {options.call!r:.60} ({error}). Quote it for your shell.") from error
    if not isinstance(call, dict):
        raise SettingError(f"--call: expected a JSON object; found {options.call!r:.60}. Write names and values in braces.")
    names = ("config", "dtype", "device", "steps", "guidance", "width", "height", "seeds", "batch")
    sampling = Sampling(options.model, call=call, **{name: getattr(options, name) for name in names})
    sampling.check()
    rows, lists = rows_of(options.mask, options.recovery), [read_list(text) for text in options.prompts]
    labels = [one.label for one in lists]
    if len(set(labels)) < len(labels):
        raise SettingError(f"--prompts: two lists have the same name among {', '.join(labels)}. Name them LABEL=FILE.")
    for name in ("fid", "detector"):
        if getattr(options, name) and not any(one.references for one in lists):
            raise SettingError(
                f"--{name} compares with reference pictures, and none of the lists {', '.join(labels)} has any. Name them in a column 'reference'."
            )
    album = Album(options.pictures or options.json.with_name(f"{options.json.stem}_pictures"), sampling)
    table = Table(options.json, album)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    judges_of(options, "cpu")  # what is wrong with one is said now, and not after hours of drawing; memory is for the model then
    drawn = album.draw(rows, lists)
    print(f"{drawn} pictures drawn, kept in {album.root}", file=sys.stderr)
    table.judge(rows, lists, judges_of(options, device))
    return markdown([table.row(row, asked) for asked in lists for row in rows])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; its exit code: 0 measured, 2 something given is wrong, 130 stopped."""
    options = parser().parse_args(arguments)
    try:
        print(run(options))
    except UniForgetError as error:
        print(untrusted.safe(f"bench.paper: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.paper: stopped. The same command goes on where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
