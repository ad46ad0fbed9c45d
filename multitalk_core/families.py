"""The two published models as records: same layers and shapes, other rules for what a clip is conditioned on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """How the clips of a video hang together.

    Sources: MeiGen-AI/MultiTalk@c1ad840 wan/multitalk.py, generate(); MeiGen-AI/InfiniteTalk@0107cd9 wan/multitalk.py,
    generate_infinitetalk().
    """

    name: str
    motion_frames: int  # default overlap of two clips
    known: Literal["motion", "reference"]  # what later clips hold in y and its mask, and show to CLIP
    motion_latents: Literal["noised", "clean"]  # how the first latents are held while denoising


MULTITALK = Family("multitalk", motion_frames=25, known="motion", motion_latents="noised")
INFINITETALK = Family("infinitetalk", motion_frames=9, known="reference", motion_latents="clean")
FAMILIES = {family.name: family for family in (MULTITALK, INFINITETALK)}
