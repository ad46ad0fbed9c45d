"""Sound from files: audio files, and the sound track of videos. What is decoded, and how far, `decoding` says.

Shapes: a sound is (waveform [C, N] float32, rate in Hz).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError
from .channels import STEREO
from .decoding import decode
from .runs import Run, SoundError, seconds_of
from .sound import resample, to_stereo


@dataclass(frozen=True)
class Recording:
    """All channels of a file."""

    waveform: Tensor  # [C, N]
    rate: int  # Hz
    names: tuple[str, ...] = ()  # of the channels, as in `channels`, where there are more than two and the file says so


def read_sound(path: Path, start: float = 0.0, duration: float = 0.0) -> tuple[Tensor, int]:
    """Read a stretch of a file's sound; only that stretch is kept in memory. Surround sound comes as stereo.

    Args:
        start: s from the beginning.
        duration: s; 0 is to the end.
    Raises:
        AudioError: no sound track, damaged, or nothing at that place.
    """
    recording = read_channels(path, start, duration)
    return to_stereo(recording.waveform, recording.names), recording.rate


def read_channels(path: Path, start: float = 0.0, duration: float = 0.0) -> Recording:
    """As `read_sound`, with every channel as it is in the file.

    Where rate or channels change in the middle, the highest rate and stereo (or the file's only number of channels) are for all.
    """
    if start < 0 or duration < 0:
        raise AudioError(f"Start {start} s and duration {duration} s were given; 0 or more was expected.")
    try:
        runs = decode(path, start, duration or math.inf)
    except SoundError as error:
        raise AudioError(str(error)) from error
    if seconds_of(runs) == 0:
        raise AudioError(f"'{path.name}' is empty: it has no sound at all. Choose another file.")
    kept = [run for run in runs if any(chunk.size for chunk in run.kept)]
    if not kept:
        raise AudioError(f"'{path.name}' has no sound from {start} s on. Choose an earlier start.")
    return _joined(kept)


def _joined(runs: list[Run]) -> Recording:
    """Runs one after another, at one rate and with one number of channels."""
    rate = max(run.rate for run in runs)
    names, mixed = runs[0].names, len({(run.channels, run.names) for run in runs}) > 1
    waveforms = []
    for run in runs:
        chunks, run.kept = run.kept, []
        waveform = torch.from_numpy(np.ascontiguousarray(np.concatenate(chunks, axis=1)))
        if mixed:
            waveform = to_stereo(waveform, run.names)
            waveform = waveform if waveform.shape[0] == STEREO else waveform.mean(dim=0, keepdim=True).expand(STEREO, -1)
        waveforms.append(resample(waveform, run.rate, rate))
    return Recording(torch.cat(waveforms, dim=1), rate, () if mixed else names)
