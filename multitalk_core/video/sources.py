"""What faces are taken from: one picture for a whole video, or a video that is read frame by frame.

Shapes: frames [1, H, W, 3] in 0…1.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ..audio.file_kinds import PLAYLIST, TEXT, kind_of, unfinished
from ..clock import FPS
from ..errors import MultiTalkError
from ..notes import note

COVER = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC: a picture on the cover of a sound file, which players count as video
FAR = 5  # s; what lies further ahead is looked up by its key frame instead of decoded on the way


class SourceError(MultiTalkError, ValueError):
    """A source video that cannot be used; the message says why."""


class VideoSource:
    """A video's frames as they are shown at 25 a second, whatever its own rate is. One is held at a time.

    Behind the video's end its last frame stays. Frames are turned as the camera says.

    Args:
        file: a path, or a file that is open for reading.
        start: s from the video's beginning; frames are counted from there.
        duration: s; 0 is to the end.
    Raises:
        SourceError: no video, or one without a picture or without time stamps.
    """

    def __init__(self, file: Path | str | IO[bytes], start: float = 0.0, duration: float = 0.0) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError("Reading videos needs PyAV: pip install av") from error
        self._errors, self._damaged = av.FFmpegError, av.InvalidDataError  # pyright: ignore[reportPrivateImportUsage]
        self._told = False
        self._start, self._last = Fraction(start), max(0, round(duration * FPS) - 1) if duration else None
        name = Path(file).name if isinstance(file, (Path, str)) else "the video"
        if isinstance(file, (Path, str)) and Path(file).is_file() and (kind := kind_of(Path(file))) in (PLAYLIST, TEXT):
            # FFmpeg would open the files that it names
            raise SourceError(f"'{name}' cannot be read as video: it is {kind}. Choose another file.")
        try:
            if not isinstance(file, (Path, str)):
                file.seek(0)
            container = av.open(str(file) if isinstance(file, Path) else file, metadata_errors="ignore")  # titles in any encoding
        except (self._errors, ValueError, OSError) as error:
            path = Path(file) if isinstance(file, (Path, str)) and Path(file).is_file() else None
            why = (path and (kind_of(path) or unfinished(path))) or "damaged, or of an unknown kind"
            raise SourceError(f"'{name}' cannot be read as video: it is {why}. Export it again, for example as MP4.") from error
        self._container: Any = container
        pictures = [stream for stream in container.streams.video if not int(stream.disposition) & COVER]
        if not pictures:
            self.close()
            raise SourceError(f"'{name}' has no video stream. Choose a video, or use an image as the source.")
        self._stream: Any = pictures[0]
        self._stream.thread_type = "AUTO"
        self._frames = self._decoded()
        self._timeless = False
        self._shown: Any = next(self._frames, None)
        self._next: Any = self._shown
        if self._shown is None:
            codec = self._stream.codec_context.name
            self.close()
            if self._timeless:
                raise SourceError(
                    f"'{name}' has no time stamps, so nobody can tell when each picture is shown: it is raw {codec.upper()} outside of any "
                    "container. Put it into one and say its frame rate, such as: ffmpeg -framerate 25 -i FILE -c copy video.mp4"
                )
            raise SourceError(f"'{name}' holds no picture. Export it again.")
        self._first = self._time(self._shown)  # s; of some videos it is not 0

    def __call__(self, number: int) -> Tensor:
        """The frame that is shown number / 25 s after the start: [1, H, W, 3]."""
        number = number if self._last is None else min(number, self._last)
        seconds = Fraction(number, FPS) + self._start + self._first
        if self._time(self._shown) > seconds or (self._next is not None and self._time(self._next) + FAR < seconds):
            self._seek(seconds)
        while self._next is not None and self._time(self._next) <= seconds:
            self._shown, self._next = self._next, next(self._frames, None)
        pixels = self._shown.to_ndarray(format="rgb24")
        turned = np.rot90(pixels, k=round(self._shown.rotation / 90)) if self._shown.rotation else pixels
        return torch.from_numpy(turned.copy())[None].float() / 255

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seek(self, seconds: Fraction) -> None:
        self._container.seek(int(seconds / self._stream.time_base), stream=self._stream)  # to the key frame before
        self._frames = self._decoded()
        found = next(self._frames, None)
        if found is None or self._time(found) > seconds:  # an index that is wrong, or none: from the beginning
            self._container.seek(0)
            self._frames = self._decoded()
            found = next(self._frames)
        self._shown = self._next = found

    def _decoded(self) -> Iterator[Any]:
        """Frames with a time; what is damaged is left out, and a damaged end is the end."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                for frame in packet.decode():
                    if frame.pts is not None:
                        yield frame
                    else:
                        self._timeless = True
            except StopIteration:
                return
            except self._damaged:
                if not self._told:
                    note("The source video is damaged in places; the frames before them stay there.")
                self._told = True
            except self._errors:
                return

    def _time(self, frame: Any) -> Fraction:
        return frame.pts * frame.time_base
