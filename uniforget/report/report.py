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

# The words of checks/likeness.py as sentences, from the best to the worst.
LIGHTS = {
    "gone": "Gone: by its looks, the picture after forgetting is no more the original than other prompts' pictures are.",
    "traces": "Traces are left: the original can sometimes be told by the picture after forgetting.",
    "recognizable": "Still recognizable: the original can be told by the picture after forgetting.",
}
# What masks note about how they were learned, in words.
EXTRA_NAMES = {
    "loss_soft": "error on everyday prompts while learning",
    "loss_hard": "error on everyday prompts of the mask as it is applied",
    "combined_a": "combined from",
    "combined_b": "and from",
    "combined_weight": "weight of the second one",
    "selected": "only these parts",
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
    """The same picture before and after forgetting, a line below it, and how much of the original is left: one of LIGHTS, or ""."""

    original: Picture
    forgotten: Picture
    caption: str = ""
    word: str = ""


@dataclass(frozen=True)
class Report:
    """All that a report says. Every text is plain text; rows are (name, value).

    Attributes:
        title, made: heading, and the line below it (when it was made).
        strength: in words, e.g. "0.8"; "" when nobody knows.
        cautions: what a reader has to know before believing the rest.
        prompt: what was drawn.
        pairs: at most PAIRS are shown, the first one on the first page; the report says how many are not.
        everyday: pairs of a prompt that has nothing to do with it. The first one is on the first page.
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
    prompt: str = ""
    everyday: Sequence[Pair] = ()


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
    """The whole HTML document: one page for people first, and an appendix."""
    appendix = [
        _more_pairs(report),
        _texts(report.texts),
        _mask(report),
        _section("Model", _table(report.model)),
        _reproduce(report),
    ]
    inside = "\n".join(filter(None, appendix))
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(report.title.strip() or "What the model forgot", TITLE),
        made=_text(report.made),
        cautions="\n".join(f'<p class="card careful">{_text(line)}</p>' for line in report.cautions[:ROWS]),
        first=_first_page(report),
        appendix=f'<div class="appendix"><h1>Appendix</h1>{inside}</div>',
        footer="Made with UniForget. This file is complete: it loads nothing, runs nothing and can be printed.",
    )


def _first_page(report: Report) -> str:
    words = [pair.word for pair in report.pairs if pair.word in LIGHTS]
    parts = []
    if words:
        worst = max(words, key=list(LIGHTS).index)
        count = f" ({sum(word == worst for word in words)} of {len(words)} pictures)" if len(words) > 1 else ""
        parts.append(f'<p class="verdict"><i class="light {worst}"></i><span>{LIGHTS[worst]}{count}</span></p>')
    if report.prompt:
        parts.append(f'<p class="prompt">Prompt: <q>{_text(report.prompt)}</q></p>')
    if report.pairs:
        parts.append(f'<div class="pairs">{_pair(report.pairs[0], report.strength, "Picture 1")}</div>')
    if report.everyday:
        parts.append("<p>For comparison, an everyday picture of the same model. It should look alike, or as good:</p>")
        parts.append(f'<div class="pairs">{_pair(report.everyday[0], report.strength, "Everyday picture")}</div>')
    lead = (
        "A text-to-image model keeps some of its training pictures by heart. UniForget switches off the parts of the model that only such "
        "pictures need; it learned which from everyday prompts, and was never told what to forget."
    )
    if report.strength:
        lead += f" The mask was applied at strength {_text(report.strength)}."
    proof = (
        "What this does not prove: that no words, seed or effort ever bring the picture back, or that other pictures are forgotten as well. "
        "It shows what was measured and seen, and is no legal opinion."
    )
    return "\n".join([*parts, f'<p class="lead">{lead}</p>', f'<p class="lead"><b>{proof[:25]}</b>{proof[25:]}</p>'])


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
        *((EXTRA_NAMES.get(str(name), str(name)), value) for name, value in extra.items()),
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


def _pair(pair: Pair, strength: str, name: str) -> str:
    after = f"after forgetting, strength {strength}" if strength else "after forgetting"
    sides = "".join(
        f'<figure><p class="side">{_text(label, TITLE)}</p>{_image(picture, f"{name}, {label}")}</figure>'
        for label, picture in (("before", pair.original), (after, pair.forgotten))
    )
    light = f'<i class="light {pair.word}"></i> ' if pair.word in LIGHTS else ""
    below = f"<figcaption>{light}{_text(pair.caption)}</figcaption>" if pair.caption else ""
    return f'<figure class="card pair"><div>{sides}</div>{below}</figure>'


def _more_pairs(report: Report) -> str:
    more = [(f"Picture {i}", pair) for i, pair in enumerate(report.pairs[:PAIRS], 1)][1:]
    more += [(f"Everyday picture {i}", pair) for i, pair in enumerate(report.everyday[:PAIRS], 1)][1:]
    left_out = max(0, len(report.pairs) - PAIRS) + max(0, len(report.everyday) - PAIRS)
    note = f'<p class="dim">{left_out} more pairs are not in this file.</p>' if left_out else ""
    cards = "".join(_pair(pair, report.strength, name) for name, pair in more)
    return _section("More pictures", f'<div class="pairs">{cards}</div>{note}' if more else "")


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
                f'<span>{KIND_NAMES[kind]}</span><span>{comparable(width / 100)}</span><i><b style="width:{width:.2f}%"></b></i>'
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
