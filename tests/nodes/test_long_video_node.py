"""MultiTalk Long Video over a real server: exact lengths, interrupts, a process that is killed, dubbing, refusals."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import time
import wave
from collections import Counter
from pathlib import Path

import aiohttp
import av
import numpy as np
import pytest

from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES, Graph, Probe, content, node
from multitalk_nodes.tools.comfyui import server as tools


def long_graph(duration=0.9, **changes):
    """A drawn face talks in clips of 9 frames, 2 steps each."""
    graph = Graph()
    demo = {"model": ["demo", 0], "weights": ["demo", 1], "vae": ["demo", 2], "positive": ["demo", 4], "negative": ["demo", 4]}
    inputs = {"width": 0, "height": 0, "seed": 1, "steps": 2, "shift": 3.0, "text_scale": 1.0, "audio_scale": 1.0}
    inputs |= {"sampler_name": "euler", "apg": False, "apg_momentum": -0.75, "apg_threshold": 55.0}
    inputs |= {"family": "auto", "clip_frames": 9, "motion_frames": 5, "colour": 1.0, "cuts": ""}
    inputs |= {"codec": "h264", "quality": 18, "filename_prefix": "long/a", "keep_job": False}
    for name in ("clip", "sample", "decode", "video", "save"):
        del graph[name]
    graph["long"] = node("MultiTalkLongVideo", voices=["voices", 0], image=["image", 0], **demo, **inputs | changes)
    graph["report"] = node("PreviewAny", source=["long", 2])
    graph["report_json"] = node("PreviewAny", source=["long", 3])
    return graph.set("audio_1", duration=duration)


def made(server, graph):
    """The file, and the report."""
    outputs = server.run(graph.prompt())
    (file,) = [file for file in server.files({"long": outputs["long"]})]
    (report,) = outputs["long"]["multitalk_report"]
    (words,), (as_json,) = outputs["report"]["text"], outputs["report_json"]["text"]
    assert json.loads(as_json) == report and words.startswith(f"{report['frames']} frames ")
    assert f"audio features {report['audio_features']}" in words and (str(report["finished_before"]) in words or "all clips" in words)
    return file, words


def jobs(server):
    folder = server.base / "output" / "multitalk_jobs"
    return sorted(folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def inputs(server):
    """The samples, and no jobs: other tests stopped some, which stay so that they can go on."""
    shutil.rmtree(server.base / "output" / "multitalk_jobs", ignore_errors=True)
    for file in (*SAMPLES.glob("*.png"), *SAMPLES.glob("*.wav")):
        server.upload(file)


BINARY = {1: "preview", 3: "progress_text", 4: "preview"}  # ComfyUI's numbers


async def overheard(server, prompt, *names, asks=None):
    """What each of several clients receives, as kinds and counts, while one of them has a prompt run (or somebody without an id)."""
    kinds = {name: Counter() for name in names}
    done = asyncio.Event()

    async def listen(session, name, ready):
        async with session.ws_connect(f"{server.url}/ws?clientId={name}") as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            while True:
                message = await socket.receive()
                if message.type is aiohttp.WSMsgType.BINARY:
                    kinds[name][BINARY[int.from_bytes(message.data[:4], "big")]] += 1
                elif message.type is aiohttp.WSMsgType.TEXT:
                    data = json.loads(message.data)
                    kinds[name][data["type"]] += 1
                    if data["type"] == "feature_flags":  # the answer
                        ready.set()
                    if queued and data["type"] == "status" and not data["data"]["status"]["exec_info"]["queue_remaining"]:
                        done.set()  # all have heard everything

    queued = []
    async with aiohttp.ClientSession() as session:
        ready = {name: asyncio.Event() for name in names}
        tasks = [asyncio.create_task(listen(session, name, event)) for name, event in ready.items()]
        await asyncio.gather(*(event.wait() for event in ready.values()))
        body = {"prompt": prompt} | ({"client_id": asks} if asks else {})
        async with session.post(f"{server.url}/prompt", json=body) as answer:
            queued.append((await answer.json())["prompt_id"])
        await asyncio.to_thread(server.wait, queued[0])
        await done.wait()
        for task in tasks:
            task.cancel()
    return kinds


def test_only_who_queued_is_told(server, inputs):
    """Text, progress and pictures carry node numbers, which in another tab are another graph's nodes."""
    for graph in (long_graph(0.3, seed=41), Graph(frames=9, steps=2).set("sample", seed=41)):
        kinds = asyncio.run(overheard(server, graph.prompt(), "mine", "other", asks="mine"))
        assert kinds["mine"]["progress"]
        assert set(kinds["other"]) == {"status", "feature_flags"}
        if "long" in graph:
            assert kinds["mine"]["progress_text"] and kinds["mine"]["preview"]
    kinds = asyncio.run(overheard(server, long_graph(0.3, seed=42).prompt(), "other"))
    assert not kinds["other"]["progress_text"] and not kinds["other"]["preview"]


@pytest.mark.parametrize("family", ["multitalk", "infinitetalk"])
@pytest.mark.parametrize(("seconds", "frames"), [(0.02, 1), (0.3, 8), (0.9, 22)])
def test_a_video_is_as_long_as_its_voices(server, inputs, family, seconds, frames):
    file, report = made(server, long_graph(seconds, family=family))
    video = Probe(file)
    assert video.count == frames and video.shows_something() and video.fps == 25
    assert abs(video.seconds - seconds) < 0.06, "sound in blocks of 1024 samples"
    assert report.startswith(f"{frames} frames") and family in report and "all clips made now" in report
    assert jobs(server) == [], "finished jobs are removed"


@pytest.mark.parametrize("codec", ["h264", "lossless"])
def test_the_file_holds_the_graph_that_made_it(server, inputs, codec):
    workflow = {"nodes": [], "note": "Grüße"}
    prompt = long_graph(0.02, codec=codec).prompt()
    outputs = server.wait(server.queue(prompt, workflow=workflow))
    (file,) = server.files({"long": outputs["long"]})
    with av.open(str(file)) as container:
        found = {name.lower(): json.loads(value) for name, value in container.metadata.items() if name.lower() in ("prompt", "workflow")}
    assert found["workflow"] == workflow
    assert {name: asked["class_type"] for name, asked in found["prompt"].items()} == {
        name: asked["class_type"] for name, asked in prompt.items()
    }
    assert found["prompt"]["long"]["inputs"] == prompt["long"]["inputs"]


@pytest.mark.by_hand
def test_forty_lengths_are_exact(server, inputs):
    with wave.open(str(SAMPLES / "voice_1.wav")) as file:
        settings, voice = file.getparams(), file.readframes(file.getnframes())
    with wave.open(str(server.base / "input" / "long_voice.wav"), "wb") as file:
        file.setparams(settings)
        file.writeframes(voice * (1 + 90 * settings.framerate // settings.nframes))
    found = {}
    for seconds in np.geomspace(0.02, 90, 40).round(2).tolist():
        graph = long_graph(seconds, width=32, height=32, steps=1, clip_frames=81, motion_frames=25).set("audio_1", audio="long_voice.wav")
        found[seconds] = Probe(made(server, graph)[0]).count
    print(found)
    assert found == {seconds: max(1, round(seconds * 25)) for seconds in found}


def test_an_interrupted_video_goes_on_to_the_same_bits(server, inputs):
    """Lossless here and below, so that another file is another picture: x264 was once seen to make other bits of the same small ones."""
    whole = content(made(server, long_graph(seed=2, codec="lossless"))[0])
    graph = long_graph(seed=2, codec="lossless", filename_prefix="long/b")
    graph["other"] = node("PreviewAny", source=["long", 1])  # the server remembers what it made; this is another prompt
    graph.set("long", keep_job=True)
    running = server.queue(graph.prompt())
    while not any(list(job.glob("clip_00000.mkv")) for job in jobs(server)):
        time.sleep(0.05)
    server.interrupt(running)
    with pytest.raises(tools.Interrupted):
        server.wait(running)
    (job,) = jobs(server)
    finished = len(list(job.glob("clip_*.mkv")))
    assert 1 <= finished < 5
    file, report = made(server, graph)
    assert content(file) == whole
    assert f"{finished} clips were finished before" in report
    assert jobs(server) == [job], "kept, as asked for"
    for left in job.iterdir():
        left.unlink()
    job.rmdir()


@pytest.mark.slow  # tests/lab/test_kills.py kills two in the quick tier
def test_a_killed_process_goes_on_to_the_same_bits(comfy, tmp_path):
    """kill -9 while clips are made; the next ComfyUI with the same output folder goes on."""
    graph = long_graph(seed=3, codec="lossless")
    base = tmp_path / "base"
    for attempt in range(2):
        with tools.ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT, base=base) as server:
            for file in (*SAMPLES.glob("*.png"), *SAMPLES.glob("*.wav")):
                server.upload(file)
            if attempt == 0:
                server.queue(graph.prompt())
                while not any(list(job.glob("clip_00001.mkv")) for job in jobs(server)):
                    time.sleep(0.02)
                server.process.kill()
                server.process.wait()
                continue
            file, report = made(server, graph)
            assert re.search(r"[1-3] clips were finished before", report), report
            whole, report = made(server, long_graph(seed=3, codec="lossless", filename_prefix="long/again", keep_job=True))
            assert "all clips made now" in report
            assert content(file) == content(whole)


def test_a_changed_recording_is_another_video(server, inputs):
    def record(seconds):
        with wave.open(str(server.base / "input" / "changing.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes((3000 * np.random.default_rng(0).standard_normal(round(16000 * seconds))).astype(np.int16).tobytes())

    record(0.9)
    graph = long_graph(0, seed=4, keep_job=True).set("audio_1", audio="changing.wav")
    file, report = made(server, graph)
    first = jobs(server)
    assert Probe(file).count == 22 and len(first) == 1
    record(0.5)  # under the same name
    file, report = made(server, graph)
    assert Probe(file).count == 12 and "all clips made now" in report
    second = [job for job in jobs(server) if job not in first]
    assert len(second) == 1
    for job in jobs(server):
        shutil.rmtree(job)


SOMEBODYS_PACK = """
import pathlib, torch
class Speech:
    CATEGORY, FUNCTION, RETURN_TYPES = "test", "speak", ("AUDIO", "INT")
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    IS_CHANGED = classmethod(lambda cls: float("nan"))
    def speak(self):
        voice, seed = map(int, pathlib.Path(__file__).with_name("says").read_text().split())
        return {"waveform": torch.randn(1, 1, 14400, generator=torch.Generator().manual_seed(voice)) * 0.1, "sample_rate": 16000}, seed
NODE_CLASS_MAPPINGS = {"SomebodysSpeech": Speech}
"""


@pytest.mark.slow
def test_what_another_packs_node_says_belongs_to_the_job(comfy, tmp_path):
    """The graph stays the same, word for word; what comes over its links does not."""
    base = tmp_path / "base"
    pack = base / "custom_nodes" / "somebodys_pack"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(SOMEBODYS_PACK, encoding="utf-8")
    graph = long_graph(seed=["speech", 1], keep_job=True)
    graph["speech"] = node("SomebodysSpeech")
    graph.set("speaker_1", audio=["speech", 0])
    del graph["audio_1"]
    with tools.ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT, base=base) as server:
        server.upload(SAMPLES / "face_small.png")
        for number, said in enumerate(("1 1", "2 1", "1 2"), start=1):
            (pack / "says").write_text(said)
            assert "all clips made now" in made(server, graph)[1]
            assert len(jobs(server)) == number, said
        (pack / "says").write_text("1 1")
        assert "5 clips were finished before" in made(server, graph)[1]


@pytest.fixture
def small_disk(server):
    """A disk of 66 MB where jobs are kept, of which 64 stay free for others."""
    folder = server.base / "output" / "multitalk_jobs"
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=66m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_runs_full_or_cannot_be_written_loses_nothing(server, inputs, small_disk):
    whole = content(made(server, long_graph(seed=5))[0])
    graph = long_graph(seed=5, filename_prefix="long/small", keep_job=True)
    running = server.queue(graph.prompt())
    while not (finished := list(small_disk.glob("*/clip_00000.mp4"))):
        time.sleep(0.02)
    (small_disk / "somebody").write_bytes(bytes(4 * 2**20))
    with pytest.raises(
        tools.NodeFailed, match=r"has 6\d MB left, and this video needs about 6\d MB more\. Free some space and queue again"
    ):
        server.wait(running)
    (small_disk / "somebody").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(tools.NodeFailed, match=r"cannot be used \(Read-only file system\)\. Make it writable, then queue again"):
        server.run(graph.prompt())
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert finished[0].exists()
    file, report = made(server, graph)
    assert content(file) == whole and "clips were finished before" in report


@pytest.fixture(scope="module")
def darkening(server, inputs, tmp_path_factory):
    """A video of one second at 30 frames a second, which gets darker; its name in the input folder."""
    from PIL import Image

    file = tmp_path_factory.mktemp("source") / "dub.mp4"
    face = np.array(Image.open(SAMPLES / "face_small.png").convert("RGB"))
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for i in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray((face * (1 - i / 60)).astype(np.uint8))))
        container.mux(stream.encode())
    return server.upload(file)


def dubbed(server, name, *between):
    """The brightness of every frame of a video that is dubbed, after other nodes had it."""
    graph = long_graph(family="infinitetalk", colour=0.0)
    graph["source"] = node("LoadVideo", file=name)
    last = "source"
    for title, (kind, link, inputs) in zip("abc", between, strict=False):
        graph[title] = node(kind, **{link: [last, 0]}, **inputs)
        last = title
    del graph["long"]["inputs"]["image"]
    video = Probe(made(server, graph.set("long", video=[last, 0]))[0])
    assert video.count == 22
    return video.frames.mean(axis=(1, 2, 3))


def test_dubbing_takes_every_clips_source_from_a_video(server, darkening):
    brightness = dubbed(server, darkening)
    assert brightness[-1] < 0.85 * brightness[0], "later clips follow later frames"


CUT = ("Video Slice", "video", {"start_time": 0.6, "duration": 0.0, "strict_duration": False})
AGAIN = [("GetVideoComponents", "video", {}), ("CreateVideo", "images", {"fps": 30.0})]


def test_a_video_that_was_cut_begins_where_it_was_cut(server, darkening):
    whole, cut = dubbed(server, darkening), dubbed(server, darkening, CUT)
    assert cut[0] == pytest.approx(whole[0] * (1 - 18 / 60), rel=0.06), "frame 18 of 60 a black one"


def test_a_video_in_memory_is_dubbed_as_if_it_were_a_file(server, darkening):
    file, memory = dubbed(server, darkening), dubbed(server, darkening, *AGAIN)
    assert np.abs(file - memory).max() < 0.03 * file[0]


REFUSED = {
    "an image and a video": (lambda g: [g.__setitem__("s", node("LoadVideo", file="mute.mp4")), g.set("long", video=["s", 0])], "either"),
    "a video without pictures": (
        lambda g: [
            g.__setitem__("s", node("LoadVideo", file="only_sound.mp4")),
            g["long"]["inputs"].pop("image"),
            g.set("long", video=["s", 0]),
        ],
        "has no video stream. Choose a video, or use an image as the source",
    ),
    "neither": (lambda g: g["long"]["inputs"].pop("image"), "Connect either an image or a video"),
    "cuts that are none": (lambda g: g.set("long", cuts="12, soon"), "'12, soon' are no cuts: 'soon' is no time"),
    "a name that is too long": (lambda g: g.set("long", filename_prefix="n" * 250), "'n{40}…' says .*shorter one"),
    "clips without anything new": (lambda g: g.set("long", motion_frames=9), "leave nothing new"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_plain_words(server, inputs, tmp_path, case):
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode())
    server.upload(tmp_path / "mute.mp4")
    with av.open(str(tmp_path / "only_sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux([*stream.encode(frame), *stream.encode()])
    server.upload(tmp_path / "only_sound.mp4")
    change, expected = REFUSED[case]
    graph = long_graph()
    change(graph)
    with pytest.raises((tools.NodeFailed, tools.PromptRefused), match=expected):
        server.run(graph.prompt())
