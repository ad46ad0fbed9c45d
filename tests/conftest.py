"""Tests import the pack as `multitalk_nodes`, and are of two tiers: the quick one, and those marked `slow`, which --all adds.

The fixture `comfy` starts ComfyUI here; the fixture `server` is a ComfyUI process with the pack in it; the fixture `goldens` is the
folder of the published code's results.
"""

import importlib
import importlib.util
import logging
import os
import runpy
import shlex
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# the files that take longest come first, so that two processes that share the files end together
LONGEST = ("serverless", "workflows", "serverless_faults", "parity", "long_video", "browser")
LONGEST += ("long_video_node", "client", "nodes", "kills", "evaluate", "training")


def load_by_path(name: str, file: Path):
    """A module, which can be imported by its name afterwards."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runpy.run_path(str(ROOT / "tools" / "launch.py"))["register_pack"]()

from multitalk_nodes.tests.support import costs
from multitalk_nodes.tools.comfyui import server as server_tools
from multitalk_nodes.tools.launch import start_comfy

costs.count_servers(server_tools.ComfyServer)

for program in ("multitalk_client", "multitalk_core", "serverless"):  # programs of their own, and what the worker hears with
    load_by_path(program, ROOT / program / "__init__.py")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="the slow tests, too; those named (file::test) or asked for by -m slow run anyway")


def pytest_configure(config):
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # the tests' servers and folders go, as after Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.pluginmanager.register(costs.Plugin(config))


def pytest_collection_modifyitems(config, items):
    """Every test is of one tier, or by hand; the slow ones are left out unless they were asked for."""
    named = tuple(argument.removeprefix("./") for argument in config.args if "::" in argument)
    asked, left = [], []
    for item in items:
        is_slow = item.get_closest_marker("slow")
        if not is_slow and not item.get_closest_marker("by_hand"):
            item.add_marker("quick")
        wanted = config.option.all or "slow" in config.option.markexpr or item.nodeid.startswith(named)
        (left if is_slow and not wanted else asked).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
    items[:] = asked
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        items.sort(key=lambda item: _turn(item.path.stem.removeprefix("test_")))


def _turn(name: str) -> int:
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


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
    return start_comfy()


@pytest.fixture(scope="session")
def server():
    """A ComfyUI process with the pack in it, on the CPU; one for all tests. See tools/comfyui/server.py for what it can do.

    MULTITALK_COMFYUI_FLAGS is added to its command line: another frontend (--front-end-root FOLDER), say.
    """
    if not (folder := os.environ.get("COMFYUI_PATH")):
        pytest.fail("COMFYUI_PATH is not set. Run the tests through dev.py, which finds a ComfyUI and sets it: python dev.py test")
    flags = shlex.split(os.environ.get("MULTITALK_COMFYUI_FLAGS", ""))
    with server_tools.ComfyServer(Path(folder), ROOT, extra_arguments=flags) as running:
        yield running


@pytest.fixture(scope="session")
def _short_clips(tmp_path_factory) -> Path:
    from multitalk_nodes.tests.support.endpoint import write_short_clips

    return write_short_clips(tmp_path_factory.mktemp("templates"))


@pytest.fixture
def short_clips(_short_clips, monkeypatch):
    """The client's and the worker's templates with clips of 21 frames in place of 81: most requests here are for 12 frames."""
    monkeypatch.setattr(sys.modules["multitalk_client.templates"], "FOLDER", _short_clips)


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

    from multitalk_nodes.tests.support.endpoint import BUCKET, KEYS, OBJECTS
    from multitalk_nodes.tests.support.graphs import SAMPLES

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
