"""Mouths in a finished video whose place is only known roughly: what a face box, a mask or half of the picture holds, frame by frame.

Nothing here listens to a voice: where a mouth may be is found from pictures alone, by the formula of face boxes (`sync.mouth_opening`) and
by where the picture changes most, as fast as people speak. Frames are read once and in parts; of each only small grey pictures of the
regions are kept.

Shapes: F video frames at 25 a second, H, W pixels, h, w pixels of a region's small grey picture. Boxes are (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clock import FPS
from ..errors import MultiTalkError, SpeakerError
from ..people.places import Box, mask_box, pixel_box
from ..people.speakers import Speaker, default_boxes
from ..sizes import fit_mask, fitted
from .curves import DARK, LUMA, MOUTH_BOTTOM, MOUTH_LEFT, MOUTH_RIGHT, MOUTH_TOP, SKIN

SIDE = 64  # pixels to which a region's longer side is reduced: a mouth that takes a tenth of its region still has six
LONGEST = 15 * 60 * FPS  # frames that are looked at; of each, SIDE² bytes a speaker are kept
LEAST_SIDE = 8  # pixels of a region in which a mouth can be seen
WIDTHS = (0.18, 0.25, 0.35, 0.48, 0.6)  # of places that are looked at, as shares of the region's: 0.6 is a face box's mouth region
SHAPE = 1.5  # width over height of a face box's mouth region
SPREAD = 0.75  # power of the area by which a place's change is divided: 1 wants the smallest place, 0 the largest
PLACES = 3  # places of change that are tried beside the formula's
STEP = 2  # frames over which change is measured: half a period of the fastest syllables, about 6 a second
PART = 1000  # frames that are looked at together, so that long videos need little memory


class VideoError(MultiTalkError, ValueError):
    """Frames that cannot be looked at; the message says why."""


@dataclass(frozen=True)
class MouthArea:
    """Rows and columns of a region's small picture where a mouth may be."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Tensor) -> Tensor:
        return pixels[..., self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Region:
    """A part of the picture, over the whole video."""

    box: tuple[int, int, int, int]  # whole pixels of the video
    pixels: Tensor  # [F, h, w] uint8, grey

    def box_of(self, place: MouthArea) -> Box:
        """A place of the small pictures, in the pixels of the video."""
        x0, y0, x1, y1 = self.box
        down, across = (y1 - y0) / self.pixels.shape[1], (x1 - x0) / self.pixels.shape[2]
        left, top = x0 + place.left * across, y0 + place.top * down
        return left, top, left + place.width * across, top + place.height * down


def regions_of(
    speakers: Sequence[Speaker], height: int, width: int, picture: tuple[int, int] | None = None, faces: Sequence[Box] | None = None
) -> list[Box]:
    """Where each speaker is in the video, in its pixels.

    Args:
        height, width: of the video.
        picture: (height, width) of the picture that the video was made of, to which the speakers' own boxes belong; the video is that
            picture scaled to cover and cropped. Without it, boxes are taken as the video's own. Masks tell their size themselves.
        faces: boxes in the video's pixels, one for each speaker in turn, in place of the speakers' own.
    Raises:
        SpeakerError: another number of faces than of speakers, or a region that the video does not show.
    """
    if faces is not None and len(faces) != len(speakers):
        raise SpeakerError(
            f"{len(faces)} faces and {len(speakers)} speakers are connected. Connect a face for each speaker, or none to use the "
            "speakers' own boxes."
        )
    boxes: list[Box] = []
    defaults = default_boxes(len(speakers), *(picture or (height, width)))
    for number, (speaker, default) in enumerate(zip(speakers, defaults, strict=True)):
        if faces is not None:
            box = faces[number]
        elif speaker.mask is not None:
            box = mask_box(fit_mask(speaker.mask[None].cpu(), height, width)[0]) or (0, 0, 0, 0)
        else:
            box = _fitted_box(speaker.box or default, picture or (height, width), height, width)
        _checked_region(box, height, width, number + 1)
        boxes.append(box)
    return boxes


def watch(parts: Iterable[Tensor], regions: Sequence[Box]) -> list[Region]:
    """Small grey pictures of each region; a region keeps its shape, and is made smaller if a side is above SIDE.

    Args:
        parts: of the video, each [n, H, W, 3] in 0…1, in order; none is kept, and what comes after LONGEST frames is not asked for.
        regions: boxes in the video's pixels; what lies outside of the picture is cut off.
    Raises:
        VideoError: no frames, or frames of different sizes.
        SpeakerError: a region that the video does not show.
    """
    seen: list[list[Tensor]] = [[] for _ in regions]
    boxes: list[tuple[int, int, int, int]] = []
    frames, size = 0, None
    for part in parts:
        if part.ndim != 4 or part.shape[-1] < 3 or size not in (None, part.shape[1:3]):
            raise VideoError(f"A part of the video has shape {tuple(part.shape)}; [frames, height, width, 3] of one size was expected.")
        if size is None:
            size, (height, width) = part.shape[1:3], part.shape[1:3]
            boxes = [_checked_region(box, height, width, number) for number, box in enumerate(regions, start=1)]
        part = part[: LONGEST - frames]
        frames += part.shape[0]
        for kept, box in zip(seen, boxes, strict=True):
            kept.append(_small(part, box))
        if frames >= LONGEST:
            break
    if not frames:
        raise VideoError("The video has no frames. Connect a finished video, or its images.")
    return [Region(box, torch.cat(kept)) for box, kept in zip(boxes, seen, strict=True)]


def places(pixels: Tensor) -> list[MouthArea]:
    """Where a mouth may be in a region's small pictures [F, h, w]: where a face box has it, then spots that change most, each apart from
    the ones before.
    """
    height, width = pixels.shape[1:]
    top, left = min(round(MOUTH_TOP * height), height - 1), min(round(MOUTH_LEFT * width), width - 1)
    found = [MouthArea(top, left, max(1, round(MOUTH_BOTTOM * height) - top), max(1, round(MOUTH_RIGHT * width) - left))]
    change = _change(pixels)
    for _ in range(PLACES):
        place = _most(change)
        if place is None:
            break
        found.append(place)
        place.of(change).zero_()
    return found


def opening(pixels: Tensor, place: MouthArea) -> Tensor:
    """As `sync.mouth_opening`, of a place in a region's small pictures [F, h, w]: [F] float32."""
    mouth = place.of(pixels)
    counts = torch.zeros(256, dtype=torch.long)
    for part in mouth.split(PART):
        counts += torch.bincount(part.flatten().long(), minlength=256)
    skin = int((counts.cumsum(0) >= max(1, int(SKIN * mouth.numel()))).nonzero()[0])  # kthvalue would need all of it as floats
    dark = DARK * max(1, skin)
    return torch.cat([(1 - part.float() / dark).clamp(min=0).mean(dim=(1, 2)) for part in mouth.split(PART)])


def _change(pixels: Tensor) -> Tensor:
    """[h, w]: mean square of what each pixel changes by in STEP frames, above what half of the pixels do (noise, a moving camera)."""
    total = torch.zeros(pixels.shape[1:], dtype=torch.float64)
    for start in range(0, max(0, pixels.shape[0] - STEP), PART):
        part = pixels[start : start + PART + STEP].float() / 255
        total += (part[STEP:] - part[:-STEP]).square().sum(dim=0)
    mean = total / max(1, pixels.shape[0] - STEP)
    return (mean - mean.median()).clamp(min=0)


def _most(change: Tensor) -> MouthArea | None:
    """The spot of a mouth's shape, of any plausible size, with the most change [h, w]; none where nothing changes."""
    height, width = change.shape
    total = F.pad(change.cumsum(0).cumsum(1), (1, 0, 1, 0))
    best, found = 0.0, None
    for share in WIDTHS:
        w = min(width, max(4, round(share * width)))
        h = min(height, max(3, round(w / SHAPE)))
        sums = total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]
        value, at = (sums / (h * w) ** SPREAD).flatten().max(dim=0)
        if value > best:
            best, found = float(value), MouthArea(int(at) // sums.shape[1], int(at) % sums.shape[1], h, w)
    return found


def _small(part: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    x0, y0, x1, y1 = box
    luma = part[:, y0:y1, x0:x1, :3].float() @ torch.tensor(LUMA, device=part.device)
    longer = max(luma.shape[1:])
    if longer > SIDE:
        rows, columns = (max(1, round(side * SIDE / longer)) for side in luma.shape[1:])
        luma = F.adaptive_avg_pool2d(luma[:, None], (rows, columns))[:, 0]
    return (luma.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _fitted_box(box: Box, picture: tuple[int, int], height: int, width: int) -> Box:
    """A box of the source picture in the video: scaled to cover and cropped in the middle, as the picture was. Edges may lie outside."""
    across, down = (side / own for side, own in zip(reversed(fitted(*picture, height, width)), reversed(picture), strict=True))
    left, top = (round((side - kept) / 2) for side, kept in zip(reversed(fitted(*picture, height, width)), (width, height), strict=True))
    x0, y0, x1, y1 = pixel_box(box, *picture)
    return x0 * across - left, y0 * down - top, x1 * across - left, y1 * down - top


def _checked_region(box: Box, height: int, width: int, number: int) -> tuple[int, int, int, int]:
    """In whole pixels of the video."""
    x0, y0, x1, y1 = pixel_box(box, height, width)
    if min(x1 - x0, y1 - y0) < LEAST_SIDE:
        raise SpeakerError(
            f"The video of {width}×{height} pixels shows {max(0, x1 - x0)}×{max(0, y1 - y0)} pixels of the mask or box of speaker "
            f"{number}; at least {LEAST_SIDE}×{LEAST_SIDE} were expected. If boxes are in pixels of a picture of another size, connect "
            "that picture as image; or connect faces."
        )
    return x0, y0, x1, y1
