"""What all pictures are drawn with: colours, sizes, text, and a time axis."""

from __future__ import annotations

import numpy as np
import torch
from PIL.ImageDraw import ImageDraw
from PIL.ImageFont import FreeTypeFont, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]
PAPER, INK, RULE, ALARM = (30, 30, 34), (235, 235, 235), (70, 70, 76), (240, 70, 70)
WIDTH = 1024  # pixels of a plot
MARGIN, LANE, AXIS, BAND = 16, 88, 30, 10  # pixels
SMALL, LARGE = 14, 18  # pixels of text


def time_axis(draw: ImageDraw, y: int, x, seconds: float) -> None:
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
    step = next((step for step in steps if seconds / step <= 12), steps[-1])
    for i in range(int(seconds / step) + 1):
        draw.line((x(i * step), y, x(i * step), y + 6), fill=INK)
        draw.text((x(i * step) + 3, y + 6), f"{i * step:g} s", fill=INK, font=font(SMALL))


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round((1 - share) * p + share * q) for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def new_sheet(width: int, height: int):
    from PIL import Image

    image = Image.new("RGB", (width, height), PAPER)
    return image, drawing(image)


def drawing(image) -> ImageDraw:
    from PIL import ImageDraw

    return ImageDraw.Draw(image)


def font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def as_tensor(image) -> Tensor:
    return torch.from_numpy(np.array(image)).float() / 255


SPEAKER_COLOURS: tuple[Colour, ...] = ((79, 163, 255), (255, 159, 67), (84, 199, 123), (214, 107, 229))  # web/speaker_boxes.js has the same
BACKGROUND: Colour = (120, 120, 120)
