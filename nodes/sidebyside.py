"""Pairs of pictures side by side in one labelled image, to send to somebody who has no ComfyUI."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

ROWS = 8
GAP, BAR = 12, 30
WIDTH_PER_BAR = 20  # labels of large pictures grow with them
SMALL = 256
LARGEST = 16_000_000
PAPER, FRAME, INK = (24, 26, 31), (12, 13, 16), (232, 234, 240)


def to_pil(image: torch.Tensor) -> Image.Image:
    """A picture (height, width, 1, 3 or 4 channels), floats in [0, 1], as RGB; what is transparent becomes dark."""
    values = np.nan_to_num(image.detach().float().cpu().numpy())
    pixels = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    picture = Image.fromarray(pixels)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (*FRAME, 255)), picture)
    return picture.convert("RGB")


def side_by_side(pairs: list[tuple[torch.Tensor, torch.Tensor]], labels: tuple[str, str]) -> Image.Image:
    """All `pairs` as rows of "left | right", in more columns from nine pairs on.

    Every picture is fitted whole into a frame of the first one's size. Small pictures are enlarged by a whole number of times
    and stay crisp; very large sheets are made smaller.

    Args:
        pairs: at least one pair of pictures (height, width, channels), floats in [0, 1].
        labels: what stands above the left and the right pictures.
    """
    height, width = pairs[0][0].shape[:2]
    columns = math.ceil(len(pairs) / ROWS)
    rows = math.ceil(len(pairs) / columns)
    zoom: float = max(1, SMALL // max(width, height))
    zoom = min(zoom, math.sqrt(LARGEST / (rows * columns * 2 * width * height)))
    w, h = max(1, round(width * zoom)), max(1, round(height * zoom))
    bar = max(BAR, w // WIDTH_PER_BAR)
    sheet = Image.new("RGB", (columns * (2 * w + 2 * GAP) + GAP, bar + rows * (h + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        for side, label in enumerate(labels):
            left = GAP + column * (2 * w + 2 * GAP) + side * (w + GAP // 2)
            write_line(draw, label, (left, bar - 7 * bar // BAR), w, 16 * bar / BAR, INK)
    for i, pair in enumerate(pairs):
        top = bar + (i % rows) * (h + GAP)
        for side, image in enumerate(pair):
            left = GAP + (i // rows) * (2 * w + 2 * GAP) + side * (w + GAP // 2)
            sheet.paste(fitted(to_pil(image), w, h), (left, top))
    return sheet


def write_line(draw, text, at, width, size, colour):
    """Writes `text` in one line on the base line `at`, shortened to `width`."""
    font = ImageFont.load_default(size)
    text = " ".join(text.split())
    if draw.textlength(text, font) > width:
        while text and draw.textlength(text + "...", font) > width:
            text = text[:-1]
        text += "..."
    draw.text(at, text, fill=colour, font=font, anchor="ls")


def fitted(picture, width, height):
    """`picture`, whole, in the middle of a frame of that size."""
    scale = min(width / picture.width, height / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    if size != picture.size:
        crisp = scale > 1 and scale == int(scale)
        picture = picture.resize(size, Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS)
    if size == (width, height):
        return picture
    frame = Image.new("RGB", (width, height), FRAME)
    frame.paste(picture, ((width - size[0]) // 2, (height - size[1]) // 2))
    return frame
