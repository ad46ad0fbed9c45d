"""The demo's training speech: who says what in which split, and what disturbs it."""

import itertools
import sys

import numpy as np
import pytest
import torch

from multitalk_nodes.lab.scenes import speech
from multitalk_nodes.lab.scenes.speech import SAMPLE_RATE, VARIANTS, WORDS, Voice, corpus, disturbed, music, noise, synthesise, utterance

SPLITS = ("train", "held_out")


@pytest.fixture
def espeak():
    pytest.importorskip("espeakng_loader", reason="needs espeak-ng: pip install espeakng-loader")


def generator(seed=0):
    return np.random.default_rng(seed)


def words(split):
    return {word.casefold() for said in WORDS[split].values() for word in said.split()}


def fundamental(voice):
    """Median pitch in Hz of the loud 64 ms frames, by their autocorrelation."""
    frames = voice.unfold(0, 1024, 256)
    frames = frames[frames.std(dim=1) > 0.03] * torch.hann_window(1024)
    shortest, longest = SAMPLE_RATE // 400, SAMPLE_RATE // 60
    correlation = torch.fft.irfft(torch.fft.rfft(frames, 2048).abs().square())[:, shortest:longest]
    return SAMPLE_RATE / (shortest + correlation.argmax(dim=1)).median().item()


def test_splits_share_no_language_no_variant_and_no_word():
    assert not set(WORDS["train"]) & set(WORDS["held_out"])
    assert not set(VARIANTS["train"]) & set(VARIANTS["held_out"])
    assert not words("train") & words("held_out")
    assert all(len(set(said.split())) == 40 for split in SPLITS for said in WORDS[split].values())


@pytest.mark.parametrize("split", SPLITS)
def test_an_utterance_keeps_to_its_split(split, monkeypatch):
    calls = []
    monkeypatch.setattr(speech, "synthesise", lambda text, voice: calls.append((text, voice)) or torch.ones(8000))
    for seed in range(100):
        utterance(generator(seed), split, 3)
    for text, voice in calls:
        language, _, variant = voice.name.partition("+")
        assert set(text.rstrip(".?!").split()) <= set(WORDS[split][language].split())
        assert variant in VARIANTS[split]
        assert 2 <= len(text.split()) <= 6
        assert 110 <= voice.rate <= 190 and 20 <= voice.pitch <= 80
    assert {voice.name.partition("+")[0] for _, voice in calls} == set(WORDS[split])


def test_pauses_are_as_long_as_they_should_be(monkeypatch):
    monkeypatch.setattr(speech, "synthesise", lambda text, voice: torch.ones(8000))
    for seed in range(20):
        voice = utterance(generator(seed), "train", 20)
        runs = [(value, len(list(run))) for value, run in itertools.groupby((voice > 0).tolist())]
        (_, first), *pauses = [run for run in runs[:-1] if not run[0]]
        assert first <= 0.6 * SAMPLE_RATE
        assert all(0.15 * SAMPLE_RATE - 1 <= length <= 0.9 * SAMPLE_RATE + 1 for _, length in pauses)


def test_the_same_text_sounds_the_same_whatever_was_said_before(espeak):
    before = synthesise("hello there", Voice("en-us+f2"))
    synthesise("Guten Tag", Voice("de+klatt4", rate=120))
    assert torch.equal(before, synthesise("hello there", Voice("en-us+f2")))


def test_every_voice_exists_and_every_variant_has_a_throat_of_its_own(espeak):
    for split in SPLITS:
        for language, said in WORDS[split].items():
            assert synthesise(said.split()[0], Voice(language)).abs().max() > 0.1
    names = ["en-us+" + variant if variant else "en-us" for split in SPLITS for variant in VARIANTS[split]]
    assert len({synthesise("hello", Voice(name)).numpy().tobytes() for name in names}) == len(names)


def test_variants_pitch_rate_and_word_gap_are_heard(espeak):
    text = "how are you today"
    man = synthesise(text, Voice("en-us"))
    assert fundamental(man) == pytest.approx(100, abs=20)
    assert fundamental(synthesise(text, Voice("en-us+f3"))) > 1.7 * fundamental(man)
    assert fundamental(synthesise(text, Voice("en-us", pitch=90))) > 1.2 * fundamental(man)
    assert len(synthesise(text, Voice("en-us", rate=110))) > 1.3 * len(synthesise(text, Voice("en-us", rate=190)))
    assert len(synthesise(text, Voice("en-us"), word_gap=40)) > len(man) + 0.3 * SAMPLE_RATE


@pytest.mark.parametrize(("name", "expected"), [("xx", "no voice 'xx'"), ("en-us+nobody", "no variant 'nobody'")])
def test_an_unknown_voice_is_told(espeak, name, expected):
    with pytest.raises(ValueError, match=expected):
        synthesise("hello", Voice(name))


def test_without_espeak_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match="pip install espeakng-loader"):
        synthesise("hello", Voice("en-us"))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seconds", [0.1, 3.3])
def test_an_utterance_is_as_long_as_asked_and_the_same_for_the_same_seed(espeak, split, seconds):
    first, again, other = (utterance(generator(seed), split, seconds) for seed in (1, 1, 2))
    assert first.shape == (round(seconds * SAMPLE_RATE),)
    assert first.dtype == torch.float32
    assert first.abs().max() < 1
    assert torch.equal(first, again)
    if seconds > 1:
        assert not torch.equal(first, other)


def test_a_corpus_is_made_once(espeak, tmp_path, monkeypatch):
    made = corpus(tmp_path, "train", 3, 1.5, seed=4)
    monkeypatch.setattr(speech, "utterance", lambda *_: pytest.fail("it was made again"))
    again = corpus(tmp_path, "train", 3, 1.5, seed=4)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(again) == 3
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))


def test_a_corpus_holds_its_utterances(espeak, tmp_path):
    made = corpus(tmp_path, "held_out", 2, 1.5, seed=4)
    torch.testing.assert_close(made[1], utterance(np.random.default_rng([4, 1]), "held_out", 1.5), rtol=0, atol=0.51 / 32768)


@pytest.mark.parametrize("left", [0, 5, 100, 1000])
def test_a_truncated_corpus_is_made_again(espeak, tmp_path, left):
    expected = [voice.clone() for voice in corpus(tmp_path / "whole", "train", 2, 1, seed=0)]
    corpus(tmp_path, "train", 2, 1, seed=0)
    (file,) = tmp_path.glob("*.npy")
    file.write_bytes(file.read_bytes()[:left])
    assert all(torch.equal(a, b) for a, b in zip(corpus(tmp_path, "train", 2, 1, seed=0), expected, strict=True))


def test_corpora_of_other_parameters_are_other_files(espeak, tmp_path):
    parameters = [
        ("train", 1, 0.5, 0),
        ("held_out", 1, 0.5, 0),
        ("train", 2, 0.5, 0),
        ("train", 1, 1, 0),
        ("train", 1, 0.5, 1),
    ]
    for split, count, seconds, seed in parameters:
        assert len(corpus(tmp_path, split, count, seconds, seed)) == count
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("sound", [noise, music])
@pytest.mark.parametrize("samples", [1001, 3 * SAMPLE_RATE])
def test_noise_and_music_have_unit_level_and_follow_their_seed(sound, samples):
    first, again, other = (sound(generator(seed), samples) for seed in (1, 1, 2))
    assert first.shape == (samples,)
    assert first.dtype == torch.float32
    assert first.square().mean().sqrt().item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_white_to_brown():
    slopes = []
    for seed in range(20):
        power = torch.fft.rfft(noise(generator(seed), 4 * SAMPLE_RATE)).abs().square().numpy()[400:-400]  # from 100 Hz on
        slopes.append(np.polyfit(np.log(np.arange(400, 400 + len(power))), np.log(power), 1)[0])
    assert -2.2 < min(slopes) < -1.5
    assert -0.5 < max(slopes) < 0.2


@pytest.mark.parametrize("snr", [-5, 0, 20])
def test_the_disturbance_is_as_strong_as_asked_where_the_voice_speaks(snr):
    voice = 0.02 * torch.sin(torch.arange(2 * SAMPLE_RATE) * 0.1)
    voice[SAMPLE_RATE // 2 : SAMPLE_RATE] = 0
    active = voice[: SAMPLE_RATE // 2]
    for seed in range(8):  # noise, music, both
        added = disturbed(voice, generator(seed), snr) - voice
        assert 10 * torch.log10(active.square().mean() / added.square().mean()).item() == pytest.approx(snr, abs=0.1)


def test_a_loud_sum_is_scaled_down():
    voice = 0.9 * torch.sin(torch.arange(SAMPLE_RATE) * 0.1)
    assert disturbed(voice, generator(), -10).abs().max() < 1


@pytest.mark.parametrize("samples", [0, 999, SAMPLE_RATE])
def test_silence_stays_silence(samples):
    silence = torch.zeros(samples)
    assert torch.equal(disturbed(silence, generator(), 0), silence)


def test_more_than_one_voice_is_refused():
    with pytest.raises(ValueError, match="one voice at a time"):
        disturbed(torch.zeros(2, 100), generator(), 0)
