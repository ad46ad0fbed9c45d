"""A contact sheet of the demo model: what was drawn, what was made, and how loud each voice is.

Shapes: S speakers, F video frames at 25 a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...multitalk_core.audio.loudness import voice_energy
from .cases import ROWS, Group, Scope, draw_case
from .files import truth_file, video_file

ROWS_SHOWN = ("one", "two", "silent", "swapped")
NUMBERS_SHOWN = (1, 0)  # the first whose videos are there; the second case is larger than the first
WIDTH = 1536  # pixels of a row of pictures
HEIGHT = 128  # to which smaller pictures are enlarged
BARS, TITLE, GAP, EDGE = 36, 22, 3, 12  # pixels
PAPER, INK, BAR = "white", (40, 40, 40), (60, 110, 180)


@dataclass(frozen=True)
class Panel:
    """One video."""

    title: str
    truth: Path  # MP4
    made: Path  # MP4
    energies: Tensor  # [S, F]


def sheet_of(videos: Path, scope: Scope, file: Path) -> None:
    """A contact sheet of what evaluate.run left in a folder.

    Raises:
        FileNotFoundError: nothing of the rows that are shown.
    """
    panels = [panel for row in ROWS_SHOWN for panel in _panels(videos, scope, row)[:1]]
    if not panels:
        raise FileNotFoundError(f"A contact sheet needs videos of the rows {', '.join(ROWS_SHOWN)}. Measure one of them, or --keep videos.")
    contact_sheet(panels, file)


def _panels(videos: Path, scope: Scope, row: str) -> list[Panel]:
    panels = []
    for number in NUMBERS_SHOWN:
        group = Group(ROWS[row].cases, number, (row,))
        truth, made = truth_file(videos, group), video_file(videos, row, number)
        if truth.exists() and made.exists():
            case = draw_case(group.cases, number, scope)
            energies = torch.stack([voice_energy(voice, case.frames) for voice in case.voices])
            panels.append(Panel(ROWS[row].title, truth, made, energies))
    return panels


def contact_sheet(panels: Sequence[Panel], file: Path) -> None:
    """Below each other: titles, frames of both videos at the same times, and a bar for every voice, from left to right."""
    strips = [_strip(panel) for panel in panels]
    sheet = Image.new("RGB", (max(strip.width for strip in strips) + 2 * EDGE, sum(strip.height + EDGE for strip in strips) + EDGE), PAPER)
    top = EDGE
    for strip in strips:
        sheet.paste(strip, (EDGE, top))
        top += strip.height + EDGE
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file, quality=90)


def _strip(panel: Panel) -> Image.Image:
    truth, made = _pictures(panel.truth), _pictures(panel.made)
    width, height = truth[0].size
    count = max(2, WIDTH // (width + GAP))
    times = [round(i * (len(truth) - 1) / (count - 1)) for i in range(count)]
    strip = Image.new("RGB", (count * (width + GAP), TITLE + 2 * (height + GAP) + BARS), PAPER)
    pen = ImageDraw.Draw(strip)
    pen.text((0, 4), f"{panel.title}: as drawn, as made, and how loud the voices are", INK)
    for i, frame in enumerate(times):
        left = i * (width + GAP)
        strip.paste(truth[frame], (left, TITLE))
        strip.paste(made[frame], (left, TITLE + height + GAP))
        _draw_bars(pen, (left, TITLE + 2 * (height + GAP), width), panel.energies[:, frame])
    return strip


def _draw_bars(pen: ImageDraw.ImageDraw, place: tuple[int, int, int], energies: Tensor) -> None:
    """Below a picture at (left, top, width), every bar under its speaker's part."""
    left, top, width = place
    part = width // len(energies)
    for i, energy in enumerate(energies.tolist()):
        x0, x1 = left + i * part + part // 4, left + (i + 1) * part - part // 4
        pen.rectangle((x0, top + round((1 - energy) * (BARS - 2)), x1, top + BARS - 1), BAR)


def _pictures(file: Path) -> list[Image.Image]:
    with av.open(str(file)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    scale = max(1, HEIGHT // pictures[0].height)
    return [picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST) for picture in pictures]
