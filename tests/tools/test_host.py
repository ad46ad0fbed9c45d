"""A ComfyUI that is too old: one line in its log says so, and it starts. And one without torchaudio, which makes a video."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multitalk_nodes.tests.support.graphs import SAMPLES, Graph, video_of
from multitalk_nodes.tools.comfyui.server import ComfyServer
from multitalk_nodes.tools.environment.host import OLDEST

ROOT = Path(__file__).resolve().parents[2]
TOLD = "MultiTalk needs ComfyUI 0.18.2 or newer; this is {}. Update ComfyUI, then start it again."


@pytest.mark.parametrize(("version", "good"), [("0.18.1", False), ("0.3.60", False), ("0.18.2", True), ("0.30.0", True), ("1.0", True)])
def test_a_comfyui_that_is_too_old_is_named(version, good):
    from multitalk_nodes.comfy_bridge.host import unsupported

    assert unsupported(version) == (None if good else TOLD.format(version))


def test_pyproject_tools_and_pack_name_the_same_oldest(comfy):
    from multitalk_nodes.comfy_bridge import host

    assert ".".join(map(str, host.OLDEST)) == OLDEST
    assert f'requires-comfyui = ">={OLDEST}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture
def aged(tmp_path):
    """The ComfyUI that the tests run on, calling itself 0.17.0."""
    folder = tmp_path / "comfyui"
    folder.mkdir()
    for entry in Path(os.environ["COMFYUI_PATH"]).resolve().iterdir():
        if entry.is_dir():
            (folder / entry.name).symlink_to(entry, target_is_directory=True)
        else:  # Python takes modules from where main.py really lies
            shutil.copy2(entry, folder)
    (folder / "comfyui_version.py").write_text('__version__ = "0.17.0"\n')
    return folder


@pytest.mark.slow
def test_it_starts_without_our_nodes_and_says_why_in_one_line(aged):
    with ComfyServer(aged, ROOT, expect_nodes=False) as server:
        log = server.log_tail(1000)
        assert "EmptyImage" in server.object_info()
        assert server.pack_nodes() == []
        assert server.get("/extensions") and not [path for path in server.get("/extensions") if "multitalk" in path]
    (line,) = [line for line in log.splitlines() if "MultiTalk" in line]
    assert line.removeprefix("[ERROR] ") == TOLD.format("0.17.0")  # newer ones say how bad it is
    assert "Traceback" not in log
    assert re.search(r"IMPORT FAILED|Cannot import|Skip .*multitalk|Error while calling", log) is None


WITHOUT_TORCHAUDIO = """#!{python}
import runpy, sys, types
from importlib.machinery import ModuleSpec

class Nothing(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{{self.__name__}}.{{name}} was asked for")

for name in ("torchaudio", "torchaudio.functional"):
    sys.modules[name] = Nothing(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
sys.modules["torchaudio"].functional = sys.modules["torchaudio.functional"]
sys.argv = sys.argv[1:]
sys.path[0] = {comfyui!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a script with an interpreter in its first line")
def test_a_talking_video_needs_nothing_of_torchaudio(tmp_path):
    """ComfyUI 0.38 has dropped it; those that can be had here import it as they start, so it is there and empty."""
    comfyui = Path(os.environ["COMFYUI_PATH"])
    python = tmp_path / "python"
    python.write_text(WITHOUT_TORCHAUDIO.format(python=sys.executable, comfyui=str(comfyui)))
    python.chmod(0o755)
    with ComfyServer(comfyui, ROOT, python=python) as server:
        for file in ("face_small.png", "voice_1.wav"):
            server.upload(SAMPLES / file)
        assert video_of(server, Graph(frames=9).set("audio_1", duration=0.6)).shows_something()
        assert "was asked for" not in server.log_tail(1000)


@pytest.mark.parametrize(
    ("files", "given"), [({"comfyui_version.py": '__version__ = "0.3.40"'}, "0.3.40"), ({}, "one that does not tell its version")]
)
def test_one_from_before_the_api_gets_the_same_message(tmp_path, files, given):
    """Without comfy_api, and without torch: nothing but the version is looked at."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    script = "import importlib.util, sys; sys.path.insert(0, sys.argv[1])\n"
    script += "spec = importlib.util.spec_from_file_location('pack', sys.argv[2], submodule_search_locations=[sys.argv[3]])\n"
    script += "module = sys.modules['pack'] = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
    script += "print(module.NODE_CLASS_MAPPINGS, hasattr(module, 'WEB_DIRECTORY'))"
    arguments = ["-I", "-S", "-c", script, str(tmp_path), str(ROOT / "__init__.py"), str(ROOT)]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.stdout == "{} False\n"
    assert done.stderr == f"ERROR:root:{TOLD.format(given)}\n"
