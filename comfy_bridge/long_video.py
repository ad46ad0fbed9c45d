"""A video of any length: the job on the disk, filled clip by clip through ComfyUI, then joined with its sound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
from torch import Tensor

from ..multitalk_core.audio.sound import playable
from ..multitalk_core.clock import FPS
from ..multitalk_core.families import FAMILIES
from ..multitalk_core.generate import Made, Video, generate
from ..multitalk_core.people.voices import Voices
from ..multitalk_core.sizes import fit_picture
from ..multitalk_core.video.disk import Destination
from ..multitalk_core.video.job import ANCHOR, Job, as_stored, motion_bytes
from ..multitalk_core.video.segments import CODECS, Codec
from ..multitalk_core.video.sources import VideoSource
from ..multitalk_core.windows import Clip, plan_shots
from .backend import ComfyBackend
from .fingerprints import stream_fingerprint
from .job_key import job_key, jobs_folder
from .messages import is_watched, tell
from .output import NumberedFile, made_with
from .progress import VideoProgress
from .sampling import Sampling
from .scene import Models, fit_scene, whole_clip
from .video_input import trimmed

SOUND_BYTES = 200_000  # upper bound for the audio of any codec, bytes per second


@dataclass(frozen=True)
class Settings:
    """What a user chooses for a long video."""

    width: int
    height: int
    seed: int
    sampling: Sampling
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
class Output:
    """Where the finished file goes, and what becomes of the job."""

    destination: Destination
    about: Mapping[str, str] = field(default_factory=dict)  # metadata of the file, by name
    keep_job: bool = True  # or remove the job's folder, once the file is there


@dataclass(frozen=True)
class Report:
    """What a finished video is made of, and how long it took."""

    frames: int
    clips: int
    finished_before: int  # clips that an earlier run had finished
    shots: int
    family: str
    audio_features: tuple[int, ...]  # their shape [S, F, L, D]
    took: float  # seconds

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "fps": FPS}

    def in_words(self) -> str:
        shots = f" of {self.shots} shots" if self.shots > 1 else ""
        lines = [
            f"{self.frames} frames ({self.frames / FPS:.2f} s) in {self.clips} clips{shots}, {self.family}",
            f"{self.finished_before} clips were finished before" if self.finished_before else "all clips made now",
            f"audio features {[*self.audio_features]}",
            f"{self.took:.0f} s",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class LongVideo:
    """A video, what makes it, and its sound."""

    backend: ComfyBackend
    video: Video
    sound: Sound

    def make(self, job: Job, output: Output, tell: Callable[[str], None], previews: bool = True) -> tuple[Path, Report]:
        """Make what is missing and join everything; returns the file, and what there is to say about it.

        Args:
            tell: gets a line about where the work is, for the node.
            previews: show the last frame of each clip.
        Raises:
            JobError: the disk, or another process; what is finished stays.
            InterruptProcessingException: the user stopped it; what is finished stays.
        """
        began = time.monotonic()
        clips = self.video.clips
        with job.hold():
            before = job.finished
            size = self.video.source(0).shape[1:3]
            missing = [clip for clip in clips if not job.is_finished(clip.index)]
            job.check_space(self._bytes(size, job, missing, files=2) + job.stored_bytes)
            sound = job.keep_sound(self.sound.waveform, self.sound.rate)
            progress = VideoProgress(self.backend.sampling.steps, len(clips), before, tell)

            def after_step(*step: Any) -> None:
                job.check_storing()
                progress.step(*step)

            followed = replace(self.backend, callback=after_step)

            def make(asked: Sequence[Clip], motion_frames: Tensor | None) -> Iterator[Made]:
                made = generate(followed, self.video, asked, motion_frames, hand_on=as_stored)
                for clip in asked:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    two = clips[max(0, clip.index - 1) : clip.index + 1]  # the one before may still have to be stored
                    job.check_space(self._bytes(size, job, two))
                    progress.begin(clip)
                    yield next(made)

            job.fill(make, progress.made if previews else lambda made: None)
            tell("joining")
            file = job.join(output.destination, sound, output.about)
            if not output.keep_job:
                job.remove()
        features = (len(self.video.tracks), *self.video.tracks[0].shape)
        shots, took = self.video.shots, round(time.monotonic() - began, 3)
        return file, Report(shots[-1].stop, len(clips), before, len(shots), self.video.family.name, features, took)

    def chosen(self, codec: Codec, quality: int) -> dict[str, Any]:
        """What a user chose that changes a pixel, as it is used: defaults are filled in, and what has no effect is None."""
        shots = [[shot.start, shot.stop, shot.clips[0].stop, *(clip.drop for clip in shot.clips[1:2])] for shot in self.video.shots]
        return {
            "family": self.video.family.name,
            "size": list(self.video.source(0).shape[1:3]),
            "shots": shots,
            "seed": self.video.seed,
            "colour": self.video.colour,
            "sampling": self.backend.sampling,
            "codec": [codec.encoder, codec.pixel_format, codec.sound, codec.options(quality)],
        }

    def _bytes(self, size: Sequence[int], job: Job, clips: Sequence[Clip], files: int = 1) -> int:
        """About what these clips take on the disk: their segments with sound, once per file, and the motion frames that are kept."""
        frames, (height, width) = sum(clip.keep for clip in clips), size
        segments = int(frames * (height * width * job.codec.bytes_per_pixel + SOUND_BYTES / FPS))
        kept = 2 + sum(clip.index % ANCHOR == 0 for clip in clips)  # two are there at a time
        return files * segments + kept * motion_bytes(max(clip.drop for clip in self.video.clips), height, width)


def long_video(models: Models, voices: Voices, picture: Tensor | None, source: VideoSource | None, settings: Settings) -> LongVideo:
    """Check everything and put it together; nothing is made yet.

    Args:
        picture: [B, H, W, C], the first is the video's source.
        source: a video in place of the picture, for dubbing.
    """
    scene, fit = fit_scene(models, voices, source(0) if source else picture, settings.width, settings.height)
    height, width = fit.shape[1:3]
    family = models.weights.family if settings.family == "auto" else FAMILIES[settings.family]
    overlap = whole_clip(settings.motion_frames or family.motion_frames)
    shots = plan_shots(voices.frames, settings.cuts, whole_clip(settings.clip_frames), overlap)
    frame = (lambda number: fit) if source is None else (lambda number: fit_picture(source(number), height, width))
    video = Video(family, shots, frame, voices.tracks, settings.seed, settings.colour)
    return LongVideo(ComfyBackend(scene, settings.sampling), video, Sound(*playable(voices.sound, voices.rate)))


@dataclass(frozen=True)
class FileSettings:
    """What a user chooses for the file."""

    codec: str
    quality: int
    filename_prefix: str
    keep_job: bool


@dataclass(frozen=True)
class Queued:
    """The node in the graph that was queued."""

    node: str  # its number
    lookup: Callable[[str], Mapping[str, Any]]  # a node by its number
    prompt: Mapping[str, Any] | None
    extra: Mapping[str, Any] | None  # ComfyUI's extra_pnginfo


@dataclass(frozen=True)
class Finished:
    """A video that is on the disk."""

    file: Path
    subfolder: str  # of ComfyUI's output folder
    sound: Sound
    report: Report


def run_long_video(
    models: Models, voices: Voices, picture: Tensor | None, video: Any, settings: Settings, file: FileSettings, queued: Queued
) -> Finished:
    """A long video from a node's inputs to the finished file. A video that was stopped goes on where it was.

    Args:
        picture: [B, H, W, C], or None.
        video: ComfyUI's VIDEO in place of the picture, for dubbing.
    Raises:
        ValueError: neither or both of picture and video.
        JobError, PictureError, SpeakerError, OutputError, …: what cannot work, in the user's words.
    """
    if (picture is None) == (video is None):
        raise ValueError("Connect either an image or a video: the people in it talk.")
    codec = CODECS[file.codec]
    destination = NumberedFile(file.filename_prefix, codec.suffix)
    with ExitStack() as stack:
        source, content = None, None
        if video is not None:
            trim, stream = trimmed(video), video.get_stream_source()
            content = [trim, stream_fingerprint(stream)]  # before the source is opened, which moves a stream that is in memory
            source = stack.enter_context(VideoSource(stream, *trim))
        work = long_video(models, voices, picture, source, settings)
        key = job_key(queued.node, queued.lookup, {**_arrived(models, voices, picture, content), **work.chosen(codec, file.quality)})
        job = Job(jobs_folder() / key, key, work.video.clips, codec, file.quality)
        output = Output(destination, made_with(queued.prompt, queued.extra), file.keep_job)
        made, report = work.make(job, output, tell, is_watched())
    return Finished(made, destination.subfolder, work.sound, report)


def _arrived(models: Models, voices: Voices, picture: Tensor | None, video: Any) -> dict[str, Any]:
    """Everything that is connected to the node and changes a pixel.

    Of voices, their sound counts: the embeddings follow from it and from the encoder, which the graph names; their last bits vary.
    """
    seen = None if models.clip_vision is None else models.clip_vision.patcher
    patchers = {"model": models.model, "weights": models.weights.patcher, "vae": models.vae.patcher, "clip_vision": seen}
    said = [voices.speakers, voices.frames, voices.sound, voices.rate]
    return patchers | {"prompts": [models.positive, models.negative], "picture": picture, "video": video, "voices": said}
