"""Whose mouth follows whose voice: drawn videos whose mouths move as we say, and the node on a real ComfyUI."""

import json
from fractions import Fraction

import av
import pytest
import soundfile
import torch

from multitalk_nodes.lab.scenes.faces import Acting, one_face, two_faces
from multitalk_nodes.multitalk_core.audio.loudness import speech_energy, voice_energy
from multitalk_nodes.multitalk_core.audio.sound import mono_16k
from multitalk_nodes.multitalk_core.errors import SpeakerError
from multitalk_nodes.multitalk_core.lipsync.check import LEAST_FRAMES, check_sync, needed_correlation, own_tracks, video_parts
from multitalk_nodes.multitalk_core.lipsync.curves import mouth_opening, pearson
from multitalk_nodes.multitalk_core.lipsync.mouths import LONGEST, SIDE, VideoError, opening, places, regions_of, watch
from multitalk_nodes.multitalk_core.people.speakers import Speaker
from multitalk_nodes.multitalk_core.people.voices import Voices
from multitalk_nodes.multitalk_core.pictures.lipsync import sync_picture
from multitalk_nodes.multitalk_core.video.sources import VideoSource
from multitalk_nodes.tests.support.graphs import SAMPLES, Graph, node
from multitalk_nodes.tools.comfyui.server import NodeFailed

FRAMES = 81
SIZE = (64, 128)
HALVES = [(0, 0, 64, 64), (64, 0, 128, 64)]
ANNA, BEN = Speaker(name="Anna"), Speaker(name="Ben")


@pytest.fixture(scope="module")
def voices() -> list[torch.Tensor]:
    """Two spoken voices [N] at 16 kHz and as long as the video; the second is twice the sample, from its middle on."""
    sounds = [soundfile.read(SAMPLES / f"voice_{n}.wav", dtype="float32", always_2d=True) for n in (1, 2)]
    spoken = [mono_16k(torch.from_numpy(samples.T.copy()), rate) for samples, rate in sounds]
    return [voice.repeat(4)[: FRAMES * 640] for voice in spoken]


def film(voices, late=0, size=SIZE, noise=0.02, order=(0, 1)) -> torch.Tensor:
    """Two faces that follow the voices in `order` (None keeps still), so many frames late, with noise over all."""
    curves = [torch.zeros(FRAMES) if i is None else voice_energy(voices[i], FRAMES).roll(late) for i in order]
    frames = two_faces(size).video(torch.stack(curves))
    return (frames + noise * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


@pytest.fixture(scope="module")
def good(voices) -> torch.Tensor:
    return film(voices)


def check(frames, voices, regions=None, speakers=(ANNA, BEN), max_lag=5):
    return check_sync(frames.split(30), regions or two_faces(SIZE).boxes, speakers, voices, max_lag)


def verdicts(found) -> list[str]:
    return [found.verdict(i) for i in range(len(found.speakers))]


@pytest.mark.parametrize("regions", [None, HALVES], ids=["faces", "halves"])
def test_a_good_video_is_called_good(voices, good, regions):
    found = check(good, voices, regions)
    assert verdicts(found) == ["in time", "in time"]
    assert found.correlations.diagonal().min() > 0.9 and found.lags.diagonal().abs().max() == 0
    assert found.report.startswith("All is as it should be.\nSpeaker 1 (Anna) follows their own voice (")


@pytest.mark.parametrize("regions", [None, HALVES], ids=["faces", "halves"])
def test_exchanged_speakers_are_named(voices, good, regions):
    found = check(good, voices[::-1], regions)
    assert verdicts(found) == ["swapped", "swapped"]
    assert "Speaker 1 (Anna) follows voice 2 (Ben) (" in found.report
    assert "are the masks swapped? Exchange the two." in found.report
    assert found.report.startswith("0 of 2")


@pytest.mark.parametrize("regions", [None, HALVES], ids=["faces", "halves"])
@pytest.mark.parametrize("late", [-5, -3, -1, 1, 2, 5])
def test_mouths_that_come_late_or_early_are_told_by_how_much(voices, late, regions):
    found = check(film(voices, late), voices, regions, max_lag=6)
    assert found.lags.diagonal().tolist() == [late, late]
    assert verdicts(found) == ["in time" if abs(late) == 1 else "late" if late > 0 else "early"] * 2
    if late == 5:
        assert "the mouth comes 5 frames late (0.20 s): move the sound 0.20 s later" in found.line(0)
    if late == -3:
        assert "3 frames early (0.12 s): move the sound 0.12 s earlier" in found.line(0)


def test_a_lag_at_the_end_of_the_search_may_be_greater(voices):
    assert "at least 2 frames late" in check(film(voices, 3), voices, max_lag=2).line(0)


@pytest.mark.parametrize("regions", [None, HALVES], ids=["faces", "halves"])
def test_voices_of_another_video_are_followed_by_nobody(voices, good, regions):
    others = [voice.flip(0).roll(7000) for voice in voices]
    found = check(good, others, regions)
    assert verdicts(found) == ["no match", "no match"]
    assert "Is it another voice or video" in found.line(0)


@pytest.mark.parametrize("regions", [None, HALVES], ids=["faces", "halves"])
def test_who_is_silent_should_keep_still(voices, good, regions):
    silent = [voices[0], torch.zeros(0)]
    assert verdicts(check(film(voices, order=(0, None)), silent, regions)) == ["in time", "still"]
    assert verdicts(check(film(voices, order=(0, 0)), silent, regions)) == ["in time", "not still"]
    found = check(good, silent, regions)
    assert verdicts(found) == ["in time", "moves"]
    assert "Speaker 2 (Ben) says nothing, and something moves in their region" in found.report


def test_a_blink_is_not_called_moving(voices):
    blinks = torch.zeros(2, FRAMES)
    blinks[:, 20:25] = blinks[:, 60:65] = 1
    frames = two_faces(SIZE).video(Acting(torch.zeros(2, FRAMES), blinks=blinks))
    assert verdicts(check(frames, [voices[0], torch.zeros(0)], HALVES))[1] == "still"


def test_a_mouth_that_also_follows_the_other_voice_is_named(voices):
    """Two who speak in turn, three times each; the first mouth moves in all turns."""
    turn = torch.arange(FRAMES * 640) < FRAMES * 320
    in_turn = [(voices[0] * turn).repeat(3), (voices[1] * ~turn).repeat(3)]
    energies = [voice_energy(voice, 3 * FRAMES) for voice in in_turn]
    found = check(two_faces(SIZE).video(torch.stack([energies[0] + energies[1], energies[1]])), in_turn)
    assert verdicts(found) == ["in time", "in time"]
    assert "also follows voice 2 (Ben)" in found.line(0) and "also" not in found.line(1)
    assert found.report.startswith("1 of 2")


def test_voices_that_are_alike_are_not_told_apart(voices):
    one_voice = check(film(voices, order=(0, 0)), [voices[0], voices[0]])
    assert one_voice.report.startswith("All is as it should be.") and "also" not in one_voice.report
    nearly = check(film(voices, order=(0, 0)), [voices[0] + 0.3 * voices[1], voices[0]])
    assert verdicts(nearly) == ["alike", "in time"]
    assert "too alike in time to tell which" in nearly.line(0)


def test_a_still_video_follows_nobody(voices):
    still = one_face((64, 64)).picture()[None].expand(FRAMES, -1, -1, -1)
    found = check(still, voices[:1], [(0, 0, 64, 64)], [ANNA])
    assert verdicts(found) == ["no match"]
    assert found.line(0).endswith("Nothing moves there.")


def test_where_no_mouth_is_nothing_is_found(voices, good):
    """Noise, and a face that nods as somebody speaks who is not asked about."""
    noise = torch.rand((FRAMES, 64, 128, 3), generator=torch.Generator().manual_seed(1))
    assert verdicts(check(noise, voices, HALVES)) == ["no match", "no match"]
    assert verdicts(check(good, voices, [(0, 0, 64, 12), (64, 0, 128, 12)])) == ["no match", "no match"]


@pytest.mark.parametrize("frames", [1, 2, 4, 12, LEAST_FRAMES - 1])
def test_too_short_a_video_tells_nothing(voices, good, frames):
    found = check(good[:frames], voices)
    assert verdicts(found) == ["unknown", "unknown"]
    assert found.report.startswith("Nothing can be said: the video has")
    assert sync_picture(found).shape[1] == 1024


def test_a_voice_that_says_next_to_nothing_tells_nothing(voices, good):
    short = torch.zeros(FRAMES * 640)
    short[3000:5000] = voices[0][3000:5000]
    hum = 0.2 * torch.sin(torch.arange(FRAMES * 640) * 2 * torch.pi * 120 / 16000)
    for voice in (short, hum):
        found = check(good, [voice, voices[1]])
        assert verdicts(found) == ["unknown", "in time"]
        assert "their voice says next to nothing" in found.line(0)


def test_longer_speech_needs_less_to_convince(voices):
    energy = voice_energy(voices[0], FRAMES)
    assert 0.6 < needed_correlation(energy) < 0.75
    assert needed_correlation(energy.repeat(2)) < needed_correlation(energy) < needed_correlation(energy[:40])
    assert needed_correlation(energy.repeat(50)) == pytest.approx(0.3)


def test_three_speakers_are_counted_from_one(voices):
    scene = two_faces(SIZE)
    found = check(film(voices, order=(0, None)), [voices[0], torch.zeros(0), voices[0]], [*scene.boxes, scene.boxes[0]], [ANNA, BEN, ANNA])
    assert found.line(1) == "Speaker 2 (Ben) keeps still, as they should."
    assert [pair["voice"] for pair in found.values["pairs"]] == [1, 2, 3] * 3


def test_what_is_told_to_programs(voices, good):
    values = json.loads(json.dumps(check(good, voices).values))
    assert (values["frames"], values["fps"], values["max_lag"]) == (FRAMES, 25, 5)
    assert [speaker["verdict"] for speaker in values["speakers"]] == ["in time", "in time"]
    assert [(pair["speaker"], pair["voice"]) for pair in values["pairs"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert values["pairs"][0]["correlation"] > 0.9 and values["pairs"][0]["lag"] == 0


@pytest.mark.parametrize("regions", [None, HALVES], ids=["faces", "halves"])
def test_the_mouth_is_where_the_face_has_it(voices, good, regions):
    for face, (x0, y0, x1, y1) in zip(two_faces(SIZE).faces, check(good, voices, regions).boxes, strict=True):
        assert x0 < face.x < x1 and y0 < face.y + face.mouth_y * face.radius < y1
        assert x1 - x0 < 2 * face.radius


def test_the_picture_has_a_lane_for_each_speaker(voices, good):
    shown = sync_picture(check(good, voices))
    assert shown.shape[1:] == (1024, 3) and shown.min() >= 0 and shown.max() <= 1
    assert shown.std() > 0.05
    assert sync_picture(check(good, voices[:1], HALVES[:1], [ANNA])).shape[0] < shown.shape[0]


# mouths


def test_a_place_in_small_grey_pictures_is_measured_as_a_face_box_is(voices, good):
    scene = two_faces(SIZE)
    for box, region in zip(scene.boxes, watch([good], scene.boxes), strict=True):
        curve = opening(region.pixels, places(region.pixels)[0])
        assert pearson(curve, mouth_opening(good, box)) > 0.99


def test_large_regions_are_made_smaller_and_parts_do_not_matter(good):
    wide = good.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    (one,), (many,) = watch([wide], [(0, 0, 256, 128)]), watch(wide.split(7), [(0, 0, 256, 128)])
    assert one.pixels.shape == (FRAMES, SIDE // 2, SIDE) and torch.equal(one.pixels, many.pixels)


def test_only_so_much_of_a_long_video_is_looked_at(voices):
    asked = []

    def frame(number):
        asked.append(number)
        return torch.zeros(1, 8, 8, 3)

    (region,) = watch(video_parts(frame, 10 * LONGEST, 500), [(0, 0, 8, 8)])
    assert region.pixels.shape[0] == LONGEST == len(asked)


@pytest.mark.parametrize("rate", [Fraction(50), Fraction(24000, 1001)])
def test_a_file_of_another_frame_rate_is_read_on_its_clock(voices, tmp_path, rate):
    """Each frame of the file is what is shown then, at most one frame of either rate off."""
    shown = film(voices, noise=0)
    numbers = [min(FRAMES - 1, int(number / rate * 25)) for number in range(int(FRAMES / 25 * rate))]
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for pixels in (shown[numbers] * 255).round().byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with VideoSource(tmp_path / "video.mp4") as source:
        found = check_sync(video_parts(source, FRAMES, 32), HALVES, [ANNA, BEN], voices)
    assert found.frames == FRAMES and verdicts(found) == ["in time", "in time"]
    assert found.correlations.diagonal().min() > 0.9


def test_boxes_of_the_picture_are_found_in_the_video():
    person = Speaker(box=(100, 50, 300, 250))
    assert regions_of([person], 300, 400) == [(100, 50, 300, 250)]
    assert regions_of([person], 150, 200, picture=(300, 400)) == [(50, 25, 150, 125)]
    assert regions_of([person], 300, 300, picture=(300, 400)) == [(50, 50, 250, 250)], "50 columns are cropped on each side"
    mask = torch.zeros(300, 400)
    mask[50:250, 100:300] = 1
    assert regions_of([Speaker(mask=mask)], 150, 200) == [(50, 25, 150, 125)]
    assert regions_of([Speaker(box=(0.25, 0.0, 0.75, 1.0))], 100, 200) == [(50, 0, 150, 100)]
    assert regions_of([Speaker(), Speaker()], 100, 200)[1][0] > 100
    assert regions_of([person], 150, 200, faces=[(1, 2, 30, 40)]) == [(1, 2, 30, 40)]


def test_what_cannot_be_looked_at_is_refused(voices, good):
    with pytest.raises(SpeakerError, match="connect that picture as image"):
        regions_of([Speaker(box=(500, 50, 800, 250))], 64, 128)
    with pytest.raises(SpeakerError, match="1 faces and 2 speakers"):
        regions_of([ANNA, BEN], 64, 128, faces=[(0, 0, 9, 9)])
    with pytest.raises(SpeakerError, match="box of speaker 2"):
        check(good, voices, [HALVES[0], (200, 0, 300, 64)])
    with pytest.raises(SpeakerError, match="one of each"):
        check(good, voices, HALVES[:1])
    with pytest.raises(VideoError, match="no frames"):
        watch([], HALVES)
    with pytest.raises(VideoError, match="of one size"):
        watch([good[:2], good[:2, :32]], HALVES)
    with pytest.raises(VideoError, match="of one size"):
        watch([good[..., 0]], HALVES)


def test_voices_are_put_on_the_video_s_clock():
    people = (Speaker(torch.ones(2, 800), 8000), Speaker(), Speaker(torch.ones(1, 1600), 16000))
    tracks = own_tracks(Voices(people, (), 10, torch.zeros(1, 1), 16000, (0.0, 0.0, 0.5)))
    assert [len(track) for track in tracks] == [1600, 0, 9600]
    assert not tracks[2][:8000].any() and tracks[2][8000:].all()
    with pytest.raises(SpeakerError, match="hold no sound for each speaker"):
        own_tracks(Voices(people, (), 10, torch.zeros(1, 1), 16000))


# the node


def test_the_node_checks_what_the_pack_made_as_images_and_as_video(server):
    for sample in ("two_faces_small.png", "voice_1.wav", "voice_2.wav"):
        server.upload(SAMPLES / sample)
    graph = Graph(speakers=2, frames=37, steps=1).set("voices", layout="parallel")
    settings = {"voices": ["voices", 0], "max_lag": 5}
    graph["images"] = node("MultiTalkSyncCheck", images=["decode", 0], **settings)
    graph["check"] = node("MultiTalkSyncCheck", video=["video", 0], image=["image", 0], **settings)
    graph["swapped"] = node("MultiTalkSyncCheck", video=["video", 0], faces=["boxes", 2], **settings)
    exchanged = [{"box": [0.5, 0, 1, 1]}, {"box": [0, 0, 0.5, 1]}]
    graph["boxes"] = node("MultiTalkSpeakerBoxes", image=["image", 0], boxes=json.dumps(exchanged))
    graph["values"] = node("PreviewAny", source=["check", 2])
    outputs = server.run(graph.prompt())
    for title in ("images", "check", "swapped"):
        assert outputs[title]["images"] and outputs[title]["text"][0].startswith("All is as it should be."), outputs[title]["text"]
    values = json.loads(outputs["values"]["text"][0])
    assert [speaker["verdict"] for speaker in values["speakers"]] == ["in time", "in time"]
    for given in ({}, {"images": ["decode", 0], "video": ["video", 0]}):
        graph["check"] = node("MultiTalkSyncCheck", **given, **settings)
        with pytest.raises(NodeFailed, match="Connect either a video or images"):
            server.run(graph.prompt())


# -- recordings that are not clean: an offset, a hum and a rumble are no speech

SECONDS = torch.arange(FRAMES * 640) / 16_000


def hum(hertz: float) -> torch.Tensor:
    return torch.sin(2 * torch.pi * hertz * SECONDS) + 0.3 * torch.sin(4 * torch.pi * hertz * SECONDS)


def rumble() -> torch.Tensor:
    low = sum(torch.sin(2 * torch.pi * f * SECONDS + f) for f in (7.0, 13.0, 21.0, 34.0, 40.0))
    return low * (1 + torch.sin(2 * torch.pi * 1.3 * SECONDS))


SOILED = {"offset": torch.ones_like(SECONDS), "hum of 50 Hz": hum(50), "hum of 60 Hz": hum(60), "rumble": rumble()}


@pytest.mark.parametrize("kind", SOILED)
def test_what_is_no_speech_is_not_taken_for_loudness(voices, good, kind):
    """As loud as the voices themselves; the mouths follow the clean ones."""
    dirt = SOILED[kind] / SOILED[kind].square().mean().sqrt()
    soiled = [voice + voice.square().mean().sqrt() * dirt for voice in voices]
    clean, found = check(good, voices), check(good, soiled)
    assert verdicts(found) == ["in time", "in time"]
    assert (found.correlations.diag() > clean.correlations.diag() - 0.02).all()


def test_a_clean_voice_has_the_same_curve(voices):
    for voice in voices:
        assert pearson(speech_energy(voice, FRAMES), voice_energy(voice, FRAMES)) > 0.998


@pytest.mark.parametrize("start", [0, 20_000])
def test_a_track_of_nothing_but_an_offset_is_silent(start):
    track = torch.nn.functional.pad(torch.full((30_000,), 0.05), (start, 0))
    assert not speech_energy(track, FRAMES).any()
