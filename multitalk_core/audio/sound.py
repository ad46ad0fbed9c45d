"""Voices as the encoder hears them: mono, 16 kHz, level, laid out on one clock.

Shapes: C channels, N samples. A *voice* is a float32 tensor [N] at SAMPLE_RATE; a *sound* is (waveform [C, N], rate) as the
user gave it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..clock import SAMPLE_RATE
from ..errors import AudioError
from ..notes import note
from .channels import STEREO, USUAL, stereo_gains

CHANNEL_NAMES = "channel_names"  # of an AUDIO: tuple of names as in `channels`
BLOCK_SAMPLES = 4096  # in which channels are compared; about a tenth of a second
LAG = 0.0005  # s; a difference over it passes speech, and leaves 0.16 of 50 Hz
CANCELLED = 10 ** (-15 / 10)  # of the power of the channels; see to_mono
CANCELLED_SHARE = 0.1  # of all power

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # Hz; ISO/IEC 14496-3
PLAYER_RATE = 48_000  # Hz

Layout = Literal["sequential", "parallel"]


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


def all_channels(audio: Mapping[str, Any]) -> tuple[Tensor, int]:
    """ComfyUI's AUDIO ({"waveform", "sample_rate"}) as a sound, with every channel as it is."""
    rate = int(audio["sample_rate"])
    return as_sound(audio["waveform"], rate), rate


def sound_of(audio: Mapping[str, Any]) -> tuple[Tensor, int]:
    """ComfyUI's AUDIO ({"waveform", "sample_rate"}) as a sound; surround as stereo.

    MultiTalk Load Audio adds under CHANNEL_NAMES what the file says of its channels, with nothing in it if the file does not say. In
    an AUDIO without that, six or eight channels are 5.1 or 7.1 in the usual order, and that is noted.
    """
    waveform, rate = all_channels(audio)
    count = waveform.shape[0]
    names = audio.get(CHANNEL_NAMES)
    if names is None and count in USUAL:
        names = USUAL[count]
        note(
            f"An audio has {count} channels and does not say which; they are taken for surround sound in the usual order "
            f"({', '.join(names)}). If they are microphones, load the file with MultiTalk Load Audio."
        )
    elif not names and count > STEREO:
        note(f"An audio has {count} channels and its file does not say what they are for; all of them are heard alike.")
    return to_stereo(waveform, names or ()), rate


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


def to_stereo(waveform: Tensor, names: Sequence[str]) -> Tensor:
    """Surround sound [C, N] as [2, N], by the coefficients of ITU-R BS.775; whatever is not known to be surround is left as it is.

    The centre, which holds the voice, comes at −3 dB on either side: as loud as it was. A sum that would clip is scaled down as a
    whole.

    Args:
        names: of the channels, as in `channels`.
    """
    gains = stereo_gains(names)
    if gains is None or len(names) != waveform.shape[0]:
        return waveform
    return _within(torch.tensor(gains, dtype=waveform.dtype) @ waveform, float(waveform.abs().max()))


def to_mono(waveform: Tensor, rate: int) -> Tensor:
    """One channel [N] of [C, N]: the plain mean, unless the channels cancel out.

    A voice whose channels have opposite signs (a cable or a plug-in with wrong polarity) is gone in the mean. It cancels out in a
    block if the mean has less than CANCELLED of the channels' average power; if such blocks hold more than CANCELLED_SHARE of the
    power, which nobody would hear then, the loudest channel is taken instead, and that is noted.

    Measured with our samples' voices: one side alone, a person on each side, and delays of up to 20 ms between the sides leave −3 dB
    (at worst −8 dB in a block), all with the same content as either side. A side that is the other's negative leaves −10 dB at half of
    its level, which is still the voice itself and so does no harm, −19 dB at 0.8, −26 dB at 0.9, and −36 dB with noise 30 dB below it,
    where hardly anything but the noise is left.
    """
    mean = waveform.mean(dim=0)
    if waveform.shape[0] == 1 or waveform.shape[1] < 2:
        return mean
    lag = min(max(1, round(rate * LAG)), waveform.shape[1] - 1)  # differences hold neither an offset nor much of a hum
    heard, both = waveform[:, lag:] - waveform[:, : waveform.shape[1] - lag], mean[lag:] - mean[: len(mean) - lag]
    whole = heard.shape[1] // BLOCK_SAMPLES * BLOCK_SAMPLES or heard.shape[1]
    size = min(BLOCK_SAMPLES, whole)
    power = heard[:, :whole].double().square().unflatten(1, (-1, size)).mean(dim=2)
    left = both[:whole].double().square().unflatten(0, (-1, size)).mean(dim=1)
    average = power.mean(dim=0)
    lost = left < CANCELLED * average
    if not float(average[lost].sum()) > CANCELLED_SHARE * float(average.sum()):
        return mean
    loudest = int(power.sum(dim=1).argmax())
    note(
        f"The channels of an audio cancel each other out (one is the negative of another), so only channel {loudest + 1} of "
        f"{waveform.shape[0]} is heard by the model. The sound track keeps all of them."
    )
    return waveform[loudest]


def playable(waveform: Tensor, rate: int) -> tuple[Tensor, int]:
    """What every video file and player takes: [1 or 2, N] at a rate that AAC has; others are resampled to 48 kHz.

    More than two channels come as one on both sides, because nothing says which channel is which (what is known to be surround is
    stereo already), and speech must not end up on one side.
    """
    if waveform.shape[0] > STEREO:
        waveform = to_mono(waveform, rate).expand(STEREO, -1)
    if rate in AAC_RATES:
        return waveform, rate
    return resample(waveform, rate, PLAYER_RATE), PLAYER_RATE


def mono_16k(waveform: Tensor, rate: int) -> Tensor:
    """Bring all channels into one (`to_mono`) and resample, band-limited.

    soxr's HQ preset is what librosa.load uses, so the result is bit-equal to the official one; torchaudio's resampler would be
    0.4–3.5 % (relative L2) away from it.

    Returns:
        [ceil(N · 16000 / rate)] float32.
    """
    return resample(to_mono(as_sound(waveform, rate), rate), rate, SAMPLE_RATE)


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
    return _within(mixed, max(float(w.abs().max()) for w, _ in checked)), rate


def _within(mixed: Tensor, loudest_source: float) -> Tensor:
    """Scaled down as a whole if it would clip, and what it was made of did not."""
    return mixed / max(1.0, float(mixed.abs().max()) / max(1.0, loudest_source))


def _to_channels(sound: Tensor, channels: int) -> Tensor:
    """A mono sound on all channels; a sound with fewer channels than the mix keeps its own and leaves the others silent."""
    if sound.shape[0] == 1:
        return sound.expand(channels, -1)
    return torch.nn.functional.pad(sound, (0, 0, 0, channels - sound.shape[0]))
