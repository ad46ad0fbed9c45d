"""The demo command: its options, and a run with a picture and a voice of the user's."""

import re
from fnmatch import fnmatch

import numpy as np
import pytest
import soundfile
from PIL import Image

from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES, Probe
from multitalk_nodes.tools.comfyui import demo

FACE, VOICE = str(SAMPLES / "face_small.png"), str(SAMPLES / "voice_1.wav")

WRONG = {
    "an image without audio": (["--image", FACE], "belong together"),
    "a file that is not there": (["--image", "gone.png", "--audio", VOICE], "'gone.png' is not a file"),
    "a box of words": (["--image", FACE, "--audio", VOICE, "--box", "a,b"], "left,top,right,bottom"),
    "a box of three numbers": (["--image", FACE, "--audio", VOICE, "--box", "1,2,3"], "left,top,right,bottom"),
    "a box turned round": (["--image", FACE, "--audio", VOICE, "--box", "9,9,3,3"], "right must be greater"),
    "more boxes than voices": (["--image", FACE, "--audio", VOICE, "--box", "0,0,9,9", "--box", "0,0,9,9"], "one for each"),
    "five voices": (["--image", FACE, *["--audio", VOICE] * 5], "at most 4"),
    "a folder to write to": (["--out", str(SAMPLES)], "is a folder"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_is_told_before_anything_is_made(case, capsys):
    arguments, expected = WRONG[case]
    with pytest.raises(SystemExit) as stopped:
        demo.parse(arguments)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_photo_that_the_camera_turned_is_seen_as_comfyui_sees_it(tmp_path):
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6  # orientation: a quarter turn
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(turned, exif=exif)
    assert demo.picture_size(turned) == (300, 400)
    assert demo.fitted_size(turned, []) == (128, 176)


def test_with_a_box_the_face_gets_the_size_that_the_model_knows(tmp_path):
    picture = tmp_path / "large.png"
    Image.fromarray(np.zeros((640, 640, 3), np.uint8)).save(picture)
    assert demo.fitted_size(picture, [[100, 100, 300, 350]]) == (208, 208)  # a third of 640: the face of 250 is 84


def test_voices_of_the_users_are_made_whole():
    scene = demo.own_scene(demo.parse(["--image", FACE, *["--audio", VOICE] * 3]))
    graph = demo.own_graph("face.png", ["a.wav", "b.wav", "c.wav"], scene)
    by_class = {}
    for node in graph.values():
        by_class.setdefault(node["class_type"], []).append(node["inputs"])
    assert [(given["audio"], given["duration"]) for given in by_class["MultiTalkLoadAudio"]] == [("a.wav", 0), ("b.wav", 0), ("c.wav", 0)]
    (embeds,), (video,) = by_class["MultiTalkWav2VecEmbeds"], by_class["MultiTalkLongVideo"]
    speakers = [graph[given[0]]["inputs"] for name, given in sorted(embeds.items()) if name.startswith("speakers.")]
    assert [graph[given["audio"][0]]["inputs"]["audio"] for given in speakers] == ["a.wav", "b.wav", "c.wav"]
    assert embeds["layout"] == "sequential" and (video["width"], video["height"]) == (128, 128) and video["family"] == "auto"
    assert {value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)} <= {*graph}


def test_two_voices_of_the_users_speak_in_turn_on_their_own_faces(server, tmp_path, capsys):
    """Both to their ends, which are not those of a clip; what was made is said while it is made."""
    voices, lengths = [], (1.1, 1.3)
    for number, seconds in enumerate(lengths, start=1):
        sound, rate = soundfile.read(SAMPLES / f"voice_{number}.wav")
        voices += ["--audio", str(tmp_path / f"{number}.wav")]
        soundfile.write(voices[-1], sound[: round(seconds * rate)], rate)
    boxes = ["--box", "8,0,56,55", "--box", "73,0,119,55"]
    options = demo.parse(["--image", str(SAMPLES / "two_faces_small.png"), *voices, *boxes, "--out", str(tmp_path / "talk.mp4")])
    scene = demo.own_scene(options)
    video = demo.make(server, scene)
    assert video == tmp_path / "talk.mp4" and Probe(video).count == round(25 * sum(lengths))
    (own_1, other_1), (other_2, own_2) = demo.correlations(video, scene)
    assert min(own_1, own_2) > 0.8 and max(other_1, other_2) < 0.3
    assert len(demo.measure(video, scene)) == 2
    assert re.search(r"clip 1/1, step \d/8, at least 0:\d\d left\n", capsys.readouterr().out)


def test_what_is_written_without_being_told_where_is_no_part_of_the_repository():
    (pattern,) = [line[1:] for line in (ROOT / ".gitignore").read_text().splitlines() if "multitalk-demo" in line]
    out = demo.parse([]).out
    assert all(fnmatch(scene["out"].name, pattern) for scene in demo.drawn_scenes(out)) and fnmatch(out.name, pattern)
