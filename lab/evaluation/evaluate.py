"""Measures the demo model: the product makes videos of drawn cases, and each is measured from its MP4.

The product is given what a user gives: a picture, face boxes and voices (`Take`). The evaluator is given what a viewer has: the MP4, the
boxes and the voices. What faces should have done is drawn as well, and always goes through an MP4 of its own: what the evaluator says
about that is its own error.

Shapes: S speakers, F video frames, N samples at 16 kHz; frames are [F, H, W, 3] in 0…1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...comfy_bridge.backend import ComfyBackend
from ...comfy_bridge.demo import Demo, load_demo
from ...comfy_bridge.sampling import Sampling
from ...comfy_bridge.scene import Models, Remembered, Scene, encode_with_grey
from ...multitalk_core.audio.loudness import voice_energy
from ...multitalk_core.clock import SAMPLE_RATE
from ...multitalk_core.families import FAMILIES
from ...multitalk_core.generate import Video, generate
from ...multitalk_core.lipsync.curves import mouth_opening, pearson
from ...multitalk_core.people.places import Box
from ...multitalk_core.people.speakers import Speaker, check_places, ref_target_masks, source_masks, token_masks
from ...multitalk_core.people.voices import encode_voices
from ...multitalk_core.windows import Clip, Shot
from .cases import ROWS, Case, Group, Record, Row, Scope, Settings, disturbed_voices, draw_case, plan_of
from .files import read_video, truth_file, video_file, video_parts, write_video

SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Measured:
    """What an MP4 shows."""

    correlations: list[list[float]]  # of every mouth with every voice
    means: list[float]  # of every mouth's opening
    deviations: list[float]


@dataclass(frozen=True)
class Take:
    """All that the product is given for one video."""

    picture: Tensor  # [1, H, W, 3]
    speakers: tuple[Speaker, ...]
    plan: Sequence[Clip]
    settings: Settings
    colour: float
    seed: int


class Maker(Protocol):
    """Whatever makes videos."""

    def make(self, take: Take) -> Iterator[Tensor]:
        """New frames of every clip in turn."""
        ...

    def reconstruct(self, frames: Tensor) -> Tensor:
        """Through the VAE and back."""
        ...


@dataclass
class Product:
    """The pack itself, with the weights in a folder."""

    folder: Path
    shuffled: bool = False  # audio projections that make no sense: a control that must fail
    _demos: dict[str, Demo] = field(default_factory=dict)
    _encode_known: dict[str, Remembered[Tensor]] = field(default_factory=dict)  # of each family; the rows of a case, too, have one picture

    def make(self, take: Take) -> Iterator[Tensor]:
        demo = self.demo(take.settings.family)
        voices = encode_voices(take.speakers, demo.audio_encoder, "parallel")
        models = Models(demo.model, demo.weights, demo.vae, demo.prompt, demo.prompt)
        encode_known = self._encode_known.setdefault(take.settings.family, Remembered(encode_with_grey))
        scene = Scene(models, _masks(take), encode_known=encode_known)
        chosen = take.settings
        sampling = Sampling(
            chosen.steps, chosen.shift, 1.0, chosen.audio_scale, projection=chosen.projection
        )  # prompts change nothing here
        backend = ComfyBackend(scene, sampling, callback=lambda *_: None)  # in place of ComfyUI's progress bar
        shots = [Shot(0, take.plan[-1].stop, tuple(take.plan))]
        video = Video(FAMILIES[chosen.family], shots, lambda frame: take.picture, voices.tracks, take.seed, take.colour)
        return (made.frames for made in generate(backend, video))

    def reconstruct(self, frames: Tensor) -> Tensor:
        vae = self.demo("multitalk").vae
        return vae.decode(vae.encode(frames)).flatten(end_dim=-4)

    def demo(self, family: str) -> Demo:
        """The models, loaded when a family is first asked for."""
        if family not in self._demos:
            self._demos[family] = load_demo(self.folder, FAMILIES[family])
            if self.shuffled:
                shuffle_audio(self._demos[family])
        return self._demos[family]


def shuffle_audio(demo: Demo) -> None:
    """Puts the weights of the first audio projections in any order: as large as before, without any meaning."""
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    for layer in (demo.weights.adapter.audio_proj.proj1, demo.weights.adapter.audio_proj.proj1_vf):
        values = layer.weight.data.flatten()
        layer.weight.data = values[torch.randperm(values.numel(), generator=generator)].view_as(layer.weight)


@dataclass(frozen=True)
class _Job:
    """One row of one case."""

    row: Row
    group: Group
    case: Case
    scope: Scope
    maker: Maker
    folder: Path

    def make(self, colour: float) -> Path:
        """The product's MP4."""
        file = video_file(self.folder, self.row.name, self.group.number)
        write_video(file, self.maker.make(self.take(colour)))
        return file

    def take(self, colour: float) -> Take:
        voices, boxes = [*self.case.voices], self.case.boxes
        if self.row.disturbed:
            voices = disturbed_voices(self.case, self.group.cases, self.group.number, self.scope)
        if self.row.swapped:
            boxes = boxes[::-1]
        speakers = [
            Speaker(voice[None], SAMPLE_RATE, box=box) if voice.any() else Speaker(box=box)
            for voice, box in zip(voices, boxes, strict=True)
        ]
        return Take(self.case.picture, tuple(speakers), plan_of(self.group.cases, self.scope), self.row.settings, colour, self.case.seed)


@torch.inference_mode()
def run(group: Group, scope: Scope, maker: Maker, folder: Path) -> Iterator[Record]:
    """Makes the videos of a group's rows, leaves them in the folder, and measures each.

    Raises:
        SpeakerError: a face that is lost on the model's grid.
    """
    case = draw_case(group.cases, group.number, scope)
    rows = [ROWS[name] for name in group.rows]
    if any(row.kind == "clip" for row in rows):
        write_video(truth_file(folder, group), [case.truth()])
    done: dict[tuple[Settings, bool, bool], Record] = {}
    for row in rows:
        alike = (row.settings, row.swapped, row.disturbed)  # eight steps at scale 1 is what several rows have
        if alike not in done:
            done[alike] = KINDS[row.kind](_Job(row, group, case, scope, maker, folder))
        yield {"row": row.name, "number": group.number, "layout": case.layout, **done[alike]}


def _clip(job: _Job) -> Record:
    """One video against what it should be. "hears" is the number of the voice that each face is given, None for no voice."""
    boxes, voices = job.case.boxes, job.case.voices
    made, truth = job.make(colour=0.0), truth_file(job.folder, job.group)
    heard = [number if voice.any() else None for number, voice in enumerate(voices)]
    return {
        "hears": heard[::-1] if job.row.swapped else heard,
        "made": asdict(measure(made, boxes, voices)),
        "truth": asdict(measure(truth, boxes, voices)),
        "psnr": psnr(read_video(made), read_video(truth)),
    }


def _long_video(job: _Job) -> Record:
    """A video of many clips: how each clip's new frames differ from what they should be. One clip is held at a time."""
    made, truth = job.make(job.scope.colour), truth_file(job.folder, job.group)
    plan = plan_of(job.group.cases, job.scope)
    starts = [clip.start + clip.drop for clip in plan]
    lengths = [clip.keep for clip in plan]
    write_video(truth, (job.case.truth(start, start + length) for start, length in zip(starts, lengths, strict=True)))
    ratios = [psnr(*parts) for parts in zip(video_parts(made, lengths), video_parts(truth, lengths), strict=True)]
    return {"hears": [0], "made": asdict(measure(made, job.case.boxes, job.case.voices)), "psnr": ratios}


def _reconstruction(job: _Job) -> Record:
    made, truth = video_file(job.folder, job.row.name, job.group.number), truth_file(job.folder, job.group)
    write_video(truth, [job.case.truth()])
    write_video(made, [job.maker.reconstruct(job.case.truth())])
    return {"psnr": psnr(read_video(made), read_video(truth))}


KINDS: dict[str, Callable[[_Job], Record]] = {"clip": _clip, "drift": _long_video, "vae": _reconstruction}


def _masks(take: Take) -> Tensor | None:
    """Classes on the token grid, as MultiTalk Conditioning makes them."""
    height, width = take.picture.shape[1:3]
    tokens = token_masks(ref_target_masks(source_masks(take.speakers, height, width), height, width))
    check_places(tokens)
    return tokens if len(take.speakers) > 1 else None


def measure(video: Path, boxes: Sequence[Box], voices: Tensor) -> Measured:
    """All that is measured of mouths, from a finished MP4, the boxes of the faces in it and the voices [S, N], each by itself."""
    frames = read_video(video)
    mouths = [mouth_opening(frames, box) for box in boxes]
    energies = [voice_energy(voice, frames.shape[0]) for voice in voices]
    return Measured(
        [[pearson(mouth, energy) for energy in energies] for mouth in mouths],
        [float(mouth.mean()) for mouth in mouths],
        [float(mouth.std(correction=0)) for mouth in mouths],
    )


def psnr(made: Tensor, truth: Tensor) -> float:
    """Peak signal to noise ratio in dB of frames in 0…1."""
    return -10 * math.log10(max(1e-10, float((made.clamp(0, 1) - truth).square().mean())))
