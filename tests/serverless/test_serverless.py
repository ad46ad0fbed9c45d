"""The worker on a real ComfyUI and a real S3 server: jobs become videos in the bucket, whoever sends them, and health is said."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import time
import urllib.request
from dataclasses import replace

import pytest

from multitalk_client import Template, id_of, templates
from multitalk_nodes.tests.support.endpoint import BUCKET, KEYS, SHORT, in_bucket, inline
from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES, Graph, Probe, content
from multitalk_nodes.tools.comfyui import server as tools
from multitalk_nodes.tools.launch import launched
from serverless import models
from serverless.handler import Worker
from serverless.settings import Settings

pytestmark = pytest.mark.usefixtures("short_clips")


@pytest.fixture
def environment(server, bucket):
    """What the worker is said."""
    folders = {f"MULTITALK_{kind.upper()}_FOLDER": str(server.base / kind) for kind in ("input", "output", "temp")}
    data = {"COMFYUI_URL": server.url, "MULTITALK_TEMPLATE": "demo_long_talk", "AWS_S3_BUCKET_NAME": BUCKET}
    return KEYS | folders | data | {"BUCKET_ENDPOINT_URL": bucket.address}


@pytest.fixture
def worker(environment):
    return Worker(Settings.of(environment))


def answered(worker, given, job=None):
    return asyncio.run(worker({"id": job or os.urandom(8).hex(), "input": given}))


# -- what older clients send


@pytest.mark.parametrize(
    ("old", "key", "frames"),
    [
        ({"action": "generate", "audio_1": "1.wav", "condition_image": "multi1.png", "output_format": "s3"}, None, 101),
        (
            {"action": "generate", "audio": "1.wav", "reference_image": "face.jpg", "duration": 5.0, "width": 480, "height": 480, "fps": 30,
             "output_format": "s3", "s3_output_key": "outputs/result.mp4"}, "outputs/result.mp4", 121,
        ),
    ],
)  # fmt: skip
def test_old_requests_end_in_the_bucket(worker, bucket, tmp_path, old, key, frames):
    """Literally, but for the demo's own small size, one step, and clips of 21 frames."""
    answer = answered(worker, old | {name: SHORT[name] for name in ("width", "height", "steps")}, f"old-{frames}")
    video = in_bucket(bucket, answer, tmp_path / "a.mp4")
    assert answer["video"] == f"s3://{BUCKET}/{key or 'multitalk/old-101.mp4'}"
    info = answer["video_info"]
    assert (info["width"], info["height"], info["frames"]) == (video.width, video.height, video.frames) == (64, 64, frames)
    assert info["fps"] == (30 if "fps" in old else 25) and abs(info["duration"] - 4.03) < 0.05 and info["seed"] == 1
    assert info["processing_note"].startswith("Real MultiTalk inference") and "generated at 25 fps" in info["processing_note"]
    assert {"wav2vec_model", "multitalk"} <= info["models_used"].keys() and info["audio_features_shape"] == [1, 100, 4, 32]
    assert {"fetch", "render", "probe", "deliver", "comfyui"} <= info["timings"].keys()
    assert bucket.head_object(Bucket=BUCKET, Key=answer["video"].split("/", 3)[3])["ContentType"] == "video/mp4"


def test_health_and_models_and_the_volume(worker, server):
    health = answered(worker, {"health_check": True})
    assert health["status"] == "healthy" and health["implementation"] == "MeiGen-MultiTalk" and health["multitalk_available"] is True
    needed = dict.fromkeys(("multitalk", "wan21", "wav2vec", "vae"), True) | {"clip": False}
    assert health["model_info"]["models_available"] == needed, "the demo has no CLIP, and needs none"
    assert set(health["model_info"]["models_loaded"]) == {"wan_i2v", "audio_encoder", "feature_extractor"}
    assert health["multitalk_inference"]["engine"] == "Real MultiTalk" and health["version"] and health["commit"]
    assert answered(worker, {"action": "health"})["status"] == "healthy"
    check = answered(worker, {"action": "model_check"})
    assert check["complete"] is True and check["models"]["vae"]["available"]
    assert check["model_info"]["models_available"] == needed
    found = check["details"]  # of the folders, whatever the template needs
    assert found["complete"] is False and found["models"]["clip"]["state"] == "missing" and found["deep"] is False
    assert any(line.startswith("ComfyUI") for line in found["diagnostics"]) and str(server.base) not in json.dumps(check)
    (server.base / "models" / "loras" / "style.safetensors").write_bytes(b"x" * 10)
    folders = answered(worker, {"action": "volume_explore"})["folders"]
    assert folders["loras"]["style.safetensors"] == 10 and "custom_nodes" not in folders and str(server.base) not in json.dumps(folders)


# -- jobs


def test_models_stay_loaded_between_jobs(worker, server, bucket, tmp_path):
    given = SHORT | {"audio_1": "1.wav", "condition_image": "multi1.png"}
    for seed in (21, 22):
        in_bucket(bucket, answered(worker, given | {"seed": seed}, f"loaded-{seed}"), tmp_path / "a.mp4")
    data = {name: message for name, message in server.get(f"/history/{id_of('loaded-22')}")[id_of("loaded-22")]["status"]["messages"]}
    loader = next(number for number, node in Template.load("demo_long_talk").graph.items() if node["class_type"] == "MultiTalkDemoModel")
    assert loader in data["execution_cached"]["nodes"]
    assert answered(worker, {"health_check": True})["multitalk_loaded"] is True


def test_a_job_leaves_nothing_behind_and_is_made_once(worker, server, bucket, tmp_path):
    given = SHORT | {"audio_1": inline("voice_2.wav"), "condition_image": inline("face_small.png"), "seed": 31}

    def files():
        folders = (server.base / kind for kind in ("input", "output", "temp"))
        return {file for folder in folders for file in folder.rglob("*") if file.is_file()}

    before, history = files(), len(server.get("/history"))
    first = answered(worker, given, "once")
    again = answered(worker, given, "once")
    assert files() <= before and len(server.get("/history")) <= history + 2, "the models' loading, and the job"
    assert again["video"] == first["video"] and again["video_info"]["seed"] == 31
    in_bucket(bucket, again, tmp_path / "a.mp4")
    bucket.delete_object(Bucket=BUCKET, Key="multitalk/once.mp4")
    in_bucket(bucket, answered(worker, given, "once"), tmp_path / "b.mp4")
    assert content(tmp_path / "b.mp4") == content(tmp_path / "a.mp4"), "the same video, made anew"


def test_jobs_at_once_with_the_same_files_leave_each_other_alone(worker, server, bucket, tmp_path):
    given = SHORT | {"audio_1": "1.wav", "condition_image": "multi1.png"}

    async def both():
        return await asyncio.gather(*(worker({"id": f"at-once-{seed}", "input": given | {"seed": seed}}) for seed in (81, 82)))

    for answer in asyncio.run(both()):
        in_bucket(bucket, answer, tmp_path / "a.mp4")
    assert not list((server.base / "input" / "multitalk_client").glob("*-*-*")), "and nothing stays"


def test_the_video_inside_the_answer_and_behind_an_address(worker, environment, bucket, tmp_path):
    given = SHORT | {"audio_1": "1.wav", "condition_image": "multi1.png", "seed": 41}
    (tmp_path / "a.mp4").write_bytes(base64.b64decode(answered(worker, given | {"output_format": "base64"})["video"]))
    address = answered(worker, given | {"output_format": "url"})["video"]
    with urllib.request.urlopen(address) as response:
        (tmp_path / "b.mp4").write_bytes(response.read())
    assert Probe(tmp_path / "a.mp4").count == Probe(tmp_path / "b.mp4").count == 12
    without = Worker(Settings.of({name: value for name, value in environment.items() if "BUCKET" not in name}))
    own = SHORT | {"audio_1": inline("voice_1.wav"), "condition_image": inline("face_small.png"), "seed": 42}
    assert base64.b64decode(answered(without, own)["video"])[4:8] == b"ftyp", "no bucket is needed"
    assert answered(without, own | {"output_format": "s3"})["error_code"] == "storage_not_configured"


def test_two_speakers_and_a_short_template(worker, bucket, tmp_path):
    boxes = json.loads((SAMPLES / "two_faces_small.json").read_text())["boxes"]
    given = {
        "audio_1": "1.wav",
        "audio_2": "2.wav",
        "condition_image": inline("two_faces_small.png"),
        "bbox": boxes,
        "steps": 1,
        "duration": 1.0,
    }
    video = in_bucket(bucket, answered(worker, given | {"audio_type": "para"}), tmp_path / "a.mp4")
    assert (video.width, video.height, video.frames) == (128, 64, 25)
    short = SHORT | {"audio_1": "1.wav", "condition_image": "multi1.png", "template": "demo_one_speaker", "frames": 8, "prompt": "hello"}
    del short["duration"]
    answer = answered(worker, short)
    assert in_bucket(bucket, answer, tmp_path / "b.mp4").frames == 9, "4n + 1"
    assert "prompt left out" in answer["video_info"]["processing_note"]
    dubbed = {"audio_1": "1.wav", "condition_video": inline("silent_face.mp4"), "template": "demo_dubbing"} | SHORT
    assert in_bucket(bucket, answered(worker, dubbed), tmp_path / "c.mp4").frames == 12


def test_masks_say_who_talks(worker, bucket, tmp_path):
    import io

    from PIL import Image

    masks = []
    for left in (0, 64):
        picture = Image.new("RGB", (128, 64))
        picture.paste((255, 255, 255), (left, 0, left + 64, 64))
        written = io.BytesIO()
        picture.save(written, "PNG")
        masks.append({"base64": base64.b64encode(written.getvalue()).decode()})
    given = {
        "audio_1": "1.wav",
        "audio_2": "2.wav",
        "condition_image": inline("two_faces_small.png"),
        "masks": masks,
        "steps": 1,
        "frames": 12,
    }
    assert in_bucket(bucket, answered(worker, given | {"audio_type": "para"}), tmp_path / "a.mp4").frames == 12


def test_a_workflow_is_run_as_it_is(worker, environment, bucket, tmp_path):
    graph = Graph(frames=9)
    given = {"workflow": graph, "files": {"face_small.png": inline("face_small.png"), "voice_1.wav": "1.wav"}}
    assert in_bucket(bucket, answered(worker, given), tmp_path / "a.mp4").frames == 9
    closed = Worker(Settings.of(environment | {"MULTITALK_ALLOW_WORKFLOWS": "0"}))
    assert answered(closed, given)["error_code"] == "workflows_not_allowed"
    assert answered(worker, {"workflow": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})["error_code"] == "nodes_missing"
    assert answered(worker, {"workflow": {"nodes": [], "links": []}})["error_code"] == "bad_request"


def test_a_batch_is_all_or_told(worker, bucket, tmp_path):
    one = SHORT | {"audio_1": "1.wav", "condition_image": "multi1.png"}
    answer = answered(worker, {"batch": [one | {"seed": 51}, one | {"seed": 52}]}, "many")
    assert [result["video"] for result in answer["results"]] == [f"s3://{BUCKET}/multitalk/many-{number}.mp4" for number in (1, 2)]
    for number, result in enumerate(answer["results"]):
        in_bucket(bucket, result, tmp_path / f"{number}.mp4")
    answer = answered(worker, {"batch": [one | {"seed": 53}, one | {"condition_image": "none.png"}]})
    assert answer["error_code"] == "batch_failed" and "1 of 2" in answer["error"]
    assert answered(worker, {"batch": [one | {"s3_output_key": "a.mp4"}] * 2})["error_code"] == "invalid_input"
    done, failed = answer["error_details"]["results"]
    assert "video" in done and failed["error_code"] == "input_not_found"


def test_another_job_of_a_worker_that_stopped_goes_on_with_its_clips(worker, environment, server, bucket, tmp_path):
    """The first worker's time is up after some clips; the second finishes from the same job folder."""
    given = {"audio_1": "1.wav", "condition_image": "multi1.png", "width": 64, "height": 64, "steps": 6, "seed": 61}
    stopped = answered(Worker(replace(Settings.of(environment), seconds=5.0)), given, "taken-up")
    assert stopped["error_code"] == "deadline_exceeded" and "hint" in stopped["error_details"]
    kept = len(list((server.base / "output" / "multitalk_jobs").rglob("clip_*.mp4")))
    answer = answered(worker, given, "taken-up")
    assert in_bucket(bucket, answer, tmp_path / "a.mp4").frames == 101
    assert kept == 0 or f"{kept} clips were finished before" in json.dumps(server.get(f"/history/{id_of('taken-up')}"))


def test_metrics_count(worker, bucket):
    from prometheus_client import generate_latest

    answered(worker, SHORT | {"audio_1": "1.wav", "condition_image": "multi1.png", "seed": 71})
    answered(worker, {"action": "dance"})
    text = generate_latest(worker.metrics.registry).decode()
    assert 'multitalk_jobs_total{action="generate",result="completed"} 1.0' in text
    assert 'multitalk_errors_total{code="unknown_action"} 1.0' in text and 'multitalk_phase_seconds_count{phase="render"} 1.0' in text
    assert "multitalk_seconds_per_generated_second_count 1.0" in text and "multitalk_jobs_running 0.0" in text


@pytest.mark.parametrize("name", [name for name in templates() if not name.startswith("demo")])
def test_published_templates_fit_the_nodes_and_lack_only_their_models(worker, server, name):
    """What ComfyUI finds wrong with them, on a machine that has none of the models: their files."""
    for sample in ("face.png", "two_faces.png", "silent_face.mp4", "voice_1.wav", "voice_2.wav"):
        server.upload(SAMPLES / sample)
    graph = Template.load(name).graph
    picture = {"condition_image": "multi1.png"} if Template.load(name).takes("image") else {"condition_video": inline("silent_face.mp4")}
    with pytest.raises(tools.PromptRefused) as refused:
        server.queue(graph)
    errors = [(item["class_type"], error["type"]) for item in refused.value.node_errors.values() for error in item["errors"]]
    loaders = {node["class_type"] for node in graph.values()} & set(models.LOADERS)
    assert {kind for _, kind in errors} == {"value_not_in_list"} and {node for node, _ in errors} == loaders
    asked = {key: value for key, value in SHORT.items() if key != "condition_image"}
    found = answered(worker, asked | {"audio_1": "1.wav", "template": name} | picture)
    assert found["error_code"] == "models_missing" and "Required MeiGen-MultiTalk components missing" in found["error"]


# -- the whole thing, as it is started


def test_the_sdks_server_answers_curl(server, bucket, tmp_path):
    """`dev.py serve`'s program: ComfyUI, the worker and its health, and not one secret in all that it writes."""
    ports = [tools.free_port() for _ in range(2)]
    options = ["--port", ports[0], "--health-port", ports[1], "--base", tmp_path / "base"]
    data = KEYS | {"AWS_S3_BUCKET_NAME": BUCKET, "BUCKET_ENDPOINT_URL": bucket.address, "RUNPOD_DEBUG_LEVEL": "DEBUG"}
    log = (tmp_path / "log").open("w+")
    with subprocess.Popen(
        launched("tools.comfyui.serve", *map(str, options)), cwd=ROOT, env=os.environ | data, stdout=log, stderr=log
    ) as running:
        try:
            ready = _waited(f"http://127.0.0.1:{ports[1]}/ready", running)
            assert json.loads(ready)["multitalk_available"] and len(json.loads(ready)["commit"]) == 40
            answer = _posted(ports[0], SHORT | {"audio_1": "1.wav", "condition_image": "multi1.png", "output_format": "url"})
            assert answer["status"] == "COMPLETED" and "Signature" in answer["output"]["video"]
            with urllib.request.urlopen(answer["output"]["video"]) as response:
                (tmp_path / "a.mp4").write_bytes(response.read())
            assert Probe(tmp_path / "a.mp4").count == 12
            failed = _posted(ports[0], {"audio_1": "1.wav"})
            assert failed["status"] == "FAILED" and failed["error"].startswith("image_required")
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics") as response:
                assert b'multitalk_errors_total{code="image_required"} 1.0' in response.read()
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(30)
    written = (tmp_path / "log").read_text()
    for secret in (*KEYS.values(), "X-Amz-Signature=", "Signature="):
        assert secret not in written
    lines = [json.loads(line) for line in written.splitlines() if line.startswith('{"time"')]
    assert any(line.get("job") and line["message"] == "job ends" for line in lines)
    assert not _still_there(tmp_path / "base"), "ComfyUI goes with the worker"


def _waited(url, running):
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert running.poll() is None
        try:
            with urllib.request.urlopen(url) as response:
                return response.read()
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"{url} does not answer")


def _posted(port, given):
    content = json.dumps({"input": given}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/runsync", content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def _still_there(base):
    import psutil

    return [process for process in psutil.process_iter(["cmdline"]) if str(base) in " ".join(process.info["cmdline"] or ())]
