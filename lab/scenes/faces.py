"""Drawn faces that speak: the demo's pictures, and videos whose mouth opening is known exactly.

The demo's models were trained on such faces with a radius of 20 to 54 pixels, so this is also the kind of picture they can animate.

Shapes: H, W pixels, S faces, F video frames; pictures and videos are [.., H, W, 3] in 0…1, boxes (x0, y0, x1, y1) in pixels.
Lengths of a Face are in its radius, measured from the face's centre; y grows downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Colour = tuple[float, float, float]
Hairstyle = Literal["cap", "bald", "bob", "long", "bun", "curls", "hat"]

SKINS: tuple[Colour, ...] = (
    (0.98, 0.82, 0.66), (0.90, 0.68, 0.50), (0.72, 0.50, 0.34), (0.52, 0.35, 0.24), (0.96, 0.76, 0.70),
    (0.99, 0.88, 0.40), (0.62, 0.85, 0.62), (0.55, 0.68, 0.92), (0.80, 0.65, 0.90),
)  # fmt: skip
HAIRS: tuple[Colour, ...] = (
    (0.15, 0.10, 0.08), (0.35, 0.20, 0.10), (0.85, 0.70, 0.30), (0.60, 0.15, 0.10), (0.20, 0.20, 0.50), (0.55, 0.55, 0.55),
    (0.90, 0.88, 0.85), (0.75, 0.35, 0.60),
)  # fmt: skip
LIPS: tuple[Colour, ...] = ((0.80, 0.25, 0.28), (0.72, 0.36, 0.34), (0.85, 0.42, 0.48), (0.62, 0.22, 0.26))
HAIRSTYLES: tuple[Hairstyle, ...] = ("cap", "bald", "bob", "long", "bun", "curls", "hat")
EYE_WHITE: Colour = (1.0, 1.0, 1.0)
PUPIL: Colour = (0.08, 0.08, 0.10)
LIP: Colour = LIPS[0]
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
    lip: Colour = LIP
    hairstyle: Hairstyle = "cap"
    glasses: Colour | None = None
    brows: bool = False
    nose: bool = False
    ears: bool = False

    @property
    def box(self) -> tuple[int, int, int, int]:
        """From the hair's top to the chin, the same for every hairstyle."""
        left, right = self.x - 1.1 * self.half_width * self.radius, self.x + 1.1 * self.half_width * self.radius
        top = self.y - (0.18 + 1.02 * self.half_height) * self.radius
        bottom = self.y + (0.08 + 0.95 * self.half_height) * self.radius
        return max(0, round(left)), max(0, round(top)), round(right), round(bottom)

    @property
    def mouth_box(self) -> tuple[int, int, int, int]:
        """Around the mouth at its widest, lips included."""
        across, down = self.mouth_x + LIP_WIDTH, CLOSED + self.mouth_opening + LIP_WIDTH
        edges = (-across, self.mouth_y - down, across, self.mouth_y + down)
        x0, y0, x1, y1 = (round(o + e * self.radius) for o, e in zip((self.x, self.y) * 2, edges, strict=True))
        return max(0, x0 - 1), max(0, y0 - 1), x1 + 1, y1 + 1


@dataclass(frozen=True)
class Acting:
    """What the faces do in every frame, each [S, F]."""

    openings: Tensor  # of the mouths, 0…1
    nods: Tensor | None = None  # downwards shift of the head, in radii
    blinks: Tensor | None = None  # 0 is an open eye, 1 a closed one


@dataclass(frozen=True)
class Disc:
    """Something round in the background: middle and radii in shares of the picture's width and height."""

    x: float
    y: float
    across: float
    down: float
    colour: Colour


@dataclass(frozen=True)
class Scene:
    """Faces in front of a background that fades from one colour to another."""

    height: int
    width: int
    faces: tuple[Face, ...]
    sky: Colour
    ground: Colour
    discs: tuple[Disc, ...] = ()

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        return [face.box for face in self.faces]

    def picture(self, openings: Sequence[float] | None = None) -> Tensor:
        """One frame [H, W, 3]; every mouth is closed unless `openings`, one in 0…1 for each face, says otherwise."""
        return self.video(torch.tensor(openings or [0.0] * len(self.faces))[:, None])[0]

    def video(self, acting: Acting | Tensor) -> Tensor:
        """The ground truth: acting, or openings [S, F] of still heads → [F, H, W, 3]."""
        if isinstance(acting, Tensor):
            acting = Acting(acting)
        still = torch.zeros_like(acting.openings)
        nods = still if acting.nods is None else acting.nods
        blinks = still if acting.blinks is None else acting.blinks
        frames = self._background().repeat(acting.openings.shape[1], 1, 1, 1)
        for face, opening, nod, blink in zip(self.faces, acting.openings, nods, blinks, strict=True):
            body, head = _Pen(frames, face, still[0]), _Pen(frames, face, nod)
            for centre, radii in _hair(face):
                head.ellipse(centre, radii, face.hair)
            body.ellipse((0.0, 1.75), (1.15, 0.95), face.shirt)
            _draw_head(head, face, blink)
            _draw_mouth(head, face, opening)
        return frames

    def _background(self) -> Tensor:
        fade = ((torch.arange(self.height) + 0.5) / self.height)[:, None, None]
        canvas = torch.lerp(torch.tensor(self.sky).float(), torch.tensor(self.ground).float(), fade)
        canvas = canvas.expand(self.height, self.width, 3)[None].clone()
        for disc in self.discs:
            middle = Face(disc.x * self.width, disc.y * self.height, 1.0, *([disc.colour] * 3))
            _Pen(canvas, middle, torch.zeros(1)).ellipse((0, 0), (disc.across * self.width, disc.down * self.height), disc.colour)
        return canvas[0]


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
    places = []
    for i in range(count):
        radius = random.uniform(0.34, 0.42) * min(part, height)
        x = (i + 0.5) * part + random.uniform(-0.15, 0.15) * radius
        places.append((x, (0.45 + random.uniform(-0.04, 0.04)) * height, radius))
    return scene_of(random, places, size)


def scene_of(random: np.random.Generator, places: Sequence[tuple[float, float, float]], size: tuple[int, int]) -> Scene:
    """Faces with any looks at given places (x, y, radius in pixels), in front of any background."""
    faces = tuple(any_face(random, *place) for place in places)
    sky = _any_colour(random, 0.15, 0.9).clip(0, 1)
    ground = (sky + random.normal(0, 0.1, 3)).clip(0, 1)
    discs = []
    for _ in range(random.integers(0, 4)):
        colour = (sky + random.normal(0, 0.08, 3)).clip(0, 1)
        discs.append(Disc(*random.uniform(0, 1, 2), *random.uniform(0.08, 0.3, 2), tuple(colour)))
    return Scene(*size, faces, tuple(sky), tuple(ground), tuple(discs))


def any_face(random: np.random.Generator, x: float, y: float, radius: float) -> Face:
    """A face with any looks, at a place in pixels."""
    skin = (np.array(SKINS[random.integers(len(SKINS))]) + random.normal(0, 0.03, 3)).clip(0, 1)
    face = Face(x, y, radius, tuple(skin), HAIRS[random.integers(len(HAIRS))], tuple(_any_colour(random, 0.15, 0.85).clip(0, 1)))
    return replace(
        face,
        half_width=random.uniform(0.78, 0.94),
        half_height=random.uniform(0.95, 1.05),
        eye=random.uniform(0.10, 0.15),
        mouth_x=random.uniform(0.30, 0.38),
        mouth_y=random.uniform(0.42, 0.50),
        mouth_opening=random.uniform(0.24, 0.28),
        lip=LIPS[random.integers(len(LIPS))],
        hairstyle=HAIRSTYLES[random.integers(len(HAIRSTYLES))],
        glasses=tuple(random.uniform(0.05, 0.5, 3)) if random.random() < 0.25 else None,
        brows=random.random() < 0.6,
        nose=random.random() < 0.6,
        ears=random.random() < 0.4,
    )


def _any_colour(random: np.random.Generator, dark: float, light: float) -> np.ndarray:
    """More grey than not, as most things are."""
    return random.uniform(dark, light) + 0.4 * (random.uniform(dark, light, 3) - 0.5 * (dark + light))


def _draw_head(pen: _Pen, face: Face, blink: Tensor) -> None:
    """Ears, skin, eyes and what else a face has in front of its hair; blink [F]."""
    wide, high, eye = face.half_width, face.half_height, face.eye
    shade = tuple(0.82 * c for c in face.skin)
    if face.ears:
        for side in (-1, 1):
            pen.ellipse((side * wide, 0.05), (0.13, 0.2), shade)
    pen.ellipse((0.0, 0.08), (wide, 0.95 * high), face.skin)
    if face.hairstyle == "hat":
        pen.ellipse((0.0, -0.62 * high), (1.12 * wide, 0.14), tuple(0.75 * c for c in face.hair))
    for side in (-0.36, 0.36):
        if face.glasses:
            pen.ellipse((side, -0.15), (0.29, 0.27), face.glasses)
            pen.ellipse((side, -0.15), (0.235, 0.215), face.skin)
        lid = 1 - blink  # eyes close by becoming flat
        pen.ellipse((side, -0.15), (1.35 * eye, 1.35 * eye * lid + 0.015), EYE_WHITE, (0.1 + 3 * lid).clamp(max=1))
        pen.ellipse((side, -0.13), (0.75 * eye, 0.75 * eye * lid + 0.02), PUPIL)
        if face.brows:
            pen.ellipse((side, -0.15 - 1.35 * eye - 0.12), (0.19, 0.04), face.hair)
    if face.glasses:
        pen.ellipse((0.0, -0.15), (0.09, 0.035), face.glasses)
    if face.nose:
        pen.ellipse((0.0, 0.14), (0.075, 0.11), shade)


def _hair(face: Face) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Middles and radii of the hair's ellipses, behind the skin."""
    wide, high = face.half_width, face.half_height
    cap = ((0.0, -0.18), (1.10 * wide, 1.02 * high))
    more: dict[Hairstyle, list[tuple[tuple[float, float], tuple[float, float]]]] = {
        "cap": [cap],
        "bald": [],
        "bob": [((0.0, 0.02), (1.2 * wide, 1.1 * high))],
        "long": [((0.0, 0.25), (1.2 * wide, 1.35 * high)), cap],
        "bun": [((0.0, -1.1 * high), (0.34, 0.26)), cap],
        "curls": [((side * 0.75 * wide, -0.55), (0.42, 0.42)) for side in (-1, 1)] + [((0.0, -0.75), (0.6, 0.45)), cap],
        "hat": [((0.0, -0.35), (1.05 * wide, 0.9 * high))],
    }
    return more[face.hairstyle]


def _draw_mouth(pen: _Pen, face: Face, opening: Tensor) -> None:
    """Lips and throat; opening [F]."""
    across = face.mouth_x * (1 - NARROWING * opening)
    down = CLOSED + face.mouth_opening * opening
    centre = (0.0, face.mouth_y)
    pen.ellipse(centre, (across + LIP_WIDTH, down + LIP_WIDTH), face.lip)
    pen.ellipse(centre, (across, down), THROAT, (opening / APPEARS).clamp(0, 1))


class _Pen:
    """Draws on frames [F, H, W, 3], in place, in the lengths of one face whose head is shifted downwards by `shift` [F] radii."""

    def __init__(self, frames: Tensor, face: Face, shift: Tensor) -> None:
        self._frames, self._face, self._shift = frames, face, shift * face.radius

    def ellipse(self, centre: tuple[float, float], radii: Sequence[float | Tensor], colour: Colour, cover: Tensor | None = None) -> None:
        """An ellipse about `centre`; its radii and how much it covers, 0…1, can change with the frames [F].

        The distance to the edge is (1 − d) / |∇d| to first order, with d the ellipse's own norm; the edge is one pixel wide.
        """
        face = self._face
        height, width = self._frames.shape[1:3]
        across, down = (torch.as_tensor(r).float().mul(face.radius).clamp(min=0.35).reshape(-1, 1, 1) for r in radii)
        x, y = face.x + centre[0] * face.radius, face.y + centre[1] * face.radius + self._shift
        left, right = max(0, int(x - across.max() - 2)), min(width, int(x + across.max() + 3))
        top, bottom = max(0, int(y.min() - down.max() - 2)), min(height, int(y.max() + down.max() + 3))
        if left >= right or top >= bottom:
            return
        dx = (torch.arange(left, right) + 0.5 - x)[None, None, :]
        dy = (torch.arange(top, bottom) + 0.5)[None, :, None] - y[:, None, None]
        norm = ((dx / across) ** 2 + (dy / down) ** 2).sqrt().clamp(min=1e-4)
        gradient = ((dx / across**2) ** 2 + (dy / down**2) ** 2).sqrt().clamp(min=1e-4) / norm
        inside = ((1 - norm) / gradient + 0.5).clamp(0, 1)
        if cover is not None:
            inside = inside * cover[:, None, None]
        part = self._frames[:, top:bottom, left:right]
        part.lerp_(torch.tensor(colour).float().expand_as(part), inside[..., None].expand_as(part))
