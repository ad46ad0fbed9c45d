"""The loop: a video of any length, clip by clip. Everything that needs models is behind `Backend`.

`generate` is the only place where clips follow one another. Long Video, parity, the evaluation and the benchmarks all run it.

Shapes: frames [F, H, W, 3] in 0…1, latents [1, C, T, h, w] as the VAE makes them, windows [S, F, 5, L, D].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .clock import FPS
from .colour import match_colours
from .families import Family
from .windows import Clip, Embeds, Shot, audio_windows, latent_frames, stretch_of

GREY = 0.5  # what stands for frames that are not known yet


@dataclass(frozen=True)
class Motion:
    """Latents that the first T_m frames of a clip are held to."""

    latent: Tensor  # [1, C, T_m, h, w]
    noised: bool  # at the noise level of every step (MultiTalk), or clean (InfiniteTalk)


@dataclass(frozen=True)
class Condition:
    """All that one clip is made from."""

    windows: Tensor  # [S, F, 5, L, D]
    known_latent: Tensor  # [1, C, T, h, w] of the known frames and grey
    known_latent_frames: int  # of which the mask says: known
    clip_picture: Tensor  # [1, H, W, 3], what CLIP sees
    motion: Motion | None
    second: float = 0.0  # time in the video at the middle of the clip's new frames: the prompt that holds then is used


class Encoder(Protocol):
    """The VAE's way in."""

    def encode(self, frames: Tensor) -> Tensor:
        """VAE: [F, H, W, 3] → [1, C, T, h, w]."""
        ...

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        """VAE: a clip of which only the source [1, H, W, 3] is known, `with_grey`; an image is every clip's, and so is its latent."""
        ...


class Backend(Encoder, Protocol):
    """Host and models."""

    def make_room(self, memory: int) -> torch.device:
        """Free so many bytes on the device that computes, and name it; frames are wherever the VAE leaves them."""
        ...

    def denoise(self, condition: Condition, seed: int) -> Tensor:
        """One clip: → [1, C, T, h, w]."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """VAE: [1, C, T, h, w] → [F, H, W, 3]."""
        ...


def clip_seed(seed: int, index: int) -> int:
    """The seed of a clip: a function of (seed, clip) alone, so that any clip can be made again. The first keeps the user's."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8], "big") >> 1


def with_grey(known: Tensor, frames: int) -> Tensor:
    """Known frames [n, H, W, 3], and grey in place of the others: [frames, H, W, 3]."""
    grey = torch.full((frames - known.shape[0], *known.shape[1:]), GREY, dtype=known.dtype, device=known.device)
    return torch.cat([known, grey])


@dataclass(frozen=True)
class Video:
    """What is to be generated: one shot or several. Every shot has a first clip, a stretch of the voices and colours of its own."""

    family: Family
    shots: Sequence[Shot]
    source: Callable[[int], Tensor]  # frame number → [1, H, W, 3] at the video's size; a video file is read forward
    tracks: Sequence[Embeds]
    seed: int
    colour: float = 1.0  # strength of the colour correction, 0…1

    @property
    def clips(self) -> list[Clip]:
        """All clips, in order; their frames count from the beginning of their shot."""
        return [clip for shot in self.shots for clip in shot.clips]

    def shot_of(self, clip: Clip) -> Shot:
        """The shot that a clip belongs to."""
        return next(shot for shot in self.shots if shot.clips[0].index <= clip.index <= shot.clips[-1].index)

    def tracks_of(self, shot: Shot) -> Sequence[Embeds]:
        """The voices of a shot."""
        return self.tracks if len(self.shots) == 1 else [stretch_of(track, shot.start, shot.stop) for track in self.tracks]


@dataclass(frozen=True)
class Made:
    """A finished clip."""

    clip: Clip
    seed: int
    frames: Tensor  # [keep, H, W, 3], the new ones
    motion_frames: Tensor  # [drop, H, W, 3], what the next clip of the shot begins with


def generate(
    backend: Backend,
    video: Video,
    clips: Sequence[Clip] | None = None,
    motion_frames: Tensor | None = None,
    hand_on: Callable[[Tensor], Tensor] = torch.clone,
) -> Iterator[Made]:
    """Make clips one after the other. Only one clip is held at a time, and the next is made when it is asked for.

    Args:
        clips: the clips to make, without gaps; all of the video by default.
        motion_frames: what the first of `clips` begins with; not used if it is the first of a shot.
        hand_on: applied to the motion frames before the next clip begins with them. A job on disk stores them and passes what it
            will read back, so that a job that is resumed makes the same bits. The default copies: a view would hold the whole clip.
    """
    overlap = max(clip.drop for clip in video.clips)
    shot, first, tracks = None, torch.empty(0), video.tracks
    for clip in video.clips if clips is None else clips:
        if shot is None or clip.index > shot.clips[-1].index:
            shot = video.shot_of(clip)
            first, tracks = video.source(shot.start), video.tracks_of(shot)
        source = video.source(shot.start + clip.start)
        begins = None if clip.drop == 0 else motion_frames
        condition = condition_clip(backend, video.family, clip, source, begins, tracks)
        condition = replace(condition, second=condition.second + shot.start / FPS)
        seed = clip_seed(video.seed, clip.index)
        frames = finished(backend, video, backend.decode(backend.denoise(condition, seed)), first)
        del condition
        motion_frames = hand_on(frames[len(frames) - overlap :])
        frames = frames[clip.drop : clip.drop + clip.keep]
        yield Made(clip, seed, frames, motion_frames)
        del frames


def finished(backend: Backend, video: Video, frames: Tensor, first: Tensor) -> Tensor:
    """What is done to decoded frames [F, H, W, 3] before they are shown and handed on: colours are matched to the shot's first frame.

    The whole decoded clip is corrected before its end becomes the next condition, so the correction feeds forward.

    Source: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate().
    """
    return match_colours(frames, first, video.colour, backend.make_room)


def condition_clip(
    encoder: Encoder, family: Family, clip: Clip, source: Tensor, motion_frames: Tensor | None, tracks: Sequence[Embeds]
) -> Condition:
    """Build a clip's condition by its family's rules.

    Args:
        source: [1, H, W, 3], the source's frame at the clip's start (an image is the same for all).
        motion_frames: the last frames of the clip before, colour-matched; None for the first clip.
    """
    frames = clip.stop - clip.start
    if family.known == "motion" and motion_frames is not None:
        known = motion_frames
        known_latent = encoder.encode(with_grey(known, frames))
    else:
        known = source
        known_latent = encoder.encode_source(known, frames)
    known_latent_frames = latent_frames(known.shape[0])
    motion = None
    if family.motion_latents == "clean":
        motion = Motion(encoder.encode(source if motion_frames is None else motion_frames), noised=False)
    elif motion_frames is not None:
        motion = Motion(known_latent[:, :, :known_latent_frames], noised=True)
    windows = audio_windows(tracks, clip.start, clip.stop)
    second = (clip.start + clip.drop + clip.keep / 2) / FPS
    return Condition(windows, known_latent, known_latent_frames, known[-1:], motion, second)
