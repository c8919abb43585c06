"""The findings about pictures as bars with intervals."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, DIM, GRID = (24, 26, 31), (232, 234, 240), (154, 160, 173), (58, 62, 72)
BEFORE, AFTER, USUAL = (255, 176, 59), (92, 200, 255), (46, 50, 60)
WIDTH, THUMB, GAP, ROW, HEAD, FOOT = 720, 88, 12, 104, 36, 40
WORDS = {"known": "knows it", "unknown": "no sign of it", "unclear": "cannot tell"}


def bars(pictures, before, after):
    """An RGB image: a row per picture with the picture, a bar for the original and, where there is one, for the forgotten model.

    Args:
        pictures: (n, height, width, 3) floats in [0, 1].
        before, after: one :class:`uniforget.checks.picture.Finding` each; `after` may hold None.
    """
    everything = [f for f in (*before, *after) if f is not None]
    low = min(0.0, *(v for f in everything for v in (f.gain, f.low) if math.isfinite(v)))
    high = max(0.1, *(v for f in everything for v in (f.gain, f.high, f.bound) if math.isfinite(v)))
    image = Image.new("RGB", (WIDTH, HEAD + ROW * len(before) + FOOT), PAPER)
    draw, font, small = ImageDraw.Draw(image), ImageFont.load_default(15), ImageFont.load_default(12)
    left, right = GAP + THUMB + 2 * GAP, WIDTH - 120
    x = lambda v: left + (right - left) * (min(max(v, low), high) - low) / (high - low)  # noqa: E731
    draw.text((GAP, 10), "restored better than moved and mirrored copies of itself", fill=INK, font=font)
    bottom = HEAD + ROW * len(before)
    for i, (picture, *pair) in enumerate(zip(pictures, before, after, strict=True)):
        top = HEAD + i * ROW
        tile = Image.fromarray((np.asarray(picture.cpu()).clip(0, 1) * 255).round().astype(np.uint8))
        tile.thumbnail((THUMB, THUMB)) if max(tile.size) > THUMB else None
        image.paste(tile, (GAP + (THUMB - tile.width) // 2, top + (THUMB - tile.height) // 2))
        shown = [(f, c, n) for f, c, n in zip(pair, (BEFORE, AFTER), ("original", "forgotten"), strict=True) if f is not None]
        for k, (f, colour, name) in enumerate(shown):
            y = top + THUMB * (2 * k + 1) / (2 * len(shown))
            draw.rectangle((x(low), y - 15, x(f.bound), y + 15), fill=USUAL)
            draw.rectangle((min(x(0), x(f.gain)), y - 8, max(x(0), x(f.gain)), y + 8), fill=colour)
            draw.line((x(f.low), y, x(f.high), y), fill=INK, width=2)
            for end in (f.low, f.high):
                draw.line((x(end), y - 5, x(end), y + 5), fill=INK, width=2)
            draw.text((right + GAP, y - 15), name, fill=colour, font=small)
            draw.text((right + GAP, y), WORDS[f.verdict], fill=INK, font=small)
    draw.line((x(0), HEAD, x(0), bottom), fill=GRID)
    last = -math.inf
    for share in (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99):
        at = -math.log(1 - share)
        if at <= high and x(at) - last > 34:
            last = x(at)
            draw.line((x(at), bottom - 4, x(at), bottom), fill=DIM)
            draw.text((x(at), bottom + 3), f"{share:.0%}", fill=DIM, font=small, anchor="ma")
    draw.text(
        (left, bottom + 19), "grey: usual for everyday pictures of the model's own; line: 95 % interval", fill=DIM, font=small
    )
    return image
