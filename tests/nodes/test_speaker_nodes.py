"""Who speaks, when and where, through a real ComfyUI's queue with the demo model: voices end up on their faces, and one can see it."""

import json

import numpy as np
import pytest
import soundfile
import torch

from multitalk_nodes.multitalk_core.audio.loudness import voice_energy
from multitalk_nodes.multitalk_core.audio.sound import mono_16k
from multitalk_nodes.multitalk_core.lipsync.curves import mouth_opening, pearson
from multitalk_nodes.tests.support.graphs import SAMPLES, Graph, audio, node, video_of
from multitalk_nodes.tools.comfyui.server import NodeFailed

FACES = json.loads((SAMPLES / "two_faces_small.json").read_text(encoding="utf-8"))["boxes"]
SHORT = 41  # frames


@pytest.fixture(scope="module")
def recording(server, tmp_path_factory):
    """Both voices in one file, in turn and as channels; every sample in the server's input folder."""
    folder = tmp_path_factory.mktemp("recordings")
    (a, rate), (b, _) = (soundfile.read(SAMPLES / f"voice_{n}.wav", dtype="float32") for n in (1, 2))
    half = round(0.8 * rate)
    a, b = a[:half], b[:half]
    silence = np.zeros_like(a)
    soundfile.write(folder / "both.wav", np.concatenate([a, b]), rate)
    soundfile.write(folder / "stereo_both.wav", np.stack([np.concatenate([a, silence]), np.concatenate([silence, b])], axis=1), rate)
    for file in [*folder.iterdir(), *SAMPLES.glob("*.png"), *SAMPLES.glob("*.wav")]:
        server.upload(file)
    return [mono_16k(torch.from_numpy(voice)[None], rate) for voice in (np.concatenate([a, silence]), np.concatenate([silence, b]))]


def boxes(*places):
    return json.dumps(list(places))


class Talk(Graph):
    """The demo's two faces, with Dialogue and Speaker Boxes in place of two Speakers."""

    def __init__(self, mode, when="", files=("both.wav",), drawn="", frames=SHORT):
        super().__init__(2, frames=frames, steps=4)
        for title in ("audio_1", "audio_2", "speaker_1", "speaker_2"):
            del self[title]
        for number, file in enumerate(files):
            self[f"clip_{number}"] = audio(file)
        clips = {f"audios.audio_{number}": [f"clip_{number}", 0] for number in range(len(files))}
        self["dialogue"] = node("MultiTalkDialogue", mode=mode, when=when, pause=0.0, names="", clean=False, **clips)
        drawn = drawn or boxes(*({"box": box} for box in FACES))
        self["boxes"] = node("MultiTalkSpeakerBoxes", image=["image", 0], boxes=drawn, **{"speakers.speaker_0": ["dialogue", 0]})
        self["voices"]["inputs"] = {k: v for k, v in self["voices"]["inputs"].items() if not k.startswith("speakers.")}
        self["voices"]["inputs"]["speakers.speaker_0"] = ["boxes", 0]


def own_and_other(video, voices):
    frames = torch.from_numpy(video.frames).float() / 255
    mouths = [mouth_opening(frames, box) for box in FACES]
    energies = [voice_energy(voice, len(frames)) for voice in voices]
    return [[pearson(mouth, energy) for energy in energies] for mouth in mouths]


@pytest.mark.parametrize(
    ("mode", "when", "files"),
    [("who speaks when", "Anna: 0-0.8, Ben: 0.8-", ["both.wav"]), ("channels", "", ["stereo_both.wav"])],
)
def test_one_recording_drives_the_right_face_at_the_right_time(server, recording, mode, when, files):
    video = video_of(server, Talk(mode, when, files))
    assert video.count == 40 and abs(video.seconds - 1.6) < 0.07
    (first, second) = own_and_other(video, recording)
    assert first[0] > 0.7 and second[1] > 0.7 and first[1] < 0.2 and second[0] < 0.2


def test_boxes_that_are_exchanged_exchange_the_faces(server, recording):
    left, right = FACES
    drawn = boxes({"box": right, "speaker": 1, "name": "Anna"}, {"box": left, "speaker": 2})
    first, second = own_and_other(video_of(server, Talk("channels", files=["stereo_both.wav"], drawn=drawn)), recording)
    assert first[1] > 0.7 and second[0] > 0.7


def test_a_bystander_stays_quiet(server, recording):
    left, right = FACES
    graph = Talk("in turn", files=["voice_1.wav"], drawn=boxes({"box": left}, {"box": right, "silent": True, "name": "Ben"}))
    frames = torch.from_numpy(video_of(server, graph).frames).float() / 255
    speaking, quiet = (mouth_opening(frames, box).std() for box in (left, right))
    assert quiet < 0.2 * speaking


def test_faces_of_a_detector_are_taken_from_left_to_right(server, recording):
    """Masks of Speaker Boxes stand for a detector's here."""
    drawn = Talk("channels", files=["stereo_both.wav"], frames=5)
    found = Talk("channels", files=["stereo_both.wav"], frames=5).set("boxes", boxes="", faces=["drawn", 2])
    right_first = boxes(*({"box": box, "silent": True} for box in reversed(FACES)))
    found["drawn"] = node("MultiTalkSpeakerBoxes", image=["image", 0], boxes=right_first)
    assert np.array_equal(video_of(server, drawn).frames, video_of(server, found).frames)
    found.set("boxes", faces=["drawn", 1])
    assert np.array_equal(video_of(server, drawn).frames, video_of(server, found).frames)


def test_timeline_and_preview_and_label_map_show_what_is_right(server, recording):
    graph = Talk("who speaks when", "Anna: 0-0.8, Ben: 0.8-")
    for title in ("sample", "decode", "video", "save"):
        del graph[title]
    graph["text"] = node("PreviewAny", source=["dialogue", 2])
    graph["timeline"] = node("PreviewImage", images=["dialogue", 3])
    graph["preview"] = node("MultiTalkPreviewSpeakers", image=["image", 0], speakers=["voices", 0], width=0, height=0)
    graph["report"] = node("PreviewAny", source=["preview", 1])
    sampling = Graph()["sample"]["inputs"]
    graph["map"] = node("MultiTalkLabelMap", **{**sampling, "steps": 4}, block=3, step=2, second=0.5)
    graph["heard"] = node("PreviewAny", source=["map", 1])
    outputs = server.run(graph.prompt())
    texts = {title: outputs[title]["text"][0] for title in ("text", "report", "heard")}
    assert texts["text"] == "Anna: 0.000-0.800\nBen: 0.800-1.600"
    assert texts["report"].startswith("Speaker 1 (Anna): ") and "cells" in texts["report"]
    assert texts["heard"].startswith("Place of speaker 1: ")
    assert all(outputs[title]["images"] for title in ("timeline", "preview", "map"))


def test_a_preview_takes_speakers_before_anything_is_encoded(server, recording):
    talk = Talk("channels", files=["stereo_both.wav"])
    graph = {title: talk[title] for title in ("image", "clip_0", "dialogue", "boxes")}
    graph["preview"] = node("MultiTalkPreviewSpeakers", image=["image", 0], speakers=["boxes", 0], width=128, height=64)
    assert server.run(graph)["preview"]["images"]


def test_voices_through_the_wrapper_s_dictionary_make_the_same_pictures(server, recording):
    direct = Talk("channels", files=["stereo_both.wav"], frames=5)
    around = Talk("channels", files=["stereo_both.wav"], frames=5)
    around["there"] = node("MultiTalkToWanWrapper", voices=["voices", 0], image=["image", 0], audio_scale=1.0, audio_cfg_scale=1.0)
    around["back"] = node("MultiTalkFromWanWrapper", multitalk_embeds=["there", 0], audio=["voices", 1])
    around.set("clip", voices=["back", 0]).set("decode", voices=["back", 0])
    assert np.array_equal(video_of(server, direct).frames, video_of(server, around).frames)


@pytest.mark.parametrize(
    ("change", "where", "why"),
    [
        (lambda g: g.set("dialogue", when="A: 5-6"), "MultiTalkDialogue", "the audio ends at 1.60 s"),
        (
            lambda g: g.set("dialogue", when="WEBVTT\n\n00:00.000 --> 00:01.000\nHi\n"),
            "MultiTalkDialogue",
            "not say who speaks",
        ),
        (lambda g: g.set("boxes", boxes=boxes({"box": FACES[0]})), "MultiTalkSpeakerBoxes", r"Speaker 2 \(Ben\) has no place"),
        (lambda g: g.set("boxes", boxes="[{"), "MultiTalkSpeakerBoxes", "no JSON"),
    ],
)
def test_what_cannot_work_is_told_on_its_node(server, recording, change, where, why):
    graph = Talk("who speaks when", "Anna: 0-0.8, Ben: 0.8-")
    change(graph)
    with pytest.raises(NodeFailed, match=why) as failed:
        server.run(graph.prompt())
    assert where in str(failed.value)


def test_a_label_map_of_one_speaker_says_why_there_is_none(server, recording):
    graph = Graph()
    graph["map"] = node("MultiTalkLabelMap", **graph["sample"]["inputs"], block=1, step=1, second=0.0)
    for title in ("sample", "decode", "video", "save"):
        del graph[title]
    with pytest.raises(NodeFailed, match="With a single speaker there is none"):
        server.run(graph.prompt())
    graph.set("map", block=9)
    with pytest.raises(NodeFailed, match="the model has 4 blocks"):
        server.run(graph.prompt())
