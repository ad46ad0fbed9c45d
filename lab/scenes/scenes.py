"""What the demo's videos show: how large they are, where faces stand, and how faces act on a voice.

Shapes: S speakers, F video frames. Everything is drawn from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .faces import Acting, Scene, scene_of

NOD = 0.035  # downwards shift of the head in its radii, at full loudness
NOD_FRAMES = 9  # over which loudness is averaged for it: heads are slower than lips
BLINK = (0.35, 0.9, 1.0, 0.7, 0.3)  # how closed the eyes are in its five frames
SPOKEN = 0.15  # mean loudness of half a second above which its end is a pause that people blink in
SECONDS_BETWEEN_BLINKS = 6.0  # of those that have no reason
FPS = 25
LIPS = (0.25, 0.5, 0.25)  # lips follow a voice a little smoothed


@dataclass(frozen=True)
class Layout:
    """A picture's size and its number of faces, with the range of their radii in pixels."""

    height: int
    width: int
    speakers: int
    smallest: float
    largest: float

    def places(self, random: np.random.Generator) -> list[tuple[float, float, float]]:
        """(x, y, radius) in pixels for every face, each in its own part of the picture."""
        part = self.width / self.speakers
        places = []
        for i in range(self.speakers):
            radius = random.uniform(self.smallest, self.largest)
            slack_x, slack_y = max(0.0, part / 2 - 0.95 * radius), max(0.0, self.height / 2 - 1.1 * radius)
            x = (i + 0.5) * part + random.uniform(-1, 1) * min(slack_x, 0.5 * radius)
            y = 0.47 * self.height + random.uniform(-1, 1) * min(slack_y, 0.4 * radius)
            places.append((x, y, radius))
        return places

    def scene(self, random: np.random.Generator, places: list[tuple[float, float, float]] | None = None) -> Scene:
        """Faces with any looks, at `places` or anywhere."""
        return scene_of(random, places or self.places(random), (self.height, self.width))


ONE_SMALL = Layout(64, 64, 1, 21, 27)
TWO_SMALL = Layout(64, 128, 2, 21, 27)
ONE = Layout(128, 128, 1, 34, 54)
TWO = Layout(128, 192, 2, 32, 46)
ONE_WIDE = Layout(128, 192, 1, 34, 54)
ONE_FAR = Layout(128, 128, 1, 22, 34)
TWO_FAR = Layout(128, 128, 2, 21, 29)
THREE = Layout(64, 192, 3, 21, 27)
FOUR = Layout(64, 256, 4, 21, 27)


def act(energies: Tensor, random: np.random.Generator) -> Acting:
    """How faces act on how loud their voices are, [S, F] in 0…1; all but the blinks without reason follows from the voice."""
    lips = F.conv1d(F.pad(energies[:, None], (1, 1), mode="replicate"), torch.tensor(LIPS)[None, None])[:, 0]
    half = NOD_FRAMES // 2
    slow = F.avg_pool1d(F.pad(energies[:, None], (half, half), mode="replicate"), NOD_FRAMES, stride=1)[:, 0]
    return Acting(lips, NOD * slow, torch.stack([_blinks(energy, random) for energy in energies]))


def _blinks(energy: Tensor, random: np.random.Generator) -> Tensor:
    """[F] in 0…1: a blink where a stretch of speech ends, and now and then one without reason."""
    blinks = torch.zeros(energy.shape[0] + len(BLINK))
    since, half = FPS, FPS // 2
    for frame in range(energy.shape[0]):
        since += 1
        pause = frame > half and energy[frame] == 0 and energy[frame - 1] > 0 and energy[frame - half : frame].mean() > SPOKEN
        if since > FPS and (pause or random.random() < 1 / (FPS * SECONDS_BETWEEN_BLINKS)):
            blinks[frame : frame + len(BLINK)] = torch.tensor(BLINK)
            since = 0
    return blinks[: energy.shape[0]]


def wandering(random: np.random.Generator, speakers: int, frames: int) -> Tensor:
    """Loudness curves [S, F] without a voice: for training what only looks at pictures. A tenth of the speakers is silent."""
    curves = []
    for _ in range(speakers):
        steps = torch.from_numpy(random.normal(0.25, 0.45, frames + 4)).float()
        curve = steps.unfold(0, 3, 1).mean(dim=1)[:frames].mul(1.6).clamp(0, 1)
        curves.append(curve if random.random() < 0.9 else torch.zeros(frames))
    return torch.stack(curves)
