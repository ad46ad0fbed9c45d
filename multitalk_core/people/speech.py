"""Speech alone: zero samples where a track has noise, music or breath."""

from __future__ import annotations

import torch

from ..audio.sound import mono_16k
from ..clock import SAMPLE_RATE
from .timeline import Sound, Turn, own_track

PAD_MS = 60  # speech begins before a detector is sure of it


def speech_only(sound: Sound) -> Sound:
    """A track with everything but speech silenced, by silero-vad (MIT; its weights come in its package).

    Raises:
        ImportError: silero-vad is not installed.
    """
    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps, load_silero_vad  # importing it sets torch to a single thread
    except ImportError as error:
        raise ImportError("Finding speech needs silero-vad: pip install silero-vad") from error
    finally:
        torch.set_num_threads(threads)
    voice = mono_16k(*sound)
    found = get_speech_timestamps(voice, load_silero_vad(), sampling_rate=SAMPLE_RATE, speech_pad_ms=PAD_MS)
    torch.set_num_threads(threads)
    return own_track(sound, [Turn(0, part["start"] / SAMPLE_RATE, part["end"] / SAMPLE_RATE) for part in found])
