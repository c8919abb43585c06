"""The map of a mask as a picture, for the Mask Map node and for reports."""

from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from ..uniforget.mask.map import mask_map
from ..uniforget.model.blocks import block_rows
from ..uniforget.model.detect import family

# Cividis: made so that people with and without colour blindness see the same order, and readable in grey. web/maskmap_view.js has it too.
SCALE = ("#00204d", "#00336f", "#39486b", "#575c6d", "#707173", "#8a8779", "#a69d75", "#c4b56c", "#e4cf5b", "#ffea46")
# (paper, ink, faint ink, where there is nothing)
THEMES = {
    "dark": ((24, 26, 31), (232, 234, 240), (154, 160, 173), (38, 41, 49)),
    "light": ((255, 255, 255), (28, 30, 36), (96, 102, 115), (232, 234, 240)),
}
LEFT, RIGHT, TOP, BOTTOM, GAP = 220, 150, 150, 130, 2
ROW = 52
WIDEST, NARROWEST, ROOM = 72, 16, 1800


def colour(share):
    """Colour (r, g, b) of a share of the scale, 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    a, b = (tuple(int(SCALE[i][j : j + 2], 16) for j in (1, 3, 5)) for i in (low, low + 1))
    return tuple(round(x + (y - x) * (at - low)) for x, y in zip(a, b, strict=True))


def mask_picture(mask, theme="dark", kept=None):
    """The map of a mask or subspace as an RGB picture: blocks along x, kinds and streams along y, share switched off as colour.

    Args:
        theme: "dark" or "light".
        kept: blocks that stay switched off, as the map's columns name them; the others are drawn faded. None: all.

    Raises:
        FamilyError, MaskError: see :func:`uniforget.mask.map.mask_table`.
    """
    found = mask_map(mask)
    paper, ink, faint, nothing = THEMES[theme]
    cell = max(NARROWEST, min(WIDEST, ROOM // len(found.columns)))
    # A model of one block still has room for the words.
    wide = max(len(found.columns) * cell, 900)
    high = len(found.rows) * ROW
    image = Image.new("RGB", (LEFT + wide + RIGHT, TOP + high + BOTTOM), paper)
    draw = ImageDraw.Draw(image)
    title, words, small = (ImageFont.load_default(size) for size in (30, 24, 20))
    thing, what = ("subspace", "of directions removed") if mask.what == "subspace" else ("mask", "switched off")
    draw.text((24, 20), f"Where this {thing} bites", ink, title)
    draw.text((24, 62), f"{family(mask.info.family).title}, {mask.digest()}: {mask.off_share():.1%} {what}", faint, small)

    for i in range(len(found.columns)):
        box = (LEFT + i * cell, TOP, LEFT + (i + 1) * cell - GAP, TOP + high - GAP)
        draw.rectangle(box, nothing)
    for one, spot in found.cells:
        left, top = LEFT + spot.column * cell, TOP + spot.row * ROW
        fill = colour(one.share / found.top)
        if kept is not None and one.block not in kept:
            fill = tuple(round(f * 0.2 + p * 0.8) for f, p in zip(fill, paper, strict=True))
        draw.rectangle((left, top, left + cell - GAP - 1, top + spot.span * ROW - GAP - 1), fill)

    shares = mask.sparsity()
    y = TOP
    for kind, rows in groupby(found.rows, lambda row: row[0]):
        streams = [stream for _, stream in rows]
        middle = y + len(streams) * ROW / 2
        draw.text((24, middle), kind, ink, words, anchor="lm")
        draw.text((LEFT + len(found.columns) * cell + 14, middle), f"{shares[kind]:.1%}", ink, words, anchor="lm")
        for i, stream in enumerate(streams):
            draw.text((LEFT - 14, y + (i + 0.5) * ROW), stream, faint, small, anchor="rm")
        y += len(streams) * ROW
        draw.line((24, y - GAP / 2, LEFT - 4, y - GAP / 2), nothing, GAP)

    _axis(draw, mask, found, cell, TOP + high, (ink, faint), (words, small))
    _legend(draw, found.top, what, TOP + high + 78, (ink, faint), small)
    return image


def _axis(draw, mask, found, cell, y, inks, fonts):
    """Names of the rows of blocks above the map, and numbers below it, as many as there is room for."""
    index = {name: i for i, name in enumerate(found.columns)}
    for row in block_rows(family(mask.info.family), mask.names):
        columns = [index[row.label if row.single else f"{row.label}{number}"] for number in row.numbers]
        left, right = LEFT + columns[0] * cell, LEFT + (columns[-1] + 1) * cell - GAP
        draw.line((left, TOP - 10, right - 1, TOP - 10), inks[1], 2)
        label = row.label or "blocks"
        # A single narrow block in the middle of others has its name over both neighbours.
        anchor = "mb" if row.single or len(columns) < 3 else "lb"
        draw.text(((left + right) / 2 if anchor == "mb" else left, TOP - 16), label, inks[0], fonts[1], anchor=anchor)
        if row.single:
            continue
        every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 1000) if n * cell >= 30)
        for i, (column, number) in enumerate(zip(columns, row.numbers, strict=True)):
            if i % every == 0:
                draw.text((LEFT + (column + 0.5) * cell - GAP / 2, y + 8), str(number), inks[1], fonts[1], anchor="mt")


def _legend(draw, top, what, y, inks, font):
    wide = 360
    for x in range(wide):
        draw.line((LEFT + x, y, LEFT + x, y + 18), colour(x / (wide - 1)))
    draw.text((LEFT - 10, y + 9), "0%", inks[1], font, anchor="rm")
    draw.text((LEFT + wide + 10, y + 9), f"{top:.0%} {what}", inks[1], font, anchor="lm")
