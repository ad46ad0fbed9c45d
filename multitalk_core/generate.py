"""A video of any length, clip by clip. What ComfyUI does for a clip is behind Backend; this is the order of things.

Shapes: frames [F, H, W, 3] in 0…1, latents [1, C, T, h, w] as the VAE makes them, windows [S, F, 5, L, D].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .colour import match_colours
from .families import Family
from .windows import Clip, Embeds, audio_windows, latent_frames

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


class Backend(Protocol):
    """Host and models."""

    def device_with(self, memory: int) -> torch.device:
        """What computes, with so many bytes free; frames are wherever the VAE leaves them."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """VAE: [F, H, W, 3] → [1, C, T, h, w]."""
        ...

    def encode_source(self, source: Tensor, frames: int) -> Tensor:
        """VAE: a clip of which only the source [1, H, W, 3] is known, `with_grey`; an image is every clip's, and so is its latent."""
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


def condition_clip(
    backend: Backend, family: Family, clip: Clip, source: Tensor, motion_frames: Tensor | None, tracks: Sequence[Embeds]
) -> Condition:
    """Build a clip's condition by its family's rules.

    Args:
        source: [1, H, W, 3], the source's frame at the clip's start (an image is the same for all).
        motion_frames: the last frames of the clip before, colour-matched; None for the first clip.
    """
    frames = clip.stop - clip.start
    if family.known == "motion" and motion_frames is not None:
        known = motion_frames
        known_latent = backend.encode(with_grey(known, frames))
    else:
        known = source
        known_latent = backend.encode_source(known, frames)
    known_latent_frames = latent_frames(known.shape[0])
    motion = None
    if family.motion_latents == "clean":
        motion = Motion(backend.encode(source if motion_frames is None else motion_frames), noised=False)
    elif motion_frames is not None:
        motion = Motion(known_latent[:, :, :known_latent_frames], noised=True)
    return Condition(audio_windows(tracks, clip.start, clip.stop), known_latent, known_latent_frames, known[-1:], motion)


def generate(
    backend: Backend,
    family: Family,
    plan: Sequence[Clip],
    source: Callable[[int], Tensor],
    tracks: Sequence[Embeds],
    seed: int,
    colour_strength: float = 1.0,
) -> Iterator[Tensor]:
    """New frames of every clip in turn, [keep, H, W, 3]; only one clip is held at a time.

    Colours are matched to the source's first frame on the whole decoded clip, before its end becomes the next condition, so the
    correction feeds forward.

    Args:
        source: frame number → [1, H, W, 3], fitted to the video's size.
    """
    first = source(0)
    motion_frames = None
    for number, clip in enumerate(plan):
        frames = make_clip(backend, family, clip, source(clip.start), first, motion_frames, tracks, seed, colour_strength)
        if number + 1 < len(plan):
            motion_frames = frames[-plan[number + 1].drop :].clone()  # a view would hold the whole clip
        frames = frames[clip.drop : clip.drop + clip.keep]
        yield frames
        del frames


def make_clip(
    backend: Backend,
    family: Family,
    clip: Clip,
    source: Tensor,
    first: Tensor,
    motion_frames: Tensor | None,
    tracks: Sequence[Embeds],
    seed: int,
    colour_strength: float = 1.0,
) -> Tensor:
    """All frames of one clip, those that repeat the clip before included, with their colours matched.

    Args:
        source: [1, H, W, 3], the source's frame at the clip's start.
        first: [1, H, W, 3], the source's first frame, which colours are matched to.
        motion_frames: the end of the clip before; None for the first clip.
    """
    condition = condition_clip(backend, family, clip, source, motion_frames, tracks)
    frames = backend.decode(backend.denoise(condition, clip_seed(seed, clip.index)))
    return match_colours(frames, first, colour_strength, backend.device_with)
