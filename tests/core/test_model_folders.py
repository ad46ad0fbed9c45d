"""The extra_model_paths.yaml that tells ComfyUI of model folders elsewhere."""

import json
import subprocess
import sys

import yaml

from multitalk_nodes.multitalk_core.upkeep.folders import FOLDERS, as_yaml
from multitalk_nodes.multitalk_core.upkeep.published import Manifest
from multitalk_nodes.tests.support.graphs import ROOT


def test_comfyui_reads_the_printed_paths(tmp_path):
    """In a process of its own: the folders stay in ComfyUI's list."""
    models = tmp_path / "my models: ü #1"
    (tmp_path / "paths.yaml").write_text(as_yaml(models), encoding="utf-8")
    program = f"""
import json, runpy, sys
runpy.run_path({str(ROOT / "tools" / "launch.py")!r})["start_comfy"]()
import folder_paths
from utils.extra_config import load_extra_path_config
load_extra_path_config({str(tmp_path / "paths.yaml")!r})
print(json.dumps({{name: folder_paths.get_folder_paths(name) for name in {list(FOLDERS)!r}}}))
"""
    (tmp_path / "run.py").write_text(program)
    done = subprocess.run([sys.executable, str(tmp_path / "run.py")], capture_output=True, text=True, check=True)
    read = json.loads(done.stdout.splitlines()[-1])
    for name, folders in FOLDERS.items():
        assert read[name][0].startswith(str(models)), "before ComfyUI's own"
        assert {str(models / folder) for folder in folders} <= set(read[name])


def test_the_worker_s_paths_are_the_same():
    def loaded(text):
        return yaml.safe_load(text)["multitalk"]

    shipped = (ROOT / "serverless" / "extra_model_paths.yaml").read_text()
    assert loaded(shipped) == loaded(as_yaml()) | {"base_path": "/runpod-volume/models"}


def test_every_folder_of_the_list_is_in_the_paths():
    assert {entry.folder for entry in Manifest.load().files.values()} < set(FOLDERS)
