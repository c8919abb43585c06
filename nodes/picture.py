"""The learning curve as a picture: what the node shows while it learns and hands out when it is done."""

import math

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 640, 320, 44
INK, GRID, LOSS, OFF = (225, 228, 235), (58, 62, 72), (255, 176, 59), (92, 200, 255)
PAPER = (28, 30, 36)


def curve_picture(curve, steps, said=""):
    """Loss (log scale, left axis) and share switched off (right axis) over the updates: a WIDTH x HEIGHT RGB image.

    As long as there are none it has empty axes, and `said` in the middle of them.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN, 44, WIDTH - MARGIN, HEIGHT - 28
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        draw.line((left, y, right, y), fill=GRID)
    if not curve:
        for i, line in enumerate(("before the first update:", *said.split("\n"))):
            draw.text(((WIDTH - draw.textlength(line)) / 2, HEIGHT / 2 - 20 + 16 * i), line, fill=INK)
        draw.text((left, bottom + 8), f"update 0 of {steps}", fill=INK)
        return image
    values = _smooth([max(p.reconstruction, 1e-9) for p in curve])
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)
    highest_off = max(0.05, *(p.off_share for p in curve))
    x = lambda p: left + (right - left) * p.step / steps  # noqa: E731
    points = [(x(p), bottom - (bottom - top) * (math.log10(v) - low) / (high - low)) for p, v in zip(curve, values, strict=True)]
    off = [(x(p), bottom - (bottom - top) * p.off_share / highest_off) for p in curve]
    for line, colour in ((points, LOSS), (off, OFF)):
        if len(line) > 1:
            draw.line(line, fill=colour, width=2)
    # The same batch with the relaxed gates (hollow) and with the mask that ships (full): how far apart they are.
    for p in curve:
        for value, fill in ((p.soft, None), (p.hard, LOSS)):
            if value == value and value > 0:
                y = bottom - (bottom - top) * min(max((math.log10(value) - low) / (high - low), 0), 1)
                draw.ellipse((x(p) - 3, y - 3, x(p) + 3, y + 3), fill=fill, outline=LOSS)
    last = curve[-1]
    draw.text((left, 8), f"difference to the original on neutral prompts {values[-1]:.4f}", fill=LOSS)
    draw.text((left, 20), "circles: relaxed gates, dots: the mask", fill=LOSS)
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in last.off.items())
    words = f"switched off {last.off_share:.1%}"
    draw.text((right - draw.textlength(words), 8), words, fill=OFF)
    draw.text((right - draw.textlength(shares), 20), shares, fill=OFF)
    draw.text((4, top - 6), f"1e{high}", fill=LOSS)
    draw.text((4, bottom - 6), f"1e{low}", fill=LOSS)
    draw.text((right + 4, top - 6), f"{highest_off:.0%}", fill=OFF)
    draw.text((right + 4, bottom - 6), "0%", fill=OFF)
    draw.text((left, bottom + 8), f"update {last.step} of {steps}", fill=INK)
    return image


def _smooth(values, keep=0.9):
    out, mean = [], values[0]
    for value in values:
        mean = keep * mean + (1 - keep) * value
        out.append(mean)
    return out
