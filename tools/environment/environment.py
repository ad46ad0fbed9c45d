"""The development environment: a ComfyUI, a virtual environment that fits it, and the goldens. Kept in a cache outside the repository."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..processes import run
from .host import DEFAULT, OLDEST, PINNED_COPY, Host, comfyui_here, find_comfyui, pinned
from .steps import Step, StepFailed, locked
from .venvs import clean_variables, make_venv, python_of

ROOT = Path(os.path.abspath(__file__)).parents[2]  # not resolved: the pack may be a link in custom_nodes
CONSTRAINTS = ROOT / "tools" / "constraints.txt"
REQUIREMENTS = (ROOT / "requirements.txt", ROOT / "tools" / "requirements-dev.txt")
STAMP = "complete.txt"
STEP = "environment"


@dataclass(frozen=True)
class Environment:
    """Everything a developer command needs: where ComfyUI is, which Python runs it, where the reference results are."""

    host: Host
    folder: Path
    goldens: Path | None

    @property
    def python(self) -> Path:
        return python_of(self.folder)

    def variables(self) -> dict[str, str]:
        """Environment variables for child processes: offline, and nothing of this repository on their import path."""
        variables = clean_variables() | {"COMFYUI_PATH": str(self.host.path), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        variables["PYTHONUTF8"] = "1"  # the reports have signs that Windows' own encodings lack
        if self.goldens:
            variables["MULTITALK_GOLDENS"] = str(self.goldens)
        return variables

    def run(
        self, arguments: Sequence[str], folder: Path = ROOT, more: Mapping[str, str] | None = None, reads_terminal: bool = False
    ) -> int:
        """Runs the environment's Python and returns its exit code; signals and errors as processes.run().

        Args:
            folder: to run it in; defaults to the repository's.
            more: environment variables beside variables().
            reads_terminal: a debugger, for example.
        """
        variables = self.variables() | (more or {})
        return run([str(self.python), *arguments], own_session=not reads_terminal, cwd=folder, env=variables)

    def launch(self, module: str, arguments: Sequence[str]) -> int:
        """Run a module of this repository in the environment, in the folder that the user is in; returns its exit code."""
        return self.run([str(ROOT / "tools" / "launch.py"), module, *arguments], folder=Path.cwd())

    def on_oldest(self) -> Environment | None:
        """This environment with the oldest ComfyUI in place of the newest; None where the user chose another ComfyUI."""
        if (self.host.found, self.host.version) != (PINNED_COPY, DEFAULT):
            return None
        return replace(self, host=pinned(OLDEST, cache_folder(), Step("comfyui")))


def prepare() -> Environment:
    """Finds ComfyUI and the environment made for it; makes what is missing."""
    cache = cache_folder()
    host = find_comfyui(ROOT, cache)
    step = Step(STEP)
    folder = cache / environment_name(host, step)
    if not is_complete(folder):
        with locked(folder, step):
            if not is_complete(folder):
                make(folder, host, step)
    step.say(f"ready in {folder}")
    return Environment(host, folder, goldens_folder())


def found_comfyui() -> Host | None:
    """A ComfyUI that is there; none is fetched."""
    return comfyui_here(ROOT, cache_folder())


def python_there() -> Path | None:
    """The environment's Python, if both are there; nothing is made."""
    host = found_comfyui()
    folder = cache_folder() / environment_name(host, Step(STEP)) if host else None
    return python_of(folder) if folder and is_complete(folder) else None


def python_with(*packages: str) -> Path | None:
    """A Python that has these packages, where this one lacks some: the environment's, which is made if it is not there."""
    if all(importlib.util.find_spec(name) for name in packages):
        return None
    with contextlib.redirect_stdout(sys.stderr):  # what the command itself says may be read by a program
        made = prepare()
    if Path(sys.prefix) == made.folder:
        raise StepFailed(STEP, f"{', '.join(packages)}: not all of them are in {made.folder}", "remove that folder, then run again.")
    return made.python


def cache_folder() -> Path:
    """MULTITALK_CACHE, else multitalk-nodes in the platform's cache folder."""
    if chosen := os.environ.get("MULTITALK_CACHE"):
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "multitalk-nodes"


def goldens_folder() -> Path | None:
    """Reference results of the published code: MULTITALK_GOLDENS, else shared/goldens beside the repository, else None."""
    if chosen := os.environ.get("MULTITALK_GOLDENS"):
        folder = Path(chosen).expanduser().resolve()
        if not folder.is_dir():
            raise StepFailed("goldens", f"MULTITALK_GOLDENS is {chosen}, which is no folder", "set it to a folder, or unset it.")
        return folder
    beside = ROOT.resolve().parent / "shared" / "goldens"
    return beside if beside.is_dir() else None


def environment_name(host: Host, step: Step) -> str:
    """A name that changes when anything the environment is made from does: Python, machine, requirements, pins."""
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    parts = [python, sys.platform, platform.machine(), *extra_requirements(step)]
    for file in (host.path / "requirements.txt", *REQUIREMENTS, CONSTRAINTS):
        parts += ["", *significant_lines(file)]
    return f"env-{python}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:10]}"


def significant_lines(file: Path) -> list[str]:
    """A requirements file's lines without comments: editing a comment must not cost five gigabytes."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def extra_requirements(step: Step) -> list[str]:
    """What environment variables ask for on top of the files: MULTITALK_TRANSFORMERS, a version of transformers."""
    version = os.environ.get("MULTITALK_TRANSFORMERS")
    if not version:
        return []
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise step.failed(f"MULTITALK_TRANSFORMERS is '{version}', expected a version such as 4.50.3", "set a version, or unset it.")
    return [f"transformers=={version}"]


def is_complete(folder: Path) -> bool:
    """The stamp is written last; the interpreter is a link that breaks when the system's Python goes."""
    return (folder / STAMP).is_file() and python_of(folder).exists()


def make(folder: Path, host: Host, step: Step) -> None:
    """Makes the virtual environment and installs everything; the stamp it ends with lists what was installed."""
    shutil.rmtree(folder, ignore_errors=True)  # half-made, or of a Python that is gone
    log = folder.with_name(f"{folder.name}.log")
    python = make_venv(folder, log, step)
    step.say(f"installing about 5 GB, once, which takes some minutes; progress in {log}")
    remedy = f"read {log}; check the network, pip's package index and free disk space; then run the same command again."
    output = step.run([str(python), *install_arguments(host, step)], log, clean_variables(), remedy)
    installed = re.findall(r"^Successfully installed (.*)$", output, re.MULTILINE)
    packages = sorted(package for line in installed for package in line.split())
    (folder / STAMP).write_text("\n".join(packages) + "\n", encoding="utf-8")
    step.say(f"installed {len(packages)} packages")


def install_arguments(host: Host, step: Step) -> list[str]:
    arguments = ["-m", "pip", "install", "--no-input", "--progress-bar", "off", "-c", str(CONSTRAINTS)]
    for file in (host.path / "requirements.txt", *REQUIREMENTS):
        arguments += ["-r", str(file)]
    return arguments + extra_requirements(step)


def prune(keep: Path) -> None:
    """Removes the environments that other requirements or other Pythons left in the cache."""
    step = Step("prune")
    for folder in sorted(keep.parent.glob("env-*")):
        if folder.is_dir() and folder != keep:
            shutil.rmtree(folder)
            step.say(f"removed {folder}")
