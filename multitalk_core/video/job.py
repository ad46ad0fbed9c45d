"""A long video on disk while it is made: what is finished stays, whatever happens to the process.

A job is a folder. `manifest.jsonl` begins with a line that says whose it is; then follows a line for every finished clip with the size
and checksum of its files: the encoded segment, and the motion frames that the next clip begins with. A line is written after its files
are safe on the disk, so what the manifest names is whole, or it was damaged later, which its checksum tells.

Motion frames are large and only the next clip needs them. They are kept of the last clip and of every ANCHOR-th, from where any other
can be made again to the same bits.

Shapes: frames [F, H, W, 3] in 0…1.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DiskFullError, JobError
from ..files import checksum, megabytes, sync
from ..generate import Made
from ..windows import Clip
from .disk import Destination, explained
from .segments import Codec, join_segments, to_pixels, write_segment, write_sound

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST, LOCK = "manifest.jsonl", "lock"
ANCHOR = 16  # clips
STEPS = 65535  # of motion frames between 0 and 1: 16 bits, far finer than any VAE is exact
SPARE = 64 * 2**20  # bytes that are left free for everybody else


class JobBusyError(JobError):
    """Somebody else is making the same video."""


@dataclass(frozen=True)
class _Stored:
    """A file as the manifest knows it."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Finished:
    """A clip's line."""

    seed: int
    frames: int
    segment: _Stored
    motion: _Stored


class Job:
    """One video's folder. Only one process can hold it (`hold`); everything else is called while it is held."""

    def __init__(self, folder: Path, key: str, plan: Sequence[Clip], codec: Codec, quality: int) -> None:
        self.folder, self.codec = folder, codec
        self._key, self._plan, self._quality = key, plan, quality
        self._finished: dict[int, _Finished] = {}
        self._storing: Future[None] | None = None

    @contextmanager
    def hold(self) -> Iterator[Job]:
        """Take the folder, and see what of it can be used.

        Raises:
            JobBusyError: another process holds it.
            JobError: it cannot be written.
        """
        from filelock import FileLock, Timeout  # torch needs it, so it is there

        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCK, timeout=0)
            try:
                lock.acquire()
            except Timeout as error:
                raise JobBusyError(
                    f"Another ComfyUI is making this video in {self.folder.name}. Wait until it ends, or stop it; then queue again."
                ) from error
        try:
            with explained(self.folder):
                self._read()
            yield self
        finally:
            lock.release()

    # -- what is there

    @property
    def finished(self) -> int:
        """Clips whose segments are whole."""
        return len(self._finished)

    @property
    def stored_bytes(self) -> int:
        """Of all finished segments."""
        return sum(clip.segment.bytes for clip in self._finished.values())

    def is_finished(self, index: int) -> bool:
        """Whether a clip's segment is whole."""
        return index in self._finished

    def first_missing(self) -> int | None:
        """The first clip that is still to be made; None if all are finished."""
        return next((clip.index for clip in self._plan if clip.index not in self._finished), None)

    def beginning_for(self, index: int) -> tuple[int, Tensor | None]:
        """From which clip on to make clips so that clip `index` can be made, and the motion frames to begin with."""
        for begin in range(index, 0, -1):
            if self._plan[begin].drop == 0:  # a new shot, which nothing leads into
                return begin, None
            if begin - 1 in self._finished and (motion := self._motion(begin - 1)) is not None:
                return begin, motion
        return 0, None

    def fill(self, make: Callable[[Sequence[Clip], Tensor | None], Iterator[Made]], report: Callable[[Made], None]) -> None:
        """Make every clip that is missing. While one is made, the one before is encoded and stored by a thread beside.

        Args:
            make: clips without gaps, and the motion frames that the first begins with → the clips, one after the other. It hands on
                motion frames `as_stored`, so that a job that was stopped goes on to the same bits.
            report: gets every clip that was made.
        Raises:
            JobError: the disk is full; raised when the clip that is made meanwhile is ready, or by `check_storing`.
        """
        self._storing = None
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="multitalk-job") as thread:  # waits for it, also when `make` raises
            while (missing := self.first_missing()) is not None:
                begin, motion_frames = self.beginning_for(missing)
                stop = next((clip.index for clip in self._plan[missing + 1 :] if self.is_finished(clip.index)), len(self._plan))
                clips = make(self._plan[begin:stop], motion_frames)
                while (made := self._beside_storing(clips)) is not None:
                    pixels, codes = to_pixels(made.frames), _codes(made.motion_frames)
                    self._stored()
                    self._storing = thread.submit(self._store, made.clip, made.seed, pixels, codes)
                    report(made)
                    del made, pixels, codes  # so that only motion frames, and pixels until they are stored, are held meanwhile
                self._stored()

    def check_storing(self) -> None:
        """Raises what the clip before could not be stored for, as soon as it is known: JobError for a full disk."""
        if self._storing is not None and self._storing.done():
            self._storing.result()

    # -- making

    def _stored(self) -> None:
        """Waits until the clip before is stored."""
        if self._storing is not None:
            self._storing.result()
        self._storing = None

    def _beside_storing(self, clips: Iterator[Made]) -> Made | None:
        """The next clip, or None behind the last. Who interrupts it also hears if the clip before could not be stored."""
        ended = False
        try:
            made = next(clips, None)
            ended = True
        finally:
            if not ended and self._storing is not None and (problem := self._storing.exception()) is not None:
                logger.warning("MultiTalk: the clip before is not stored, and will be made again: %s", problem)
        return made

    def _store(self, clip: Clip, seed: int, pixels: Tensor, codes: np.ndarray) -> None:
        """Store a clip. A clip that is there already is not written again; its motion frames are.

        Args:
            pixels: the clip's new frames [keep, H, W, 3] in 8 bits.
            codes: the end of the clip [M, H, W, 3] in 16 bits.
        Raises:
            JobError: the disk is full.
        """
        with explained(self.folder):
            motion = self._write(_motion_name(clip.index), lambda path: _save(path, codes))
            if clip.index in self._finished:
                segment = self._finished[clip.index].segment
            else:
                segment = self._write(self._segment_name(clip.index), lambda path: write_segment(path, pixels, self.codec, self._quality))
            self._commit(clip.index, _Finished(seed, pixels.shape[0], segment, motion))
            self._thin(clip.index - 1)

    def check_space(self, needed: int) -> None:
        """Raises DiskFullError if fewer bytes are free than are needed, and some to spare."""
        with explained(self.folder):
            free = shutil.disk_usage(self.folder).free
        if free < needed + SPARE:
            raise DiskFullError(
                f"The disk of {self.folder} has {megabytes(free)} MB left, and this video needs about {megabytes(needed + SPARE)} MB "
                "more. Free some space and queue again: finished clips are kept."
            )

    def keep_sound(self, waveform: Tensor, rate: int) -> Path | None:
        """Encode the video's sound [C, N] for `join`; an hour of it takes twenty seconds, so it is done before the clips are made.

        Returns:
            The file; None for a sound without samples.
        """
        if not waveform.shape[-1]:
            return None
        file = self.folder / f"sound{self.codec.suffix}"
        with explained(self.folder):
            write_sound(file, waveform, rate, self.codec)
        return file

    def join(self, destination: Destination, sound: Path | None, about: Mapping[str, str] | None = None) -> Path:
        """All segments in one file, and the sound beside them; it is there whole or not at all.

        Args:
            sound: of `keep_sound`.
            about: metadata of the file, by name.
        Returns:
            The file.
        """
        files = [self.folder / self._segment_name(clip.index) for clip in self._plan]
        partial = destination.folder / f".{self._key}.partial{self.codec.suffix}"
        with explained(destination.folder):
            try:
                join_segments(partial, files, [clip.keep for clip in self._plan], sound, about)
                sync(partial)
                out = destination.keep(partial)
                sync(out.parent)
            finally:
                partial.unlink(missing_ok=True)
        return out

    def remove(self) -> None:
        """The whole folder, once the video is where it belongs; while it is held, so that nobody else begins in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- files

    def _segment_name(self, index: int) -> str:
        return f"clip_{index:05}{self.codec.suffix}"

    def _header(self) -> dict[str, Any]:
        return {"format": FORMAT, "key": self._key, "clips": len(self._plan), "quality": self._quality}

    def _read(self) -> None:
        self._finished = {}
        manifest = self.folder / MANIFEST
        lines = manifest.read_bytes().splitlines(keepends=True) if manifest.exists() else []
        if not lines or _line(lines[0]) != self._header():
            if lines:
                logger.warning("MultiTalk: %s is not this video's, or was changed; the job begins anew.", manifest)
            self._write(MANIFEST, lambda path: path.write_text(json.dumps(self._header()) + "\n", encoding="utf-8"))
            return
        for text in lines[1:]:
            if not text.endswith(b"\n"):  # the process ended while it was written
                os.truncate(manifest, manifest.stat().st_size - len(text))  # or the next line would be written behind half a line
            elif (found := _finished_clip(_line(text))) is None:
                logger.warning("MultiTalk: a line of %s was changed; its clip is made again.", manifest)
            else:
                self._finished[found[0]] = found[1]  # of a clip that was made again, the later line counts
        keeps = {clip.index: clip.keep for clip in self._plan}
        for index, clip in list(self._finished.items()):
            if keeps.get(index) != clip.frames or not self._whole(self._segment_name(index), clip.segment):
                del self._finished[index]

    def _commit(self, index: int, finished: _Finished) -> None:
        line = {"clip": index, "seed": finished.seed, "frames": finished.frames}
        line |= {"segment": vars(finished.segment), "motion": vars(finished.motion)}
        with (self.folder / MANIFEST).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._finished[index] = finished

    def _write(self, name: str, write: Callable[[Path], Any]) -> _Stored:
        """A file that is there whole or not at all."""
        file = self.folder / name
        partial = self.folder / f"partial_{name}"
        write(partial)
        sync(partial)
        stored = _Stored(partial.stat().st_size, checksum(partial))
        os.replace(partial, file)
        sync(self.folder)
        return stored

    def _whole(self, name: str, stored: _Stored) -> bool:
        file = self.folder / name
        if file.is_file() and file.stat().st_size == stored.bytes and checksum(file) == stored.sha256:
            return True
        logger.warning("MultiTalk: %s is missing or was changed; it is made again.", file)
        return False

    def _motion(self, index: int) -> Tensor | None:
        name = _motion_name(index)
        if not (self.folder / name).exists() or not self._whole(name, self._finished[index].motion):
            return None
        return _motion(np.load(self.folder / name))

    def _thin(self, index: int) -> None:
        if index >= 0 and index % ANCHOR:
            (self.folder / _motion_name(index)).unlink(missing_ok=True)


def motion_bytes(frames: int, height: int, width: int) -> int:
    """What the motion frames of one clip take on the disk."""
    return frames * height * width * 3 * 2


def as_stored(motion_frames: Tensor) -> Tensor:
    """Motion frames [M, H, W, 3] as they will be read back from the disk: in steps of 16 bits."""
    return _motion(_codes(motion_frames))


def _motion_name(index: int) -> str:
    return f"clip_{index:05}_motion.npy"


def _codes(motion: Tensor) -> np.ndarray:
    """In C order, as they are read back: a GPU may choose its kernels, and so the last bits, by the layout."""
    return (motion.float().clamp(0, 1) * STEPS).round().cpu().numpy().astype(np.uint16, order="C")


def _motion(codes: np.ndarray) -> Tensor:
    return torch.from_numpy(codes.astype(np.float32)) / STEPS


def _save(path: Path, codes: np.ndarray) -> None:
    with path.open("wb") as stream:  # given a name, numpy appends to it
        np.save(stream, codes)


def _line(text: bytes) -> Any:
    """A manifest's line; None for what is no whole line."""
    try:
        return json.loads(text) if text.endswith(b"\n") else None
    except ValueError:
        return None


def _finished_clip(line: Any) -> tuple[int, _Finished] | None:
    """A clip's line: its number, and what is known of it."""
    try:
        stored = (_Stored(**line[name]) for name in ("segment", "motion"))
        return line["clip"], _Finished(line["seed"], line["frames"], *stored)
    except (KeyError, TypeError):
        return None
