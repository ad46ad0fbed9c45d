"""What tests of the worker have in common: a bucket's contents, and the smallest job."""

import base64
import json

from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES
from serverless.video import probe

BUCKET = "talks"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/secret"}
SHORT = {"width": 64, "height": 64, "duration": 0.5, "steps": 1}  # the demo's smallest
# the samples, under the names of old requests
OBJECTS = {"1.wav": "voice_1.wav", "2.wav": "voice_2.wav", "multi1.png": "face_small.png", "face.jpg": "face_small.png"}


def write_short_clips(folder):
    """The templates of workflows/api as they are, but for shorter clips."""
    for file in (ROOT / "workflows" / "api").glob("*.json"):
        graph = json.loads(file.read_text(encoding="utf-8"))
        for node in graph.values():
            if node["class_type"] == "MultiTalkLongVideo":
                node["inputs"]["clip_frames"] = 21
        (folder / file.name).write_text(json.dumps(graph), encoding="utf-8")
    return folder


def inline(name):
    return {"base64": base64.b64encode((SAMPLES / name).read_bytes()).decode()}


def in_bucket(bucket, answer, file):
    """The video behind an answer, downloaded and looked at."""
    assert "error" not in answer, answer
    assert answer["video"].startswith(f"s3://{BUCKET}/")
    bucket.download_file(BUCKET, answer["video"].removeprefix(f"s3://{BUCKET}/"), str(file))
    return probe(file)
