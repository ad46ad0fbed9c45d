"""The sound of any file, decoded to its real end. One rule for all who read sound: the nodes, the demo and the worker.

What a header says of the length is a promise, not the length:

1. Files are taken as the parts that `sound_parts` finds, one after the other.
2. FLAC, and all that libsndfile cannot read (videos, AAC, WebM …), is decoded by FFmpeg, packet by packet, to the end.
3. The rest is decoded by libsndfile, whose samples of MP3, Vorbis and Opus are not quite FFmpeg's. But libsndfile stops after as many
   samples as it counted when it opened an MP3, so where the number of the MP3's frames says otherwise, and wherever a page of Ogg is
   damaged, or libsndfile gives up or stops early, FFmpeg decodes. From the middle of an MP3 on, FFmpeg does, too: libsndfile's jumps
   go wrong by a frame.
4. A packet that is damaged, or that is missing by the time stamps around it, is silence of its length, so that what follows keeps
   its time; so is the time by which a video's sound begins later than its pictures. Nothing else is moved or cut by time stamps. What
   is missing is noted.
5. Of several sound tracks the default one is heard, else the first that can be decoded.

Neither torch nor ComfyUI is imported: the worker counts a voice's seconds with this.

Shapes: samples [C, n] float32.
"""

from __future__ import annotations

import math
from pathlib import Path

from ..notes import note
from .channels import STEREO, USUAL
from .ffmpeg import CRASHES, MISSING, PADDING, layout_names, opened, packets, with_ffmpeg
from .runs import Run, SoundError, seconds_of
from .sound_parts import Part, parts

BLOCK = 1 << 20  # samples that are read at once where none are kept


def decode(path: Path, start: float = 0.0, duration: float = math.inf) -> list[Run]:
    """A stretch of a file's sound; only that stretch is kept in memory.

    Args:
        start: s from the beginning.
        duration: s.
    Returns:
        Runs that follow one another; each is a change of rate or channels. What was left out counts as passed.
    Raises:
        SoundError: nothing can be decoded; ImportError: without soundfile and PyAV.
    """
    runs: list[Run] = []
    failure: SoundError | None = None
    began = 0.0
    for part in parts(path):
        if began >= start + duration:
            break
        try:
            runs += _part(part, start - began, duration)
        except SoundError as error:
            failure = failure or error
            if runs:
                note(f"'{path.name}': what follows {began:.2f} s cannot be decoded, and is left out.")
        began = seconds_of(runs)
    if failure is not None and not runs:
        raise failure
    return runs


def seconds(path: Path) -> float:
    """How long a file sounds, decoded to its end; nothing is kept.

    Raises:
        SoundError: nothing can be decoded; ImportError: without soundfile and PyAV.
    """
    return seconds_of(decode(path, math.inf))


def format_of(path: Path) -> str:
    """FFmpeg's name for the format of a file with sound; empty if it is none."""
    try:
        with opened(Part(path, 0, path.stat().st_size)) as container:
            return container.format.name if container.streams.audio else ""
    except SoundError:
        return ""


def _part(part: Part, start: float, duration: float) -> list[Run]:
    run, complete = _with_soundfile(part, start, duration)
    if run is not None and complete:
        return [run]
    try:
        runs = with_ffmpeg(part, start, duration)
    except SoundError:
        if run is None:
            raise
        return [run]  # what there was
    return runs if run is None or seconds_of(runs) >= run.passed / run.rate else [run]


# -- libsndfile


def _with_soundfile(part: Part, start: float, duration: float) -> tuple[Run | None, bool]:
    """What libsndfile reads, and whether that is all there is; None for what it does not read, or FFmpeg reads better."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading audio files needs soundfile: pip install soundfile") from error
    if part.damaged:
        return None, False
    try:
        with part.open() as stream, soundfile.SoundFile(part.path if part.is_whole else stream) as file:
            if file.format == "FLAC" or (file.format == "OGG" and file.channels > STEREO):  # Vorbis has its own order of channels
                return None, False
            if file.format == "MP3" and not (start in (0, math.inf) and _is_whole(part, file.frames, file.samplerate)):
                return None, False
            names = ()
            if file.channels > STEREO:
                crashes = file.channels >= CRASHES and file.format in ("AIFF", "CAF")
                names = USUAL.get(file.channels, ()) if crashes else _names(part)
            run = Run.of(file.samplerate, file.channels, names, start, duration)
            if not math.isinf(run.first):
                run.passed = file.seek(min(int(run.first), file.frames))
                wanted = int(min(run.last, file.frames))
                run.add(file.read(max(0, wanted - run.passed), dtype="float32", always_2d=True).T)
                return run, run.passed >= wanted - MISSING * run.rate
            if file.format == "MP3":  # in one go: between blocks it would jump
                run.passed = len(file.read(dtype="float32", always_2d=True))
            while file.format != "MP3" and len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                run.passed += len(block)
            return run, run.passed >= file.frames - MISSING * run.rate
    except soundfile.SoundFileError:
        return None, False


def _is_whole(part: Part, frames: int, rate: int) -> bool:
    """Whether an MP3 holds as many samples as libsndfile counts, but for what encoders put around them."""
    try:
        with opened(part) as container:
            track = container.streams.audio[0]
            lengths = [float((packet.duration or 0) * track.time_base) for packet in packets(container, track)]
    except (SoundError, IndexError):
        return True  # FFmpeg would not do better
    counted, longest = sum(lengths), max(lengths, default=0.0)
    return abs(counted - frames / rate) <= PADDING * longest


def _names(part: Part) -> tuple[str, ...]:
    """What loudspeakers a file's channels are meant for; libsndfile does not tell."""
    try:
        with opened(part) as container:
            return layout_names(container.streams.audio[0].codec_context.layout)
    except (SoundError, IndexError, AttributeError):
        return ()


# -- FFmpeg
