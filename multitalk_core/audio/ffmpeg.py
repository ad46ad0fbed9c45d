"""Sound through FFmpeg (PyAV): packets to samples, silence for what is missing, and notes of what is damaged or cut off.

What is decoded by FFmpeg and what by libsndfile, `decoding` decides.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..notes import note
from .channels import STEREO, USUAL
from .file_kinds import kind_of, unfinished
from .runs import Run, SoundError, seconds_of
from .sound_parts import TAGS, Part

SEARCHED = 1 << 16  # bytes of an MP3 in which its header may be, garbage before it included
PADDING = 5  # MP3 frames that encoders put around the sound, or that hold no sound
MISSING = 0.1  # s that libsndfile may stop early, or a track be shorter than promised, without a word
SHORTEST_GAP = 0.015  # s between time stamps; less is rounding (Matroska counts in ms), and a packet of AAC has 0.021 s
LONGEST_GAP = 5.0  # s; more is another clock, or a damaged time stamp
LATE = 0.04  # s that a video's sound may begin after the pictures without silence in between: a frame
CRASHES = 7  # channels from which on PyAV 18.1 frees the layout of AIFF, CAF and MOV twice
CUSTOM_LAYOUTS = ("aiff", "caf", "mov")  # formats that bring an order of channels of their own
SAMPLE = re.compile(r"pcm_([suf])(8|16|24|32|64)(le|be)?")  # FFmpeg's names of samples that are not compressed
UNTIMED = ("mp3", "aac", "amr", "ac3", "eac3")  # formats without time stamps: FFmpeg counts, and its count has gaps of its own
WITH_GAPS = ("mov", "matroska", "mpegts", "flv", "asf")  # formats in which time may pass without sound
PROMISING = ("mov", "flac", "matroska")  # formats whose length of a track comes from a header, if there is one
ENCRYPTED = {"drms", "enca", "drmi", "aavd"}  # MP4's codec tags of what only its seller's players decode


def with_ffmpeg(part: Part, start: float, duration: float) -> list[Run]:
    """The default track, else the first that can be decoded, through PyAV, which ComfyUI has."""
    name = part.path.name
    with opened(part) as container:
        tracks = list(container.streams.audio)
        default = [bool(int(track.disposition) & 1) for track in tracks]
        order = sorted(range(len(tracks)), key=lambda i: not default[i])
        locked = any(_is_locked(track) for track in tracks)
    if not order:
        raise SoundError(f"'{name}' has no sound track. Choose an audio file, or a video with sound.")
    empty = False
    for place in order:
        with opened(part) as container:
            runs = _track(part, container, place, start, duration)
        if runs is not None and any(run.passed for run in runs):
            if len(order) > 1:
                why = "the default one" if default[place] and place == order[0] else "the first that can be decoded"
                note(f"'{name}' has {len(order)} sound tracks: track {place + 1} is heard, {why}.")
            return runs
        empty = empty or runs is not None
    if empty:
        return []
    if locked:
        raise SoundError(f"'{name}' is encrypted (DRM), so that only its seller's own players can play it. Choose another file.")
    raise SoundError(f"Nothing in '{name}' can be decoded: it is damaged, or of a kind that FFmpeg has no decoder for. Export it as WAV.")


def _track(part: Part, container: Any, place: int, start: float, duration: float) -> list[Run] | None:
    """One track, decoded; an empty list if it holds nothing, None if nothing of it can be decoded."""
    import av

    track = container.streams.audio[place]
    if track.codec_context is None or _is_locked(track):  # no decoder, or one that would make noise of it
        return None
    if container.format.name.startswith(CUSTOM_LAYOUTS) and (sample := SAMPLE.fullmatch(track.codec_context.name)):
        runs = _unpacked(part, place, sample, start, duration)
        if runs is not None:
            return runs
    if track.codec_context.name == "flac":  # else it hands out damaged frames as noise
        track.codec_context.options = {"err_detect": "crccheck+explode"}
    timed = container.format.name not in UNTIMED
    has_gaps = container.format.name.startswith(WITH_GAPS)
    decoded = _Decoded(start, duration, timed, has_gaps, _length(container, track) or 0.0)
    decoded.late = _late(container, track) if timed else 0.0
    decoded.begins = 0.0 if part.damaged else None
    failed = False
    for packet in packets(container, track):
        try:
            frames = packet.decode()
        except av.FFmpegError:  # pyright: ignore[reportPrivateImportUsage]
            if not bytes(packet)[:16].startswith(TAGS):
                failed = True
                decoded.miss(float((packet.duration or 0) * track.time_base))
            continue
        for frame in frames:
            decoded.add(frame)
        if decoded.is_full:
            break
    if not decoded.runs:
        return None if failed else []
    name = part.path.name
    if decoded.lost_at is not None:
        _tell_lost(name, decoded.lost, decoded.lost_at, timed)
    elif part.damaged:
        note(f"'{name}' is damaged: a page of it cannot be read. What was in it is missing, and what follows may be early.")
    if decoded.gap_at is not None:
        note(f"'{name}' has {decoded.gap:.2f} s without sound by its time stamps, from {decoded.gap_at:.2f} s on: silence is there.")
    if not decoded.is_full:
        _tell_cut(part, container, track, seconds_of(decoded.runs), decoded.missing)
    return decoded.runs


def _unpacked(part: Part, place: int, sample: re.Match[str], start: float, duration: float) -> list[Run] | None:
    """Samples that are not compressed, without PyAV's decoder; None where that does no harm."""
    kind, width = sample[1], int(sample[2]) // 8
    runs: list[Run] = []
    with opened(part) as container:
        track = container.streams.audio[place]
        rate = track.codec_context.sample_rate
        for packet in packets(container, track):
            data, samples = bytes(packet), round((packet.duration or 0) * track.time_base * rate)
            if not data or not samples:
                continue
            if not runs:
                channels = len(data) // (samples * width)
                if channels < CRASHES:
                    return None
                runs.append(Run.of(rate, channels, USUAL.get(channels, ()), start, duration))
            runs[-1].add(_floats(data, kind, width, sample[3] == "be").reshape(-1, runs[-1].channels).T)
            if runs[-1].is_full:
                break
    return runs


def _floats(data: bytes, kind: str, width: int, is_big: bool) -> np.ndarray:
    """Samples as FFmpeg stores them, in −1…1."""
    order = ">" if is_big else "<"
    if kind == "f":
        return np.frombuffer(data, f"{order}f{width}").astype(np.float32)
    if width == 3:  # into the upper bytes of four
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, slice(0, 3) if is_big else slice(1, 4)] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view(f"{order}i4")[:, 0] / 2.0**31).astype(np.float32)
    numbers = np.frombuffer(data, f"{order}{'u' if kind == 'u' else 'i'}{width}").astype(np.float64)
    half = 2.0 ** (8 * width - 1)
    return ((numbers - half if kind == "u" else numbers) / half).astype(np.float32)


def _length(container: Any, track: Any) -> float | None:
    """How long a track is by the header, in s; None if it does not say."""
    if track.duration:
        return float(track.duration * track.time_base)
    return float(container.duration / 1e6) if container.duration and not container.streams.video else None


def _late(container: Any, track: Any) -> float:
    """By how many seconds the sound begins after the pictures; 0 for sound alone."""
    begins = [float(stream.start_time * stream.time_base) for stream in (*container.streams.video, track) if stream.start_time is not None]
    late = begins[-1] - begins[0] if len(begins) > 1 and track.start_time is not None else 0.0
    return late if late > LATE else 0.0


def _is_locked(track: Any) -> bool:
    try:
        return track.codec_context is not None and track.codec_context.codec_tag in ENCRYPTED
    except UnicodeDecodeError:  # tags of other containers are not always text
        return False


class _Decoded:
    """Frames of one track as runs, with silence where some are missing.

    Args:
        timed: whether the frames' time stamps show what is missing.
        has_gaps: whether time between frames may be meant to be silent; else something is missing there.
        length: s that the track has by its header; 0 if that is unknown.
    """

    def __init__(self, start: float, duration: float, timed: bool = True, has_gaps: bool = False, length: float = 0.0) -> None:
        self.runs: list[Run] = []
        self.lost, self.gap = 0.0, 0.0  # s that are silence now: what was damaged, and what the time stamps leave out
        self.lost_at: float | None = None  # s, where the first of it is
        self.gap_at: float | None = None
        self.missing = 0.0  # s that were damaged since the last frame
        self.begins: float | None = None  # s, the time stamp that the first frame should have
        self.late = 0.0  # s of silence before the first frame
        self._start, self._duration, self._timed, self._has_gaps, self._length = start, duration, timed, has_gaps, length
        self._form: Any = None
        self._convert: Callable[[Any], list[Any]] = lambda frame: []
        self._end: float | None = None  # s, of the last frame by its time stamp

    @property
    def is_full(self) -> bool:
        return bool(self.runs) and self.runs[-1].is_full

    def miss(self, length: float) -> None:
        """A packet of so many seconds cannot be decoded."""
        self.missing += length if length <= LONGEST_GAP else 0.0

    def add(self, frame: Any) -> None:
        import av

        form = (frame.sample_rate, frame.layout.name, frame.layout.nb_channels, frame.format.name)
        if form != self._form:
            if self._form is not None and form[0] != self._form[0]:
                self._timed = False  # the time stamps are counted in the first rate
            self._form = form
            self._convert = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate).resample
            names = layout_names(frame.layout)
            if not self.runs or (self.runs[-1].rate, self.runs[-1].channels, self.runs[-1].names) != (form[0], form[2], names):
                self.runs.append(Run.of(form[0], form[2], names, self._start - seconds_of(self.runs), self._duration))
        self._fill(frame)
        for part in self._convert(frame):
            # interleaved: PyAV 18.1 crashes when it takes eight or more planes out of a frame
            self.runs[-1].add(part.to_ndarray().reshape(-1, form[2]).T)

    def _fill(self, frame: Any) -> None:
        """Silence for what is missing before a frame."""
        damaged, self.missing = self.missing, 0.0
        missing, self.late = damaged + self.late, 0.0
        begin = None if frame.pts is None else float(frame.pts * frame.time_base)
        before = self.begins if self._end is None else self._end
        gap = begin - before if self._timed and begin is not None and before is not None else 0.0
        if gap > SHORTEST_GAP and (gap <= LONGEST_GAP or (begin or 0.0) <= self._length):
            missing = gap
            if self._has_gaps and not damaged:
                self.gap_at = seconds_of(self.runs) if self.gap_at is None else self.gap_at
                self.gap += gap
            else:
                damaged = gap
        begin = self._end if begin is None else begin
        self._end = None if begin is None else begin + frame.samples / frame.sample_rate
        if damaged:
            self.lost_at = seconds_of(self.runs) if self.lost_at is None else self.lost_at
            self.lost += damaged
        if missing:
            run = self.runs[-1]
            run.add(np.zeros((run.channels, round(missing * run.rate)), np.float32))


def layout_names(layout: Any) -> tuple[str, ...]:
    names = tuple(channel.name for channel in layout.channels)
    return names if len(names) > STEREO and "NONE" not in names else ()


def packets(container: Any, track: Any) -> Iterator[Any]:
    """Packets, as long as any come."""
    import av

    demuxed = container.demux(track)
    failures = 0
    while failures < 2:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except av.FFmpegError:  # pyright: ignore[reportPrivateImportUsage]
            failures += 1
            continue
        failures = 0
        yield packet


@contextmanager
def opened(part: Part) -> Iterator[Any]:
    """The part as PyAV's container.

    Raises:
        SoundError: neither audio nor video, and what it is instead, as far as that shows.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(f"Reading the sound of '{part.path.name}' needs PyAV: pip install av") from error
    start = f"'{part.path.name}' cannot be read as audio or video: it is"
    if kind := kind_of(part.path):  # text is not even tried: FFmpeg would open what a playlist names
        raise SoundError(f"{start} {kind}. Choose another file.")
    with part.open() as stream:
        try:
            container = av.open(str(part.path) if part.is_whole else stream, metadata_errors="ignore")  # titles may be in any encoding
        except (av.FFmpegError, ValueError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
            why = unfinished(part.path) or "damaged, or of an unknown kind"
            raise SoundError(f"{start} {why}. Export it again, for example as WAV.") from error
        with container:
            yield container


def _tell_lost(name: str, seconds: float, first: float, timed: bool) -> None:
    more = "" if timed else " How long they were is not known, so what follows may be early."
    least = "" if timed else "at least "
    note(f"'{name}' is damaged: {least}{seconds:.2f} s could not be decoded, from {first:.2f} s on; there is silence in their place.{more}")


def _tell_cut(part: Part, container: Any, track: Any, heard: float, missing: float) -> None:
    """Where a header promises more than there is, or what was damaged was the end."""
    promised = heard + missing
    if container.format.name == "mp3":
        frames = (_mp3_frames(part) - PADDING) * track.codec_context.frame_size
        promised = max(promised, frames / track.codec_context.sample_rate)
    elif container.format.name.startswith(PROMISING):
        promised = max(promised, _length(container, track) or 0.0)
    if promised - heard > MISSING:
        note(f"'{part.path.name}' is cut off: its header promises {promised:.2f} s, and {heard:.2f} s are there. What is there is heard.")


def _mp3_frames(part: Part) -> int:
    """How many frames an MP3's own header counts; 0 if it has none."""
    with part.open() as stream:
        head = stream.read(10).ljust(10, b"\0")
        if head.startswith(b"ID3"):  # its length is in four times seven bits
            stream.seek(sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True)), 1)
        first = head + stream.read(SEARCHED)
    at = max(first.find(b"Xing"), first.find(b"Info"))
    flags, frames = struct.unpack(">II", first[at + 4 : at + 12].rjust(8, b"\0")) if at >= 0 else (0, 0)
    return frames if flags & 1 else 0
