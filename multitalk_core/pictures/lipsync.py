"""How mouths follow voices, to look at: [H, W, 3] in 0…1 (a frame of ComfyUI's IMAGE), in the style of `pictures`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from ..clock import FPS
from ..lipsync.check import SyncCheck
from .canvas import AXIS, INK, LANE, MARGIN, PAPER, RULE, SMALL, SPEAKER_COLOURS, WIDTH, as_tensor, font, mixed, new_sheet, time_axis

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

CELL_WIDTH, CELL_HEIGHT, HEAD = 150, 34, 26  # pixels of the matrix
TITLE = 22  # pixels of a lane above its curves
FRAME: tuple[int, int, int] = (235, 235, 235)


def sync_picture(check: SyncCheck) -> Tensor:
    """A lane for every speaker, their voice's loudness under their mouth's opening, and the matrix of mouths and voices."""
    people = len(check.speakers)
    bottom = MARGIN + LANE * people
    image, draw = new_sheet(WIDTH, bottom + AXIS + MARGIN + HEAD + CELL_HEIGHT * people + MARGIN)
    seconds = check.frames / FPS
    left, right = MARGIN, WIDTH - MARGIN

    def x(time: float) -> int:
        return round(left + (right - left) * time / seconds)

    for i in range(people):
        _lane(draw, check, i, MARGIN + LANE * i)
    time_axis(draw, bottom, x, seconds)
    _matrix(draw, check, bottom + AXIS + MARGIN)
    return as_tensor(image)


def _lane(draw: ImageDraw, check: SyncCheck, speaker: int, top: int) -> None:
    colour, name = SPEAKER_COLOURS[speaker], check.speakers[speaker].name
    low, high = top + LANE - 6, LANE - 6 - TITLE
    for column, value in enumerate(_columns(check.voices[speaker])):
        draw.line((MARGIN + column, low, MARGIN + column, low - value * high), fill=mixed(PAPER, colour, 0.3))
    mouth = check.mouths[speaker] - check.mouths[speaker].min()
    heights = _columns(mouth / mouth.max().clamp(min=1e-3))
    draw.line([(MARGIN + column, low - value * high) for column, value in enumerate(heights)], fill=colour, width=2)
    draw.line((MARGIN, low, WIDTH - MARGIN, low), fill=RULE)
    who = f"{speaker + 1} · {name}" if name else f"{speaker + 1}"
    draw.text((MARGIN, top), f"{who}: {check.verdict(speaker)}", fill=INK, font=font(SMALL))


def _matrix(draw: ImageDraw, check: SyncCheck, top: int) -> None:
    """Correlation and lag of each pair; what is no chance has a frame."""
    for j in range(len(check.speakers)):
        draw.text((MARGIN + CELL_WIDTH * (j + 1), top), f"voice {j + 1}", fill=SPEAKER_COLOURS[j], font=font(SMALL))
    for i in range(len(check.speakers)):
        y = top + HEAD + CELL_HEIGHT * i
        draw.text((MARGIN, y + 6), f"mouth {i + 1}", fill=SPEAKER_COLOURS[i], font=font(SMALL))
        for j in range(len(check.speakers)):
            value, lag = float(check.correlations[i, j]), int(check.lags[i, j])
            box = (MARGIN + CELL_WIDTH * (j + 1), y, MARGIN + CELL_WIDTH * (j + 2) - 6, y + CELL_HEIGHT - 6)
            follows = value >= check.needed[j]
            fill = mixed(PAPER, SPEAKER_COLOURS[j], 0.6 * max(0.0, value))
            draw.rectangle(box, fill=fill, outline=FRAME if follows else RULE, width=2 if follows else 1)
            late = f"{lag:+d} frames" if lag else "in time"
            draw.text((box[0] + 8, y + 5), f"{value:.2f}  {late}" if follows else f"{value:.2f}", fill=INK, font=font(SMALL))


def _columns(curve: Tensor) -> list[float]:
    """A value for each pixel across; of long videos the mean of what lies there."""
    across = WIDTH - 2 * MARGIN
    if len(curve) >= across:
        return F.adaptive_avg_pool1d(curve[None], across)[0].tolist()
    return F.interpolate(curve[None, None], size=across, mode="nearest")[0, 0].tolist()
