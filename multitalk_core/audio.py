"""Voices as the encoder hears them: mono, 16 kHz, level, laid out on one clock.

Shapes: C channels, N samples. A *voice* is a float32 tensor [N] at SAMPLE_RATE; a *sound* is (waveform [C, N], rate) as the
user gave it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .errors import MultiTalkError

SAMPLE_RATE = 16_000  # Hz, what Wav2Vec2 was trained on
TARGET_LUFS = -23.0  # LUFS; EBU R 128, as MeiGen-AI/MultiTalk generate_multitalk.py loudness_norm
SILENCE_LUFS = -100.0  # LUFS; what the meter reads below this is left alone (same source)
BLOCK_SECONDS = 0.4  # s; gating block of ITU-R BS.1770-4
ABSOLUTE_GATE = -70.0  # LUFS; BS.1770-4
RELATIVE_GATE = -10.0  # LU below the ungated mean; BS.1770-4

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # Hz; ISO/IEC 14496-3
PLAYER_RATE = 48_000  # Hz

Layout = Literal["sequential", "parallel"]


class AudioError(MultiTalkError, ValueError):
    """The audio itself cannot be used; the message says what to change."""


def as_sound(waveform: Tensor, rate: int) -> Tensor:
    """Check a waveform and bring it to [C, N] float32.

    Args:
        waveform: [N], [C, N] or a batch [B, C, N]. The items of a batch are separate recordings (as ComfyUI saves them): they
            follow one another.
        rate: Hz.
    Raises:
        AudioError: no samples, NaN or infinite samples, or a rate that is no rate.
    """
    if rate < 1:
        raise AudioError(f"The audio's sample rate is {rate} Hz; a positive number was expected. Load the audio again.")
    if not 1 <= waveform.ndim <= 3:
        raise AudioError(f"The audio has shape {tuple(waveform.shape)}; [batch, channels, samples] was expected.")
    sound = waveform[None] if waveform.ndim == 1 else waveform
    if sound.ndim == 3:
        sound = torch.cat(list(sound), dim=-1)
    if sound.numel() == 0:
        raise AudioError("The audio is empty (no samples or no channels). Check start and duration, or use a silent speaker.")
    sound = sound.float()
    if not torch.isfinite(sound).all():
        raise AudioError("The audio has samples that are not numbers (NaN or infinite). Export it again as ordinary WAV or FLAC.")
    return sound


def pick_channel(waveform: Tensor, channel: str) -> Tensor:
    """One side of a recording [C, N] as [1, N], or all of it.

    Args:
        channel: "all", "left" (the first) or "right" (the second).
    Raises:
        AudioError: a right side that is not there.
    """
    if channel == "all":
        return waveform
    index = {"left": 0, "right": 1}[channel]
    if index >= waveform.shape[0]:
        raise AudioError("The right channel was chosen, but the audio is mono. Choose 'all'.")
    return waveform[index : index + 1]


def playable(waveform: Tensor, rate: int) -> tuple[Tensor, int]:
    """What every video file and player takes: [1 or 2, N] at a rate that AAC has; others are resampled to 48 kHz.

    More than two channels are averaged onto both sides, because nothing says which channel is which, and speech must not end up on
    one side.
    """
    if waveform.shape[0] > 2:
        waveform = waveform.mean(dim=0, keepdim=True).expand(2, -1)
    if rate in AAC_RATES:
        return waveform, rate
    return resample(waveform, rate, PLAYER_RATE), PLAYER_RATE


def mono_16k(waveform: Tensor, rate: int) -> Tensor:
    """Average the channels and resample, band-limited.

    soxr's HQ preset is what librosa.load uses, so the result is bit-equal to the official one; torchaudio's resampler would be
    0.4–3.5 % (relative L2) away from it.

    Returns:
        [ceil(N · 16000 / rate)] float32.
    """
    mono = as_sound(waveform, rate).mean(dim=0)
    return resample(mono, rate, SAMPLE_RATE)


def resample(samples: Tensor, rate: int, target: int) -> Tensor:
    """Band-limited resampling of [N] or [C, N] with soxr HQ, to ceil(N · target / rate) samples."""
    if rate == target:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise ImportError(f"Resampling audio from {rate} Hz to {target} Hz needs soxr: pip install soxr") from error
    length = math.ceil(samples.shape[-1] * target / rate)
    resampled = torch.from_numpy(soxr.resample(samples.cpu().numpy().T, rate, target, quality="HQ").T.copy())[..., :length]
    return torch.nn.functional.pad(resampled, (0, length - resampled.shape[-1]))


def integrated_loudness(voice: Tensor, rate: int = SAMPLE_RATE) -> float:
    """Gated loudness of a mono signal in LUFS (ITU-R BS.1770-4), −inf for silence.

    Block bounds are truncated to whole samples and the number of blocks is rounded, as the meter that the official code uses
    does (pyloudnorm); the filters run in float64 because float32 costs 3e-6 of the normalised samples.

    Raises:
        AudioError: shorter than one gating block (0.4 s), where loudness is not defined.
    """
    seconds = voice.shape[-1] / rate
    if seconds < BLOCK_SECONDS:
        raise AudioError(f"Loudness needs at least {BLOCK_SECONDS} s of audio; there are {seconds:.3f} s.")
    energy = np.concatenate([[0.0], np.square(_k_weighted(voice.double().cpu().numpy(), rate)).cumsum()])
    hop = BLOCK_SECONDS / 4  # 75 % overlap
    starts = np.arange(round((seconds - BLOCK_SECONDS) / hop) + 1) * hop
    lower, upper = ((edge * rate + 1e-6).astype(int).clip(max=voice.shape[-1]) for edge in (starts, starts + BLOCK_SECONDS))
    power = (energy[upper] - energy[lower]) / (BLOCK_SECONDS * rate)
    power = power[power > 0]
    gated = power[_lufs(power) >= ABSOLUTE_GATE]
    if gated.size:
        gated = gated[_lufs(gated) > _lufs(gated.mean()) + RELATIVE_GATE]
    return float(_lufs(gated.mean())) if gated.size else -math.inf


def normalise_loudness(voice: Tensor, target: float = TARGET_LUFS) -> Tensor:
    """Scale a voice [N] to `target` LUFS; silence and audio too short to meter (under 0.4 s) are returned as they are.

    Source: MeiGen-AI/MultiTalk@c1ad840 generate_multitalk.py, loudness_norm().
    """
    if voice.shape[-1] < BLOCK_SECONDS * SAMPLE_RATE:
        return voice
    loudness = integrated_loudness(voice)
    if loudness < SILENCE_LUFS:
        return voice
    return (voice.double() * 10 ** ((target - loudness) / 20)).float()


def start_samples(lengths: Sequence[int], layout: Layout, starts: Sequence[float | None], rate: int = SAMPLE_RATE) -> list[int]:
    """First sample of every speaker's voice on the common clock.

    A start time wins; without one, sequential speakers begin when the one before them has ended, and parallel speakers at 0.

    Args:
        lengths: samples of each voice at `rate`.
        starts: seconds, or None.
    """
    if layout not in ("sequential", "parallel"):
        raise AudioError(f"Layout '{layout}' is not known. Use 'sequential' (one after the other) or 'parallel' (at the same time).")
    begins: list[int] = []
    end = 0
    for length, start in zip(lengths, starts, strict=True):
        if start is not None and not (math.isfinite(start) and start >= 0):
            raise AudioError(f"A speaker starts at {start} s; a time of 0 s or later was expected.")
        following = end if layout == "sequential" else 0
        begins.append(following if start is None else round(start * rate))
        end = begins[-1] + length
    return begins


def lay_out(voices: Sequence[Tensor], layout: Layout, starts: Sequence[float | None] | None = None) -> list[Tensor]:
    """Put every voice on the common clock: zero *samples* wherever its speaker is silent, all tracks equally long.

    Zeros come before the encoder on purpose: an encoded silence is not a zero embedding.

    Source: MeiGen-AI/MultiTalk@c1ad840 generate_multitalk.py, audio_prepare_multi() ('add' = sequential, 'para' = parallel).
    """
    begins = start_samples([v.shape[-1] for v in voices], layout, starts or [None] * len(voices))
    total = max(begin + v.shape[-1] for begin, v in zip(begins, voices, strict=True))
    return [torch.nn.functional.pad(v, (b, total - b - v.shape[-1])) for b, v in zip(begins, voices, strict=True)]


def mix(sounds: Sequence[tuple[Tensor, int]], layout: Layout, starts: Sequence[float | None] | None = None) -> tuple[Tensor, int]:
    """The video's own sound track: every speaker at the quality it came in, summed on the common clock.

    One sound keeps its rate and channels. Several take the highest rate and the most channels among them (a mono voice goes to
    every channel). A sum that would clip is scaled down as a whole.

    Returns:
        (waveform [C, N] float32, rate in Hz).
    """
    checked = [(as_sound(waveform, rate), rate) for waveform, rate in sounds]
    rate = max(r for _, r in checked)
    channels = max(w.shape[0] for w, _ in checked)
    tracks = [_to_channels(resample(w, r, rate), channels) for w, r in checked]
    begins = start_samples([t.shape[-1] for t in tracks], layout, starts or [None] * len(tracks), rate)
    mixed = torch.zeros(channels, max(b + t.shape[-1] for b, t in zip(begins, tracks, strict=True)))
    for begin, track in zip(begins, tracks, strict=True):
        mixed[:, begin : begin + track.shape[-1]] += track
    loudest_source = max(float(w.abs().max()) for w, _ in checked)
    return mixed / max(1.0, float(mixed.abs().max()) / max(1.0, loudest_source)), rate


def _to_channels(sound: Tensor, channels: int) -> Tensor:
    """A mono sound on all channels; a sound with fewer channels than the mix keeps its own and leaves the others silent."""
    if sound.shape[0] == 1:
        return sound.expand(channels, -1)
    return torch.nn.functional.pad(sound, (0, 0, 0, channels - sound.shape[0]))


def _lufs(power: np.ndarray | float) -> np.ndarray:
    return -0.691 + 10 * np.log10(power)


def _k_weighted(voice: np.ndarray, rate: int) -> np.ndarray:
    """BS.1770 pre-filter: a 4 dB shelf above 1.5 kHz (the head), then a 38 Hz high-pass, both RBJ biquads, as in pyloudnorm."""
    from scipy.signal import lfilter  # half a second to import; ComfyUI brings scipy

    for b, a in (_high_shelf(4.0, 1 / math.sqrt(2), 1500.0, rate), _high_pass(0.5, 38.0, rate)):
        voice = np.asarray(lfilter(b, a, voice))
    return voice


def _high_shelf(gain_db: float, q: float, corner: float, rate: int) -> tuple[list[float], list[float]]:
    """(b, a) of R. Bristow-Johnson's Audio EQ Cookbook high shelf."""
    amp, w = 10 ** (gain_db / 40), 2 * math.pi * corner / rate
    cos, slope = math.cos(w), 2 * math.sqrt(amp) * math.sin(w) / (2 * q)
    b = [amp * ((amp + 1) + (amp - 1) * cos + slope), -2 * amp * ((amp - 1) + (amp + 1) * cos), amp * ((amp + 1) + (amp - 1) * cos - slope)]
    a = [(amp + 1) - (amp - 1) * cos + slope, 2 * ((amp - 1) - (amp + 1) * cos), (amp + 1) - (amp - 1) * cos - slope]
    return [x / a[0] for x in b], [x / a[0] for x in a]


def _high_pass(q: float, corner: float, rate: int) -> tuple[list[float], list[float]]:
    """(b, a) of the Audio EQ Cookbook high-pass."""
    w = 2 * math.pi * corner / rate
    cos, alpha = math.cos(w), math.sin(w) / (2 * q)
    b = [(1 + cos) / 2, -(1 + cos), (1 + cos) / 2]
    a = [1 + alpha, -2 * cos, 1 - alpha]
    return [x / a[0] for x in b], [x / a[0] for x in a]
