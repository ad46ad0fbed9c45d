"""How well mouths follow voices, measured from a finished video: frames, face boxes and sound, nothing else.

Shapes: F video frames at 25 a second, H, W pixels, N samples at 16 kHz. Boxes are (x0, y0, x1, y1) in pixels, from the hairline (or
the hair's top) to the chin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..people.places import Box

# The part of a face box where mouths are, as shares of its width and height.
MOUTH_LEFT, MOUTH_RIGHT = 0.2, 0.8
MOUTH_TOP, MOUTH_BOTTOM = 0.58, 0.92
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SKIN = 0.7  # quantile of the region's luma, over all frames, that is skin even where the mouth is always wide open
DARK = 0.45  # luma relative to the skin's: lips are above, the inside of a mouth is below
SHORTEST = 3  # frames that can be correlated
STILL = 1e-3  # standard deviation of an opening or a loudness that is only noise


def mouth_opening(frames: Tensor, box: Box) -> Tensor:
    """How open a mouth is in every frame: how much of its region is as dark as the inside of a mouth.

    Dark is relative to the face's own skin, which is the brighter part of the region over all frames, so the colours of skin and light
    do not matter as long as they stay. On photographs, moustaches and shadows add a constant, and teeth take something away.

    Args:
        frames: [F, H, W, 3] in 0…1.
        box: of the face; what lies outside of the picture is cut off.
    Returns:
        [F] float32: the region's mean darkness from 0 to 1 (black all over), about 0.3 for a mouth wide open.
    Raises:
        ValueError: no frames, or nothing of the mouth's region is in the picture.
    """
    if frames.ndim != 4 or frames.shape[0] == 0 or frames.shape[-1] < 3:
        raise ValueError(f"The video has shape {tuple(frames.shape)}; [frames, height, width, 3] with at least one frame was expected.")
    rows, columns = _mouth_region(box, frames.shape[1], frames.shape[2])
    region = frames[:, rows, columns, :3]
    luma = region.float() @ torch.tensor(LUMA, device=frames.device)
    skin = luma.flatten().kthvalue(max(1, int(SKIN * luma.numel()))).values.clamp(min=1e-3)
    dark = (1 - luma / (DARK * skin)).clamp(min=0)
    return dark.mean(dim=(1, 2)).cpu()


def pearson(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two curves [F], at lag 0; 0 where one of them stands still.

    Raises:
        ValueError: curves of different lengths, or of fewer than three frames.
    """
    if a.shape != b.shape or a.ndim != 1 or a.shape[0] < SHORTEST:
        raise ValueError(
            f"Curves of shapes {tuple(a.shape)} and {tuple(b.shape)} were given; two of one length, at least {SHORTEST}, were expected."
        )
    a, b = (c.double() - c.double().mean() for c in (a, b))
    if min(a.square().mean(), b.square().mean()) < STILL**2:
        return 0.0
    return float((a @ b / (a.norm() * b.norm())).clamp(-1, 1))


def correlation(a: Tensor, b: Tensor, max_lag: int = 5) -> tuple[float, int]:
    """The greatest correlation of two curves [F] when one may come late, on the frames that they share then.

    Returns:
        (value, lag): at a positive lag, `a` comes that many frames after `b`. Of equal values, the smallest lag.
    Raises:
        ValueError: as `pearson`; curves too short for this lag.
    """
    if not 0 <= max_lag <= a.shape[0] - SHORTEST:
        raise ValueError(
            f"A lag of {max_lag} cannot be searched in curves of {a.shape[0]} frames. Use 0 to {max(0, a.shape[0] - SHORTEST)}."
        )
    lags = sorted(range(-max_lag, max_lag + 1), key=abs)
    return max(((pearson(*_shifted(a, b, lag)), lag) for lag in lags), key=lambda found: found[0])


def _shifted(a: Tensor, b: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    return (a[lag:], b[: b.shape[0] - lag]) if lag >= 0 else (a[:lag], b[-lag:])


def _mouth_region(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the picture where the face of a box has its mouth."""
    x0, y0, x1, y1 = box
    columns = slice(max(0, round(x0 + MOUTH_LEFT * (x1 - x0))), min(width, round(x0 + MOUTH_RIGHT * (x1 - x0))))
    rows = slice(max(0, round(y0 + MOUTH_TOP * (y1 - y0))), min(height, round(y0 + MOUTH_BOTTOM * (y1 - y0))))
    if rows.stop <= rows.start or columns.stop <= columns.start:
        raise ValueError(
            f"The face box {box} has no mouth within the picture of {width}×{height}. Give (x0, y0, x1, y1) of a face, in pixels."
        )
    return rows, columns
