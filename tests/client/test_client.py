"""The client against a real ComfyUI: requests become videos, once each, and what goes wrong is said."""

import asyncio
import contextlib
import http.server
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import multitalk_client as mc
from multitalk_client.__main__ import main
from multitalk_client.comfy import CONNECT
from multitalk_client.queue import id_of, outputs_of, progress_of, says_that_something_ended, video_of
from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES, Probe, content
from multitalk_nodes.tools.comfyui import server as tools

pytestmark = pytest.mark.usefixtures("short_clips")

FACE, TWO = SAMPLES / "face_small.png", SAMPLES / "two_faces_small.png"
VOICES = (SAMPLES / "voice_1.wav", SAMPLES / "voice_2.wav")


def request(**changes):
    """A second of a small face, in as few steps as there are."""
    return mc.Request(**{"image": FACE, "audio": [VOICES[0]], "duration": 0.5, "steps": 1, "seed": 1} | changes)


@pytest.fixture
def client(server):
    with mc.Client(server.url) as client:
        yield client


@pytest.mark.parametrize("template", mc.templates())
def test_every_template_takes_a_request(template):
    given = {"image": None, "video": SAMPLES / "silent_face.mp4"} if "dubbing" in template else {}
    asked = request(audio=[{"audio": VOICES[0], "box": (1, 2, 30, 40)}, VOICES[1]], layout="parallel", audio_scale=2.0, **given)
    names = {file: f"in/{file.name}" for file in (*VOICES, FACE, SAMPLES / "silent_face.mp4")}
    graph = mc.Template.load(template).fill(asked, names)
    links = {link[0] for node in graph.values() for link in node["inputs"].values() if isinstance(link, list)}
    assert links <= graph.keys(), "nothing is made of what is not there"
    assert sorted(node["inputs"]["audio"] for node in graph.values() if node["class_type"] == "MultiTalkLoadAudio") == [
        "in/voice_1.wav",
        "in/voice_2.wav",
    ]
    assert [node["inputs"]["box"] for node in graph.values() if node["class_type"] == "MultiTalkSpeaker"] == ["1, 2, 30, 40", ""]
    assert not [node for node in graph.values() if node["class_type"] == "AudioConcat"], "what only the template's own voice was made of"


def test_a_template_s_drawn_boxes_stay_with_its_picture():
    template = mc.Template.load("demo_bystander")
    names = {file: file.name for file in (*VOICES, FACE)}
    graph = template.fill(request(image=None, audio=[VOICES[1]]), names)
    (speaker, heard), (quiet, nothing) = seats(graph)
    assert (speaker["role"], quiet["role"], heard["audio"], nothing) == ("speaks", "silent", "voice_2.wav", None)
    assert float(speaker["box"].split(", ")[2]) < float(quiet["box"].split(", ")[0])
    assert not [node for node in graph.values() if node["class_type"] in ("MultiTalkDialogue", "MultiTalkPreviewSpeakers")]
    assert [node["box"] for node, _ in seats(template.fill(request(audio=[VOICES[1]]), names))] == [""]
    broken = mc.Template("broken", {**template.graph, "4": {"class_type": "MultiTalkSpeakerBoxes", "inputs": {"boxes": "[1]"}}})
    with pytest.raises(mc.BadRequest, match="boxes that cannot be read"):
        broken.fill(request(), names)


def seats(graph):
    """The speakers' inputs in the order of the voices, each with its loader's."""
    (voices,) = (node for node in graph.values() if node["class_type"] == "MultiTalkWav2VecEmbeds")
    links = [voices["inputs"][f"speakers.speaker_{number}"] for number in range(4) if f"speakers.speaker_{number}" in voices["inputs"]]
    speakers = [graph[link[0]]["inputs"] for link in links]
    return [(speaker, graph[speaker["audio"][0]]["inputs"] if "audio" in speaker else None) for speaker in speakers]


def test_voices_inherit_nothing_but_places_of_the_same_picture():
    template = mc.Template.load("demo_two_speakers")
    names = {file: file.name for file in (*VOICES, TWO)}
    boxes = [speaker["box"] for speaker, _ in seats(template.graph)]
    assert all(boxes) and seats(template.graph)[0][1]["duration"], "the template's sample is cut, its faces have places"
    same = template.fill(mc.Request(audio=VOICES), names)
    assert [speaker["box"] for speaker, _ in seats(same)] == boxes
    assert [loader["duration"] for _, loader in seats(same)] == [0.0, 0.0], "voices are as long as they are"
    assert [speaker["box"] for speaker, _ in seats(template.fill(mc.Request(image=TWO, audio=VOICES), names))] == ["", ""]


def test_a_templates_silent_people_stay():
    graph = json.loads(json.dumps(mc.Template.load("demo_two_speakers").graph))
    first = seats(graph)[0][0]
    first |= {"role": "silent"}
    filled = mc.Template("mine", graph).fill(mc.Request(audio=VOICES[0]), {VOICES[0]: "a.wav"})
    (talks, loader), (listens, _) = seats(filled)
    another = mc.Template("mine", graph).fill(mc.Request(image=TWO, audio=VOICES[0]), {VOICES[0]: "a.wav", TWO: "b.png"})
    assert len(seats(another)) == 1, "where they are in another picture, nobody knows"
    assert talks["role"] == "speaks" and loader["audio"] == "a.wav" and listens["role"] == "silent" and listens["box"] == first["box"]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1])
def test_numbers_are_numbers(value):
    for wrong in ({"duration": value}, {"shift": value}, {"audio_scale": value}, {"audio": {"audio": "a.wav", "box": (0, 0, value, 9)}}):
        with pytest.raises(ValueError, match="validation error"):
            mc.Request(**{"audio": "a.wav"} | wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"video": FACE}, "no place for video"), ({"prompt": "a cat"}, "no place for prompt"), ({"frames": 81}, "no place for frames")],
)
def test_a_field_without_a_place_is_told(changes, said):
    with pytest.raises(mc.BadRequest, match=said):
        mc.Template.load("demo_long_talk").fill(request(**changes), {FACE: "face", VOICES[0]: "voice"})


def test_a_prompt_goes_to_the_encoder_of_its_side():
    graph = {
        "p": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["c", 0]}},
        "n": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["c", 0]}},
        "m": {"class_type": "MultiTalkLongVideo", "inputs": {"positive": ["p", 0], "negative": ["n", 0], "voices": ["v", 0]}},
    }
    voices = {k: v for k, v in mc.Template.load("demo_long_talk").graph.items() if v["class_type"] != "MultiTalkLongVideo"}
    asked = mc.Request(audio=["a.wav"], prompt="a woman talks", negative_prompt="blurred")
    filled = mc.Template("mine", voices | graph).fill(asked, {Path("a.wav"): "a.wav"})
    assert filled["p"]["inputs"]["text"] == "a woman talks" and filled["n"]["inputs"]["text"] == "blurred"


@pytest.mark.parametrize(("content", "said"), [('{"nodes": [], "links": []}', "Export"), ("[1]", "no prompt"), ("{", "cannot be read")])
def test_what_is_no_template_is_told(tmp_path, content, said):
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(mc.BadRequest, match=said):
        mc.Template.load(tmp_path / "mine.json")
    with pytest.raises(mc.BadRequest, match="demo_long_talk"):
        mc.Template.load("../api/demo_long_talk")


def test_messages_are_told_apart():
    text = (3).to_bytes(4, "big") + (2).to_bytes(4, "big") + b"12" + b"clip 3/12"
    assert progress_of(text, "a") == mc.Progress("running", node="12", text="clip 3/12")
    assert progress_of(b"\0\0\0\1\0\0\0\1jpeg", "a") is None
    step = {"type": "progress", "data": {"value": 3, "max": 8, "node": "4", "prompt_id": "a"}}
    assert progress_of(json.dumps(step), "a") == mc.Progress("running", node="4", done=3, of=8)
    assert progress_of(json.dumps(step), "b") is None, "somebody else's"


NOT_A_NUMBER = '{"type": "progress", "data": {"value": null, "max": 3}}'
NAN = '{"type": "progress", "data": {"value": NaN, "max": 3}}'


@pytest.mark.parametrize("odd", ["5", "{", '{"type": "x", "data": "hello"}', '{"type": 3}', NOT_A_NUMBER, NAN])
def test_what_other_packs_send_is_nothing(odd):
    assert progress_of(odd, "a") is None and not says_that_something_ended(odd)


REFUSED = mc.Refused({"message": "no"}, {"3": {"class_type": "X", "errors": [{"message": "bad"}]}})
FULL = mc.NodeFailed({"node_id": "3", "node_type": "X", "exception_message": "CUDA out of memory"})


@pytest.mark.parametrize(("error", "code"), [(REFUSED, "prompt_refused"), (FULL, "out_of_memory")])
def test_errors_travel_between_processes(error, code):
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, again.details) == (str(error), code, error.details)


def test_only_files_that_were_saved_are_results():
    saved = {"images": [{"filename": "a.png", "type": "output"}], "text": ["x"]}
    kept = {"images": [{"filename": "b.MP4", "subfolder": "s", "type": "output"}, {"filename": "t.mp4", "type": "temp"}]}
    outputs = outputs_of({"status": {"status_str": "success", "messages": []}, "outputs": {"1": saved, "2": kept}})
    assert video_of(outputs) == mc.Output("2", "b.MP4", "s", "output")
    with pytest.raises(mc.NoVideo, match="a.png"):
        video_of(outputs[:1])


def test_a_request_becomes_a_video_once(client, server, tmp_path):
    lines = []
    made = client.generate(request(), tmp_path / "new" / "a.mp4", progress=lines.append)
    video = Probe(made)
    assert video.count == 12 and video.shows_something() and video.fps == 25
    assert any(progress.of for progress in lines) and any("clip" in progress.text for progress in lines)
    before = len(server.get("/history"))
    again = client.generate(request(), tmp_path / "b.mp4")
    assert again.read_bytes() == made.read_bytes() and len(server.get("/history")) == before, "asked twice, made once"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.mp4", "b.mp4", "new"], "nothing is left beside"


def test_a_short_template_and_two_speakers(client, tmp_path):
    far_off = [{"audio": voice, "box": (500, 500, 600, 600)} for voice in VOICES]
    asked = request(image=TWO, audio=far_off, frames=9, duration=None)
    with pytest.raises(mc.NodeFailed, match="[Ss]peaker") as failed:
        client.generate(asked, tmp_path / "a.mp4", "demo_one_speaker")
    assert failed.value.code == "node_failed" and failed.value.details["node_type"].startswith("MultiTalk")
    boxes = json.loads((SAMPLES / "two_faces_small.json").read_text())["boxes"]
    asked = request(image=TWO, audio=[{"audio": v, "box": b} for v, b in zip(VOICES, boxes, strict=True)], frames=9, duration=None)
    assert Probe(client.generate(asked, tmp_path / "a.mp4", "demo_one_speaker")).count == 9


def test_a_file_that_was_removed_is_made_again_and_none_is_taken_for_it(client, server, tmp_path):
    made = client.generate(request(seed=5), tmp_path / "a.mp4")
    for file in (server.base / "output").rglob("*.mp4"):
        file.unlink()
    other = client.generate(request(seed=4), tmp_path / "other.mp4")  # ComfyUI would give it the number that is free again
    for name in ("b.mp4", "c.mp4", "d.mp4"):
        assert content(client.generate(request(seed=5), tmp_path / name)) == content(made) != content(other)
        if name == "c.mp4":  # once more
            for file in (server.base / "output").rglob("*.mp4"):
                file.unlink()


def test_a_job_is_one_request(client, server, tmp_path):
    async def at_once():
        async with mc.AsyncClient(server.url) as client:
            asked = [client.generate(request(seed=60 + number), tmp_path / f"{number}.mp4", job="two") for number in range(2)]
            return await asyncio.gather(*asked, return_exceptions=True)

    came = asyncio.run(at_once())  # whichever was first
    assert sorted(type(result) is mc.BadRequest for result in came) == [False, True]
    assert sum(isinstance(result, Path) and result.exists() for result in came) == 1
    client.generate(request(seed=5), tmp_path / "a.mp4", job="one")
    with pytest.raises(mc.BadRequest, match="something else"):
        client.generate(request(seed=4), tmp_path / "b.mp4", job="one")


def test_a_broken_progress_bar_costs_no_video(client, tmp_path, caplog):
    def broken(progress):
        raise ValueError("no bar")

    assert client.generate(request(seed=50), tmp_path / "a.mp4", progress=broken).exists() and "no bar" in caplog.text


@pytest.mark.parametrize("out", [".", "a_file/a.mp4", "x" * 300])
def test_a_place_that_cannot_be_written_is_told_before(client, tmp_path, out):
    (tmp_path / "a_file").touch()
    began = time.monotonic()
    with pytest.raises(mc.BadRequest, match="cannot be written"):
        client.generate(request(seed=51), tmp_path / out)
    assert time.monotonic() - began < 1


def test_a_deadline_calls_the_prompt_off(client, server, tmp_path):
    with pytest.raises(mc.DeadlineExceeded, match="0.5 s"):
        client.generate(request(duration=None, steps=20, seed=6), tmp_path / "a.mp4", timeout=0.5)
    queue = server.get("/queue")
    assert not queue["queue_running"] and not queue["queue_pending"]
    assert not (tmp_path / "a.mp4").exists()
    assert Probe(client.generate(request(seed=7), tmp_path / "next.mp4")).count == 12


def test_an_interrupt_from_outside_is_told_and_the_next_request_begins_anew(client, server, tmp_path):
    asked = request(duration=None, steps=20, seed=8)
    failed = []

    def ask():
        try:
            client.generate(asked, tmp_path / "a.mp4", job="mine")
        except mc.Interrupted as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while id_of("mine") not in [item[1] for item in server.get("/queue")["queue_running"]]:
        assert asking.is_alive()
        time.sleep(0.05)
    while asking.is_alive():
        server.interrupt(id_of("mine"))
        asking.join(0.2)
    assert failed and failed[0].code == "interrupted"
    assert Probe(client.generate(request(seed=9), tmp_path / "a.mp4", job="mine")).count == 12, "a failure is not kept as the result"


def test_what_comfyui_refuses_is_told(client, tmp_path):
    asked = request(width=16 * 200, steps=1)
    template = mc.Template.load("demo_long_talk")
    broken = {number: node | {"inputs": node["inputs"] | {"sampler_name": "none such"}} if "Long" in node["class_type"] else node
              for number, node in template.graph.items()}  # fmt: skip
    with pytest.raises(mc.Refused, match="sampler_name") as refused:
        client.generate(asked, tmp_path / "a.mp4", mc.Template("broken", broken))
    assert refused.value.code == "prompt_refused" and refused.value.details["node_errors"]
    with pytest.raises(mc.BadRequest, match="cannot be read"):
        client.generate(request(image=tmp_path / "none.png"), tmp_path / "a.mp4")


@contextlib.contextmanager
def refusing():
    """An address at which nobody listens."""
    with socket.socket() as taken:  # so that nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def swallowing():
    """An address at which no connection comes to be: its queue is full."""
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield f"127.0.0.1:{full.getsockname()[1]}"


@contextlib.contextmanager
def unknown():
    yield "no-such-host.invalid:8188"


@pytest.mark.parametrize("place", [refusing, swallowing, unknown])
def test_nobody_there_is_told_within_five_seconds(place, tmp_path, capsys):
    with place() as address:
        words = ["generate", "--server", address, "--image", FACE, "--audio", VOICES[0], "--out", tmp_path / "a.mp4"]
        began = time.monotonic()
        assert main([str(word) for word in words]) == 1
        assert time.monotonic() - began < 5
    said = capsys.readouterr().err
    assert f"ComfyUI at http://{address} does not answer" in said and "Is it running?" in said and "Traceback" not in said


def test_an_answer_may_take_longer_than_a_connection():
    stats = (200, b'{"system": {}}', {"Content-Type": "application/json"})
    with answering(*stats, after=CONNECT + 0.5) as address, mc.Client(address) as client:
        assert client.system_stats() == {"system": {}}


def test_somebody_who_is_not_there_yet_is_waited_for_if_asked():
    """The worker does, whose ComfyUI starts with it."""
    with refusing() as address:
        pass
    port, stats = int(address.split(":")[1]), (200, b"{}", {"Content-Type": "application/json"})

    def start():
        time.sleep(1)
        there.enter_context(answering(*stats, port=port))

    with contextlib.ExitStack() as there, mc.Client(address, patience=20) as client:
        starting = threading.Thread(target=start)
        starting.start()
        assert client.system_stats() == {}
        starting.join()


def test_many_requests_at_once_and_equal_ones_are_one(server, tmp_path):
    before = len(server.get("/history"))

    async def all_of_them():
        async with mc.AsyncClient(server.url) as client:
            asked = [client.generate(request(seed=20 + number % 2), tmp_path / f"{number}.mp4", timeout=120) for number in range(4)]
            in_a_hurry = client.generate(request(seed=20), tmp_path / "hurry.mp4", timeout=0.5)
            return await asyncio.gather(*asked, in_a_hurry, return_exceptions=True)

    *made, hurry = asyncio.run(all_of_them())
    assert isinstance(hurry, mc.DeadlineExceeded), "and the patient get their video"
    assert [file.read_bytes() == made[0].read_bytes() for file in made] == [True, False, True, False]
    assert len(server.get("/history")) == before + 2


@contextlib.contextmanager
def answering(status, body, headers, after=0.0, port=0):
    """Something else than a ComfyUI at an address, which takes its time."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(after)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_POST = do_HEAD = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as there:
        threading.Thread(target=there.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{there.server_port}"  # http:// is what is meant
        there.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "headers", "error", "said"),
    [
        (200, b"<html>Log in</html>", {"Content-Type": "text/html"}, mc.ClientError, "no answer of a ComfyUI"),
        (200, b"[1]", {"Content-Type": "application/json"}, mc.ClientError, "no answer of a ComfyUI"),
        (301, b"", {"Location": "https://elsewhere.example/x?token=secret"}, mc.ClientError, "https://elsewhere.example;"),
        (401, b"who are you", {}, mc.ClientError, "status 401"),
        (530, b"", {}, mc.Unreachable, "status 530"),
    ],
)
def test_what_is_no_comfyui_is_told(tmp_path, status, body, headers, error, said):
    with answering(status, body, headers) as address, mc.Client(f"http://me:hidden@{address}", patience=0.3) as client:
        with pytest.raises(error, match=said) as found:
            client.system_stats()
        assert "secret" not in str(found.value) and "hidden" not in str(found.value)
        with pytest.raises(mc.ClientError):
            client.generate(request(), tmp_path / "a.mp4")


def test_a_client_is_used_in_its_block(tmp_path):
    with pytest.raises(mc.BadRequest, match="no address"):
        mc.Client("ftp://x")
    with pytest.raises(RuntimeError, match="with Client"):
        mc.Client().system_stats()


def test_the_command(server, tmp_path, capsys):
    words = ["generate", "--server", server.url, "--image", FACE, "--audio", VOICES[0], "--out", tmp_path / "a.mp4"]
    words += ["--duration", 0.5, "--steps", 1, "--seed", 30]
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.mp4") and Probe(tmp_path / "a.mp4").count == 12
    assert main([str(word) for word in words[:5] + ["--audio", tmp_path / "none.wav", "--out", tmp_path / "b.mp4"]]) == 1
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as wrong:
        main([str(word) for word in [*words, "--width", 100]])
    assert wrong.value.code == 2 and "--width" in capsys.readouterr().err


def test_ctrl_c_calls_the_prompt_off(server, tmp_path):
    words = ["generate", "--server", server.url, "--image", FACE, "--audio", VOICES[0], "--out", tmp_path / "a.mp4", "--steps", 20]
    command = [sys.executable, "-m", "multitalk_client", *map(str, words)]
    # a shell that starts us in the background has Ctrl-C ignored, for our children, too
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **heard) as running:
        while not server.get("/queue")["queue_running"]:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130 and "called off" in running.stderr.read()
    assert not server.get("/queue")["queue_running"] and not (tmp_path / "a.mp4").exists()


@pytest.mark.slow
def test_a_comfyui_that_dies_and_comes_back_finishes_the_request(comfy, tmp_path):
    """Killed while it samples: the client queues the prompt again, and the job goes on."""
    base, failed = tmp_path / "base", []
    with tools.ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT, base=base) as first:
        port, client = first.port, mc.Client(first.url, patience=120)

        def ask():
            try:
                with client:
                    client.generate(request(duration=None, steps=2, seed=40), tmp_path / "a.mp4", timeout=300)
            except mc.ClientError as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        while not first.get("/queue")["queue_running"]:
            assert asking.is_alive(), failed
            time.sleep(0.05)
        first.process.kill()
        first.process.wait()
    with tools.ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT, base=base, port=port):
        asking.join(300)
    assert not failed and Probe(tmp_path / "a.mp4").shows_something()
