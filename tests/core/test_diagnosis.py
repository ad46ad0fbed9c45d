"""What the doctor says of packages, compilers, memory and disks."""

import importlib.metadata as metadata
import os
import subprocess
import sys
import venv

import pytest

from multitalk_nodes.multitalk_core.upkeep import machine
from multitalk_nodes.multitalk_core.upkeep.machine import Fact, as_text, clashes, compilers, disks, memory, versions
from multitalk_nodes.multitalk_core.upkeep.needs import needs
from multitalk_nodes.multitalk_core.upkeep.published import Manifest
from multitalk_nodes.tests.support.graphs import ROOT
from multitalk_nodes.tools.environment.venvs import python_of

GIB = 2**30


def package(folder, name, version, requires=""):
    """An installed package, as far as its metadata go."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    requires = f"Requires-Dist: {requires}\n" if requires else ""
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda *given: package(tmp_path, *given)


def by_name(facts):
    return {fact.name: fact for fact in facts}


def test_what_is_installed_here_is_told_and_fits():
    facts = by_name(versions())
    assert metadata.version("transformers") in facts["packages"].value and "built for" in facts["torch"].value
    assert not any(fact.problem for fact in facts.values())


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(machine.REQUIRED, "no-such-package", "no_such_module")
    missing = by_name(versions())["missing"]
    assert missing.problem and missing.advice == f"{sys.executable} -m pip install no-such-package"


@pytest.mark.parametrize("raised", [ModuleNotFoundError, ValueError])
def test_a_package_that_is_blocked_is_missing(monkeypatch, raised):
    class Blocked:
        @staticmethod
        def find_spec(name, *_):
            if name == "soundfile":
                raise raised(f"No module named '{name}'")

    monkeypatch.delitem(sys.modules, "soundfile", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Blocked, *sys.meta_path])
    assert by_name(versions())["missing"].advice.endswith("pip install soundfile")


def test_a_package_that_cannot_be_imported_is_told(monkeypatch, tmp_path):
    (tmp_path / "half_a_package.py").write_text("raise OSError('sndfile library not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(machine.REQUIRED, "soundfile", "half_a_package")
    value = by_name(versions())["soundfile"]
    assert value.problem and "sndfile library not found" in value.value and "--force-reinstall" in value.advice


def test_packages_that_do_not_fit_each_other_are_told(installed):
    installed("xformers", "0.0.1", "torch==1.0")
    installed("numba", "0.59", "numpy<1.27,>=1.22")
    found = clashes()
    assert len(found) == 2 and any(line.startswith("xformers 0.0.1 wants torch==1.0, but ") for line in found)
    assert [fact.problem for fact in versions() if fact.name == "clash"] == [True, True]


def test_nothing_asks_for_a_compiler(monkeypatch):
    monkeypatch.setattr(machine, "FASTER", ())
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    compiler = by_name(compilers({}))["C compiler"]
    assert "nothing here needs one" in compiler.value and not compiler.advice


def test_cc_that_is_not_there_is_a_problem():
    compiler = by_name(compilers({"CC": "no-such-gcc -O2"}))["C compiler"]
    assert compiler.problem and "'no-such-gcc'" in compiler.value and "Unset CC" in compiler.advice


def test_sageattention_asks_for_triton_and_a_compiler(installed, monkeypatch):
    installed("sageattention", "1.0.6")
    monkeypatch.setattr(machine, "FASTER", ("sageattention",))  # no triton
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    facts = by_name(compilers({}))
    assert "SageAttention needs it" in facts["Triton"].advice and not facts["Triton"].problem
    assert "Triton, which needs one" in facts["C compiler"].advice
    assert by_name(compilers({}, ["main.py", "--use-sage-attention"]))["Triton"].problem, "it was asked for"


@pytest.mark.parametrize("blank", [False, True])
def test_cc_may_have_options_or_blanks_in_its_path(tmp_path, blank):
    folder = tmp_path / "my compilers"
    folder.mkdir()
    compiler = folder / "gcc.exe"
    compiler.write_text("")
    compiler.chmod(0o755)
    value = by_name(compilers({"CC": str(compiler) if blank else f'"{compiler.as_posix()}" -O2'}))["C compiler"]
    assert not value.problem and "gcc" in value.value


@pytest.mark.parametrize("content", ["raise OSError('[WinError 126] c10.dll')", "raise ImportError('undefined symbol: x')"])
def test_a_torch_that_does_not_load_is_told_with_what_to_do(tmp_path, content):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(content)
    program = f"""
import runpy, sys
sys.path.insert(0, {str(tmp_path)!r})
runpy.run_path({str(ROOT / "tools" / "launch.py")!r})["register_pack"]()
from multitalk_nodes.multitalk_core.upkeep.machine import as_text, versions
print(as_text(versions()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "cannot be imported (" in done.stdout and "! Install torch anew" in done.stdout, done.stderr


def test_transformers_that_does_not_load_is_told(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "Wav2Vec2Model", None, raising=False)
    assert "transformers" not in by_name(versions())
    monkeypatch.setitem(sys.modules, "transformers", None)  # as Python has it for what cannot be imported
    monkeypatch.setitem(machine.REQUIRED, "transformers", "numpy")  # it is installed
    assert by_name(versions())["transformers"].problem


def test_a_container_s_memory_is_its_limit_less_what_it_uses(tmp_path, monkeypatch):
    for name, text in (("memory.max", "max"), ("memory.current", f"{GIB}"), ("memory.stat", f"anon 1\ninactive_file {GIB // 2}\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert memory()[0] > 2 * GIB
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert memory() == (2 * GIB, 3 * GIB // 2)
    (tmp_path / "memory").mkdir()
    for name in ("max", "current", "stat"):
        (tmp_path / f"memory.{name}").unlink()
    for name, text in (("limit_in_bytes", 2 * GIB), ("usage_in_bytes", GIB), ("stat", "total_inactive_file 0")):
        (tmp_path / "memory" / f"memory.{name}").write_text(str(text))
    assert memory() == (2 * GIB, GIB)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-5", "0"])
def test_a_length_that_is_none_is_refused(seconds, capsys):
    from multitalk_nodes.tools.environment.doctor import parse

    with pytest.raises(SystemExit):
        parse([f"--seconds={seconds}"])
    assert "expected a length above 0" in capsys.readouterr().err


def test_memory_of_this_machine_is_known():
    total, free = memory()
    assert total > GIB and 0 < free <= total


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    assert not by_name(disks({"output": tmp_path / "not" / "there" / "yet"}))["disk of output"].problem
    monkeypatch.setattr(machine, "free_on", lambda folder: 5 * 10**9)
    assert by_name(disks({"output": tmp_path}))["disk of output"].advice.startswith("Free some")


def test_advice_stands_below_its_fact():
    text = as_text([Fact("a", "1"), Fact("bcd", "2", "change it"), Fact("e", "3", "mend it", True)])
    assert text.splitlines() == ["a    1", "bcd  2", "     -> change it", "e    3", "     ! mend it"]


# -- what a video needs


def test_a_branch_of_the_14b_model_is_about_six_gigabytes(comfy):
    """As ComfyUI itself estimates it, for the trained clip at 640×640."""
    import comfy.model_base
    import comfy.supported_models

    config = comfy.supported_models.WAN21_I2V({"image_model": "wan2.1", "model_type": "i2v", "dim": 5120})
    assert config.memory_usage_factor == pytest.approx(5120 / 2222)
    latents = 21 * 80 * 80
    host = latents * 2 * 0.01 * config.memory_usage_factor * 2**20
    assert needs("multitalk-480", 10, 0, 0, 0).branch == pytest.approx(host, rel=1e-6)
    assert 5.9 < host / GIB < 6.1


def test_needs_grow_with_size_and_length_and_weights():
    small, large = needs("multitalk-480", 10, 0, 0, 0), needs("multitalk-720", 60, 0, 0, 0)
    assert large.branch == pytest.approx(2.25 * small.branch) and large.disk == pytest.approx(6 * 2.25 * small.disk, rel=0.01)
    files = Manifest.load().files
    wan = files["wan2.1_i2v_480p_14B_fp16.safetensors"].bytes
    heavy = needs("multitalk-480", 10, wan, 5 * 10**9, 8 * 10**9)
    assert heavy.whole > wan > heavy.least and heavy.ram > wan


@pytest.mark.parametrize(("vram", "says"), [(80, ""), (24, "waits in RAM"), (6, "smaller size")])
def test_a_card_is_held_against_what_is_needed(vram, says):
    rows = needs("multitalk-480", 10, 33 * 10**9, 5 * 10**9, 8 * 10**9).rows(vram=vram * 10**9)
    assert rows[0][2] == "" if not says else says in rows[0][2]
    assert all("computed" in row[1] for row in rows)


# -- the command


def doctor(python, **environment):
    command = [str(python), str(ROOT / "dev.py"), "doctor", "--size", "multitalk-720", "--seconds", "60"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_the_doctor_asks_comfyui():
    done = doctor(sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("ComfyUI ", "attention ", "disk of models", "VRAM for 960×960", "disk for 60 s", "models: "):
        assert line in done.stdout
    assert "DISABLED" not in done.stdout and ("needs --cpu to start here" in done.stdout or "starts without options" in done.stdout)


def test_the_doctor_helps_a_python_that_has_nothing(tmp_path):
    """No environment is made for it, and nothing fetched."""
    venv.create(tmp_path / "bare", symlinks=os.name != "nt")
    python = python_of(tmp_path / "bare")
    done = doctor(python, MULTITALK_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1 and "torch" in done.stdout and "not there" in done.stdout and "pip install" in done.stdout, done.stderr
    assert not (tmp_path / "cache").exists()
    done = doctor(python, MULTITALK_CACHE=str(tmp_path / "cache"), COMFYUI_PATH="")
    assert done.returncode == 1 and "none was found" in done.stdout
