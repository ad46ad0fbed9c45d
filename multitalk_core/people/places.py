"""Where faces are, as people and other nodes tell it: boxes as text, in pixels or shares, and what face detectors hand on.

Boxes are (x0, y0, x1, y1): left, top, right, bottom, in pixels of the source picture. A box whose edges are all from 0 to 1 is in shares
of the picture's width and height instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..errors import SpeakerError
from ..sizes import fit_mask

MARGIN = 0.05  # share of its part of the picture by which a default mask is smaller on every side ("face_scale")

Box = tuple[float, float, float, float]

ROWS = re.compile(r"rows?\b:?", re.IGNORECASE)  # marks the official order
HALVES: dict[str, Box] = {"left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1)}
SOLID = 0.5  # of a mask's highest value; from there on a pixel counts
SMALLEST = 2  # pixels; no box of a face is smaller
EDGES = ("x", "y", "width", "height")  # of ComfyUI's BOUNDING_BOX


def parse_box(text: str) -> Box | None:
    """A box as a user writes it; None for an empty text.

    "x0, y0, x1, y1" in pixels, or in shares of the picture if all are from 0 to 1; "left", "right", "top" or "bottom" for a half;
    "rows r0, c0, r1, c1" for the order that the official files have (row before column, although they call it x and y).

    Raises:
        SpeakerError: not four numbers, or no area.
    """
    if not text.strip():
        return None
    words = text.strip(" \t\n()[]")
    if words.lower() in HALVES:
        return _smaller(HALVES[words.lower()])
    numbers = ROWS.sub("", words, count=1).strip(" \t\n()[]")
    try:
        a, b, c, d = (float(part) for part in re.split(r"[,\s]+", numbers))
    except ValueError as error:
        raise SpeakerError(
            f"'{text}' is no box. Write four numbers: left, top, right, bottom in pixels, for example 40, 20, 200, 180, "
            "or in shares of the picture, for example 0.1, 0.2, 0.4, 0.9."
        ) from error
    box = (b, a, d, c) if numbers != words else (a, b, c, d)
    check_box(box, f"box '{text}'")
    return box


def check_box(box: Box, name: str) -> None:
    """Raises SpeakerError for a box without an area, or one in shares that leaves the picture."""
    if not has_area(box):
        raise SpeakerError(f"The {name} has no area: right must be greater than left, and bottom greater than top.")
    if not in_shares(box) and all(abs(edge) < SMALLEST for edge in box):
        raise SpeakerError(f"The {name} leaves the picture: in shares of it, all four numbers lie from 0 to 1.")


def has_area(box: Box) -> bool:
    x0, y0, x1, y1 = box
    return all(map(math.isfinite, box)) and x1 > x0 and y1 > y0


def in_shares(box: Box) -> bool:
    """Whether a box is in shares of the picture: no pixel box of a face is that small."""
    return all(0 <= edge <= 1 for edge in box)


def pixel_box(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """A box in whole pixels, truncated and clipped to the picture."""
    x0, y0, x1, y1 = (round(e * side, 6) for e, side in zip(box, (width, height) * 2, strict=True)) if in_shares(box) else box
    return max(0, int(x0)), max(0, int(y0)), min(width, max(0, int(x1))), min(height, max(0, int(y1)))


def box_mask(box: Box, height: int, width: int) -> Tensor:
    """A box as a mask [H, W].

    The official lists say [row0, column0, row1, column1] although they are called x and y there.
    """
    x0, y0, x1, y1 = pixel_box(box, height, width)
    mask = torch.zeros(height, width)
    mask[y0:y1, x0:x1] = 1
    return mask


def is_solid(mask: Tensor) -> Tensor:
    """Where a mask counts: from one half of its highest value on, so that neither soft edges nor haze do, but a faint mask does."""
    return (mask >= SOLID * mask.max()) & (mask > 0) if mask.numel() else mask > 0


def mask_box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """The box around a mask [H, W], in pixels; None around nothing."""
    rows, columns = (is_solid(mask).any(dim=along).nonzero().flatten() for along in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None


def default_boxes(speakers: int, height: int, width: int) -> list[Box]:
    """Equal parts of the picture from left to right, each smaller by MARGIN on every side; a single speaker has all of it.

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate() (left and right half); three and four follow the same rule.
    """
    if speakers == 1:
        return [(0, 0, width, height)]
    part = width // speakers
    top, bottom = int(height * MARGIN), int(height * (1 - MARGIN))
    return [(i * part + int(part * MARGIN), top, i * part + int(part * (1 - MARGIN)), bottom) for i in range(speakers)]


def faces_of(found: Any, size: tuple[int, int] | None = None, bbox_format: str = "auto") -> list[Box]:
    """Boxes in pixels of the faces in the first picture, from left to right (by their middles), as other nodes hand them on.

    Args:
        found: ComfyUI's BOUNDING_BOX (a mapping of x, y, width, height; a list of those; a list of such a list for every picture), BBOX
            (four numbers, or a list, an array or a tensor [n, 4] of them), or masks [S, h, w], which are scaled and cropped as the picture.
        size: (height, width) of the picture.
        bbox_format: of four numbers: "xyxy" (left, top, right, bottom), "xywh" (left, top, width, height), or "auto": KJNodes has both
            under the name BBOX. Then it is whichever all boxes can be: xywh where a right edge would be left of a left one; otherwise xyxy.
    Raises:
        SpeakerError: anything else, or a box without an area.
    """
    if isinstance(found, Tensor) and found.ndim >= 2 and not (found.ndim == 2 and found.shape[-1] == len(EDGES)):
        masks = found.reshape(-1, *found.shape[-2:]).float().cpu()
        masks = fit_mask(masks, *size) if size else masks
        boxes = [box for mask in masks if (box := mask_box(mask)) is not None]
    else:
        boxes = _boxes_in(found, bbox_format)
    if boxes is None or not all(has_area(box) for box in boxes):
        raise SpeakerError(
            f"The faces are {_shown(found)}. Boxes of x, y, width and height (BOUNDING_BOX), four numbers each (BBOX; see bbox_format), "
            "or one mask for each face were expected."
        )
    return sorted(boxes, key=lambda box: (box[0] + box[2], box[1]))


def _boxes_in(found: Any, bbox_format: str) -> list[Box] | None:
    """None where something is no box."""
    found = found.tolist() if hasattr(found, "tolist") else found
    if isinstance(found, Mapping) or _is_four(found):
        found = [found]
    if not isinstance(found, Sequence) or isinstance(found, str):
        return None
    if found and not isinstance(found[0], Mapping) and not _is_four(found[0]):
        found = found[0].tolist() if hasattr(found[0], "tolist") else found[0]  # a list for every picture: that of the first
        if not isinstance(found, Sequence) or isinstance(found, str):
            return None
    fours = [[float(edge) for edge in box] for box in found if _is_four(box)]
    by_size = bbox_format == "xywh" or (bbox_format == "auto" and any(box[2] <= box[0] or box[3] <= box[1] for box in fours))
    boxes: list[Box] = [(x0, y0, x0 + x1, y0 + y1) if by_size else (x0, y0, x1, y1) for x0, y0, x1, y1 in fours]
    for box in found:
        if isinstance(box, Mapping) and all(isinstance(box.get(edge), Real) for edge in EDGES):
            x, y, width, height = (float(box[edge]) for edge in EDGES)
            boxes.append((x, y, x + width, y + height))
    return boxes if len(boxes) == len(found) else None


def _is_four(box: Any) -> bool:
    box = box.tolist() if hasattr(box, "tolist") else box
    return isinstance(box, Sequence) and not isinstance(box, str) and len(box) == len(EDGES) and all(isinstance(e, Real) for e in box)


def _smaller(box: Box) -> Box:
    x0, y0, x1, y1 = box
    across, down = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    return x0 + across, y0 + down, x1 - across, y1 - down


def _shown(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"a tensor of shape {tuple(found.shape)}"
    text = repr(found)
    return text if len(text) <= 80 else f"{text[:77]}…"
