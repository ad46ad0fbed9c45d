"""How loud a voice is: measured and normalised as broadcasters do, and as a curve over the frames of a video.

Shapes: N samples at 16 kHz, unless a rate is given.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..clock import FPS, SAMPLE_RATE
from ..errors import AudioError

TARGET_LUFS = -23.0  # LUFS; EBU R 128, as MeiGen-AI/MultiTalk generate_multitalk.py loudness_norm
SILENCE_LUFS = -100.0  # LUFS; what the meter reads below this is left alone (same source)
BLOCK_SECONDS = 0.4  # s; gating block of ITU-R BS.1770-4
ABSOLUTE_GATE = -70.0  # LUFS; BS.1770-4
RELATIVE_GATE = -10.0  # LU below the ungated mean; BS.1770-4
HUM = 120.0  # Hz; below are offsets, rumble and the mains (50 or 60 Hz, and their first overtone), above is nearly all of speech
BUTTERWORTH = (0.5412, 1.3066)  # Q of the two biquads of a fourth-order Butterworth filter


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


def is_inaudible(voice: Tensor) -> bool:
    """Whether a voice [N] lies below the meter's absolute gate (−70 LUFS) all the time, as digital silence does."""
    block = round(BLOCK_SECONDS * SAMPLE_RATE)
    return integrated_loudness(torch.nn.functional.pad(voice, (0, max(0, block - voice.shape[-1])))) == -math.inf


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


def without_hum(voice: Tensor) -> Tensor:
    """A voice [N] at SAMPLE_RATE without what is no speech and yet counts as loud: offset, rumble, hum. Returns [N] float64.

    A fourth-order Butterworth high-pass at HUM; the meter's own, at 38 Hz, leaves two thirds of a hum of 50 Hz. The offset is that of
    samples that are not exactly zero, because tracks are filled up with those, and the step would be a click.
    """
    from scipy.signal import lfilter  # as in _k_weighted

    samples = voice.cpu().double()
    sounding = samples != 0
    if not sounding.any():
        return samples
    heard = torch.where(sounding, samples - samples[sounding].mean(), 0.0).numpy()
    for q in BUTTERWORTH:
        heard = np.asarray(lfilter(*_high_pass(q, HUM, SAMPLE_RATE), heard))
    return torch.from_numpy(heard)


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


LOUDNESS_EXPONENT = 0.6  # Stevens' law: loudness grows with sound pressure to this power
WINDOW_FRAMES = 2.0  # video frames under the Hann window: long enough that single glottal pulses do not show
QUIET = 0.08  # sound pressure, relative to the voice's loud parts, that still counts as silence
LOUD = 0.97  # quantile of the pressures that is taken as the voice's loud parts
SILENCE = 1e-3  # sound pressure below which a whole voice is silent, whatever its loudest part is


def voice_energy(voice: Tensor, frames: int) -> Tensor:
    """How loud a voice is in every video frame: 0 in its pauses, 1 where it is at its loudest.

    Sound pressure is the root mean square under a Hann window around the frame's middle; loudness grows with its power of 0.6. The
    scale is the voice's own, so a quiet recording gives the same curve as a loud one.

    Args:
        voice: [N] at 16 kHz, of one speaker alone; what the video is longer than the voice is silent.
        frames: of the video.
    Returns:
        [frames] float32 in 0…1.
    Raises:
        ValueError: no frames, or not a single channel of samples.
    """
    if voice.ndim != 1 or frames < 1:
        raise ValueError(
            f"A voice of shape {tuple(voice.shape)} and {frames} frames were given; samples [N] and at least 1 frame were expected."
        )
    hop = SAMPLE_RATE // FPS
    length = int(WINDOW_FRAMES * hop)
    before = (length - hop) // 2
    samples = voice.cpu().double()[: (frames + 1) * hop]
    samples = torch.nn.functional.pad(samples, (before, frames * hop + length - samples.shape[0]))
    window = torch.hann_window(length, periodic=False, dtype=torch.float64)
    pressure = (samples.unfold(0, length, hop)[:frames].square() @ window / window.sum()).sqrt()
    loud = pressure.quantile(LOUD).clamp(min=SILENCE)
    return ((pressure / loud - QUIET) / (1 - QUIET)).clamp(0, 1).pow(LOUDNESS_EXPONENT).float()


def speech_energy(voice: Tensor, frames: int) -> Tensor:
    """`voice_energy` of a recording: an offset, rumble or the hum of the mains are not taken for loudness. A clean voice gives the same
    curve (correlation 0.999), which is why mouths are drawn, trained and evaluated by `voice_energy` itself.
    """
    return voice_energy(without_hum(voice[: (frames + 1) * SAMPLE_RATE // FPS]), frames)
