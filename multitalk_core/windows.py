"""Which frames belong to which clip, and which embeddings each frame hears: integers and indexing.

Shapes: S speakers, F video frames, W = 5 neighbours, L layers, D hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .clock import FPS, read_list, seconds_of

WINDOW = 5  # neighbours −2…+2 of every video frame
FRAMES_PER_LATENT = 4  # the Wan VAE's stride in time


@dataclass(frozen=True)
class Clip:
    """One denoise: video frames start…stop of the whole, of which the first `drop` repeat the clip before and `keep` follow."""

    index: int
    start: int
    stop: int
    drop: int
    keep: int


def latent_frames(frames: int) -> int:
    """T of a clip: the first frame has a latent of its own, then one for every four."""
    return (frames - 1) // FRAMES_PER_LATENT + 1


def fitting_frames(frames: int) -> int:
    """The next number of frames of the form 4n + 1, which is what the VAE can hold."""
    return whole_frames(latent_frames(max(1, frames) + FRAMES_PER_LATENT - 1))


def whole_frames(latents: int) -> int:
    """Frames of a clip of T latents."""
    return (latents - 1) * FRAMES_PER_LATENT + 1


def plan_clips(frames: int, clip_frames: int, overlap: int) -> list[Clip]:
    """Clips that cover a video of exactly `frames` frames.

    Every clip is `clip_frames` long and begins clip_frames − overlap after the one before; the last is trimmed, so the video
    ends with the audio (the official loop ends 3 frames short, and stops at 1000).

    Source of the advance: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate().
    Raises:
        ValueError: nothing to plan, or clips that do not advance.
    """
    if frames < 1:
        raise ValueError(f"A video of {frames} frames cannot be planned; at least 1 frame was expected.")
    if not 0 < overlap < clip_frames:
        most = max(1, clip_frames - FRAMES_PER_LATENT)
        raise ValueError(f"{overlap} motion frames leave nothing new in a clip of {clip_frames} frames. Use at most {most}.")
    advance = clip_frames - overlap
    clips = []
    covered = 0
    while covered < frames:
        index = len(clips)
        start = index * advance
        drop = overlap if index else 0
        covered = min(start + clip_frames, frames)
        clips.append(Clip(index, start, start + clip_frames, drop, covered - start - drop))
    return clips


@dataclass(frozen=True)
class Shot:
    """What lies between two cuts: a video of its own within the video."""

    start: int  # its first frame in the whole video
    stop: int
    clips: tuple[Clip, ...]  # numbered through the whole video; their frames count from the shot's beginning


def parse_cuts(text: str) -> tuple[float, ...]:
    """Seconds from what a user writes: times between commas, semicolons or spaces.

    Raises:
        ValueError: something that is no time, or that can be read in two ways.
    """
    try:
        return read_list(text, lambda listed: tuple(seconds_of(part) for part in re.split(r"[,;\s]+", listed) if part))
    except ValueError as error:
        raise ValueError(f"'{text}' are no cuts: {error}") from error


def plan_shots(frames: int, cuts: Sequence[float], clip_frames: int, overlap: int) -> list[Shot]:
    """Shots that cover a video of exactly `frames` frames.

    Args:
        cuts: seconds; each to the nearest frame. What lies at the video's ends cuts nothing.
    Raises:
        ValueError: a cut behind the video's end.
    """
    if beyond := [cut for cut in cuts if round(cut * FPS) > frames]:
        raise ValueError(
            f"The video is {frames / FPS:.2f} s long, as long as the voices; the cut at {', '.join(f'{cut:g}' for cut in beyond)} s "
            "lies behind its end. Times count from the beginning, in seconds or as 1:30."
        )
    inside = {number for cut in cuts if 0 < (number := round(cut * FPS)) < frames}
    bounds = [0, *sorted(inside), frames]
    shots: list[Shot] = []
    count = 0
    for start, stop in pairwise(bounds):
        clips = [replace(clip, index=count + clip.index) for clip in plan_clips(stop - start, clip_frames, overlap)]
        count += len(clips)
        shots.append(Shot(start, stop, tuple(clips)))
    return shots


@dataclass(frozen=True)
class Stretch:
    """A part of a track as a track of its own; what it is read from may lie on a disk."""

    track: Embeds
    start: int
    stop: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self.stop - self.start, *self.track.shape[1:]])

    def __getitem__(self, frames: slice) -> Tensor:
        first, last, _ = frames.indices(self.stop - self.start)
        return self.track[self.start + first : self.start + max(first, last)]


def stretch_of(track: Embeds, start: int, stop: int) -> Embeds:
    """The embeddings of the frames start…stop, at least one: a track may end a frame before its video."""
    stop = max(min(stop, track.shape[0]), 1)
    return Stretch(track, min(start, stop - 1), stop)


def window_indices(start: int, stop: int) -> Tensor:
    """[F, 5] embedding numbers that the frames start…stop hear: two neighbours on each side, none before the first.

    The end is left open; `reflect` closes it.
    """
    centres = torch.arange(start, stop)[:, None]
    neighbours = torch.arange(WINDOW) - WINDOW // 2
    return (centres + neighbours).clamp(min=0)


def reflect(indices: Tensor, length: int) -> Tensor:
    """Numbers behind the end of a track, mirrored: length + i is length − 1 − i, back and forth as often as needed.

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate(): the reversed tail that is appended for the last clip.
    """
    phase = indices % (2 * length)
    return torch.minimum(phase, 2 * length - 1 - phase)


def audio_windows(tracks: Sequence[Embeds], start: int, stop: int) -> Tensor:
    """Windows of the frames start…stop of every speaker: S tracks of [F, L, D] → [S, F, 5, L, D]."""
    wanted = window_indices(start, stop)
    heard = {}  # by a track's length: what of it is read, and the numbers within
    for length in {track.shape[0] for track in tracks}:
        indices = reflect(wanted, length)
        first, last = int(indices.min()), int(indices.max())
        heard[length] = slice(first, last + 1), indices - first
    parts = ((track, *heard[track.shape[0]]) for track in tracks)
    return torch.stack([track[read][within] for track, read, within in parts])


class Embeds(Protocol):
    """Embeddings of one track: [F, L, D], sliced by frame. A Tensor is one; so is a file on disk."""

    @property
    def shape(self) -> torch.Size: ...
    def __getitem__(self, frames: slice, /) -> Tensor: ...
