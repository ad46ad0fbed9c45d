"""Speakers heard: every speaker's embeddings on one clock, and the sound track of the video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..audio.loudness import is_inaudible, normalise_loudness
from ..audio.sound import Layout, lay_out, mix, mono_16k, start_samples
from ..audio.wav2vec import AudioEncoder
from ..clock import SAMPLE_RATE, video_frames
from ..errors import AudioError, SpeakerError
from ..notes import note
from ..windows import Embeds
from .casting import everyone, settled
from .speakers import MAX_SPEAKERS, Speaker, called, capital


@dataclass(frozen=True)
class Voices:
    """What a video is made to: who is where, what each is heard to say, and the sound."""

    speakers: tuple[Speaker, ...]
    tracks: tuple[Embeds, ...]  # per speaker [F, L, D], equally long
    frames: int  # of the finished video
    sound: Tensor  # [C, N], every speaker at the quality it came in
    rate: int  # Hz of `sound`
    starts: tuple[float, ...] = ()  # s, when each speaker's own waveform begins


def encode_voices(
    connected: Sequence[Speaker | Sequence[Speaker]], encoder: AudioEncoder, layout: Layout, level: bool = True, folder: Path | None = None
) -> Voices:
    """Bring all speakers onto one clock and encode each track, its silence included.

    Args:
        connected: one to four speakers, some of them perhaps in groups.
        level: bring every voice to −23 LUFS first, as published.
        folder: for the temporary files of long tracks.
    Raises:
        SpeakerError, AudioError: too many speakers, or none with audio.
    """
    speakers = settled(everyone(connected))
    if not speakers:
        raise SpeakerError(f"No speaker is connected; 1 to {MAX_SPEAKERS} were expected.")
    heard = [_voice(speaker, level, called(speakers, i)) for i, speaker in enumerate(speakers)]
    if not any(len(voice) for voice in heard):
        raise AudioError("None of the speakers has audio. Connect audio to at least one MultiTalk Speaker that is not silent.")
    # One clock for voices and sound: starts are decided once, by the voices, and handed on in seconds.
    begins = start_samples([len(voice) for voice in heard], layout, [speaker.start for speaker in speakers])
    starts = tuple(begin / SAMPLE_RATE for begin in begins)
    tracks = lay_out(heard, layout, starts)
    audible = [(speaker.sound, start) for speaker, start in zip(speakers, starts, strict=True) if speaker.sound is not None]
    sound, rate = mix([played for played, _ in audible], layout, [start for _, start in audible])
    embeds = tuple(encoder.encode(track, folder) for track in tracks)
    return Voices(speakers, embeds, video_frames(tracks[0].shape[0]), sound, rate, starts)


def _voice(speaker: Speaker, level: bool, name: str) -> Tensor:
    """A silent speaker takes no time of a sequence; the zeros come with the layout."""
    if speaker.waveform is None:
        return torch.zeros(0)
    voice = mono_16k(speaker.waveform, speaker.rate)
    if is_inaudible(voice):
        note(
            f"{capital(name)}: the audio is silent, so the mouth keeps still. Choose another file, stretch or channel, or set the role "
            "to 'silent' if that is meant."
        )
    return normalise_loudness(voice) if level else voice
