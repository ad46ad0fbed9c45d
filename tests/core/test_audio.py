"""Voices as the encoder hears them, against soxr, pyloudnorm and plain arithmetic."""

import math

import numpy as np
import pytest
import torch

from multitalk_nodes.multitalk_core.audio.loudness import BLOCK_SECONDS, TARGET_LUFS, integrated_loudness, normalise_loudness, without_hum
from multitalk_nodes.multitalk_core.audio.sound import (
    AAC_RATES,
    as_sound,
    lay_out,
    mix,
    mono_16k,
    pick_channel,
    playable,
    resample,
    start_samples,
)
from multitalk_nodes.multitalk_core.clock import SAMPLE_RATE
from multitalk_nodes.multitalk_core.errors import AudioError

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000]
NAN, INF = math.nan, math.inf


def noise(*shape: int, seed: int = 0, level: float = 0.1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, level, shape).astype(np.float32))


def sine(frequency: float, rate: int, seconds: float) -> torch.Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(round(rate * seconds), dtype=torch.float64) / rate).float()


def meter(rate: int = SAMPLE_RATE):
    return pytest.importorskip("pyloudnorm").Meter(rate)


def square(rate: int, frequency: float = 100.0) -> torch.Tensor:
    return sine(frequency, rate, 0.5).sign()


# as_sound, mono_16k, resample


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_mono_is_the_mean_of_the_channels(channels):
    sound = noise(channels, 3000)
    np.testing.assert_allclose(mono_16k(sound, SAMPLE_RATE).numpy(), sound.numpy().mean(axis=0), atol=1e-7)


def test_samples_without_a_channel_dimension_are_mono():
    sound = noise(500)
    assert torch.equal(as_sound(sound, 44_100), sound[None])


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_items_of_a_batch_follow_one_another(rate):
    batch = noise(3, 2, 4000)
    in_a_row = torch.cat([batch[0], batch[1], batch[2]], dim=1)
    assert torch.equal(as_sound(batch, rate), in_a_row)
    assert torch.equal(mono_16k(batch, rate), mono_16k(in_a_row, rate))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_number_types_become_float32(dtype):
    sound = noise(2, 400).to(dtype)
    assert torch.equal(as_sound(sound, 16_000), sound.float()) and as_sound(sound, 16_000).dtype == torch.float32


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("samples", [1, 2, 700, 44_101])
def test_a_voice_is_as_long_as_its_recording_rounded_up(rate, samples):
    assert mono_16k(noise(samples), rate).shape == (-(-samples * 16_000 // rate),)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("frequency", [60, 440, 3000])
def test_a_resampled_sine_is_the_sine_sampled_at_the_new_rate(rate, frequency):
    resampled, ideal = resample(sine(frequency, rate, 1), rate, SAMPLE_RATE), sine(frequency, SAMPLE_RATE, 1)
    inside = slice(2000, -2000)
    assert (resampled[inside] - ideal[inside]).abs().max() < 1e-4


@pytest.mark.parametrize("rate", [44_100, 48_000, 192_000])
def test_a_tone_above_the_new_band_is_gone(rate):
    assert resample(sine(10_000, rate, 1), rate, SAMPLE_RATE)[2000:-2000].abs().max() < 1e-4


def test_channels_are_resampled_one_by_one():
    sound = noise(3, 5000)
    together = resample(sound, 44_100, 48_000)
    assert torch.equal(together, torch.stack([resample(channel, 44_100, 48_000) for channel in sound]))


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (torch.zeros(1, 0), 16_000, "empty"),
        (torch.zeros(0, 10), 16_000, "empty"),
        (torch.zeros(2, 1, 0), 16_000, "empty"),
        (torch.tensor([[0.0, NAN]]), 16_000, "not numbers"),
        (torch.tensor([[0.0, -INF]]), 16_000, "not numbers"),
        (torch.zeros(1, 10), 0, "sample rate is 0"),
        (torch.zeros(1, 10), -8000, "sample rate is -8000"),
        (torch.tensor(0.5), 16_000, "shape"),
        (torch.zeros(1, 1, 1, 10), 16_000, "shape"),
    ],
)
def test_audio_that_cannot_be_used_is_refused_with_the_reason(waveform, rate, message):
    for use in (as_sound, mono_16k, lambda w, r: mix([(w, r)], "parallel")):
        with pytest.raises(AudioError, match=message):
            use(waveform, rate)


# loudness


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.4, 0.43, 0.75, 3.21, 12.0])
def test_loudness_is_pyloudnorm_s(rate, seconds):
    voice = noise(math.ceil(seconds * rate), seed=int(seconds * 100))
    assert integrated_loudness(voice, rate) == pytest.approx(meter(rate).integrated_loudness(voice.double().numpy()), abs=1e-6)


@pytest.mark.parametrize("pause", [1e-5, 1e-3, 0.02])
def test_gated_pauses_are_pyloudnorm_s(pause):
    """Pauses below the absolute gate, between the gates, and above both."""
    voice = torch.cat([noise(20_000), noise(30_000, seed=1) * pause / 0.1, noise(15_000, seed=2)])
    assert integrated_loudness(voice) == pytest.approx(meter().integrated_loudness(voice.double().numpy()), abs=1e-6)


@pytest.mark.parametrize("level", [1e-3, 0.02, 0.9])
def test_a_normalised_voice_reads_minus_23(level):
    voice = normalise_loudness(noise(48_000, level=level))
    assert voice.dtype == torch.float32
    assert meter().integrated_loudness(voice.double().numpy()) == pytest.approx(TARGET_LUFS, abs=1e-4)


def test_normalising_twice_changes_nothing():
    once = normalise_loudness(noise(40_000))
    torch.testing.assert_close(normalise_loudness(once), once, rtol=1e-6, atol=0)


def test_normalising_is_a_gain():
    voice = noise(40_000)
    gain = normalise_loudness(voice).double() / voice.double()
    assert gain.max() / gain.min() - 1 < 1e-6


@pytest.mark.parametrize(
    "voice",
    [torch.zeros(32_000), noise(32_000, level=1e-6), noise(32_000, level=1e-7), noise(6_399), noise(1)],
    ids=["silence", "below the gate", "below −100 LUFS", "0.3999 s", "one sample"],
)
def test_what_has_no_loudness_is_left_alone(voice):
    assert torch.equal(normalise_loudness(voice), voice)


def test_silence_has_no_loudness():
    assert integrated_loudness(torch.zeros(32_000)) == -INF


def test_a_single_block_has_a_loudness():
    block = int(BLOCK_SECONDS * SAMPLE_RATE)
    assert math.isfinite(integrated_loudness(noise(block)))
    with pytest.raises(AudioError, match="0.4 s"):
        integrated_loudness(noise(block - 1))


# the common clock


@pytest.mark.parametrize(
    ("layout", "starts", "begins"),
    [
        ("sequential", [None, None, None], [0, 1000, 3000]),
        ("parallel", [None, None, None], [0, 0, 0]),
        ("sequential", [1.0, None, None], [16_000, 17_000, 19_000]),
        ("sequential", [None, 0.5, None], [0, 8000, 10_000]),
        ("sequential", [None, 0.0, None], [0, 0, 2000]),
        ("sequential", [None, None, 0.01], [0, 1000, 160]),
        ("parallel", [0.25, None, 0.1], [4000, 0, 1600]),
    ],
)
def test_speakers_begin_at_their_start_or_by_the_layout(layout, starts, begins):
    assert start_samples([1000, 2000, 500], layout, starts) == begins
    voices = [noise(length, seed=length) for length in (1000, 2000, 500)]
    tracks = lay_out(voices, layout, starts)
    assert {track.shape for track in tracks} == {(max(b + len(v) for b, v in zip(begins, voices, strict=True)),)}
    for track, begin, voice in zip(tracks, begins, voices, strict=True):
        expected = np.zeros(len(track), dtype=np.float32)
        expected[begin : begin + len(voice)] = voice.numpy()
        assert torch.equal(track, torch.from_numpy(expected))


@pytest.mark.parametrize("start", [-0.1, NAN, INF])
def test_a_start_before_the_video_or_of_no_number_is_refused(start):
    with pytest.raises(AudioError, match="starts at"):
        lay_out([noise(100), noise(100)], "parallel", [None, start])


def test_an_unknown_layout_is_refused_with_the_known_ones():
    with pytest.raises(AudioError, match="'sequential'.*'parallel'"):
        lay_out([noise(100)], "para")


@pytest.mark.parametrize("layout", ["sequential", "parallel"])
@pytest.mark.parametrize("starts", [None, [0.1, None], [None, 0.02]])
def test_the_sum_of_the_tracks_is_the_mix_of_the_voices(layout, starts):
    voices = [noise(3000, level=0.05), noise(5000, seed=1, level=0.05)]
    mixed, rate = mix([(voice, SAMPLE_RATE) for voice in voices], layout, starts)
    assert rate == SAMPLE_RATE
    assert torch.equal(mixed[0], sum(lay_out(voices, layout, starts)))


# the video's own sound track


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("level", [0.1, 1.0])
def test_a_single_sound_is_kept_bit_for_bit(rate, channels, level):
    """Also one that is louder than full scale: it is the user's own."""
    sound = noise(channels, 2000, level=level)
    mixed, mixed_rate = mix([(sound, rate)], "sequential")
    assert mixed_rate == rate and torch.equal(mixed, sound)


def test_a_mix_has_the_highest_rate_and_the_most_channels():
    stereo, mono = noise(2, 44_100), noise(1, 8000, seed=1)
    mixed, rate = mix([(stereo, 44_100), (mono, 16_000)], "parallel")
    assert rate == 44_100 and mixed.shape == (2, 44_100)
    expected = stereo.clone()
    expected[:, :22_050] += resample(mono, 16_000, 44_100)
    torch.testing.assert_close(mixed, expected)


def test_a_sound_with_fewer_channels_keeps_its_own():
    six, stereo = torch.zeros(6, 1000), noise(2, 1000)
    mixed, _ = mix([(six, 48_000), (stereo, 48_000)], "parallel")
    assert torch.equal(mixed[:2], stereo) and not mixed[2:].any()


def test_a_mix_in_sequence_follows_the_times_of_the_voices():
    """To a sample of the coarser clock, although every voice is rounded up to whole samples."""
    sounds = [(noise(1, 44_101), 44_100), (noise(1, 7_777, seed=1), 22_050), (noise(2, 9_999, seed=2), 48_000)]
    mixed, rate = mix(sounds, "sequential", [None, 1.5, None])
    tracks = lay_out([mono_16k(*sound) for sound in sounds], "sequential", [None, 1.5, None])
    assert abs(mixed.shape[1] / rate - len(tracks[0]) / SAMPLE_RATE) < 2 / SAMPLE_RATE


def test_a_sum_that_would_clip_is_scaled_as_a_whole():
    a, b = square(16_000), square(16_000, 150)
    mixed, _ = mix([(a, 16_000), (b, 16_000)], "parallel")
    assert mixed.abs().max() <= 1
    torch.testing.assert_close(mixed[0], (a + b) / 2)


def test_a_sum_that_fits_is_not_scaled():
    a, b = 0.5 * square(16_000), 0.5 * square(16_000, 150)
    mixed, _ = mix([(a, 16_000), (b, 16_000)], "parallel")
    assert torch.equal(mixed[0], a + b)


def test_resampling_to_the_mix_does_not_make_it_clip():
    """A square wave at full scale overshoots when its band is limited."""
    mixed, _ = mix([(square(44_100).expand(2, -1), 44_100), (square(16_000), 16_000)], "sequential")
    assert mixed.abs().max() <= 1


@pytest.mark.parametrize(("channel", "expected"), [("all", slice(0, 2)), ("left", slice(0, 1)), ("right", slice(1, 2))])
def test_a_side_of_a_recording_is_a_mono_recording(channel, expected):
    stereo = noise(2, 100)
    assert torch.equal(pick_channel(stereo, channel), stereo[expected])


def test_a_mono_recording_has_no_right_side():
    mono = noise(1, 100)
    assert torch.equal(pick_channel(mono, "left"), mono)
    with pytest.raises(AudioError, match="mono"):
        pick_channel(mono, "right")


@pytest.mark.parametrize("rate", [1000, 8000, 11_025, 22_051, 44_100, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_what_players_do_not_know_is_made_playable(rate, channels):
    sound = noise(channels, rate // 2)
    played, played_rate = playable(sound, rate)
    assert played_rate == (rate if rate in AAC_RATES else 48_000)
    assert played.shape == (min(channels, 2), math.ceil(sound.shape[1] * played_rate / rate))
    sides = sound if channels <= 2 else sound.mean(dim=0).expand(2, -1)
    torch.testing.assert_close(played, resample(sides, rate, played_rate))


def test_playable_sound_is_kept_bit_for_bit():
    stereo = noise(2, 1000)
    assert torch.equal(playable(stereo, 44_100)[0], stereo)


@pytest.mark.parametrize(("hertz", "left"), [(0, 1e-6), (20, 1e-3), (50, 0.04), (60, 0.07), (200, 1.001), (1000, 1.001)])
def test_what_is_below_speech_does_not_count(hertz, left):
    tone = torch.cos(2 * torch.pi * hertz * torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE)
    heard = without_hum(tone)[SAMPLE_RATE:]
    share = float(heard.square().mean().sqrt() / tone.square().mean().sqrt())
    assert share <= left and (left < 1 or share > 0.9)
