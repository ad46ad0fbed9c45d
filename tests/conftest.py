"""Tests import the pack as `multitalk_nodes`.

The fixture `comfy` starts ComfyUI here; the fixture `server` is a ComfyUI process with the pack in it; the fixture `goldens` is the
folder of the published code's results.
"""

import importlib.util
import logging
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_by_path(name: str, file: Path):
    """A module, which can be imported by its name afterwards."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pack = load_by_path("multitalk_tools_pack", ROOT / "tools" / "pack.py")
pack.register_pack()

# `import multitalk_tools_server` in a test: the errors must be the same classes as the fixture's
server_tools = load_by_path("multitalk_tools_server", ROOT / "tools" / "server.py")

for program in ("multitalk_client", "serverless"):  # programs of their own: that is what they are called where they run
    load_by_path(program, ROOT / program / "__init__.py")


def pytest_runtest_setup(item):
    if item.get_closest_marker("by_hand") and "by_hand" not in item.config.option.markexpr:
        pytest.skip("takes minutes; run by hand: python dev.py test -m by_hand")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def comfy() -> Path:
    """ComfyUI's folder, importable from here on: `import comfy.model_patcher` inside the test."""
    return pack.start_comfy()


@pytest.fixture(scope="session")
def server():
    """A ComfyUI process with the pack in it, on the CPU; one for all tests. See tools/server.py for what it can do."""
    if not (folder := os.environ.get("COMFYUI_PATH")):
        pytest.fail("COMFYUI_PATH is not set. Run the tests through dev.py, which finds a ComfyUI and sets it: python dev.py test")
    with server_tools.ComfyServer(Path(folder), ROOT) as running:
        yield running


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The published code's results. Without them: a failure in CI, a skip for a developer who has none."""
    folder = os.environ.get("MULTITALK_GOLDENS")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = "no goldens: set MULTITALK_GOLDENS to the folder of the published code's results (or put it at ../shared/goldens)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def bucket():
    """A real S3 server with a bucket that holds the samples; its boto3 client, which also knows its `address`."""
    import boto3
    from moto.server import ThreadedMotoServer

    from multitalk_nodes.tests.endpoint import BUCKET, KEYS, OBJECTS
    from multitalk_nodes.tests.graphs import SAMPLES

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    given = {name.lower(): value for name, value in KEYS.items()}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="eu-west-1", **given)
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for key, name in OBJECTS.items():
        client.upload_file(str(SAMPLES / name), BUCKET, key)
    client.address = f"http://{host}:{port}"
    yield client
    server.stop()
