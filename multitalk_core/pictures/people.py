"""Pictures that explain: who speaks when, who is where, which voice each region hears, how mouths follow voices.

All come as [H, W, 3] in 0…1 (a frame of ComfyUI's IMAGE).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..people.timeline import Sound, Timeline
from ..sizes import TOKEN_STRIDE
from .canvas import (
    ALARM,
    AXIS,
    BACKGROUND,
    BAND,
    INK,
    LANE,
    LARGE,
    MARGIN,
    PAPER,
    RULE,
    SMALL,
    SPEAKER_COLOURS,
    WIDTH,
    Colour,
    as_tensor,
    drawing,
    font,
    mixed,
    new_sheet,
    time_axis,
)

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw


TINT = 0.35  # share of a speaker's colour over the picture
PANEL = 320  # pixels, height of a heat map
LONGEST_SIDE = 1024  # pixels to which small pictures are enlarged, by whole factors


def timeline_picture(timeline: Timeline, tracks: Sequence[Sound], seconds: float) -> Tensor:
    """A lane for every speaker with waveform and turns; a red band wherever two speak at once."""
    lanes = len(timeline.names)
    image, draw = new_sheet(WIDTH, 2 * MARGIN + LANE * lanes + BAND + AXIS)
    left, right = MARGIN, WIDTH - MARGIN

    def x(time: float) -> int:
        return round(left + (right - left) * min(time, seconds) / seconds)

    for speaker, (name, track) in enumerate(zip(timeline.names, tracks, strict=True)):
        top = MARGIN + LANE * speaker
        middle, colour = top + LANE // 2 + 8, SPEAKER_COLOURS[speaker]
        for turn in timeline.of(speaker):
            draw.rectangle((x(turn.start), top + 22, max(x(turn.stop), x(turn.start) + 1), top + LANE - 6), fill=mixed(PAPER, colour, 0.3))
        heights = _peaks(track, seconds, right - left) * (LANE / 2 - 14)
        for column, height in enumerate(heights.tolist()):
            draw.line((left + column, middle - height, left + column, middle + height), fill=colour)
        draw.text((left, top), f"{speaker + 1} · {name}", fill=INK, font=font(SMALL))
    bottom = MARGIN + LANE * lanes
    for start, stop in timeline.overlaps():
        draw.rectangle((x(start), bottom, x(stop), bottom + BAND - 3), fill=ALARM)
    time_axis(draw, bottom + BAND, x, seconds)
    return as_tensor(image)


def speakers_picture(picture: Tensor, tokens: Tensor, names: Sequence[str]) -> Tensor:
    """The picture as the model sees it, with every speaker's tokens tinted and named, the token grid, and the background hatched.

    Args:
        picture: [H, W, 3] at the video's size.
        tokens: [S + 1, N] of `speakers.token_masks`, background last.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    rows, columns = height // TOKEN_STRIDE, width // TOKEN_STRIDE
    grid = tokens.reshape(-1, rows, columns) > 0
    scale = max(1, LONGEST_SIDE // max(height, width))
    shown = picture.clone()
    colours = torch.tensor(SPEAKER_COLOURS[: len(grid) - 1]).float() / 255
    for cells, colour in zip(_enlarged(grid[:-1], TOKEN_STRIDE), colours, strict=True):
        shown[cells] = (1 - TINT) * shown[cells] + TINT * colour
    size = (width * scale, height * scale)
    image = Image.fromarray((shown.clamp(0, 1) * 255).round().byte().numpy()).resize(size, Image.Resampling.LANCZOS)
    draw = drawing(image)
    cell = TOKEN_STRIDE * scale
    _grid_lines(draw, *size, cell)
    for row, column in grid[-1].nonzero().tolist():
        draw.line((column * cell, (row + 1) * cell, (column + 1) * cell, row * cell), fill=BACKGROUND)
    for speaker, name in enumerate(names):
        _label(draw, grid[speaker], cell, f"{speaker + 1} · {name}" if name else f"{speaker + 1}", SPEAKER_COLOURS[speaker])
    return as_tensor(image)


def labels_picture(picture: Tensor, maps: Tensor) -> Tensor:
    """Panels side by side: which class wins where, then how strongly each class is looked at, over the picture.

    Args:
        picture: [H, W, 3] at the video's size.
        maps: [K, h, w] reference maps of one latent frame, background last.
    """
    from PIL import Image

    height, width = picture.shape[:2]
    panel = (round(PANEL * width / height), PANEL)
    grey = picture.mean(dim=-1, keepdim=True).expand(-1, -1, 3)
    colours = torch.tensor([*SPEAKER_COLOURS[: len(maps) - 1], BACKGROUND]).float() / 255
    panels = [("who hears whom", 0.5 * grey + 0.5 * _over(colours[maps.argmax(dim=0)], height, width))]
    for i, (found, colour) in enumerate(zip(maps, colours, strict=True)):
        found = found.clamp(min=0)
        strength = ((found - found.min()) / (found.max() - found.min()).clamp(min=1e-12))[..., None]
        name = "background" if i == len(maps) - 1 else f"voice {i + 1}"
        panels.append((name, 0.4 * grey + 0.6 * _over(strength * colour, height, width)))
    image, draw = new_sheet(len(panels) * (panel[0] + MARGIN) + MARGIN, panel[1] + 2 * MARGIN + 20)
    for i, (name, shown) in enumerate(panels):
        x = MARGIN + i * (panel[0] + MARGIN)
        draw.text((x, MARGIN), name, fill=INK, font=font(SMALL))
        part = Image.fromarray((shown.clamp(0, 1) * 255).round().byte().numpy()).resize(panel, Image.Resampling.NEAREST)
        image.paste(part, (x, MARGIN + 20))
    return as_tensor(image)


def _over(cells: Tensor, height: int, width: int) -> Tensor:
    """Cells [h, w, 3] as large as the picture."""
    return F.interpolate(cells.movedim(-1, 0)[None], size=(height, width), mode="nearest")[0].movedim(0, -1)


def _label(draw: ImageDraw, cells: Tensor, cell: int, text: str, colour: Colour) -> None:
    """A name at the upper left of a speaker's cells, inside of the picture."""
    where = cells.nonzero()
    if not len(where):
        return
    y, x = (int(edge) * cell for edge in where.amin(dim=0))
    x0, y0, x1, y1 = draw.textbbox((x + 4, y + 3), text, font=font(LARGE))
    draw.rectangle((x0 - 4, y0 - 3, x1 + 4, y1 + 3), fill=colour)
    draw.text((x + 4, y + 3), text, fill=PAPER, font=font(LARGE))


def _grid_lines(draw: ImageDraw, width: int, height: int, cell: int) -> None:
    for at in range(cell, width, cell):
        draw.line((at, 0, at, height), fill=RULE)
    for at in range(cell, height, cell):
        draw.line((0, at, width, at), fill=RULE)


def _enlarged(cells: Tensor, factor: int) -> Tensor:
    return cells.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def _peaks(sound: Sound, seconds: float, columns: int) -> Tensor:
    """The greatest sample under each column, 0…1 of the greatest of all; what the track is shorter than the plot is silence."""
    waveform, rate = sound
    loud = waveform.abs().amax(dim=0)
    bins = F.adaptive_max_pool1d(F.pad(loud, (0, max(0, round(seconds * rate) - len(loud))))[None], columns)[0]
    return bins / bins.max().clamp(min=1e-6)
