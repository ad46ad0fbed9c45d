"""A video of any length: the job on the disk, filled clip by clip through ComfyUI, then joined with its sound."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..multitalk_core.audio.sound import playable
from ..multitalk_core.clock import FPS
from ..multitalk_core.families import FAMILIES, Family
from ..multitalk_core.generate import clip_seed, make_clip
from ..multitalk_core.guidance import Projection
from ..multitalk_core.people.voices import Voices
from ..multitalk_core.schedule import sigmas
from ..multitalk_core.sizes import fit_picture
from ..multitalk_core.video.disk import Place
from ..multitalk_core.video.job import ANCHOR, Job, motion_bytes
from ..multitalk_core.video.segments import Codec
from ..multitalk_core.video.sources import VideoSource
from ..multitalk_core.windows import Clip, Embeds, Shot, plan_shots, stretch_of
from .backend import ComfyBackend
from .clip import fit_scene, whole_clip
from .conditioning import Conditioning
from .weights import MultiTalkWeights

SOUND_BYTES = 200_000  # a second, of what no codec here needs more


@dataclass(frozen=True)
class Settings:
    """What a user chooses for a long video."""

    width: int
    height: int
    seed: int
    steps: int
    shift: float
    text_scale: float
    audio_scale: float
    sampler_name: str
    projection: Projection | None
    family: str  # "auto" is the weights'
    clip_frames: int
    motion_frames: int  # 0 is the family's
    colour: float
    cuts: tuple[float, ...]  # s


@dataclass(frozen=True)
class Sound:
    """What the video's sound is encoded from."""

    waveform: Tensor  # [C, N], of one or two channels
    rate: int


@dataclass(frozen=True)
class LongVideo:
    """One video, of one shot or several: each has its own slice of the voices, first clip and colours."""

    backend: ComfyBackend
    family: Family
    shots: Sequence[Shot]
    source: Callable[[int], Tensor]  # frame number → [1, H, W, 3] at the video's size
    tracks: Sequence[Embeds]
    seed: int
    colour: float
    sound: Sound

    @property
    def plan(self) -> list[Clip]:
        """All clips."""
        return [clip for shot in self.shots for clip in shot.clips]

    def make(
        self,
        job: Job,
        codec: Codec,
        place: Place,
        tell: Callable[[str], None],
        keep_job: bool = True,
        about: Mapping[str, str] | None = None,
        previews: bool = True,
    ) -> tuple[Path, str]:
        """Make what is missing and join everything; returns the file, and a report in a few lines.

        Args:
            tell: gets a line about where the work is, for the node.
            keep_job: or remove the job's folder, once the file is there.
            about: metadata of the file, by name.
            previews: show the last frame of each clip.
        Raises:
            JobError: the disk, or another process; what is finished stays.
            InterruptProcessingException: the user stopped it; what is finished stays.
        """
        began = time.monotonic()
        clips = len(self.plan)
        shot_of = {clip.index: shot for shot in self.shots for clip in shot.clips}
        tracks_of = {shot.start: self._tracks(shot) for shot in self.shots}
        first_of = {0: self.source(0)}  # of the shot that is being made; a video is read forward
        size = first_of[0].shape[1:3]
        with job.hold():
            before = job.finished
            missing = [clip for clip in self.plan if not job.is_finished(clip.index)]
            job.check_space(2 * self._bytes(*size, codec, missing) + job.stored_bytes + self._motion_bytes(*size, missing))
            sound = job.keep_sound(self.sound.waveform, self.sound.rate)
            progress = Progress(self.backend, clips, before, tell)

            def step(*given: Any) -> None:
                job.check_storing()
                progress.step(*given)

            followed = replace(self.backend, callback=step)

            def make(clip: Clip, motion: Tensor | None) -> tuple[int, Tensor]:
                comfy.model_management.throw_exception_if_processing_interrupted()
                two = self.plan[max(0, clip.index - 1) : clip.index + 1]  # the one before may still have to be stored
                job.check_space(self._bytes(*size, codec, two) + self._motion_bytes(*size, two))
                progress.begin(clip)
                start = shot_of[clip.index].start
                if start not in first_of:
                    first_of.clear()
                    first_of[start] = self.source(start)
                first, source = first_of[start], self.source(start + clip.start)
                backend = followed.at((start + clip.start + clip.drop + clip.keep / 2) / FPS)
                frames = make_clip(backend, self.family, clip, source, first, motion, tracks_of[start], self.seed, self.colour)
                return clip_seed(self.seed, clip.index), frames

            job.fill(make, progress.made if previews else lambda clip, frames: None)
            tell("joining")
            out = job.join(place, sound, about)
            if not keep_job:
                job.remove()
        frames = self.shots[-1].stop
        shots = f" of {len(self.shots)} shots" if len(self.shots) > 1 else ""
        lines = [
            f"{frames} frames ({frames / FPS:.2f} s) in {clips} clips{shots}, {self.family.name}",
            f"{before} clips were finished before" if before else "all clips made now",
            f"audio features {[len(self.tracks), *self.tracks[0].shape]}",
            f"{time.monotonic() - began:.0f} s",
        ]
        return out, "\n".join(lines)

    def _tracks(self, shot: Shot) -> Sequence[Embeds]:
        return self.tracks if len(self.shots) == 1 else [stretch_of(track, shot.start, shot.stop) for track in self.tracks]

    def _bytes(self, height: int, width: int, codec: Codec, clips: Sequence[Clip]) -> int:
        """About what the segments of these clips take on the disk, with their sound."""
        frames = sum(clip.keep for clip in clips)
        return int(frames * (height * width * codec.bytes_per_pixel + SOUND_BYTES / FPS))

    def _motion_bytes(self, height: int, width: int, clips: Sequence[Clip]) -> int:
        """Of the motion frames that stay, and of two that are there at a time."""
        kept = 2 + sum(clip.index % ANCHOR == 0 for clip in clips)
        return kept * motion_bytes(max(clip.drop for clip in self.plan), height, width)


def long_video(
    model: comfy.model_patcher.ModelPatcher,
    weights: MultiTalkWeights,
    voices: Voices,
    picture: Tensor,
    vae: Any,
    positive: Conditioning,
    negative: Conditioning,
    clip_vision: Any,
    source: VideoSource | None,
    settings: Settings,
) -> LongVideo:
    """Everything checked and put together; nothing is made yet.

    Args:
        picture: [B, H, W, C], the first is the video's source, if there is no other.
        source: a video in place of the picture, for dubbing.
    """
    if source is not None:
        picture = source(0)
    scene, fit = fit_scene(model, weights, voices, picture, vae, positive, negative, settings.width, settings.height, clip_vision)
    height, width = fit.shape[1:3]
    family = weights.family if settings.family == "auto" else FAMILIES[settings.family]
    overlap = whole_clip(settings.motion_frames or family.motion_frames)
    shots = plan_shots(voices.frames, settings.cuts, whole_clip(settings.clip_frames), overlap)
    backend = ComfyBackend(
        **{field.name: getattr(scene, field.name) for field in fields(scene)},
        sigmas=sigmas(settings.steps, settings.shift),
        text_scale=settings.text_scale,
        audio_scale=settings.audio_scale,
        projection=settings.projection,
        sampler=comfy.samplers.sampler_object(settings.sampler_name),
    )
    frame = (lambda number: fit) if source is None else (lambda number: fit_picture(source(number), height, width))
    sound = Sound(*playable(voices.sound, voices.rate))
    return LongVideo(backend, family, shots, frame, voices.tracks, settings.seed, settings.colour, sound)


class Progress:
    """One bar over all steps of all clips, a line on the node, and the last frame of each clip."""

    def __init__(self, backend: ComfyBackend, clips: int, before: int, tell: Callable[[str], None]) -> None:
        self._steps, self._clips, self._tell = backend.sigmas.shape[-1] - 1, clips, tell
        self._bar = comfy.utils.ProgressBar(self._steps * clips)
        self._done, self._clip, self._before = before * self._steps, 0, before
        self._steps_made = self._clips_made = 0
        self._on_steps = self._on_rest = 0.0  # seconds: decoding, colours and storing are the rest
        self._at = time.monotonic()
        self._bar.update_absolute(self._done)

    def begin(self, clip: Clip) -> None:
        self._clip = clip.index
        self._on_rest += self._lap()
        self._tell(f"clip {clip.index + 1}/{self._clips}")

    def step(self, step: int, denoised: Tensor, noisy: Tensor, total: int) -> None:
        """ComfyUI's callback after every step."""
        self._steps_made += 1
        self._done = min(self._done + 1, self._steps * self._clips)
        self._on_steps += self._lap()
        self._tell(f"clip {self._clip + 1}/{self._clips}, step {step + 1}/{self._steps}, {self._time_left()} left")
        self._bar.update_absolute(self._done)

    def made(self, clip: Clip, frames: Tensor) -> None:
        """Shows the clip's last frame."""
        self._clips_made += 1
        self._on_rest += self._lap()
        self._bar.update_absolute(self._done, preview=("JPEG", _picture(frames[-1]), latent_preview.MAX_PREVIEW_RESOLUTION))

    def _time_left(self) -> str:
        """As long as the clips before took; until there was one, what follows a clip's steps is not known."""
        clips = self._clips - self._before - self._clips_made
        seconds = self._on_steps / self._steps_made * max(0, (self._clips - self._before) * self._steps - self._steps_made)
        return _clock(seconds + self._on_rest / self._clips_made * clips) if self._clips_made else f"at least {_clock(seconds)}"

    def _lap(self) -> float:
        """Seconds since the last one."""
        before, self._at = self._at, time.monotonic()
        return self._at - before


def _picture(frame: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((frame.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"
