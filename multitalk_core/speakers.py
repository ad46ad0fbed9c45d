"""Speakers, and where they are: masks on the grids that the model sees.

Shapes: S speakers, K = S + 1 classes (the background is last), masks [.., H, W] of zeros and ones, boxes (x0, y0, x1, y1) in pixels
of the source picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .audio import as_sound
from .sizes import LATENT_STRIDE, fit_mask

MAX_SPEAKERS = 4
COUNTED = " (Speakers are counted from the left: speaker 1 is the input speaker_0.)"
MARGIN = 0.05  # share of its part of the picture by which a default mask is smaller on every side ("face_scale")

Box = tuple[float, float, float, float]


class SpeakerError(ValueError):
    """The speakers cannot be told apart; the message names the speaker (counted from 1) and what to change."""


@dataclass(frozen=True)
class Speaker:
    """One person in the picture: what is heard, from when on, and where the face is.

    Without a waveform the speaker is silent: zero samples that are encoded like any others. Without mask and box, the speaker
    gets an equal part of the picture, from left to right.
    """

    waveform: Tensor | None = None  # [C, N] or [B, C, N]
    rate: int = 0  # Hz
    start: float | None = None  # s
    mask: Tensor | None = None  # [H, W], above 0 is the speaker
    box: Box | None = None

    @classmethod
    def of(
        cls, audio: Mapping[str, Any] | None, start: float | None, mask: Tensor | None, box: Box | None, silent: bool = False
    ) -> Speaker:
        """A speaker from ComfyUI's AUDIO ({"waveform", "sample_rate"}), checked.

        Raises:
            AudioError: unusable audio.
            SpeakerError: audio missing from a speaker who is not silent.
        """
        if audio is None:
            if not silent:
                raise SpeakerError("A speaker has no audio. Connect some, or set the role to 'silent'.")
            return cls(mask=mask, box=box)  # a start time of somebody who says nothing must not lengthen the video
        rate = int(audio["sample_rate"])
        return cls(as_sound(audio["waveform"], rate), rate, start, mask, box)


def parse_box(text: str) -> Box | None:
    """ "x0, y0, x1, y1" in pixels → a box; None for an empty text.

    Raises:
        SpeakerError: not four numbers, or no area.
    """
    if not text.strip():
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in re.split(r"[,\s]+", text.strip(" \t\n()[]")))
    except ValueError as error:
        raise SpeakerError(
            f"'{text}' is no box. Write four numbers: left, top, right, bottom in pixels, for example 40, 20, 200, 180."
        ) from error
    if not (x1 > x0 and y1 > y0 and all(map(math.isfinite, (x0, y0, x1, y1)))):
        raise SpeakerError(f"The box '{text}' has no area: right must be greater than left, and bottom greater than top.")
    return x0, y0, x1, y1


def box_mask(box: Box, height: int, width: int) -> Tensor:
    """A box (x0, y0, x1, y1) in pixels as a mask [H, W]; the corners are truncated to whole pixels and clipped to the picture.

    The official lists say [row0, column0, row1, column1] although they are called x and y there.
    """
    x0, y0, x1, y1 = (max(0, int(edge)) for edge in box)
    mask = torch.zeros(height, width)
    mask[y0:y1, x0:x1] = 1
    return mask


def default_boxes(speakers: int, height: int, width: int) -> list[Box]:
    """Equal parts of the picture from left to right, each smaller by MARGIN on every side; a single speaker has all of it.

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate() (left and right half); three and four follow the same rule.
    """
    if speakers == 1:
        return [(0, 0, width, height)]
    part = width // speakers
    top, bottom = int(height * MARGIN), int(height * (1 - MARGIN))
    return [(i * part + int(part * MARGIN), top, i * part + int(part * (1 - MARGIN)), bottom) for i in range(speakers)]


def source_masks(speakers: Sequence[Speaker], height: int, width: int) -> Tensor:
    """Every speaker's mask at the size of the source picture: [S, H, W].

    Raises:
        SpeakerError: none or too many speakers, or an empty mask.
    """
    if not 1 <= len(speakers) <= MAX_SPEAKERS:
        raise SpeakerError(f"{len(speakers)} speakers were given; 1 to {MAX_SPEAKERS} were expected.")
    defaults = default_boxes(len(speakers), height, width)
    masks = [_own_mask(s, default, height, width) for s, default in zip(speakers, defaults, strict=True)]
    for number, mask in enumerate(masks, start=1):
        if not mask.any():
            raise SpeakerError(
                f"The mask or box of speaker {number} covers nothing of the picture. Draw it over the speaker's face.{COUNTED}"
            )
    return torch.stack(masks)


def ref_target_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Classes on the latent grid: speakers [S, H, W] at the source's size → [S + 1, height / 8, width / 8], background last.

    The background is what no speaker covers; then all classes are scaled and cropped exactly as the picture is.

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate().
    """
    spoken = (masks > 0).float()
    classes = torch.cat([spoken, 1 - spoken.amax(dim=0, keepdim=True)])
    fit = fit_mask(classes, height, width)
    grid = (height // LATENT_STRIDE, width // LATENT_STRIDE)
    return (F.interpolate(fit[None], size=grid, mode="nearest")[0] > 0).float()


def token_masks(classes: Tensor) -> Tensor:
    """Classes on the token grid of one latent frame: [K, h, w] → [K, (h / 2) · (w / 2)].

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/modules/multitalk_model.py, WanModel.forward().
    """
    grid = (classes.shape[-2] // 2, classes.shape[-1] // 2)
    return (F.interpolate(classes[None].float(), size=grid, mode="nearest")[0] > 0).float().flatten(1)


def check_places(tokens: Tensor) -> None:
    """Every speaker must keep a token of their own.

    Args:
        tokens: [S + 1, N] from `token_masks`.
    Raises:
        SpeakerError: a mask that vanished on the grid or was cropped away, or that others cover entirely.
    """
    speakers = tokens[:-1] > 0
    for number, mask in enumerate(speakers, start=1):
        others = speakers.sum(dim=0) - mask.int()
        if not mask.any():
            raise SpeakerError(
                f"The mask of speaker {number} vanishes on the model's grid (16×16 pixels a cell), or lies outside of what the crop "
                f"keeps. Draw it larger, or use a larger picture size.{COUNTED}"
            )
        if not (mask & (others == 0)).any():
            raise SpeakerError(
                f"The mask of speaker {number} lies entirely under other speakers' masks. Leave each face to one speaker.{COUNTED}"
            )


def _own_mask(speaker: Speaker, default: Box, height: int, width: int) -> Tensor:
    if speaker.mask is not None:
        return fit_mask((speaker.mask[None].cpu() > 0).float(), height, width)[0]  # of another size: cropped as its picture was
    return box_mask(speaker.box or default, height, width)
