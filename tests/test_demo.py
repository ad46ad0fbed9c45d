"""The demo command: its options, and a run with a picture and a voice of the user's."""

import numpy as np
import pytest
from PIL import Image

from multitalk_nodes.tests.graphs import SAMPLES
from multitalk_nodes.tools import demo

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


def test_voices_of_the_users_share_the_demo_workflows_clip():
    scene = demo.own_scene(demo.parse(["--image", FACE, "--audio", VOICE, "--audio", VOICE]))
    nodes = demo.own_graph("face.png", ["a.wav", "b.wav"], scene).values()
    assert [node["inputs"]["duration"] for node in nodes if node["class_type"] == "MultiTalkLoadAudio"] == [2.0, 2.0]
    assert [node["inputs"]["frames"] for node in nodes if node["class_type"] == "MultiTalkConditioning"] == [101]


def test_two_voices_of_the_users_speak_in_turn_on_their_own_faces(server, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "CLIP_FRAMES", 49)  # for turns of a second in place of two
    boxes = ["--box", "8,0,56,55", "--box", "73,0,119,55"]
    voices = ["--audio", VOICE, "--audio", str(SAMPLES / "voice_2.wav")]
    options = demo.parse(["--image", str(SAMPLES / "two_faces_small.png"), *voices, *boxes, "--out", str(tmp_path / "talk.mp4")])
    scene = demo.own_scene(options)
    video = demo.make(server, scene)
    assert scene["seconds"] == [0.96, 0.96]
    (own_1, other_1), (other_2, own_2) = demo.correlations(video, scene)
    assert min(own_1, own_2) > 0.8 and max(other_1, other_2) < 0.3
    assert len(demo.measure(video, scene)) == 2
