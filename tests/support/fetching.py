"""For tests of `models get`: two files, a Hub that has them, and the command."""

import hashlib
import json
import os
import sys
import time

import pytest

from multitalk_nodes.tests.support.graphs import ROOT
from multitalk_nodes.tests.support.hub import Hub

VAE, LORA = "org/models/split_files/vae/vae.safetensors", "other/lora/lora.safetensors"
CONTENT = {VAE: os.urandom(3_000_000), LORA: os.urandom(700_000)}


@pytest.fixture
def hub():
    with Hub(dict(CONTENT)) as hub:
        yield hub


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


def entry(file, **changes):
    owner, name, path = file.split("/", 2)
    content = CONTENT[file]
    data = {"repository": f"{owner}/{name}", "path": path, "folder": "vae" if file == VAE else "loras", "kind": "vae", "size": len(content)}
    return data | {"sha256": hashlib.sha256(content).hexdigest(), "confirmed": True} | changes


@pytest.fixture
def get(tmp_path, hub, monkeypatch, capfd):
    """Runs the command here, without its pauses; its exit code, and what it said."""
    import huggingface_hub.constants

    from multitalk_nodes.tools.environment import steps
    from multitalk_nodes.tools.models import main as models

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.05)))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)

    def run(entries, *more, wanted=("set",), **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        try:
            code, failure = models.main(command(tmp_path, entries, *more, wanted=wanted)[3:]), ""
        except steps.StepFailed as failed:
            code, failure = 2, str(failed)
        return code, "".join(capfd.readouterr()) + failure

    return run


def command(tmp_path, entries, *more, wanted=("set",)):
    names = [row["path"].rsplit("/", 1)[-1] for row in entries]
    text = json.dumps({"files": entries, "presets": {"set": {"about": "for a test", "files": names}}})
    (tmp_path / "list.json").write_text(text)
    models = str(tmp_path / "models")
    return [
        sys.executable,
        str(ROOT / "dev.py"),
        "models",
        "get",
        *wanted,
        "--models",
        models,
        "--manifest",
        str(tmp_path / "list.json"),
        *more,
    ]


def variables(hub, **more):
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | more


def files_in(models):
    """What ComfyUI could see."""
    found = [file for file in models.rglob("*") if file.is_file() and ".multitalk-downloads" not in file.parts]
    return {file.relative_to(models).as_posix() for file in found}
