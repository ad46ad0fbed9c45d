"""A finished file: whether it is a talking video at all, and its frame rate.

Shapes: H, W pixels; frames are [H, W] of luma, 0…255.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from multitalk_core.audio.decoding import seconds
from multitalk_core.audio.runs import SoundError

from .errors import JobError

FLAT = 2.0  # luma's standard deviation in a frame that shows nothing
STILL = 0.05  # mean change of luma, over all pixels and pairs of frames, of a video that stands still
APART = 0.12  # seconds that picture and sound may differ in length: blocks of sound, and a frame
CRF = "18"


@dataclass(frozen=True)
class Video:
    """What a file was found to hold."""

    width: int
    height: int
    fps: float
    frames: int
    duration: float  # seconds of picture


def probe(file: Path) -> Video:
    """Decodes a whole file and looks at it.

    Raises:
        JobError: it cannot be decoded, has no picture or no sound, shows nothing, or one picture all the time.
    """
    with _decoding(_useless("it cannot be decoded")), _opened(file) as container:
        if not container.streams.video or not container.streams.audio:
            raise _useless("it has no " + ("sound" if container.streams.video else "picture"))
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        frames, shows, moves = _look(container)
        width, height = stream.codec_context.width, stream.codec_context.height
    try:
        heard = seconds(file)
    except SoundError as error:
        raise _useless("its sound cannot be decoded") from error
    if frames == 0 or rate <= 0:
        raise _useless("it has no frames")
    if not shows:
        raise _useless("it shows nothing")
    if not moves:
        raise _useless("it is one picture all the time")
    if abs(heard - frames / rate) > APART + 1 / rate:
        raise _useless(f"its picture lasts {frames / rate:.2f} s and its sound {heard:.2f} s")
    return Video(width, height, rate, frames, frames / rate)


def _look(container: av.container.InputContainer) -> tuple[int, bool, bool]:
    """Number of frames, whether one of them shows something, and whether anything moves."""
    count, shows, change, before = 0, False, 0.0, None
    for frame in container.decode(video=0):
        luma = frame.to_ndarray(format="gray").astype(np.int16)
        shows = shows or float(luma.std()) > FLAT
        if before is not None:
            change += float(np.abs(luma - before).mean())
        count, before = count + 1, luma
    return count, shows, count > 1 and change > STILL * (count - 1)


def seconds_of_sound(file: Path) -> float:
    """How long a file sounds, decoded to its end: as long as the nodes hear it.

    Raises:
        JobError: it cannot be decoded, or has no sound.
    """
    try:
        heard = seconds(file)
    except SoundError as error:
        raise JobError(f"A file that should be a voice cannot be heard. {error}", "input_not_usable") from error
    if not heard:
        raise JobError(f"A file that should be a voice, '{file.name}', has no sound at all.", "input_not_usable")
    return heard


def _opened(file: Path) -> av.container.InputContainer:
    return av.open(str(file), metadata_errors="ignore")  # titles may be in any encoding


@contextmanager
def _decoding(useless: JobError) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, ValueError, OSError) as error:
        raise useless from error


def at_rate(file: Path, fps: float, out: Path) -> None:
    """The same video at another frame rate: frames are repeated or left out, the sound is copied."""
    rate = Fraction(fps).limit_denominator(1001)
    with _decoding(_useless(f"it cannot be converted to {fps:g} fps")), _opened(file) as source, av.open(str(out), "w") as target:
        seen, heard = source.streams.video[0], source.streams.audio[0]
        shown = target.add_stream("libx264", rate=rate, options={"crf": CRF})
        shown.width, shown.height, shown.pix_fmt = seen.codec_context.width, seen.codec_context.height, "yuv420p"
        said = target.add_stream_from_template(heard)
        for packet in source.demux(heard):
            if packet.dts is not None:
                packet.stream = said
                target.mux(packet)
        source.seek(0)
        for number, frame in enumerate(_resampled(source, seen, rate)):
            frame.pts, frame.time_base = number, 1 / rate
            target.mux(shown.encode(frame))
        target.mux(shown.encode())


def _resampled(container: av.container.InputContainer, stream: av.VideoStream, rate: Fraction) -> Iterator[av.VideoFrame]:
    """For every moment of the new rate, the frame that is shown then."""
    own = stream.average_rate
    made = 0
    for number, frame in enumerate(container.decode(stream)):
        until = round((number + 1) * rate / own)
        picture = frame.reformat(format="yuv420p")
        for _ in range(until - made):
            yield picture
        made = max(made, until)


def _useless(why: str) -> JobError:
    return JobError(f"The finished file is no talking video: {why}.", "output_not_usable")
