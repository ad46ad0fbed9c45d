"""Speakers, and where they are: masks on the grids that the model sees.

Shapes: S speakers, K = S + 1 classes (the background is last), masks [.., H, W] of zeros and ones, boxes (x0, y0, x1, y1) in pixels
of the source picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio.sound import sound_of
from ..errors import SpeakerError
from ..notes import note
from ..sizes import LATENT_STRIDE, fit_mask
from .places import Box, box_mask, default_boxes, is_solid

MAX_SPEAKERS = 4
TRAINED = 2  # speakers that the published weights have seen
FEW_TOKENS = 4
SOFT_EDGE = 0.25  # of a mask's pixels; more soft ones than an edge has are said
COUNTED = " (Speakers are counted from the left: speaker 1 is the input speaker_0.)"


@dataclass(frozen=True)
class Speaker:
    """One person in the picture: what is heard, from when on, and where the face is.

    Without a waveform the speaker is silent: zero samples that are encoded like any others. Without mask and box, the speaker
    gets an equal part of the picture, from left to right.
    """

    waveform: Tensor | None = None  # [C, N] or [B, C, N]
    rate: int = 0  # Hz
    start: float | None = None  # s
    mask: Tensor | None = None  # [H, W], the speaker is where it is solid (places.is_solid)
    box: Box | None = None
    name: str = ""
    played: tuple[Tensor, int] | None = None  # what is to be heard in the video ([C, N], Hz), where that is not the waveform

    @property
    def sound(self) -> tuple[Tensor, int] | None:
        """What the video plays of this speaker; nothing of a silent one."""
        return self.played or (None if self.waveform is None else (self.waveform, self.rate))

    @classmethod
    def of(
        cls,
        audio: Mapping[str, Any] | None,
        start: float | None,
        mask: Tensor | None,
        box: Box | None,
        silent: bool = False,
        name: str = "",
    ) -> Speaker:
        """A speaker from ComfyUI's AUDIO ({"waveform", "sample_rate"}), checked.

        Raises:
            AudioError: unusable audio.
            SpeakerError: audio missing from a speaker who is not silent.
        """
        if audio is None:
            if not silent:
                raise SpeakerError("A speaker has no audio. Connect some, or set the role to 'silent'.")
            return cls(mask=mask, box=box, name=name)  # a start time of somebody who says nothing must not lengthen the video
        return cls(*sound_of(audio), start, mask, box, name)


def called(speakers: Sequence[Speaker], index: int) -> str:
    """How messages name a speaker: by number, and by name if there is one."""
    name = speakers[index].name
    return f"speaker {index + 1} ({name})" if name else f"speaker {index + 1}"


def capital(text: str) -> str:
    """With a capital at the beginning, and names as they are."""
    return text[:1].upper() + text[1:]


def source_masks(speakers: Sequence[Speaker], height: int, width: int) -> Tensor:
    """Every speaker's mask at the size of the source picture: [S, H, W].

    Raises:
        SpeakerError: none or too many speakers, or an empty mask.
    """
    if not 1 <= len(speakers) <= MAX_SPEAKERS:
        raise SpeakerError(f"{len(speakers)} speakers were given; 1 to {MAX_SPEAKERS} were expected.")
    defaults = default_boxes(len(speakers), height, width)
    masks = []
    for number, (speaker, default) in enumerate(zip(speakers, defaults, strict=True), start=1):
        _note_softness(speaker, number)
        mask = _own_mask(speaker, default, height, width)
        masks.append(mask)
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


def place_report(speakers: Sequence[Speaker], tokens: Tensor) -> list[str]:
    """What a user should know about who is where, in plain words; nothing stops here, unlike in `check_places`.

    Args:
        tokens: [S + 1, N] from `token_masks`.
    """
    masks = tokens[:-1] > 0
    lines = []
    for i, mask in enumerate(masks):
        own, shared = int((mask & (masks.sum(dim=0) == 1)).sum()), int((mask & (masks.sum(dim=0) > 1)).sum())
        lines.append(f"{capital(called(speakers, i))}: {own + shared} of {mask.numel()} cells.")
        if shared:
            others = [called(speakers, j) for j in range(len(masks)) if j != i and (mask & masks[j]).any()]
            lines[-1] += f" {shared} of them also belong to {' and '.join(others)}: there, either voice may win."
        if own + shared < FEW_TOKENS:
            lines[-1] += " That is very little for a mouth; use a larger picture size."
        if len(masks) > 1 and speakers[i].mask is None and speakers[i].box is None:
            lines[-1] += " There is neither a mask nor a box, so an equal part of the picture is theirs."
    background = int(tokens[-1].sum())
    if len(masks) > 1 and not background:
        lines.append("Nothing is left for the background: whatever lies around the faces will listen to somebody. Draw tighter masks.")
    if len(masks) > TRAINED:
        lines.append(f"The published weights were trained for {TRAINED} speakers; more are an experiment.")
    return lines


def hearing_report(maps: Tensor, masks: Tensor) -> str:
    """Which voice each speaker's place hears, in words.

    Args:
        maps: [K, T, h, w] reference maps of one block, background last.
        masks: [K, h, w] of the classes' own tokens.
    """
    winner = maps.argmax(dim=0)  # [T, h, w]
    lines = []
    for i, mask in enumerate(masks[:-1] > 0):
        heard = winner[:, mask].flatten()
        shares = [(float((heard == c).float().mean()), c) for c in range(len(masks))]
        messages = [f"{share:.0%} {_voice_name(c, len(masks) - 1)}" for share, c in sorted(shares, reverse=True) if share >= 0.005]
        lines.append(f"Place of speaker {i + 1}: {', '.join(messages)}.")
    return "\n".join(lines)


def _voice_name(number: int, background: int) -> str:
    return "background" if number == background else f"voice {number + 1}"


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


def _note_softness(speaker: Speaker, number: int) -> None:
    """Says where much of a mask does not count."""
    if speaker.mask is None:
        return
    solid = int(is_solid(speaker.mask).sum())
    soft = int((speaker.mask > 0).sum()) - solid
    if soft > SOFT_EDGE * solid:
        note(f"The mask of speaker {number} is soft or hazy: {solid} of {solid + soft} pixels count, from half its highest value on.")


def _own_mask(speaker: Speaker, default: Box, height: int, width: int) -> Tensor:
    if speaker.mask is not None:
        return fit_mask(is_solid(speaker.mask[None].cpu()).float(), height, width)[0]  # of another size: cropped as its picture was
    return box_mask(speaker.box or default, height, width)
