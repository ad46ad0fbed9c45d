"""What the demo model is measured on: drawn cases that it never saw, and the rows of the evaluation that they are made for.

A case is a scene, what its speakers say, and how their faces act on it, drawn from (seed, cases, number) alone. Rows with the same cases
can be compared clip by clip.

Shapes: S speakers, F video frames, N samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ...multitalk_core.audio.files import read_sound
from ...multitalk_core.audio.loudness import voice_energy
from ...multitalk_core.audio.sound import mono_16k
from ...multitalk_core.clock import FPS, SAMPLE_RATE
from ...multitalk_core.errors import AudioError
from ...multitalk_core.families import FAMILIES
from ...multitalk_core.guidance import Projection
from ...multitalk_core.lipsync.curves import pearson
from ...multitalk_core.people.places import Box
from ...multitalk_core.windows import Clip, plan_clips
from ..scenes import scenes
from ..scenes.faces import Acting, Scene
from ..scenes.scenes import Layout
from ..scenes.speech import disturbed, utterance

# Larger than training's seeds: numpy fills seeds up with zeros, so that (3, 5, 0) would draw what (3, 5) drew in training.
SEED = 20_260_000
LEAST_SPEECH = 0.12  # standard deviation of a voice's loudness; below, it is mostly silent and there is nothing to follow
MOST_ALIKE = 0.3  # correlation of two voices' loudness, in absolute value; above, following one is following the other
SNR = 10.0  # dB, of disturbed voices
CLIP_FRAMES, VAE_FRAMES = 81, 33
DRIFT_CLIPS = 12
EVALUATION = 0.02  # share of the VAE's time for a clip that one evaluation of the diffusion model takes, on a CPU
RECORDINGS = (".wav", ".flac", ".mp3", ".ogg")

LAYOUTS: dict[str, Layout] = {
    name: getattr(scenes, name)
    for name in ("ONE_SMALL", "ONE", "ONE_FAR", "ONE_WIDE", "TWO_SMALL", "TWO", "TWO_FAR", "THREE", "FOUR")
}  # fmt: skip

Record = dict[str, Any]  # one measured video, as it stands in a line of JSON (evaluate.run)
Counted = Literal["all", "few", "drift", "vae", "recordings"]


@dataclass(frozen=True)
class Cases:
    """A stream of cases, which take their layouts in turn; in the quick check, `quick` in place of them."""

    stream: int  # of random numbers
    layouts: tuple[str, ...]
    quick: tuple[str, ...] = ()
    silent: bool = False  # every other time the first of two speakers, and else the second


CASES = {
    "one": Cases(1, ("ONE_SMALL", "ONE", "ONE_WIDE", "ONE_FAR"), quick=("ONE_SMALL", "ONE", "ONE_SMALL", "ONE_SMALL")),
    "two": Cases(2, ("TWO_SMALL", "TWO", "TWO_FAR"), quick=("TWO_SMALL", "TWO_FAR", "TWO_SMALL", "TWO_SMALL")),
    "silent": Cases(3, ("TWO_SMALL", "TWO", "TWO_FAR"), quick=("TWO_SMALL",), silent=True),
    "vae": Cases(4, ("ONE",)),
    "drift-multitalk": Cases(5, ("ONE", "ONE_SMALL")),
    "drift-infinitetalk": Cases(5, ("ONE", "ONE_SMALL")),  # the same faces; the voices are longer
    "three": Cases(6, ("THREE",)),
    "four": Cases(7, ("FOUR",)),
    "recordings": Cases(8, ("ONE_SMALL", "ONE")),
}


@dataclass(frozen=True)
class Settings:
    """What a user can turn."""

    steps: int = 8
    shift: float = 3.0
    audio_scale: float = 1.0
    projection: Projection | None = None
    family: str = "multitalk"


@dataclass(frozen=True)
class Row:
    """One line of the evaluation: cases, and how the product makes videos of them."""

    name: str
    title: str
    cases: str
    counted: Counted
    settings: Settings = Settings()
    kind: Literal["clip", "vae", "drift"] = "clip"
    swapped: bool = False  # the two speakers' boxes are exchanged
    disturbed: bool = False  # noise or music around the voices


STEPS, SCALES = (1, 2, 4, 8, 20), (1, 2, 3, 4, 5)
ROWS = {
    row.name: row
    for row in (
        Row("one", "one speaker", "one", "all"),
        Row("two", "two speakers", "two", "all"),
        Row("swapped", "two speakers, boxes exchanged", "two", "all", swapped=True),
        Row("silent", "two speakers, one of them silent", "silent", "all"),
        Row("vae", "VAE at 128×128", "vae", "vae", kind="vae"),
        *(Row(f"drift-{name}", f"12 clips, {name}", f"drift-{name}", "drift", Settings(family=name), kind="drift") for name in FAMILIES),
        Row("three", "three speakers", "three", "few"),
        Row("four", "four speakers", "four", "few"),
        *(Row(f"steps-{n}", f"{n} step" + "s" * (n > 1), "one", "few", Settings(steps=n)) for n in STEPS),
        *(Row(f"audio-{n}", f"audio scale {n}", "one", "few", Settings(audio_scale=n)) for n in SCALES),
        Row("apg-3", "audio scale 3, APG", "one", "few", Settings(audio_scale=3, projection=Projection())),
        Row("disturbed", f"noise or music around, {SNR:g} dB", "one", "few", disturbed=True),
        Row("recordings", "real recordings", "recordings", "recordings"),
    )
}
QUICK = {"one": 4, "two": 4, "swapped": 2, "silent": 2}


@dataclass(frozen=True)
class Scope:
    """What cases depend on beside their number."""

    seed: int = SEED
    frames: int = CLIP_FRAMES  # of ordinary clips
    quick: bool = False
    colour: float = 1.0  # strength of the colour correction, in videos of many clips
    recordings: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Group:
    """All that is made of one case, by one process, so that its picture is encoded once."""

    cases: str
    number: int
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """What is shown and said, and what should come of it."""

    layout: str
    scene: Scene
    voices: Tensor  # [S, N]; the zeros of a silent speaker too
    acting: Acting
    seed: int  # of the diffusion's noise

    @property
    def frames(self) -> int:
        return self.acting.openings.shape[1]

    @property
    def boxes(self) -> list[Box]:
        return [*self.scene.boxes]

    @property
    def picture(self) -> Tensor:
        """[1, H, W, 3]: every mouth is closed."""
        return self.scene.picture()[None]

    def truth(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Frames start…stop of what a perfect model makes, [.., H, W, 3]: first the picture itself, then faces that act."""
        curves = (self.acting.openings, self.acting.nods, self.acting.blinks)
        video = self.scene.video(Acting(*(curve if curve is None else curve[:, start:stop] for curve in curves)))
        if start == 0:
            video[0] = self.picture[0]
        return video


def groups(rows: Sequence[tuple[Row, int]]) -> list[Group]:
    """What there is to do for so many videos of each row, in the order of the cases' numbers: what is broken off has some of all."""
    wanted: dict[tuple[int, str], list[str]] = {}
    for row, count in rows:
        for number in range(count):
            wanted.setdefault((number, row.cases), []).append(row.name)
    return [Group(cases, number, tuple(names)) for (number, cases), names in sorted(wanted.items(), key=lambda item: item[0][0])]


def draw_case(cases: str, number: int, scope: Scope) -> Case:
    """The same case for the same arguments, whatever was drawn before."""
    stream = CASES[cases]
    random = np.random.default_rng((scope.seed, stream.stream, number))
    name = layout_of(cases, number, scope)
    scene = LAYOUTS[name].scene(random)
    if cases == "recordings":
        voices = [recorded_voice(scope.recordings[number], frames_of(cases, scope))]
    else:
        voices = draw_voices(random, LAYOUTS[name].speakers, frames_of(cases, scope))
    if stream.silent:
        voices[number % 2].zero_()
    energies = torch.stack([voice_energy(voice, frames_of(cases, scope)) for voice in voices])
    acting = scenes.act(energies, random)
    return Case(name, scene, torch.stack(voices), acting, seed=int(random.integers(2**31)))


def layout_of(cases: str, number: int, scope: Scope) -> str:
    layouts = CASES[cases].quick if scope.quick and CASES[cases].quick else CASES[cases].layouts
    return layouts[number % len(layouts)]


def frames_of(cases: str, scope: Scope) -> int:
    """Video frames of a case."""
    if cases == "vae":
        return VAE_FRAMES
    if cases.startswith("drift-"):
        return plan_of(cases, scope)[-1].stop
    return scope.frames


def plan_of(cases: str, scope: Scope) -> list[Clip]:
    """The clips that a video of these cases is made in, with their family's overlap."""
    if not cases.startswith("drift-"):
        frames = frames_of(cases, scope)
        return [Clip(0, start=0, stop=frames, drop=0, keep=frames)]
    overlap = FAMILIES[cases.removeprefix("drift-")].motion_frames
    return plan_clips(CLIP_FRAMES + (DRIFT_CLIPS - 1) * (CLIP_FRAMES - overlap), CLIP_FRAMES, overlap)


def cost(row: Row, number: int, scope: Scope) -> float:
    """How long a video takes, in no unit: VAE and diffusion grow with the pixels, the latter with its evaluations too."""
    layout = LAYOUTS[layout_of(row.cases, number, scope)]
    frames = sum(clip.stop - clip.start for clip in plan_of(row.cases, scope))
    evaluations = row.settings.steps * (1 if row.settings.audio_scale == 1 else 2)
    return layout.height * layout.width * frames * (1 + EVALUATION * evaluations)


def draw_voices(random: np.random.Generator, speakers: int, frames: int) -> list[Tensor]:
    """A held-out utterance [N] of the video's length for each speaker: all say something, and none like another."""
    voices: list[Tensor] = []
    energies: list[Tensor] = []
    while len(voices) < speakers:
        voice = utterance(random, "held_out", frames / FPS)
        energy = voice_energy(voice, frames)
        if energy.std() >= LEAST_SPEECH and all(abs(pearson(energy, other)) <= MOST_ALIKE for other in energies):
            voices.append(voice)
            energies.append(energy)
    return voices


def recorded_voice(file: Path, frames: int) -> Tensor:
    """The first stretch of a recording, as long as the video, in which somebody speaks: [N]. A short recording is followed by silence.

    Raises:
        AudioError: nobody speaks in it.
    """
    length = round(frames / FPS * SAMPLE_RATE)
    for voice in _stretches(mono_16k(*read_sound(file)), length):
        if voice_energy(voice, frames).std() >= LEAST_SPEECH:
            return voice
    raise AudioError(f"Nobody speaks in any {frames / FPS:g} s of '{file.name}'. Choose another recording.")


def _stretches(recording: Tensor, length: int) -> Iterator[Tensor]:
    for start in range(0, max(1, recording.shape[0] - length + 1), length):
        voice = recording[start : start + length]
        yield torch.nn.functional.pad(voice, (0, length - voice.shape[0]))


def disturbed_voices(case: Case, cases: str, number: int, scope: Scope) -> list[Tensor]:
    """The case's voices with noise or music around each, drawn from a stream of their own."""
    random = np.random.default_rng((scope.seed, CASES[cases].stream, number, 1))
    return [disturbed(voice, random, SNR) for voice in case.voices]
