"""The lip-sync measure on drawn videos whose mouths move as we say."""

from pathlib import Path

import pytest
import soundfile
import torch

from multitalk_nodes.lab.scenes.faces import any_faces, one_face, two_faces
from multitalk_nodes.multitalk_core.audio.loudness import voice_energy
from multitalk_nodes.multitalk_core.audio.sound import mono_16k
from multitalk_nodes.multitalk_core.lipsync.curves import correlation, mouth_opening, pearson

SAMPLES = Path(__file__).resolve().parents[2] / "demo" / "samples"
FRAMES = 81


@pytest.fixture(scope="module")
def voices() -> list[torch.Tensor]:
    """Two spoken voices [N] at 16 kHz."""
    sounds = [soundfile.read(SAMPLES / f"voice_{n}.wav", dtype="float32", always_2d=True) for n in (1, 2)]
    return [mono_16k(torch.from_numpy(samples.T.copy()), rate) for samples, rate in sounds]


@pytest.fixture(scope="module")
def openings(voices) -> torch.Tensor:
    """[2, FRAMES] mouths that follow the voices, by the plain root mean square of each frame's own samples."""
    pressure = torch.stack([v[: FRAMES * 640].reshape(FRAMES, 640).square().mean(dim=1).sqrt() for v in voices])
    return pressure / pressure.amax(dim=1, keepdim=True)


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (150, 100)])
@pytest.mark.parametrize("seed", range(4))
def test_the_opening_of_a_drawn_mouth_is_recovered(openings, size, seed):
    scene = any_faces(seed, 1, size)
    assert pearson(mouth_opening(scene.video(openings[:1]), scene.boxes[0]), openings[0]) > 0.97


@pytest.mark.parametrize("seed", range(4))
def test_a_mouth_is_measured_under_noise_and_in_other_light(openings, seed):
    scene = any_faces(seed, 1, (128, 128))
    frames = scene.video(openings[:1])
    noise = 0.05 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    assert pearson(mouth_opening((frames + noise).clamp(0, 1), scene.boxes[0]), openings[0]) > 0.95
    clean = mouth_opening(frames, scene.boxes[0])
    torch.testing.assert_close(mouth_opening(0.5 * frames, scene.boxes[0]), clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(64, 128), (128, 192)])
def test_each_face_is_measured_by_itself(openings, size):
    scene = two_faces(size)
    measured = [mouth_opening(scene.video(openings), box) for box in scene.boxes]
    alone = [mouth_opening(scene.video(openings * torch.eye(2)[i][:, None]), box) for i, box in enumerate(scene.boxes)]
    for i in range(2):
        assert torch.equal(measured[i], alone[i])
        assert pearson(measured[i], openings[i]) > 0.97


def test_the_right_voice_is_told_from_another_one(voices, openings):
    scene = two_faces((64, 128))
    mouths = [mouth_opening(scene.video(openings), box) for box in scene.boxes]
    energies = [voice_energy(voice, FRAMES) for voice in voices]
    for own, other in ((0, 1), (1, 0)):
        assert pearson(mouths[own], energies[own]) > 0.9
        assert pearson(mouths[own], energies[other]) < 0.1
        assert correlation(mouths[own], energies[own])[0] > correlation(mouths[own], energies[other])[0] + 0.4


@pytest.mark.parametrize("late", range(-5, 6))
def test_a_shift_of_mouth_against_voice_is_found(voices, openings, late):
    scene = one_face((96, 96))
    measured = mouth_opening(scene.video(openings[:1].roll(late, dims=1)), scene.boxes[0])
    value, lag = correlation(measured, voice_energy(voices[0], FRAMES), max_lag=5)
    assert lag == late and value > 0.9
    if late:
        assert pearson(measured, voice_energy(voices[0], FRAMES)) < value


def test_a_closed_mouth_and_a_silent_voice_follow_nothing(voices, openings):
    scene = one_face((128, 128))
    noise = 0.05 * torch.randn((FRAMES, 128, 128, 3), generator=torch.Generator().manual_seed(0))
    closed = mouth_opening((scene.video(torch.zeros(1, FRAMES)) + noise).clamp(0, 1), scene.boxes[0])
    silent = voice_energy(1e-5 * torch.randn(FRAMES * 640, generator=torch.Generator().manual_seed(1)), FRAMES)
    assert correlation(closed, voice_energy(voices[0], FRAMES)) == (0.0, 0)
    assert correlation(openings[0], silent) == (0.0, 0)
    assert not voice_energy(torch.zeros(640), FRAMES).any()


def test_a_mouth_that_is_always_open_is_seen_open():
    scene = one_face((128, 128))
    assert mouth_opening(scene.video(torch.ones(1, 5)), scene.boxes[0]).min() > 0.2
    assert mouth_opening(scene.video(torch.zeros(1, 5)), scene.boxes[0]).max() < 0.01


def test_loudness_is_at_the_frames_that_sound():
    time = torch.arange(3 * 16000) / 16000
    tone = torch.where((time >= 1.0) & (time < 1.4), torch.sin(2 * torch.pi * 200 * time), 0)
    energy = voice_energy(tone, 100)
    assert energy.shape == (100,)
    assert energy[25:35].min() > 0.9 and energy[:24].max() == 0 and energy[36:].max() == 0


def test_loudness_does_not_depend_on_the_level_of_the_recording(voices):
    torch.testing.assert_close(voice_energy(0.1 * voices[0], FRAMES), voice_energy(voices[0], FRAMES), atol=1e-5, rtol=0)


def test_pearson_is_the_textbook_s():
    a, b = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    assert pearson(a, b) == pytest.approx(float(torch.corrcoef(torch.stack([a, b]))[0, 1]), abs=1e-6)
    assert pearson(a, a) == pytest.approx(1) and pearson(a, -a) == pytest.approx(-1)
    assert pearson(a, torch.ones(40)) == 0


@pytest.mark.parametrize("box", [(10, 10, 10, 50), (10, 50, 40, 50), (200, 0, 260, 60), (-60, 0, -10, 60), (40, 40, 10, 10)])
def test_a_box_without_a_mouth_in_the_picture_is_refused(box):
    with pytest.raises(ValueError, match="face box"):
        mouth_opening(torch.rand(3, 64, 64, 3), box)


def test_what_is_no_video_no_voice_and_no_pair_of_curves_is_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        mouth_opening(torch.rand(0, 64, 64, 3), (0, 0, 64, 64))
    with pytest.raises(ValueError, match=r"samples \[N\]"):
        voice_energy(torch.rand(2, 16000), 25)
    with pytest.raises(ValueError, match="one length"):
        pearson(torch.rand(5), torch.rand(6))
    with pytest.raises(ValueError, match="Use 0 to 7"):
        correlation(torch.rand(10), torch.rand(10), max_lag=8)
