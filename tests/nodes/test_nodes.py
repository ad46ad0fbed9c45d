"""The nodes through a real ComfyUI's queue: what is accepted, what is refused and how, and a graph with random weights."""

import itertools
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
import torch

from multitalk_nodes.multitalk_core.lipsync.curves import mouth_opening
from multitalk_nodes.multitalk_core.notes import NOTES
from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES, Graph, Probe, audio, node, video_of
from multitalk_nodes.tests.support.kept import kept
from multitalk_nodes.tools.comfyui.server import NodeFailed, PromptRefused
from multitalk_nodes.tools.launch import launched

RATE = 16000
SEEDS = itertools.count(1000)


@pytest.fixture(scope="module")
def inputs(server, tmp_path_factory):
    """All files that the tests name, in the server's input folder."""
    folder = tmp_path_factory.mktemp("inputs")
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    soundfile.write(folder / "silent.wav", np.zeros(RATE, np.float32), RATE)
    soundfile.write(folder / "eight_channels.wav", np.stack([noise] * 8, axis=1), RATE)
    soundfile.write(folder / "8k.wav", noise[:8000], 8000)
    soundfile.write(folder / "192k.wav", np.repeat(noise, 12), 192000)
    soundfile.write(folder / "long.wav", np.tile(noise, 2), RATE)
    soundfile.write(folder / "fifth.wav", noise[: RATE // 5], RATE)
    soundfile.write(folder / "stereo.wav", np.stack([noise, 0 * noise], axis=1), 44100)
    soundfile.write(folder / "none.wav", noise[:0], RATE)
    soundfile.write(folder / "nan.wav", np.where(np.arange(RATE) == 99, np.nan, noise), RATE, subtype="FLOAT")
    (folder / "text.wav").write_text("this is no audio")
    _write_picture(folder / "alpha.png", np.random.default_rng(1).integers(0, 255, (64, 64, 4), dtype=np.uint8))
    _write_picture(folder / "pixel.png", np.zeros((1, 1, 3), np.uint8))
    _write_picture(folder / "odd.png", np.random.default_rng(1).integers(0, 255, (70, 75, 3), dtype=np.uint8))
    _write_picture(folder / "large.png", np.random.default_rng(1).integers(0, 255, (640, 704, 3), dtype=np.uint8))
    _write_silent_video(folder / "mute.mp4")
    for file in [*folder.iterdir(), *SAMPLES.glob("*.png"), *SAMPLES.glob("*.wav")]:
        server.upload(file)
    return folder


def _write_picture(path, pixels):
    from PIL import Image

    Image.fromarray(pixels).save(path)


def _write_silent_video(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode(None))


# -- accepted


@pytest.mark.parametrize(
    ("file", "seconds"),
    [("silent.wav", 1), ("eight_channels.wav", 1), ("8k.wav", 1), ("192k.wav", 1), ("stereo.wav", RATE / 44100), ("fifth.wav", 0.2)],
)
def test_audio_of_any_kind_makes_a_video_as_long_as_it(server, inputs, file, seconds):
    video = video_of(server, Graph(frames=29).set("audio_1", audio=file))
    assert video.count == max(1, round(seconds * 25))
    assert video.fps == 25 and video.shows_something()
    assert abs(video.seconds - seconds) < 0.06, "sound in blocks of 1024 samples"


def test_audio_longer_than_the_clip_is_cut_with_it_and_said(server, inputs):
    outputs = server.run(Graph(frames=9).set("audio_1", audio="long.wav").prompt())
    video = Probe(server.files(outputs)[-1])
    assert video.count == 9
    assert abs(video.seconds - 9 / 25) < 0.07
    for title in ("clip", "decode"):  # before the sampling, and with the result
        assert any("the rest of the audio is cut" in note for note in outputs[title][NOTES])


def test_three_seconds_of_audio_cut_a_clip_of_81_frames_to_75(server, inputs):
    video = video_of(server, Graph(frames=81).set("audio_1", duration=3.0))
    assert video.count == 75
    assert abs(video.seconds - 3) < 0.07


@pytest.mark.parametrize(("asked", "frames"), [(1, 1), (6, 9), (9, 9)])
def test_frame_counts_are_rounded_up_to_4n_plus_1(server, inputs, asked, frames):
    assert video_of(server, Graph(frames=asked)).count == frames


def test_sides_are_rounded_to_multiples_of_16_and_said(server, inputs):
    outputs = server.run(Graph().set("image", image="odd.png").prompt())
    assert Probe(server.files(outputs)[-1]).frames.shape[1:3] == (64, 80)
    assert any("rounded to 80" in note for note in outputs["clip"][NOTES])


def test_the_others_go_on_when_the_first_speaker_is_muted(server, inputs):
    """The editor leaves a muted node out of the prompt, and what is connected to it."""
    graph = Graph(speakers=2).set("image", image="two_faces_small.png")
    del graph["speaker_1"], graph["audio_1"], graph["voices"]["inputs"]["speakers.speaker_0"]
    graph["seen"] = node("MultiTalkPreviewSpeakers", image=["image", 0], speakers=["voices", 0], width=0, height=0)
    prompt = {name: graph[name] for name in graph if name not in ("clip", "sample", "decode", "video", "save")}
    outputs = server.run(prompt)
    assert "Speaker 1 is not connected" in outputs["voices"][NOTES][0] and "Speaker 2: " in outputs["seen"]["text"][0]
    del prompt["voices"]["inputs"]["speakers.speaker_1"]
    with pytest.raises(NodeFailed, match="No speaker is connected; 1 to 4 were expected"):
        server.run(prompt)


def test_what_was_assumed_stands_in_the_result(server, inputs):
    """Two speakers without places, a large picture, and more voice than clip. Nothing is sampled."""
    graph = Graph(speakers=2).set("image", image="large.png")
    graph["seen"] = node("PreviewAny", source=["clip", 1])
    prompt = {name: graph[name] for name in graph if name not in ("sample", "decode", "video", "save")}
    large, halves, cut = server.run(prompt)["clip"][NOTES]
    assert "704×640 pixels: 1.1 times 640×640" in large and "MultiTalk Image Size" in large
    assert halves.startswith("Speaker 1 and speaker 2 have neither a box nor a mask")
    assert "the rest of the audio is cut" in cut


def test_a_picture_with_alpha_is_put_on_white_and_said(server, inputs):
    graph = Graph().set("image", image="alpha.png")
    graph["joined"] = node("JoinImageWithAlpha", image=["image", 0], alpha=["image", 1])
    assert video_of(server, graph.set("clip", image=["joined", 0])).shows_something()
    assert "see-through" in server.log_tail(50)


def test_two_speakers_without_masks_get_the_halves_and_all_layouts_run(server, inputs):
    lengths = {}
    for layout in ("sequential", "parallel"):
        graph = Graph(speakers=2, frames=21).set("voices", layout=layout).set("audio_1", duration=0.48).set("audio_2", duration=0.32)
        lengths[layout] = video_of(server, graph).count
    assert lengths == {"sequential": 20, "parallel": 12}


def test_a_start_time_wins_over_the_layout(server, inputs):
    graph = Graph(speakers=2, frames=17).set("audio_1", duration=0.48).set("audio_2", duration=0.2).set("speaker_2", start=0.24)
    assert video_of(server, graph).count == 12


def test_masks_of_another_size_than_the_picture_and_a_silent_bystander(server, inputs):
    graph = Graph(speakers=1).add_speaker(2, role="silent").set("image", image="two_faces_small.png")
    graph["left"] = node("SolidMask", value=1.0, width=20, height=20)
    graph["canvas"] = node("SolidMask", value=0.0, width=40, height=20)
    graph["mask_1"] = node("MaskComposite", destination=["canvas", 0], source=["left", 0], x=0, y=0, operation="add")
    graph["mask_2"] = node("MaskComposite", destination=["canvas", 0], source=["left", 0], x=20, y=0, operation="add")
    graph.set("speaker_1", mask=["mask_1", 0]).set("speaker_2", mask=["mask_2", 0])
    graph.set("clip", frames=41).set("sample", steps=6).set("decode", colour=0.0)
    frames = torch.from_numpy(video_of(server, graph).frames) / 255
    left, right = (mouth_opening(frames, box).std() for box in ((8, 0, 56, 55), (73, 0, 119, 55)))
    assert left > 0.05 and right < 0.01, f"the one who speaks moves ({left:.3f}), the silent one does not ({right:.3f})"
    assert "was scaled and cropped" in server.log_tail(100)


def test_core_audio_encoder_and_core_sampler_work_in_place_of_ours(server, inputs, random_weights):
    graph = Graph()
    graph["encoder"] = node("AudioEncoderLoader", audio_encoder_name="random_wav2vec2_768.safetensors")
    graph.set("voices", audio_encoder=["encoder", 0])
    with pytest.raises(NodeFailed, match=r"12 layers × 768 = 9216 numbers a frame.*take 128"):
        server.run(graph.prompt())
    graph = with_files(Graph(), weights="tiny_multitalk_9216.safetensors")
    graph["encoder"] = node("AudioEncoderLoader", audio_encoder_name="random_wav2vec2_768.safetensors")
    assert video_of(server, graph).shows_something()
    ksampler = Graph()
    ksampler["sample"] = node(
        "KSampler",
        model=["clip", 0],
        positive=["clip", 1],
        negative=["clip", 2],
        latent_image=["clip", 3],
        seed=1,
        steps=1,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    assert video_of(server, ksampler).shows_something()


def test_step_caches_of_ours_and_of_core_reuse_evaluations(server, inputs):
    ours = Graph(frames=9, steps=8).set("sample", audio_scale=2.0)
    plain = video_of(server, ours).frames
    ours["cache"] = node("MultiTalkStepCache", model=["clip", 0], threshold=0.5, table="none", first_steps=2, last_steps=0)
    cached = video_of(server, ours.set("sample", model=["cache", 0]))
    assert cached.shows_something() and not np.array_equal(cached.frames, plain)
    reused, asked = map(int, re.findall(r"Step Cache: (\d+) of (\d+) evaluations were reused", server.log_tail(50))[-1])
    assert 0 < reused < asked == 16
    core = Graph(frames=9, steps=8).set("clip", model=["cache", 0])
    core["cache"] = node("EasyCache", model=["demo", 0], reuse_threshold=0.5, start_percent=0.15, end_percent=0.95, verbose=False)
    assert video_of(server, core).shows_something()
    assert int(re.findall(r"EasyCache - skipped (\d+)/8 steps", server.log_tail(50))[-1]) > 0


def test_the_infinitetalk_family_holds_the_first_frame_to_the_picture(server, inputs):
    from PIL import Image

    graph = Graph(frames=9, steps=4).set("demo", family="infinitetalk").set("decode", colour=0.0)
    first = video_of(server, graph).frames[0].astype(float)
    picture = np.array(Image.open(SAMPLES / "face_small.png").convert("RGB"), dtype=float)
    assert np.abs(first - picture).mean() < 12


# -- refused: one clear message, and the next good prompt succeeds


def refused(server, graph):
    """The message a user sees, whether at /prompt or in the node."""
    with pytest.raises((NodeFailed, PromptRefused)) as error:
        server.run(graph.prompt())
    good = Graph(frames=1).set("sample", seed=next(SEEDS))  # another seed, so that nothing of it is remembered
    assert video_of(server, good).shows_something()
    return str(error.value)


REFUSALS = {
    "a file that is not audio": (lambda g: g.set("audio_1", audio="text.wav"), r"text\.wav.*cannot be read as audio or video"),
    "a video without sound": (lambda g: g.set("audio_1", audio="mute.mp4"), r"mute\.mp4.*no sound track"),
    "audio without samples": (lambda g: g.set("audio_1", audio="none.wav"), r"none\.wav.*is empty"),
    "audio with NaN": (lambda g: g.set("audio_1", audio="nan.wav"), r"not numbers"),
    "a start behind the end": (lambda g: g.set("audio_1", start=100.0), r"no sound from 100"),
    "a file that is not there": (lambda g: g.set("audio_1", audio="gone.wav"), r"gone\.wav.*not in the input folder"),
    "a channel that is not there": (lambda g: g.set("audio_1", channel="right"), r"mono"),
    "a picture of one pixel": (lambda g: g.set("image", image="pixel.png"), r"1×1 pixels"),
    "a box that is none": (lambda g: g.set("speaker_1", box="left half"), r"no box.*left, top, right, bottom"),
    "a box without area": (lambda g: g.set("speaker_1", box="9, 9, 3, 3"), r"no area"),
    "a box outside the picture": (lambda g: g.set("speaker_1", box="900, 900, 950, 950"), r"speaker 1 covers nothing"),
    "a box that vanishes on the grid": (
        lambda g: g.add_speaker(2, "voice_2.wav", box="3, 3, 6, 6"),
        r"speaker 2 vanishes on the model's grid",
    ),
    "boxes that overlap entirely": (
        lambda g: g.set("speaker_1", box="0, 0, 64, 64").add_speaker(2, "voice_2.wav", box="0, 0, 64, 64"),
        r"speaker 1 lies entirely under other speakers",
    ),
    "a speaker without audio": (lambda g: g["speaker_1"]["inputs"].pop("audio"), r"no audio.*'silent'"),
    "nobody who speaks": (lambda g: g.set("speaker_1", role="silent"), r"None of the speakers has audio"),
    "five speakers": (lambda g: [g.add_speaker(n, "voice_2.wav") for n in (2, 3, 4, 5)], r"speaker_4: at most 4|5 speakers are connected"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_in_plain_words(server, inputs, case):
    change, expected = REFUSALS[case]
    graph = Graph()
    change(graph)
    message = refused(server, graph)
    assert re.search(expected, message, re.DOTALL), message


def linked_sound(name):
    """A file's name that comes over a link, as from a node that lists files or makes them."""
    chosen = node("ComfySwitchNode", switch=True, on_false="none", on_true=name)
    sound = node("MultiTalkLoadAudio", audio=["chosen", 0], start=0.0, duration=0.0, channel="all")
    return {"chosen": chosen, "sound": sound, "shown": node("PreviewAudio", audio=["sound", 0])}


def test_a_linked_file_name_is_checked_when_it_arrives(server, inputs):
    assert server.run(linked_sound("voice_1.wav"))["shown"]["audio"]
    with pytest.raises(NodeFailed, match=r"'gone\.wav' is not in the input folder\. Upload it, or choose another"):
        server.run(linked_sound("gone.wav"))


def test_masks_are_refused_as_boxes_are(server, inputs):
    def with_masks(*squares):
        graph = Graph().add_speaker(2, "voice_2.wav")
        graph["canvas"] = node("SolidMask", value=0.0, width=64, height=64)
        for number, (x, side) in enumerate(squares, start=1):
            graph[f"square_{number}"] = node("SolidMask", value=1.0, width=side, height=side)
            place = {"destination": ["canvas", 0], "source": [f"square_{number}", 0], "x": x, "y": 3, "operation": "add"}
            graph[f"mask_{number}"] = node("MaskComposite", **place)
            graph.set(f"speaker_{number}", mask=[f"mask_{number}", 0])
        return graph

    assert "speaker 2 vanishes on the model's grid" in refused(server, with_masks((3, 30), (43, 3)))
    assert "speaker 1 lies entirely under" in refused(server, with_masks((3, 30), (3, 30)))


def test_image_size_refuses_what_no_face_can_be_in(server, inputs):
    graph = Graph().set("image", image="pixel.png")
    graph["size"] = node("MultiTalkImageSize", image=["image", 0], size="multitalk-480")
    assert "1×1 pixels" in refused(server, graph.set("clip", image=["size", 0]))


def test_a_picture_far_too_large_is_not_taken_unasked(server, inputs):
    graph = Graph()
    graph["image"] = node("EmptyImage", width=2400, height=1600, batch_size=1, color=0)
    assert "MultiTalk Image Size" in refused(server, graph)


def test_a_side_that_is_not_given_follows_the_picture(server, inputs):
    assert video_of(server, Graph().set("image", image="two_faces_small.png").set("clip", width=96)).frames.shape[1:3] == (48, 96)


def test_an_empty_mask_is_refused(server, inputs):
    graph = Graph().set("speaker_1", mask=["mask", 0])
    graph["mask"] = node("SolidMask", value=0.0, width=64, height=64)
    assert "mask or box of speaker 1 covers nothing" in refused(server, graph)


@pytest.fixture(scope="module")
def random_weights(server):
    """Files of random weights at tiny size in the server's model folders, made by a process of its own, once."""
    makers = [ROOT / "tests" / "support" / f"{name}.py" for name in ("make_random_weights", "layouts", "tiny")]
    sources = [*makers, ROOT / "multitalk_core" / "model.py"]
    program = "tests.support.make_random_weights"
    made = kept("random-weights", sources, lambda folder: subprocess.run(launched(program, str(folder)), check=True))
    shutil.copytree(made, server.base / "models", dirs_exist_ok=True)


def with_files(
    graph,
    model="tiny_wan.safetensors",
    weights="tiny_multitalk.safetensors",
    encoder="tiny_wav2vec2.safetensors",
    vae="tiny_vae.safetensors",
):
    """The same graph with loaders and random weights in place of the demo model; its empty prompt stays."""
    graph["wan"] = node("UNETLoader", unet_name=model, weight_dtype="default")
    graph["weights"] = node("MultiTalkModelLoader", model_name=weights, family="auto", dtype="from file")
    graph["encoder"] = node("MultiTalkWav2VecLoader", encoder_name=encoder, normalise="auto")
    graph["vae"] = node("VAELoader", vae_name=vae)
    graph.set("clip", model=["wan", 0], weights=["weights", 0], vae=["vae", 0])
    graph.set("decode", vae=["vae", 0])
    return graph.set("voices", audio_encoder=["encoder", 0])


def test_random_weights_through_every_loader_end_in_a_video(server, inputs, random_weights):
    names = (
        "tiny_multitalk.safetensors",
        "tiny_infinitetalk.safetensors",
        "tiny_infinitetalk_Q8_0.gguf",
        "tiny_multitalk_fp8_scaled.safetensors",
    )
    for weights in names:
        graph = with_files(Graph(speakers=2, frames=9, steps=2), weights=weights)
        graph.set("sample", text_scale=3.0, audio_scale=2.0, apg=True)
        video = video_of(server, graph)
        assert video.count == 9 and video.shows_something()


MISFITS = {
    "weights of another model": (dict(weights="tiny_multitalk_dim128.safetensors"), r"dimension 256.*dimension 128"),
    "a text-to-video model": (dict(model="tiny_wan_t2v.safetensors"), r"text-to-video"),
    "another encoder": (dict(encoder="random_wav2vec2_768.safetensors"), r"12 layers × 768.*take 128"),
    "truncated weights": (dict(weights="truncated_multitalk.safetensors"), r"truncated_multitalk\.safetensors' is incomplete: it has"),
    "a pickle by another name": (dict(weights="pickle_multitalk.safetensors"), r"pickle_multitalk\.safetensors' is a pickle"),
    "a web page by another name": (dict(weights="page_multitalk.safetensors"), r"page_multitalk\.safetensors' is a web page"),
    "a pickle": (dict(weights="multitalk.pt"), r"not in list.*multitalk\.pt|multitalk\.pt.*not in"),
    "WAN in the MultiTalk slot": (dict(weights="tiny_wan.safetensors"), r"is a WAN model .for Load Diffusion Model., not MultiTalk's"),
    "MultiTalk in the encoder's slot": (
        dict(encoder="tiny_multitalk.safetensors"),
        r"not in list|is MultiTalk's or InfiniteTalk's audio weights",
    ),
    "a family that nothing tells": (dict(weights="unnamed_14B.safetensors"), r"Choose the family"),
    "a MultiTalk file that is not there": (dict(weights="gone.safetensors"), r"gone\.safetensors"),
    "a VAE that is not there": (dict(vae="gone.safetensors"), r"gone\.safetensors.*not in|not in list.*gone\.safetensors"),
    "another VAE": (dict(vae="tiny_image_vae.safetensors"), r"VAE makes latents of shape"),
    "truncated speech encoder": (dict(encoder="truncated_wav2vec2.safetensors"), r"truncated_wav2vec2.*incomplete"),
    "a WAN file that is not there": (dict(model="gone.safetensors"), r"gone\.safetensors"),
    "an encoder that is not there": (dict(encoder="gone.safetensors"), r"gone\.safetensors"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_models_that_do_not_fit_are_refused_by_name(server, inputs, random_weights, case):
    files, expected = MISFITS[case]
    message = refused(server, with_files(Graph(), **files))
    assert re.search(expected, message, re.DOTALL), message


def test_after_all_refusals_the_server_still_makes_a_video(server, inputs):
    assert video_of(server, Graph(frames=5)).shows_something()


def test_the_same_graph_twice_is_the_same_video(server, inputs):
    graph = Graph(frames=9, steps=2).set("sample", seed=77)
    first = video_of(server, graph).frames
    graph.set("save", filename_prefix="again").set("sample", seed=78)
    other = video_of(server, graph).frames
    graph.set("sample", seed=77).set("save", filename_prefix="third")
    assert np.array_equal(video_of(server, graph).frames, first)
    assert not np.array_equal(first, other)
    assert torch.get_default_dtype() == torch.float32


def test_audio_from_the_sound_of_a_video(server, inputs):
    made = server.files(server.run(Graph(frames=9).prompt()))
    name = server.upload(next(file for file in made if file.suffix == ".mp4"))
    graph = Graph(frames=9)
    graph["audio_1"] = audio(name)
    assert video_of(server, graph).count == 9
