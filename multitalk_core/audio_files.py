"""Sound from files: audio files, and the sound track of videos.

Shapes: a sound is (waveform [C, N] float32, rate in Hz).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .audio import AudioError


def read_sound(path: Path, start: float = 0.0, duration: float = 0.0) -> tuple[Tensor, int]:
    """Read a stretch of a file's sound; only that stretch is kept in memory.

    Args:
        start: s from the beginning.
        duration: s; 0 is to the end.
    Raises:
        AudioError: no sound track, damaged, or nothing at that place.
    """
    if start < 0 or duration < 0:
        raise AudioError(f"Start {start} s and duration {duration} s were given; 0 or more was expected.")
    waveform, rate = _with_soundfile(path, start, duration) or _with_av(path, start, duration)
    if waveform.shape[-1] == 0 and start == 0:
        raise AudioError(f"'{path.name}' is empty: it has no sound at all. Choose another file.")
    if waveform.shape[-1] == 0:
        raise AudioError(f"'{path.name}' has no sound from {start} s on. Choose an earlier start.")
    return waveform, rate


def _with_soundfile(path: Path, start: float, duration: float) -> tuple[Tensor, int] | None:
    """WAV, FLAC, Ogg and MP3 to the sample; None for what libsndfile cannot read (videos, AAC)."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading audio files needs soundfile: pip install soundfile") from error
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            file.seek(min(round(start * rate), file.frames))
            samples = file.read(round(duration * rate) if duration else -1, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    return torch.from_numpy(samples.T.copy()), rate


def _with_av(path: Path, start: float, duration: float) -> tuple[Tensor, int]:
    """Anything that FFmpeg decodes, through PyAV, which ComfyUI has."""
    try:
        import av
    except ImportError as error:
        raise ImportError(f"Reading the sound of '{path.name}' needs PyAV: pip install av") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise AudioError(f"'{path.name}' has no sound track. Choose an audio file, or a video with sound.")
            stream = container.streams.audio[0]
            rate = stream.codec_context.sample_rate
            resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
            chunks = _decoded(container, stream, resampler, start, math.inf if not duration else start + duration)
    except av.FFmpegError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise AudioError(f"'{path.name}' cannot be read as audio or video ({error}). Export it again, for example as WAV.") from error
    channels = stream.codec_context.channels
    samples = np.concatenate(chunks, axis=1) if chunks else np.zeros((channels, 0), np.float32)
    return torch.from_numpy(samples), rate


def _decoded(container, stream, resampler, start: float, stop: float) -> list[np.ndarray]:  # type: ignore[no-untyped-def]
    """Chunks [C, n] of the stream between start and stop, in seconds of the stream's own time."""
    rate = stream.codec_context.sample_rate
    position = 0  # samples decoded so far: containers' timestamps are too coarse to cut by
    first = round(start * rate)
    last = math.inf if math.isinf(stop) else round(stop * rate)
    chunks = []
    for frame in container.decode(stream):
        for part in resampler.resample(frame):
            samples = part.to_ndarray()
            end = position + samples.shape[1]
            if end > first and position < last:
                chunks.append(samples[:, max(0, first - position) : int(min(samples.shape[1], last - position))])
            position = end
        if position >= last:
            break
    return chunks
