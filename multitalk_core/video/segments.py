"""A video as files that follow one another: every clip is encoded when it ends, and joining them copies what was encoded.

Shapes: frames [F, H, W, 3] sRGB in 0…1, at 25 a second; a sound is (waveform [C, N] float32 in −1…1, rate in Hz).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clock import FPS
from ..errors import MultiTalkError

THREADS = "1"  # x264's result depends on their number; a clip that is made again must be the same bits
FRAMES_BETWEEN_KEYS = 2 * FPS  # a player finds its place in two seconds at most
# Frames are decoded as they are shown; and with B-frames x264 makes other bits now and then of small pictures. Without them: of the same
# frames at 128×128, 6,000 of 6,000 files were the same, at 64×48 5,986 (x264 core 165; with all memory filled beforehand, all of 3,000).
B_FRAMES = "0"
BEST, WORST = 0, 51  # x264's constant rate factor
SOUND_BLOCK = 1 << 20  # samples that are handed to an encoder at once
BT709 = 1  # ITU-T H.273: primaries, transfer and matrix of HD video, which players expect
LIMITED = 1  # FFmpeg's AVCOL_RANGE_MPEG: luma of 16…235


class SegmentError(MultiTalkError, ValueError):
    """A file that cannot be read or joined; the message says which."""


@dataclass(frozen=True)
class Codec:
    """How pictures and sound are stored. A new one is a record."""

    suffix: str  # of files, which chooses the container
    encoder: str
    pixel_format: str
    options: Callable[[int], dict[str, str]]  # of the encoder, by quality
    sound: str
    bytes_per_pixel: float  # about the most that a segment takes: talking heads at a high quality, or what is left of noise


def _x264(quality: int) -> dict[str, str]:
    return {"crf": str(quality), "preset": "medium", "bf": B_FRAMES, "g": str(FRAMES_BETWEEN_KEYS), "threads": THREADS}


def _ffv1(quality: int) -> dict[str, str]:
    return {"level": "3", "slices": "4", "g": "1", "threads": "1"}


CODECS = {
    "h264": Codec(".mp4", "libx264", "yuv420p", _x264, "aac", 0.25),
    "lossless": Codec(".mkv", "ffv1", "bgr0", _ffv1, "flac", 2.0),
}


def to_pixels(frames: Tensor) -> Tensor:
    """Frames in 8 bits, on the CPU: a quarter of the memory."""
    return torch.stack([(frame.float().clamp(0, 1) * 255).round().byte().cpu() for frame in frames])


def write_segment(path: Path, pixels: Tensor, codec: Codec, quality: int = 18) -> None:
    """Encode a clip as a file of its own, which begins with a key frame.

    The same pixels give the same bytes; of tiny pictures nearly always (B_FRAMES).

    Args:
        pixels: [F, H, W, 3] uint8, of `to_pixels`.
        quality: x264's constant rate factor, 0 (best) … 51; without effect on a lossless codec.
    """
    av = _av()
    height, width = pixels.shape[1:3]
    with _written(path) as container:
        stream = container.add_stream(codec.encoder, rate=FPS, options=codec.options(quality))
        stream.width, stream.height, stream.pix_fmt = width, height, codec.pixel_format
        stream.codec_context.time_base = Fraction(1, FPS)
        in_yuv = codec.pixel_format.startswith("yuv")
        if in_yuv:
            context = stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = BT709
            context.color_range = LIMITED
        colours = av.video.reformatter.VideoReformatter()  # one for all: each makes itself a pool of threads
        for number, frame in enumerate(pixels.numpy()):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if in_yuv:
                picture = colours.reformat(picture, format=codec.pixel_format, dst_colorspace=BT709, dst_color_range=LIMITED)
            picture.pts, picture.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_sound(path: Path, waveform: Tensor, rate: int, codec: Codec) -> None:
    """Encode a sound [C, N] of one or two channels, once for a whole video: encoding an hour takes longer than joining it."""
    av = _av()
    layout = "mono" if waveform.shape[0] == 1 else "stereo"
    with _written(path) as container:
        stream = container.add_stream(codec.sound, rate=rate, layout=layout)
        context = stream.codec_context
        context.open()  # only then it knows how many samples it takes at once
        resampler = av.AudioResampler(format=context.format, layout=layout, rate=rate, frame_size=context.frame_size)
        for start in range(0, waveform.shape[-1], SOUND_BLOCK):
            block = waveform[:, start : start + SOUND_BLOCK].float().cpu().contiguous().numpy()
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            for part in resampler.resample(frame):
                container.mux(stream.encode(part))
        for part in resampler.resample(None):
            container.mux(stream.encode(part))
        container.mux(stream.encode())


def join_segments(
    path: Path, segments: Sequence[Path], counts: Sequence[int], sound: Path | None = None, about: Mapping[str, str] | None = None
) -> None:
    """Put segments one after another, and a sound beside them, without encoding anything again.

    Args:
        counts: frames of every segment.
        sound: written by write_sound; it begins with the first frame.
        about: metadata of the file, by name, as they will be read: an MP4 keeps the names, an MKV writes them in capitals.
    Raises:
        SegmentError: a segment that cannot be read, or holds another number of frames.
    """
    with _written(path) as container, _opened(segments[0]) as first, ExitStack() as stack:
        container.metadata.update(about or {})
        pictures = container.add_stream_from_template(first.streams.video[0])
        pictures.time_base = Fraction(1, FPS)
        packets = [_pictures(segments, counts, pictures)]
        if sound is not None:
            source = stack.enter_context(_opened(sound))
            packets.append(_sound(source, container.add_stream_from_template(source.streams.audio[0])))
        for packet in heapq.merge(*packets, key=lambda packet: packet.pts * packet.time_base):  # as players want them in a file
            container.mux(packet)


def _pictures(segments: Sequence[Path], counts: Sequence[int], stream: Any) -> Iterator[Any]:
    number = 0
    for segment, count in zip(segments, counts, strict=True):
        end = number + count
        with _opened(segment) as source:
            for packet in source.demux(video=0):
                if packet.pts is None:  # the demuxer's last packet holds nothing
                    continue
                packet.pts = packet.dts = number
                packet.time_base, packet.duration, packet.stream = Fraction(1, FPS), 1, stream
                yield packet
                number += 1
        if number != end:
            raise SegmentError(f"'{segment.name}' holds {number - end + count} frames; {count} were expected. Remove it to make it again.")


def _sound(source: Any, stream: Any) -> Iterator[Any]:
    for packet in source.demux(audio=0):
        if packet.pts is not None:
            packet.stream = stream
            yield packet


def read_frames(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
    """The frames start…stop of a finished file, one at a time: [H, W, 3].

    Raises:
        SegmentError: not a video that can be read.
    """
    with _opened(path) as container:
        if not container.streams.video:
            raise SegmentError(f"'{path.name}' has no video stream.")
        stream = container.streams.video[0]
        if start:
            container.seek(round(start / FPS / stream.time_base), stream=stream)  # to the key frame before
        for frame in container.decode(stream):
            number = round(frame.pts * frame.time_base * FPS)
            if stop is not None and number >= stop:
                return
            if number >= start:
                yield torch.from_numpy(frame.to_ndarray(format="rgb24")).float() / 255


def _written(path: Path) -> Any:
    """Nothing in the file tells when, or in which run it was made."""
    options = {"fflags": "+bitexact", **({"movflags": "use_metadata_tags"} if path.suffix == ".mp4" else {})}  # else names are not kept
    return _av().open(str(path), "w", options=options)


def _opened(path: Path) -> Any:
    av = _av()
    try:
        return av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise SegmentError(f"'{path.name}' cannot be read as video. Remove it to make it again.") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("Writing videos needs PyAV: pip install av") from error
    return av
