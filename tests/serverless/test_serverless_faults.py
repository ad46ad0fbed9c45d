"""What goes wrong around a job: it ends in the right video or with the right code, and the next job's video is good.

The worker's own ComfyUI, kept by the worker's own keeper, so that it can be killed.
"""

import asyncio
import base64
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest

from multitalk_client import id_of
from multitalk_nodes.tests.support import costs
from multitalk_nodes.tests.support.endpoint import BUCKET, KEYS, in_bucket, inline
from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES, Graph
from multitalk_nodes.tools.comfyui import server as tools
from serverless.handler import Worker
from serverless.keeper import Keeper
from serverless.settings import Settings

pytestmark = pytest.mark.usefixtures("short_clips")

GIVEN = {"audio_1": "1.wav", "condition_image": "multi1.png", "width": 64, "height": 64}
SHORT = GIVEN | {"duration": 0.5, "steps": 1}  # the demo's smallest


class Kept:
    """A ComfyUI that is started anew when it dies."""

    def __init__(self, base):
        self.base, self.port, self.deaths = base, tools.free_port(), 0
        tools.make_base(base, ROOT)
        command = tools.command(sys.executable, tools.Path(os.environ["COMFYUI_PATH"]), base, self.port, cpu=True)
        self.keeper = Keeper(command, self._died, lambda: None)
        self.url = f"http://127.0.0.1:{self.port}"

    def _died(self):
        self.deaths += 1

    def get(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return json.load(response)
        except OSError:
            return {}

    def until(self, what, seconds=120):
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end
            time.sleep(0.02)

    def is_running(self, job):
        return id_of(job) in [item[1] for item in self.get("/queue").get("queue_running", ())]

    def kill(self):
        os.killpg(self.keeper._process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    kept = Kept(tmp_path_factory.mktemp("kept") / "base")
    kept.keeper.start()
    kept.until(lambda: kept.get("/system_stats"))
    yield kept
    costs.count_work(kept.url)
    kept.keeper.stop()


@pytest.fixture
def environment(kept, bucket):
    return KEYS | {
        "COMFYUI_URL": kept.url,
        "MULTITALK_TEMPLATE": "demo_long_talk",
        "AWS_S3_BUCKET_NAME": BUCKET,
        "BUCKET_ENDPOINT_URL": bucket.address,
    }


def run(environment, given, job, meanwhile=lambda: None, **changes):
    """A job's answer, and what happens while it is made."""
    worker = Worker(replace(Settings.of(environment), **changes))
    answers = []
    asking = threading.Thread(target=lambda: answers.append(asyncio.run(worker({"id": job, "input": given}))))
    asking.start()
    meanwhile()
    asking.join(240)
    return answers[0]


def good(environment, bucket, tmp_path, job):
    """The next job's video is one."""
    assert in_bucket(bucket, run(environment, SHORT | {"seed": int(id_of(job)[:7], 16)}, job), tmp_path / "next.mp4").frames == 12


def test_comfyui_killed_while_it_samples_and_while_a_job_waits(environment, kept, bucket, tmp_path):
    first, waiting = "sampling", "queued"
    answers, deaths = {}, kept.deaths

    def killed():
        kept.until(lambda: kept.is_running(first))
        asking = threading.Thread(target=lambda: answers.update(queued=run(environment, SHORT | {"seed": 5}, waiting)))
        asking.start()
        kept.until(lambda: id_of(waiting) in [item[1] for item in kept.get("/queue").get("queue_pending", ())])
        kept.kill()
        asking.join(240)

    answer = run(environment, GIVEN | {"steps": 6}, first, killed)
    assert in_bucket(bucket, answer, tmp_path / "a.mp4").frames == 101
    assert in_bucket(bucket, answers["queued"], tmp_path / "b.mp4").frames == 12
    assert kept.deaths == deaths + 1
    good(environment, bucket, tmp_path, "after-a-death")


@pytest.mark.slow
def test_comfyui_killed_after_it_has_finished(environment, kept, bucket, tmp_path):
    """Its history is gone: the video is made anew, if it is not in the bucket."""
    before = run(environment, SHORT | {"seed": 7}, "finished")
    kept.kill()
    assert run(environment, SHORT | {"seed": 7}, "finished")["video"] == before["video"]
    bucket.delete_object(Bucket=BUCKET, Key="multitalk/finished.mp4")
    assert in_bucket(bucket, run(environment, SHORT | {"seed": 7}, "finished"), tmp_path / "a.mp4").frames == 12


def test_an_interrupt_from_outside_and_a_deadline(environment, kept, bucket, tmp_path):
    def interrupted():
        kept.until(lambda: kept.is_running("stopped"))
        request = urllib.request.Request(kept.url + "/interrupt", b"{}", {"Content-Type": "application/json"})
        while kept.is_running("stopped"):
            urllib.request.urlopen(request).read()
            time.sleep(0.1)

    answer = run(environment, GIVEN | {"steps": 30}, "stopped", interrupted)
    assert answer["error_code"] == "interrupted" and "hint" in answer["error_details"] and answer["status"] == "error"
    good(environment, bucket, tmp_path, "after-an-interrupt")
    answer = run(environment, GIVEN | {"steps": 60, "seed": 9}, "late", seconds=4.0)
    assert answer["error_code"] == "deadline_exceeded"
    assert not kept.is_running("late"), "it was called off"
    good(environment, bucket, tmp_path, "after-a-deadline")


def test_nodes_that_fail_and_prompts_that_are_refused(environment, bucket, tmp_path):
    broken = base64.b64encode((SAMPLES / "voice_1.wav").read_bytes()[:20]).decode()
    answer = run(environment, SHORT | {"audio_1": {"base64": broken}}, "broken")
    assert answer["error_code"] == "node_failed" and answer["error_details"]["node_type"] == "MultiTalkLoadAudio"
    assert "Traceback" not in json.dumps(answer)
    half = base64.b64encode((SAMPLES / "face_small.png").read_bytes()[:100]).decode()  # ComfyUI takes it as a black one
    assert run(environment, SHORT | {"condition_image": {"base64": half}}, "half-a-picture")["error_code"] == "output_not_usable"
    graph = Graph(frames=5)
    graph["second"] = {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}}  # ComfyUI answers 200, and names it as an error
    files = {"face_small.png": inline("face_small.png"), "voice_1.wav": "1.wav"}
    answer = run(environment, {"workflow": graph, "files": files}, "in-part")
    assert answer["error_code"] == "prompt_refused" and "second" in answer["error_details"]["node_errors"]
    graph["second"]["inputs"]["images"] = ["image", 99]  # here ComfyUI's own check raises, and it tells where
    answer = run(environment, {"workflow": graph, "files": files}, "no-such-output")
    assert answer["error_code"] == "prompt_refused" and "Traceback" not in json.dumps(answer) and "execution.py" not in json.dumps(answer)
    del graph["save"], graph["second"]
    graph["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["voices", 2]}}
    graph = {name: node for name, node in graph.items() if name not in ("clip", "sample", "decode", "video")}
    assert run(environment, {"workflow": graph, "files": files}, "no-video")["error_code"] == "no_video"
    good(environment, bucket, tmp_path, "after-failures")


def test_a_still_or_silent_file_is_no_success(environment, tmp_path):
    graph = {
        "image": {"class_type": "LoadImage", "inputs": {"image": "face.png"}},
        "same": {"class_type": "RepeatImageBatch", "inputs": {"image": ["image", 0], "amount": 10}},
        "sound": {"class_type": "MultiTalkLoadAudio", "inputs": {"audio": "v.wav", "start": 0.0, "duration": 0.4, "channel": "all"}},
        "video": {"class_type": "CreateVideo", "inputs": {"images": ["same", 0], "audio": ["sound", 0], "fps": 25.0}},
        "save": {"class_type": "SaveVideo", "inputs": {"video": ["video", 0], "filename_prefix": "x", "format": "mp4", "codec": "h264"}},
    }
    files = {"face.png": inline("face_small.png"), "v.wav": inline("voice_1.wav")}
    answer = run(environment, {"workflow": graph, "files": files}, "still")
    assert answer["error_code"] == "output_not_usable" and "one picture all the time" in answer["error"]
    del graph["video"]["inputs"]["audio"]
    del graph["sound"]
    assert "no sound" in run(environment, {"workflow": graph, "files": files}, "silent")["error"]


@contextmanager
def between(target, spoil):
    """An HTTP server that passes everything on to S3, unless `spoil` answers: (status, body), or a number of seconds to wait."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _pass(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else None
            if isinstance(wrong := spoil(self.command, self.path), tuple):
                self._answer(wrong[0], {}, wrong[1])
                return
            time.sleep(wrong or 0)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            request = urllib.request.Request(target + self.path, body, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as response:
                    self._answer(response.status, response.headers, response.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, error.headers, error.read())

        def _answer(self, status, headers, body):
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" and headers else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815 - http.server's names

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as there:
        threading.Thread(target=there.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{there.server_port}"
        there.shutdown()


def through(environment, address):
    return environment | {"BUCKET_ENDPOINT_URL": address}


def test_a_bucket_that_fails_now_and_then_or_is_slow(environment, bucket, tmp_path):
    left = {"GET": 2, "PUT": 2, "HEAD": 1}

    def spoil(command, path):
        if left.get(command, 0) > 0:
            left[command] -= 1
            return 500, b"<Error><Code>InternalError</Code></Error>"
        return 1.0 if command == "PUT" else 0

    with between(bucket.address, spoil) as address:
        answer = run(through(environment, address), SHORT | {"seed": 11}, "patient")
    assert in_bucket(bucket, answer, tmp_path / "a.mp4").frames == 12 and not any(left.values())


@pytest.mark.slow  # the worker tries again for half a minute
def test_a_bucket_that_does_not_recover_is_a_failure(environment, bucket, tmp_path):
    def spoil(command, path):
        return (503, b"<Error><Code>SlowDown</Code></Error>") if command == "PUT" else 0

    with between(bucket.address, spoil) as address:
        answer = run(through(environment, address), SHORT | {"seed": 12}, "impatient")
    assert answer["error_code"] == "storage_failed" and "video" not in answer
    good(environment, bucket, tmp_path, "after-a-bucket")


def test_a_short_upload_is_noticed(environment, bucket):
    """A bucket that says yes and keeps half."""

    bucket.put_object(Bucket=BUCKET, Key="multitalk/half.mp4", Body=b"the first half")

    def spoil(command, path):
        return (200, b"") if command == "PUT" else 0

    with between(bucket.address, spoil) as address:
        answer = run(through(environment, address), SHORT | {"seed": 13}, "half")
    assert answer["error_code"] == "storage_failed" and "holds 14 bytes" in answer["error"]


@pytest.mark.parametrize(
    ("changes", "given", "code"),
    [
        ({}, {"audio_1": "nowhere.wav"}, "input_not_found"),
        ({}, {"audio_1": "../../etc/passwd"}, "input_not_found"),
        ({}, {"audio_1": "s3://no-such-bucket-here/1.wav"}, "input_not_found"),
        ({}, {"audio_1": "multi1.png"}, "input_not_usable"),
        ({}, {"audio_1": "https://169.254.169.254/latest/meta-data/"}, "input_refused"),
        (
            {"AWS_S3_BUCKET_NAME": "another"},
            {"audio_1": inline("voice_1.wav"), "condition_image": inline("face_small.png")},
            "storage_failed",
        ),
        ({"AWS_SECRET_ACCESS_KEY": ""}, {}, "storage_not_configured"),
        ({"BUCKET_ENDPOINT_URL": "http://127.0.0.1:9"}, {}, "storage_failed"),
    ],
)
def test_what_the_bucket_does_not_have_or_allow(environment, changes, given, code):
    answer = run(environment | changes, SHORT | given, os.urandom(4).hex())
    assert answer["error_code"] == code, answer
    assert not any(hidden in json.dumps(answer) for hidden in ("wJalrXUtnFEMI", "169.254"))


def test_wrong_keys_are_told_before_the_video_is_made(environment, bucket):
    """moto knows no rights, so the answer is S3's, by its own words."""

    def spoil(command, path):
        return 403, b"<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>"

    with between(bucket.address, spoil) as address:
        began = time.monotonic()
        answer = run(through(environment, address), SHORT, "denied")
    assert answer["error_code"] == "storage_denied" and time.monotonic() - began < 10


def test_a_websocket_that_is_cut_costs_nothing(environment, kept, bucket, tmp_path):
    """Everything passes but /ws, which is closed as soon as it is open."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_forward, args=(listening, kept.port), daemon=True).start()
        data = environment | {"COMFYUI_URL": f"http://127.0.0.1:{listening.getsockname()[1]}"}
        answer = run(data, SHORT | {"seed": 14}, "deaf")
    assert in_bucket(bucket, answer, tmp_path / "a.mp4").frames == 12


def _forward(listening, port):
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_forward_one, args=(client, port), daemon=True).start()


def _forward_one(client, port):
    first = client.recv(65536)
    if first.startswith(b"GET /ws"):
        client.close()
        return
    server = socket.create_connection(("127.0.0.1", port))
    server.sendall(first)

    def pump(source, target):
        try:
            while block := source.recv(65536):
                target.sendall(block)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)


def test_a_full_disk_is_told(environment, kept, bucket, tmp_path):
    """ComfyUI's output folder on a disk of two megabytes."""
    jobs = kept.base / "output" / "multitalk_jobs"
    shutil.rmtree(jobs, ignore_errors=True)
    jobs.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(jobs)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be made here: {mounted.stderr.decode().strip()}")
    try:
        answer = run(environment, SHORT | {"seed": 15}, "full")
        assert answer["error_code"] == "disk_full" and "MB" in answer["error"]
    finally:
        subprocess.run(["umount", str(jobs)], check=True)
    assert in_bucket(bucket, run(environment, SHORT | {"seed": 15}, "full"), tmp_path / "a.mp4").frames == 12


def test_nobody_is_there(environment, monkeypatch):
    monkeypatch.setattr("serverless.handler.PATIENCE", 0.5)  # the first request waits for a ComfyUI that is still starting
    answer = run(environment | {"COMFYUI_URL": "http://127.0.0.1:9"}, {"health_check": True}, "nobody")
    assert answer["error_code"] == "comfyui_unreachable" and "Is it running" in answer["error"]


@pytest.mark.by_hand
def test_two_hundred_jobs_in_a_row(environment, kept, bucket, tmp_path):
    """Flat memory, files and handles, of ComfyUI and of the worker; every tenth job is a bad one."""
    import psutil

    folders = {f"MULTITALK_{kind.upper()}_FOLDER": str(kept.base / kind) for kind in ("input", "output", "temp")}
    worker = Worker(Settings.of(environment | folders))
    comfyui, own = psutil.Process(kept.keeper._process.pid), psutil.Process()

    def measured():
        files = sum(len(list((kept.base / kind).rglob("*"))) for kind in ("input", "output", "temp"))
        return [comfyui.memory_info().rss / 2**20, own.memory_info().rss / 2**20, comfyui.num_fds(), own.num_fds(), files]

    seen = []
    for number in range(200):
        given = SHORT | {"seed": number} | ({"audio_1": "nowhere.wav"} if number % 10 == 9 else {})
        answer = asyncio.run(worker({"id": f"row-{number}", "input": given}))
        assert ("error" in answer) == (number % 10 == 9), answer
        seen.append(measured())
    for number in (0, 20, 50, 100, 150, 199):
        print(number, [round(value, 1) for value in seen[number]])
    early, late = seen[20], seen[199]
    assert late[0] - early[0] < 30 and late[1] - early[1] < 10, "MB"
    assert late[2] - early[2] <= 2 and late[3] - early[3] <= 2 and late[4] == early[4]
