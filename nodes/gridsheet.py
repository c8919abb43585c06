"""A grid of pictures with labels as one image: strengths from left to right, prompts and seeds from top to bottom."""

import math

from PIL import Image, ImageDraw

from .sidebyside import INK, LARGEST, PAPER, fitted, to_pil, write_line

GAP, HEADER, TITLE, FOOT = 12, 34, 28, 24
SMALL = 192  # smaller pictures are enlarged to about this
DIM = (154, 160, 173)


def grid_sheet(columns, rows, pictures, notes):
    """All `pictures` in rows, as a PIL image.

    Every picture is fitted whole into a frame of the first one's size. Small pictures are enlarged by a whole number of times
    and stay crisp; very large sheets are made smaller.

    Args:
        columns: what stands above each column.
        rows: what stands above each row.
        pictures: ``len(rows) * len(columns)`` pictures (height, width, channels), floats in [0, 1], row by row.
        notes: what stands under each picture.
    """
    height, width = pictures[0].shape[:2]
    zoom: float = max(1, SMALL // max(width, height))
    zoom = min(zoom, math.sqrt(LARGEST / (len(pictures) * width * height)))
    w, h = max(1, round(width * zoom)), max(1, round(height * zoom))
    block = TITLE + h + FOOT
    sheet = Image.new("RGB", (GAP + len(columns) * (w + GAP), HEADER + len(rows) * block + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    left = [GAP + c * (w + GAP) for c in range(len(columns))]
    for x, name in zip(left, columns, strict=True):
        write_line(draw, name, (x, HEADER - 10), w, 17, INK)
    for r, title in enumerate(rows):
        top = HEADER + r * block
        write_line(draw, title, (GAP, top + TITLE - 9), sheet.width - 2 * GAP, 14, DIM)
        for c, x in enumerate(left):
            i = r * len(columns) + c
            sheet.paste(fitted(to_pil(pictures[i]), w, h), (x, top + TITLE))
            write_line(draw, notes[i], (x, top + TITLE + h + FOOT - 7), w, 14, INK)
    return sheet
