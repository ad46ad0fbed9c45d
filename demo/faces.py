"""Drawn faces that speak: the demo's pictures, and videos whose mouth opening is known exactly.

The demo's models were trained on such faces with a radius of 23 to 27 pixels, so this is also the kind of picture they can animate.

Shapes: H, W pixels, S faces, F video frames; pictures and videos are [.., H, W, 3] in 0…1, boxes (x0, y0, x1, y1) in pixels.
Lengths of a Face are in its radius.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

Colour = tuple[float, float, float]

SKINS: tuple[Colour, ...] = (
    (0.98, 0.82, 0.66), (0.90, 0.68, 0.50), (0.72, 0.50, 0.34), (0.52, 0.35, 0.24), (0.99, 0.88, 0.40), (0.62, 0.85, 0.62),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (0.15, 0.10, 0.08), (0.35, 0.20, 0.10), (0.85, 0.70, 0.30), (0.60, 0.15, 0.10), (0.20, 0.20, 0.50), (0.55, 0.55, 0.55),
)  # fmt: skip
EYE_WHITE: Colour = (1.0, 1.0, 1.0)
PUPIL: Colour = (0.08, 0.08, 0.10)
LIP: Colour = (0.80, 0.25, 0.28)
THROAT: Colour = (0.22, 0.03, 0.05)

LIP_WIDTH = 0.052  # around the opening
CLOSED = 0.028  # half the height of a closed mouth, without the lip
NARROWING = 0.12  # share of its width that a mouth loses when it opens
APPEARS = 0.25  # opening from which the throat is drawn in full colour


@dataclass(frozen=True)
class Face:
    """Where a face is, and what it looks like."""

    x: float  # pixels
    y: float  # pixels
    radius: float  # pixels
    skin: Colour
    hair: Colour
    shirt: Colour
    half_width: float = 0.86
    half_height: float = 1.0
    eye: float = 0.125
    mouth_x: float = 0.34  # half the width of the mouth
    mouth_y: float = 0.46  # from the face's centre down to the mouth
    mouth_opening: float = 0.26  # half the height that full opening adds

    @property
    def box(self) -> tuple[int, int, int, int]:
        """From the hair's top to the chin."""
        left, right = self.x - 1.1 * self.half_width * self.radius, self.x + 1.1 * self.half_width * self.radius
        top = self.y - (0.18 + 1.02 * self.half_height) * self.radius
        bottom = self.y + (0.08 + 0.95 * self.half_height) * self.radius
        return max(0, round(left)), max(0, round(top)), round(right), round(bottom)


@dataclass(frozen=True)
class Scene:
    """Faces in front of a background that fades from one colour to another."""

    height: int
    width: int
    faces: tuple[Face, ...]
    sky: Colour
    ground: Colour

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        return [face.box for face in self.faces]

    def picture(self, openings: Sequence[float] | None = None) -> Tensor:
        """One frame [H, W, 3]; every mouth is closed unless `openings`, one in 0…1 for each face, says otherwise."""
        return self.video(torch.tensor(openings or [0.0] * len(self.faces))[:, None])[0]

    def video(self, openings: Tensor) -> Tensor:
        """The ground truth: openings [S, F] in 0…1 → [F, H, W, 3]."""
        canvas = _background(self.height, self.width, self.sky, self.ground)
        for face in self.faces:
            canvas = _draw_head(canvas, face)
        frames = canvas.expand(openings.shape[1], -1, -1, -1)
        for face, opening in zip(self.faces, openings, strict=True):
            frames = _draw_mouth(frames, face, opening)
        return frames


def draw_face(
    size: tuple[int, int], face: Face, opening: float = 0.0, sky: Colour = (0.45, 0.65, 0.85), ground: Colour = (0.35, 0.5, 0.7)
) -> Tensor:
    """A picture [H, W, 3] of one face; `size` is (height, width), `opening` of the mouth is in 0…1."""
    return Scene(*size, (face,), sky, ground).picture([opening])


def one_face(size: tuple[int, int] = (64, 64), radius: float | None = None) -> Scene:
    """A face in the middle of a picture of (height, width); `radius` in pixels, as large as fits if not given."""
    height, width = size
    radius = radius or 0.39 * min(size)
    face = Face(width / 2, 0.45 * height, radius, skin=SKINS[0], hair=HAIRS[1], shirt=(0.25, 0.40, 0.65))
    return Scene(height, width, (face,), sky=(0.45, 0.65, 0.60), ground=(0.40, 0.55, 0.55))


def two_faces(size: tuple[int, int] = (64, 128), radius: float | None = None) -> Scene:
    """A face in the middle of each half of a picture of (height, width)."""
    height, width = size
    radius = radius or 0.39 * min(height, width / 2)
    left = Face(width / 4, 0.45 * height, radius, skin=SKINS[0], hair=HAIRS[3], shirt=(0.30, 0.50, 0.40))
    right = Face(width * 3 / 4, 0.46 * height, radius, skin=SKINS[2], hair=HAIRS[0], shirt=(0.70, 0.60, 0.30), half_width=0.84, eye=0.115)
    return Scene(height, width, (left, right), sky=(0.45, 0.60, 0.75), ground=(0.50, 0.60, 0.70))


def any_faces(seed: int, count: int, size: tuple[int, int]) -> Scene:
    """Faces side by side with looks drawn from `seed`, as varied as those that the demo's models were trained on."""
    random = np.random.default_rng(seed)
    height, width = size
    part = width / count
    faces = [_any_face(random, (i + 0.5) * part, 0.45 * height, random.uniform(0.36, 0.42) * min(part, height)) for i in range(count)]
    sky = random.uniform(0.1, 0.95, 3)
    ground = (sky + random.normal(0, 0.12, 3)).clip(0, 1)
    return Scene(height, width, tuple(faces), tuple(sky), tuple(ground))


def _any_face(random: np.random.Generator, x: float, y: float, radius: float) -> Face:
    skin = (np.array(SKINS[random.integers(len(SKINS))]) + random.normal(0, 0.03, 3)).clip(0, 1)
    face = Face(x, y, radius, tuple(skin), HAIRS[random.integers(len(HAIRS))], tuple(random.uniform(0.1, 0.9, 3)))
    return replace(
        face,
        x=x + random.uniform(-0.15, 0.15) * radius,
        y=y + random.uniform(-0.1, 0.1) * radius,
        half_width=random.uniform(0.80, 0.92),
        half_height=random.uniform(0.95, 1.05),
        eye=random.uniform(0.10, 0.15),
        mouth_x=random.uniform(0.30, 0.38),
        mouth_y=random.uniform(0.42, 0.50),
        mouth_opening=random.uniform(0.24, 0.28),
    )


def _background(height: int, width: int, sky: Colour, ground: Colour) -> Tensor:
    fade = ((torch.arange(height) + 0.5) / height)[:, None, None]
    return torch.lerp(torch.tensor(sky).float(), torch.tensor(ground).float(), fade).expand(height, width, 3)


def _draw_head(canvas: Tensor, face: Face) -> Tensor:
    """Shoulders, hair, skin and eyes over a picture [H, W, 3]."""
    wide, high, eye = face.half_width, face.half_height, face.eye
    shapes = [
        ((0.0, 1.75), (1.15, 0.95), face.shirt),
        ((0.0, -0.18), (1.10 * wide, 1.02 * high), face.hair),
        ((0.0, 0.08), (wide, 0.95 * high), face.skin),
    ]
    for side in (-0.36, 0.36):
        shapes += [((side, -0.15), (1.35 * eye, 1.35 * eye), EYE_WHITE), ((side, -0.13), (0.75 * eye, 0.75 * eye), PUPIL)]
    for centre, radii, colour in shapes:
        cover = _ellipse(canvas.shape[0], canvas.shape[1], face, centre, *(torch.tensor([r]) for r in radii))[0]
        canvas = _over(canvas, cover, colour)
    return canvas


def _draw_mouth(frames: Tensor, face: Face, opening: Tensor) -> Tensor:
    """Lips and throat over frames [F, H, W, 3] of one face, opening [F]."""
    height, width = frames.shape[1:3]
    across = face.mouth_x * (1 - NARROWING * opening)
    down = CLOSED + face.mouth_opening * opening
    centre = (0.0, face.mouth_y)
    frames = _over(frames, _ellipse(height, width, face, centre, across + LIP_WIDTH, down + LIP_WIDTH), LIP)
    throat = _ellipse(height, width, face, centre, across, down) * (opening / APPEARS).clamp(0, 1)[:, None, None]
    return _over(frames, throat, THROAT)


def _over(picture: Tensor, cover: Tensor, colour: Colour) -> Tensor:
    return torch.lerp(picture, torch.tensor(colour).float().expand_as(picture), cover[..., None])


def _ellipse(height: int, width: int, face: Face, centre: tuple[float, float], across: Tensor, down: Tensor) -> Tensor:
    """How much of each pixel an ellipse covers: radii [F], in the face's own → [F, height, width] in 0…1.

    The distance to the edge is (1 − d) / |∇d| to first order, with d the ellipse's own norm; the edge is one pixel wide.
    """
    across, down = ((r * face.radius).clamp(min=0.35)[:, None, None] for r in (across, down))
    x = (torch.arange(width) + 0.5 - face.x - centre[0] * face.radius)[None, None, :]
    y = (torch.arange(height) + 0.5 - face.y - centre[1] * face.radius)[None, :, None]
    norm = ((x / across) ** 2 + (y / down) ** 2).sqrt().clamp(min=1e-4)
    gradient = ((x / across**2) ** 2 + (y / down**2) ** 2).sqrt().clamp(min=1e-4) / norm
    return ((1 - norm) / gradient + 0.5).clamp(0, 1)
