"""What jobs may ask for, where their files may come from, and what nobody may read: without a server."""

import asyncio
import base64
import contextlib
import json
import logging
import re
import socket
import time

import pytest
from aiohttp.abc import AbstractResolver
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multitalk_client import ClientError, Template, templates
from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES
from serverless import fetch, logs, models, prepare, schema
from serverless.errors import JobError
from serverless.inputs import Inputs
from serverless.settings import Settings, secrets_in
from serverless.sniff import HEAD, suffix_of
from serverless.storage import Bucket
from serverless.video import seconds_of_sound

OLD = [
    {"action": "generate", "audio_1": "1.wav", "condition_image": "multi1.png", "output_format": "s3"},
    {"action": "generate", "audio": "1.wav", "reference_image": "face.jpg", "duration": 5.0, "width": 480, "height": 480, "fps": 30,
     "output_format": "s3", "s3_output_key": "outputs/result.mp4"},
]  # fmt: skip


def asked(**changes):
    return schema.asked_of({"audio_1": "1.wav", "condition_image": "a.png"} | changes)


# -- the schema


@pytest.mark.parametrize("old", OLD)
def test_old_requests_are_understood(old):
    found = schema.asked_of(old)
    assert schema.action_of(old) == "generate" and found.voices == ("1.wav",) and found.condition_image in ("multi1.png", "face.jpg")


@pytest.mark.parametrize(
    ("given", "action"),
    [
        ({}, "generate"),
        ({"health_check": True}, "health_check"),
        ({"action": "health"}, "health_check"),
        ({"action": "model_check"}, "model_check"),
        ({"action": "volume_explore"}, "volume_explore"),
    ],
)
def test_actions_have_their_aliases(given, action):
    assert schema.action_of(given) == action


def test_where_names_contradict_each_other_the_later_one_wins():
    found = asked(audio="old.wav", person1="older.wav", image="x.png", reference_image="y.png", person2="2.wav", num_frames=9)
    assert asked(audio_1=None, audio="old.wav").voices == ("old.wav",), "nothing is no name"
    assert found.voices == ("1.wav", "2.wav") and found.condition_image == "a.png" and found.frames == 9


def test_boxes_in_meigens_form_count_rows_first():
    assert asked(bbox={"person1": [10, 20, 30, 40]}).bbox == asked(bbox=[[20, 10, 40, 30]]).bbox == ((20, 10, 40, 30),)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"condition_image": None}, "image_required", "condition_image"),
        ({"audio_1": None}, "audio_required", "audio_1"),
        ({"audio_3": "3.wav"}, "invalid_input", "without gaps"),
        ({"steps": 0}, "invalid_input", "steps"),
        ({"steps": "5"}, "invalid_input", "steps"),
        ({"seed": True}, "invalid_input", "seed"),
        ({"fps": 1}, "invalid_input", "fps"),
        ({"seed": -1}, "invalid_input", "seed"),
        ({"width": 480}, "invalid_input", "together"),
        ({"duration": float("nan")}, "invalid_input", "duration"),
        ({"duration": 5, "frames": 9}, "invalid_input", "either duration or frames"),
        ({"bbox": [[1, 2, 3, 4], [1, 2, 3, 4]]}, "invalid_input", "2 boxes for 1 voices"),
        ({"bbox": [[5, 2, 3, 4]]}, "invalid_input", "left, top, right, bottom"),
        ({"bbox": {"person2": [1, 2, 3, 4]}}, "invalid_input", "person1"),
        ({"masks": []}, "invalid_input", "masks"),
        ({"s3_output_key": "../../x.mp4"}, "invalid_input", "s3_output_key"),
        ({"s3_output_key": "/etc/x.mp4"}, "invalid_input", "s3_output_key"),
        ({"s3_output_key": "a.mp4", "output_format": "base64"}, "invalid_input", "belongs to"),
        ({"template": "../x"}, "invalid_input", "template"),
        ({"audio_1": {"base64": "UklG", "url": "x"}}, "invalid_input", "url"),
        ({"audio_1": "x" * 2000}, "invalid_input", "base64"),
        ({"audio_1": "a\nb"}, "invalid_input", "control characters"),
        ({"colour_of_the_sky": 1}, "invalid_input", "colour_of_the_sky"),
        ({"workflow": {}}, "invalid_input", "workflow"),
    ],
)
def test_what_does_not_fit_is_told(changes, code, said):
    with pytest.raises(JobError, match=re.escape(said)) as found:
        asked(**changes)
    reply = found.value.reply()
    assert reply["error_code"] == code and isinstance(reply["error"], str) and code in reply["error"]


def test_a_text_is_never_taken_for_content():
    """`1.wav` once was decoded to three bytes."""
    assert asked(audio_1="1.wav").audio_1 == "1.wav"
    assert asked(audio_1="UklGRiQA").audio_1 == "UklGRiQA", "a bucket's key, whatever it looks like"


@pytest.mark.parametrize("batch", [[], "x", [1], [{}] * 17])
def test_a_batch_is_a_list_of_jobs(batch):
    assert schema.batch_of({"batch": [{}, {}]}) == [{}, {}] and schema.batch_of({"audio_1": "x"}) is None
    with pytest.raises(JobError, match="batch"):
        schema.batch_of({"batch": batch})


# anything JSON can hold, and what could pass for the right thing
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
NAMES = sorted({*schema.Generate.model_fields, *schema.Workflow.model_fields, "audio", "image", "video", "person2", "images", "num_frames"})
WORDS = ["1.wav", "s3://b/k", "https://x.example/a.wav", "data:audio/wav;base64,UklGRg==", "../../etc/passwd"]
WORDS += ["para", "s3", "multitalk-480", "demo_long_talk"]
BOXES = st.builds(lambda n: [[0, 0, n, n]], st.integers(-5, 5))
LIKELY = st.sampled_from(WORDS) | BOXES | st.integers(-2, 3000) | st.just({"base64": "UklGRg=="}) | st.floats(0, 10)
REQUESTS = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), LIKELY | JSON, max_size=8)
WORKING = st.fixed_dictionaries(
    {"audio_1": st.just("1.wav"), "condition_image": st.just("a.png")},
    optional={
        "seed": st.integers(0, 2**64 - 1),
        "steps": st.integers(1, 200),
        "width": st.integers(32, 2048),
        "height": st.integers(32, 2048),
        "prompt": st.text(max_size=50),
        "audio_2": st.just("2.wav"),
        "audio_type": st.sampled_from(["add", "para"]),
        "shift": st.floats(0.1, 100),
        "audio_guide_scale": st.floats(0, 30),
        "frames": st.integers(1, 500),
        "bbox": st.just([[1, 2, 3, 4]]),
        "template": st.sampled_from(templates()),
    },
)


@pytest.mark.parametrize("examples", [250, pytest.param(2500, marks=pytest.mark.slow)])
def test_nothing_malformed_reaches_the_graph(examples):
    """Either refused in a sentence without what was sent, or a graph of the template's own nodes and of known values."""
    fuzz = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    fuzz(given(REQUESTS | WORKING)(told_or_the_templates_graph))()


def told_or_the_templates_graph(given):
    secret = "zq7-of-the-sender"
    given = given | {"unknown_" + secret: secret} if len(given) % 7 == 6 else given
    try:
        found = schema.asked_of(given)
    except JobError as error:
        reply = error.reply()
        assert set(reply) == {"status", "error", "error_code", "error_details"} and json.dumps(reply)
        assert "Traceback" not in reply["error"] and f" {secret}" not in reply["error"] and len(reply["error"]) < 2000
        return
    if isinstance(found, schema.Workflow):
        with contextlib.suppress(ClientError, JobError):
            prepare.workflow_of(found, Settings.of({}))
        return
    assert found.voices and (found.condition_image is None) != (found.condition_video is None)
    with contextlib.suppress(JobError, ClientError):
        template = prepare.template_of(found, Settings.of({"MULTITALK_TEMPLATE": "demo_long_talk"}))
        _is_the_templates(filled(found, template), template)


def filled(found, template):
    """The graph as the worker fills it, with files that were fetched."""

    class Fetched(Inputs):
        async def file(self, source, kind, name):
            return SAMPLES / ("face.png" if kind == "image" else name.replace("audio", "voice") + ".wav")

    request = asyncio.run(prepare.request_of(found, template, Fetched(ROOT, Bucket(Settings.of({}).storage))))
    return template.fill(request, dict.fromkeys(request.files, "sent/file"))


def _is_the_templates(graph, template):
    own = {node["class_type"] for node in template.graph.values()}
    assert {node["class_type"] for node in graph.values()} <= own | {"MultiTalkLoadAudio", "MultiTalkSpeaker", "LoadImageMask"}
    texts = {
        value for node in graph.values() if "text" not in node["inputs"] for value in node["inputs"].values() if isinstance(value, str)
    }
    known = {value for node in template.graph.values() for value in node["inputs"].values() if isinstance(value, str)}
    free = {text for text in texts - known if not re.fullmatch(r"sent/file|sequential|parallel|all|speaks|[\d.e+, -]*|multitalk-\d+", text)}
    assert not free, "texts of a request go into prompts only"


# -- graphs and models


@pytest.mark.parametrize("name", templates())
def test_a_templates_models_are_known(name):
    graph = Template.load(name).graph
    needed = models.needed_by(graph)
    assert {"multitalk", "wan21", "wav2vec", "vae"} <= set(needed)
    assert name.startswith("demo") or {"clip", "text_encoder"} <= set(needed)
    assert ("lora" in needed) == ("LoraLoaderModelOnly" in str(Template.load(name).graph))
    loaders = models.warm_up(graph)
    assert {node["class_type"] for node in loaders.values()} <= {*models.LOADERS, models.DEMO, models.SHOW}


def test_turbo_and_several_speakers_choose_their_template():
    def chosen(**changes):
        return prepare.template_of(asked(**changes), Settings.of({"MULTITALK_TEMPLATE": "infinitetalk"})).name

    assert chosen() == "infinitetalk" and chosen(turbo=True) == "infinitetalk_turbo"
    assert chosen(audio_2="2.wav") == "infinitetalk_multi" and chosen(audio_2="2.wav", turbo=True) == "infinitetalk_multi_turbo"
    for changes, code in (
        ({"template": "demo_long_talk", "turbo": True}, "turbo_not_available"),
        ({"template": "none"}, "template_not_found"),
    ):
        with pytest.raises(JobError) as found:
            chosen(**changes)
        assert found.value.code == code


def test_a_published_template_takes_everything(tmp_path):
    found = asked(
        prompt="she laughs", negative_prompt="blur", size="multitalk-720", seed=3, steps=7, audio_type="para", text_guide_scale=2,
        audio_guide_scale=3, bbox=[[1, 2, 3, 4]], shift=11,
    )  # fmt: skip
    graph = filled(found, Template.load("multitalk"))
    inputs = {node["class_type"]: node["inputs"] for node in graph.values()}
    long = inputs["MultiTalkLongVideo"]
    assert (long["seed"], long["steps"], long["shift"], long["text_scale"], long["audio_scale"]) == (3, 7, 11, 2, 3)
    assert inputs["MultiTalkImageSize"]["size"] == "multitalk-720" and inputs["MultiTalkSpeaker"]["box"] == "1, 2, 3, 4"
    assert [node["inputs"]["text"] for node in graph.values() if node["class_type"] == "CLIPTextEncode"] == ["she laughs", "blur"]
    assert inputs["MultiTalkWav2VecEmbeds"]["layout"] == "parallel"


def test_voices_in_turn_end_with_the_video():
    found = asked(audio_1="1", audio_2="2", duration=5.0, audio_type="add")
    sounds = [SAMPLES / "voice_1.wav", SAMPLES / "voice_2.wav"]  # 4.02 and 3.87 s
    template = Template.load("demo_long_dialogue")
    first, second = prepare._lengths(found, template, sounds)
    assert abs(first - 4.02) < 0.01 and abs(first + second - 5) < 1e-6
    with pytest.raises(JobError, match="audio_2 would begin after"):
        prepare._lengths(asked(audio_2="2", duration=2.0), template, sounds)
    assert prepare._lengths(asked(audio_2="2", duration=2.0, audio_type="para"), template, sounds) == [2.0, 2.0]
    assert prepare._lengths(asked(frames=50), template, sounds[:1]) == [2.0]


# -- files from elsewhere


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.wav", "ftp://example.com/a", "https://127.0.0.1/a", "https://[::1]/a", "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.8/a", "https://192.168.1.1/a", "https://172.16.0.1/a", "https://100.64.0.1/a", "https://0.0.0.0/a", "https://[fd00::1]/a",
        "https://[::ffff:127.0.0.1]/a", "https://[2002:7f00:1::]/a", "https://[64:ff9b::7f00:1]/a", "https://[fe80::1%25eth0]/a",
        "https://me:pw@example.com/a", "https://example.com:8188/a", "https://", "https://[/a", "https://224.0.0.1/a",
        "https://2130706433/a", "https://0x7f.1/a", "https://127.1/a", "https://0177.0.0.1/a", "https://127.0.0.1./a",
        "https://127.0.0.0x1/a", "https://\uff11\uff12\uff17.0.0.1/a", "https://127\u30020\u30020\u30021/a", "https://\u246027.0.0.1/a",
        "https://localhost/a", "https://localhost./a", "https://intranet/a", "file:///etc/passwd", "gopher://x/",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_asked(url, tmp_path):
    with pytest.raises(JobError) as found:
        asyncio.run(fetch.fetch(url, tmp_path / "a", 1000))
    assert found.value.code in ("input_refused", "invalid_input"), "nobody was asked"
    assert not (tmp_path / "a").exists()
    assert "127.0.0.1" not in str(found.value) and "pw" not in str(found.value)


class _Here(AbstractResolver):
    """Every name is this machine: what a host with a name server of its own could try."""

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}]

    async def close(self):
        pass


@pytest.mark.parametrize(
    "place",
    ["//127.0.0.1/x", "//\uff11\uff12\uff17.0.0.1/x", "//[x", "http://example.com/", "https://example.com:22/", "//u:p@example.com/"],
)
def test_redirects_are_looked_at_like_addresses(place):
    with pytest.raises(JobError):
        fetch.checked(place, fetch.checked("https://example.com/a"))
    assert str(fetch.checked("b?c=d", fetch.checked("https://example.com/a/"))) == "https://example.com/a/b?c=d"


def test_a_name_that_leads_inside_is_refused(monkeypatch, tmp_path):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("93.184.216.34", 443)),
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.1", 443)),
    ]

    async def resolved(*_, **__):
        return found

    async def asking():
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved, raising=False)
        await fetch.PublicResolver().resolve("rebinding.example", 443)

    with pytest.raises(fetch.NotPublic):
        asyncio.run(asking())


def test_a_connection_that_cannot_be_is_told(tmp_path):
    with pytest.raises(JobError) as found:
        asyncio.run(fetch.fetch("https://files.example/a.wav", tmp_path / "a", 1000, _Here()))
    assert found.value.code == "input_unreachable"


def test_what_a_file_is_shows_in_its_bytes():
    for name, kind, suffix in (("face.png", "image", ".png"), ("voice_1.wav", "audio", ".wav"), ("silent_face.mp4", "video", ".mp4")):
        head = (SAMPLES / name).read_bytes()[:HEAD]
        assert suffix_of(head, kind) == suffix_of(head, "any") == suffix
    assert suffix_of((SAMPLES / "face.png").read_bytes()[:HEAD], "audio") is None
    for content in (b"", b"#!/bin/sh\n", b"<html>", b"MZ\x90\x00", b"\x7fELF", b"PK\x03\x04"):
        assert suffix_of(content, "any") is None


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (schema.Inline(base64="AAAA" * 10), "input_not_usable"),
        (schema.Inline(base64="not base64!"), "invalid_input"),
        ("data:audio/wav,hello", "invalid_input"),
        ("data:audio/wav;base64,%%%%", "invalid_input"),
        ("1.wav", "storage_not_configured"),
        ("../../../etc/passwd", "storage_not_configured"),
        ("s3://", "invalid_input"),
        ("s3://[/k", "storage_not_configured"),
    ],
)
def test_files_that_are_none_are_told(source, code, tmp_path):
    inputs = Inputs(tmp_path, Bucket(Settings.of({}).storage))
    with pytest.raises(JobError) as found:
        asyncio.run(inputs.file(source, "audio", "audio_1"))
    assert found.value.code == code and not list(tmp_path.iterdir())


def test_a_voice_with_a_title_in_another_encoding_is_one(tmp_path):
    content = (SAMPLES / "voice_1.wav").read_bytes()
    title = b"INFOINAM" + (6).to_bytes(4, "little") + "José".encode("latin-1") + b"\0\0"
    (tmp_path / "a.wav").write_bytes(content + b"LIST" + len(title).to_bytes(4, "little") + title)
    assert abs(seconds_of_sound(tmp_path / "a.wav") - 4.02) < 0.01
    with pytest.raises(JobError) as found:
        seconds_of_sound(SAMPLES / "face.png")
    assert found.value.code == "input_not_usable"


def test_a_file_inside_a_request_arrives(tmp_path):
    content = (SAMPLES / "voice_1.wav").read_bytes()
    inputs = Inputs(tmp_path, Bucket(Settings.of({}).storage))
    for source in (schema.Inline(base64=base64.b64encode(content).decode()), "data:x;base64," + base64.b64encode(content).decode()):
        file = asyncio.run(inputs.file(source, "audio", "audio_1"))
        assert file.read_bytes() == content and file == tmp_path / "audio_1.wav"


# -- what is said, and what is not

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG", "HF_TOKEN": "hf_abcdefghij"}


def test_logs_are_json_without_secrets():
    redact = logs.Redactor(secrets_in(ENVIRONMENT))
    words = [*ENVIRONMENT.values(), "AKIAABCDEFGHIJKLMNOP", "Authorization: Bearer abcdefgh12345", "https://me:word-pass@host/x", "a" * 300]
    words += ["https://bucket.example/key?X-Amz-Signature=0123abcd&X-Amz-Credential=me"]
    try:
        raise ValueError(" ".join(words))
    except ValueError as error:
        record = logging.LogRecord(
            "multitalk", logging.ERROR, "f", 1, "it %s", ("broke: " + " ".join(words),), (type(error), error, error.__traceback__)
        )
    record.code = "x"
    token = logs.job.set("job-7")
    line = logs.JsonLines(redact).format(record)
    logs.job.reset(token)
    data = json.loads(line)
    assert data["job"] == "job-7" and data["level"] == "ERROR" and data["code"] == "x" and "Traceback" in data["exception"]
    for hidden in (*ENVIRONMENT.values(), "ABCDEFGHIJKLMNOP", "abcdefgh12345", "word-pass", "a" * 200, "0123abcd", "Credential"):
        assert hidden not in line
    assert "bucket.example/key" in line


@pytest.mark.parametrize("text", ["http://", "https://a?", "?a=", "bearer ", "A" * 199 + " ", "http://a@", "?"])
def test_no_text_takes_the_redactor_long(text):
    began = time.monotonic()
    logs.Redactor(["secret"])(text * (2_000_000 // len(text)))
    assert time.monotonic() - began < 0.5


def test_secrets_are_found_however_they_are_written():
    redact = logs.Redactor(secrets_in({"AWS_SECRET_ACCESS_KEY": ' se"cret/ \n'}))
    assert "cret" not in redact('used: se"cret/ and as JSON: se\\"cret/')


def test_settings_have_their_aliases_and_hide_secrets():
    storage = Settings.of(
        {"S3_BUCKET": "b", "BUCKET_ACCESS_KEY_ID": "k", "BUCKET_SECRET_ACCESS_KEY": "hidden", "BUCKET_ENDPOINT_URL": ""}
    ).storage
    assert (storage.bucket, storage.key, storage.endpoint, storage.region) == ("b", "k", None, "eu-west-1") and "hidden" not in repr(
        storage
    )
    storage = Settings.of({"AWS_S3_BUCKET_NAME": "a", "S3_BUCKET": "b", "AWS_REGION": "us-east-1"}).storage
    assert (storage.bucket, storage.region) == ("a", "us-east-1")
    for seconds in ("long", "nan", "-1", "0", "inf"):
        with pytest.raises(JobError, match="MULTITALK_JOB_SECONDS"):
            Settings.of({"MULTITALK_JOB_SECONDS": seconds})


def test_the_images_packages_are_what_the_tests_run_with():
    def names(file):
        lines = (line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
        return {re.split(r"[=<>\[]", line)[0] for line in lines if line}

    brought = {"aiohttp", "av", "numpy", "pydantic"}  # by ComfyUI
    assert names("serverless/requirements.txt") <= names("tools/requirements-dev.txt") | brought
    assert all("==" in line for line in (ROOT / "serverless/requirements.txt").read_text().splitlines() if not line.startswith("#"))
