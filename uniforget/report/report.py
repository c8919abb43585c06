"""A report of what forgetting changed: one HTML file that needs no network, no script and no other file.

Whatever goes into it, titles and mask files of strangers included, is escaped and bounded; the page's own policy forbids scripts
and everything that is not inside the file.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from ..errors import SettingError
from ..model.families.schema import KINDS
from ..untrusted import safe

PAIRS = 24
LONGEST = 1024
PICTURE_BYTES = 400_000
WORKFLOW_BYTES = 2_000_000
TITLE, VALUE, TEXT, ROWS = 200, 2_000, 40_000, 400
SMALL = 256
TEMPLATE = Path(__file__).with_name("report.html")
KIND_NAMES = {
    "ffn": "neurons (ffn)",
    "norm": "modulation channels (norm)",
    "attn": "attention heads (attn)",
    "all": "all together",
}

Rows = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A picture as it stands in the file: a ``data:`` address, its size in pixels, and whether it is drawn without blur."""

    address: str
    width: int
    height: int
    crisp: bool = False


@dataclass(frozen=True)
class Pair:
    """The same picture before and after forgetting, and a line below it."""

    original: Picture
    forgotten: Picture
    caption: str = ""


@dataclass(frozen=True)
class Report:
    """All that a report says. Every text is plain text; rows are (name, value).

    Attributes:
        title, made: heading, and the line below it (when it was made).
        strength: in words, e.g. "0.8"; "" when nobody knows.
        cautions: what a reader has to know before believing the rest.
        pairs: at most PAIRS are shown; the report says how many are not.
        texts: (heading, text) of figures and notes from elsewhere.
        shares: kind -> share switched off, as :meth:`GateMask.sparsity` gives it.
        picture_of_mask: where the mask bites.
        model, mask, versions: what it was made with.
        settings: (node, its settings).
        workflow: the workflow as JSON, "" to leave it out.
    """

    title: str
    made: str
    strength: str = ""
    cautions: Sequence[str] = ()
    pairs: Sequence[Pair] = ()
    texts: Sequence[tuple[str, str]] = ()
    shares: Mapping[str, float] | None = None
    picture_of_mask: Picture | None = None
    model: Rows = ()
    mask: Rows = ()
    versions: Rows = ()
    settings: Sequence[tuple[str, Rows]] = ()
    workflow: str = ""


def embed(image: Image.Image, longest: int = LONGEST, most: int = PICTURE_BYTES) -> Picture:
    """`image` (RGB) as a ``data:`` address of at most `most` bytes before coding: PNG if that is small enough, else JPEG, made smaller until it fits.

    Raises:
        SettingError: the picture is empty, or cannot be made small enough.
    """
    if not image.width or not image.height:
        raise SettingError(f"Report: expected a picture; found one of {image.width} x {image.height} pixels.")
    crisp = max(image.size) <= SMALL
    image = image.convert("RGB")
    while True:
        scale = min(1.0, longest / max(image.size))
        if scale < 1:
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS)
        for form, options in (("PNG", {"optimize": True}), ("JPEG", {"quality": 90}), ("JPEG", {"quality": 75})):
            buffer = io.BytesIO()
            image.save(buffer, form, **options)
            if buffer.tell() <= most:
                data = base64.b64encode(buffer.getvalue()).decode("ascii")
                return Picture(f"data:image/{form.lower()};base64,{data}", *image.size, crisp)
        if longest <= 16:
            raise SettingError(f"Report: a picture cannot be made smaller than {most} bytes.")
        longest = max(16, min(longest, max(image.size)) * 3 // 4)


def page(report: Report) -> str:
    """The whole HTML document."""
    sections = [
        _pairs(report),
        _texts(report.texts),
        _mask(report),
        _section("Model", _table(report.model)),
        _reproduce(report),
    ]
    strength = f" at strength {safe(report.strength, most=VALUE)}" if report.strength else ""
    lead = (
        "A text-to-image model keeps some of its training pictures by heart. UniForget switches off the parts of the model that only such "
        f"pictures need; it learned which from neutral prompts, and was never told what to forget. Below is what that changed{strength}."
    )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(report.title.strip() or "What the model forgot", TITLE),
        made=_text(report.made),
        lead=html.escape(lead),
        cautions="\n".join(f'<p class="card careful">{_text(line)}</p>' for line in report.cautions[:ROWS]),
        sections="\n".join(filter(None, sections)),
        footer=(
            "Made with UniForget. This file is complete: it loads nothing, runs nothing and can be printed. It shows what was measured and seen; "
            "it is no legal opinion, and no proof that a picture cannot come back."
        ),
    )


def comparable(value: float) -> str:
    """A share in [0, 1] in words: "12.3 %"; small ones are not rounded to nothing."""
    return "0 %" if value == 0 else f"{value:.1%}".replace("%", " %") if value >= 0.001 else "less than 0.1 %"


def mask_rows(mask: Any, file_hash: str = "") -> list[tuple[str, str]]:
    """What identifies a mask (or subspace) and how it was learned. `file_hash`: SHA-256 of its file."""
    info, extra = mask.info, mask.info.extra
    subspace = hasattr(mask, "threshold")
    kind = "subspace" if subspace else "hard mask" if mask.hard else "soft mask"
    made = f"{info.preset or 'custom'}, beta {info.beta:g}, {info.method or 'unknown method'}"
    if "combined_a" in extra:
        made = " and ".join(extra[key] for key in ("combined_a", "combined_b") if extra.get(key)) + f" ({info.method})"
    rows = [
        ("identity", f"{mask.digest()} ({kind})"),
        ("SHA-256 of its file", file_hash),
        ("learned with", made),
        ("energy given up", f"{mask.threshold:.2%}" if subspace else ""),
        ("seed, updates", f"{info.seed}, {info.steps}" if info.steps else str(info.seed)),
        ("learned in", f"{info.learn_seconds:.0f} s" if info.learn_seconds else ""),
        ("neutral prompts (hash)", info.prompts_hash),
        ("learned on", " ".join(filter(None, (info.base_name, f"(family {info.family})")))),
        ("made by UniForget", info.version),
        *((str(name), value) for name, value in extra.items()),
    ]
    return [(name, value) for name, value in rows if value]


def _text(value: str, most: int = VALUE) -> str:
    return html.escape(safe(value, most=most))


def _section(heading: str, inside: str) -> str:
    return f"<section>\n<h2>{html.escape(heading)}</h2>\n{inside}\n</section>" if inside else ""


def _table(rows: Rows) -> str:
    """Rows as a card; hashes in the typeface of hashes."""
    if not rows:
        return ""
    lines = []
    for name, value in rows[:ROWS]:
        code = ' class="hash"' if re.fullmatch(r"[0-9a-f]{10,}|[A-Za-z0-9+/=~]{48,}", value) else ""
        lines.append(f"<tr><th>{_text(name, TITLE)}</th><td{code}>{_text(value)}</td></tr>")
    if len(rows) > ROWS:
        lines.append(f"<tr><th></th><td>{len(rows) - ROWS} more are not shown.</td></tr>")
    return f'<div class="card long"><table>{"".join(lines)}</table></div>'


def _image(picture: Picture, label: str, kind: str = "") -> str:
    # What is no picture of ours is not put into the page, whoever built the Picture.
    if not re.fullmatch(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*", picture.address):
        raise SettingError("Report: expected a picture as a data address; make it with embed().")
    style = " ".join(filter(None, (kind, "crisp" if picture.crisp else "")))
    marked = f' class="{style}"' if style else ""
    size = f'width="{int(picture.width)}" height="{int(picture.height)}"'
    return f'<img{marked} src="{picture.address}" alt="{_text(label, TITLE)}" {size}>'


def _pairs(report: Report) -> str:
    after = f"forgotten, strength {report.strength}" if report.strength else "forgotten"
    cards = []
    for i, pair in enumerate(report.pairs[:PAIRS], 1):
        sides = "".join(
            f'<figure><p class="side">{_text(label, TITLE)}</p>{_image(picture, f"Picture {i}, {label}")}</figure>'
            for label, picture in (("original", pair.original), (after, pair.forgotten))
        )
        below = f"<figcaption>{_text(pair.caption)}</figcaption>" if pair.caption else ""
        cards.append(f'<figure class="card pair"><div>{sides}</div>{below}</figure>')
    more = len(report.pairs) - PAIRS
    note = f'<p class="dim">{more} more pairs are not in this file.</p>' if more > 0 else ""
    return _section("Before and after", f'<div class="pairs">{"".join(cards)}</div>{note}' if cards else "")


def _texts(texts: Sequence[tuple[str, str]]) -> str:
    found = []
    for heading, text in texts[:ROWS]:
        if text.strip():
            # Tables that nodes print are lined up by spaces.
            lined_up = " figures" if re.search(r"\S {2,}\S", text) else ""
            found.append(
                f'<h3>{_text(heading, TITLE)}</h3><div class="card long text{lined_up}">{_text(text.strip(chr(10)), TEXT)}</div>'
            )
    return _section("Figures and notes", "".join(found))


def _mask(report: Report) -> str:
    bars = []
    shares = report.shares or {}
    for kind in [*KINDS, "all"]:
        share = shares.get(kind)
        if share is not None and math.isfinite(share):
            width = 100 * min(max(share, 0.0), 1.0)
            bars.append(
                f'<span>{KIND_NAMES[kind]}</span><i><b style="width:{width:.2f}%"></b></i><span>{comparable(width / 100)}</span>'
            )
    inside = f'<div class="card"><p class="side">Share switched off</p><div class="bars">{"".join(bars)}</div>' if bars else ""
    if report.picture_of_mask:
        inside = inside or '<div class="card">'
        inside += _image(report.picture_of_mask, "Where the mask switches parts of the model off, by block and kind", "map")
    inside += "</div>" if inside else ""
    return _section("What was switched off", "\n".join(filter(None, (inside, _table(report.mask)))))


def _reproduce(report: Report) -> str:
    steps = [
        "Install ComfyUI and UniForget in the versions below, and put the model's file into ComfyUI's folder.",
        "Put the mask's file into models/uniforget, or learn it again with the settings under <i>What was switched off</i>.",
        "Open the workflow in ComfyUI and run it. The seeds are in it: the same seed gives the same pictures on the same kind of machine.",
    ]
    parts = [f"<ol>{''.join(f'<li>{step}</li>' for step in steps)}</ol>", _table(report.versions)]
    nodes = [
        (title, "\n".join(f"{name}: {safe(value, most=VALUE)}" for name, value in rows[:ROWS])) for title, rows in report.settings
    ]
    if nodes:
        parts.append(f"<details open><summary>Settings, node by node</summary>{_table(nodes)}</details>")
    if report.workflow:
        size = len(report.workflow.encode("utf-8", "replace"))
        if size > WORKFLOW_BYTES:
            parts.append(f'<p class="dim">The workflow is not in this file: it has {size / 1e6:.1f} MB.</p>')
        else:
            coded = base64.b64encode(report.workflow.encode("utf-8", "replace")).decode("ascii")
            parts.append(
                f'<p class="screen"><a download="workflow.json" href="data:application/json;base64,{coded}">Save the workflow</a> '
                "and drop it onto ComfyUI's page.</p>"
                f'<details class="screen"><summary>The workflow as text</summary><pre>{_text(report.workflow, WORKFLOW_BYTES)}</pre></details>'
            )
    return _section("How to reproduce it", "\n".join(filter(None, parts)))
