"""What this Python and this machine have, as far as it matters here, and what to change. Nothing of the pack needs a compiler."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import gigabytes

# pip's name of what the pack imports, and its own name
REQUIRED = {
    "einops": "einops",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "transformers": "transformers",
}
PARTS = {"transformers": "Wav2Vec2Model"}  # what is imported lazily, and may be what fails
FITS = {
    "transformers": "The speech encoder needs it. Install versions of transformers, tokenizers and huggingface_hub that fit each other."
}
OPTIONAL = {"huggingface_hub": "models get", "pysubs2": "subtitles in Dialogue", "silero-vad": "clean in Dialogue"}
FASTER = ("sageattention", "flash-attn", "xformers", "triton")
WATCHED = ("torch", "torchvision", "torchaudio", "transformers", "xformers", "numba", "librosa", "sageattention")  # that break others
COMPILERS = ("cc", "gcc", "clang", "cl")
# What goes wrong while a package is imported whose parts, or the system's libraries, do not fit
BROKEN = (ImportError, OSError, RuntimeError, AttributeError, ValueError)
CGROUPS = Path("/sys/fs/cgroup")
SMALL_DISK = 10 * 10**9  # bytes


@dataclass(frozen=True)
class Fact:
    """Something that is so; `advice`: what to change; `problem`: it does not work as it is."""

    name: str
    value: str
    advice: str = ""
    problem: bool = False


def versions() -> list[Fact]:
    """Python, torch and the packages, and requirements among them that do not hold."""
    facts = [Fact("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    facts.append(_torch())
    missing = [package for package, module in REQUIRED.items() if not _is_there(module)]
    text = ", ".join(f"{package} {_version(package)}" for package in REQUIRED if package not in missing)
    facts.append(Fact("packages", text or "none"))
    if missing:
        facts.append(Fact("missing", ", ".join(missing), f"{sys.executable} -m pip install {' '.join(missing)}", problem=True))
    for package, module in REQUIRED.items():
        if package not in missing and (text := _why_broken(module, PARTS.get(package, ""))):
            advice = FITS.get(package, f"Install it anew: {sys.executable} -m pip install --force-reinstall --no-deps {package}")
            facts.append(Fact(package, f"cannot be imported ({text})", advice, problem=True))
    absent = [f"{package} ({use})" for package, use in OPTIONAL.items() if _version(package) is None]
    if absent:
        facts.append(Fact("not installed", ", ".join(absent) + ": only needed for that"))
    return facts + [
        Fact("clash", clash, "Install versions that fit each other, as ComfyUI's requirements.txt does.", True) for clash in clashes()
    ]


def _torch() -> Fact:
    version = _version("torch")
    if version is None:
        return Fact("torch", "not there", f"Run this with ComfyUI's Python; {sys.executable} has no torch.", problem=True)
    if found := _why_broken("torch"):
        advice = "Install torch anew, as ComfyUI's README says for this system; on Windows, with Microsoft's Visual C++ Redistributable."
        return Fact("torch", f"{version} cannot be imported ({found})", advice, problem=True)
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU"
    return Fact("torch", f"{torch.__version__}, built for {built}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # it is blocked, or half of it was removed
        return False


def _why_broken(module: str, part: str = "") -> str:
    """Why a module, or a part of it, cannot be imported, in a line; "" if it can."""
    try:
        found = importlib.import_module(module)
        if part:
            getattr(found, part)
    except BROKEN as error:
        return (str(error) or type(error).__name__).strip().splitlines()[0]
    return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def clashes() -> list[str]:
    """Requirements of installed packages that what is installed does not meet."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return []
    found = []
    for package in WATCHED:
        for line in (metadata.requires(package) or []) if _version(package) else []:
            try:
                wanted = Requirement(line)
            except InvalidRequirement:
                continue
            if wanted.name not in (*WATCHED, "numpy", "huggingface-hub", "tokenizers") or (
                wanted.marker and not wanted.marker.evaluate({"extra": ""})
            ):
                continue
            version = _version(wanted.name)
            if version and not wanted.specifier.contains(version, prereleases=True):
                found.append(f"{package} {_version(package)} wants {wanted.name}{wanted.specifier}, but {version} is installed")
    return found


def compilers(environment: Mapping[str, str] = os.environ, arguments: Sequence[str] = ()) -> list[Fact]:
    """Who asks for a C compiler or Triton, and whether they are there.

    Args:
        arguments: ComfyUI's command line.
    """
    faster = {package: version for package in FASTER if (version := _version(package))}
    found = next((name for name in COMPILERS if shutil.which(name)), None)
    facts = [
        Fact("faster attention", ", ".join(f"{package} {version}" for package, version in faster.items()) or "none installed; not needed")
    ]
    chosen = "--use-sage-attention" in arguments
    asks = chosen or "sageattention" in faster
    if asks and "triton" not in faster:
        windows = "triton-windows" if os.name == "nt" else "triton"
        facts.append(
            Fact("Triton", "not there", f"SageAttention needs it: pip install {windows}, or start ComfyUI without it.", problem=chosen)
        )
    if named := environment.get("CC", "").strip():
        if shutil.which(named) is None:  # a command with options, or a path with blanks
            named = (shlex.split(named, posix=os.name != "nt") if named.count('"') % 2 == 0 and named.count("'") % 2 == 0 else [named])[0]
        if shutil.which(named) is None:
            advice = "Unset CC; nothing of this pack compiles. Or install that compiler."
            return [*facts, Fact("C compiler", f"CC is '{named}', which is not there", advice, problem=True)]
        found = named
    if found or not asks:
        return [*facts, Fact("C compiler", found or "none; nothing here needs one (SageAttention and torch.compile would)")]
    advice = "SageAttention compiles kernels with Triton, which needs one: install gcc, or start ComfyUI without SageAttention."
    return [*facts, Fact("C compiler", "none", advice)]


def memory() -> tuple[int, int]:
    """The machine's memory in bytes, all and free; zeros if it is not known. A container's limit counts."""
    try:
        import psutil  # ComfyUI brings it
    except ImportError:
        return 0, 0
    found = psutil.virtual_memory()
    limit, used = _container(CGROUPS)
    return (min(found.total, limit), min(found.available, max(0, limit - used))) if limit else (found.total, found.available)


def _container(groups: Path) -> tuple[int, int]:
    """The limit of the container that this runs in, and what counts against it, bytes; zeros without a limit.

    Files that were read and not used since (inactive_file) make way, so they are free (Linux, Documentation/admin-guide/cgroup-v2.rst).
    """
    old = groups / "memory"
    for limit, current, stat, name in (
        (groups / "memory.max", groups / "memory.current", groups / "memory.stat", "inactive_file"),
        (old / "memory.limit_in_bytes", old / "memory.usage_in_bytes", old / "memory.stat", "total_inactive_file"),
    ):
        try:
            text = limit.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if not text.isdecimal() or int(text) >= 2**60:
            return 0, 0
        try:
            files = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
            return int(text), max(0, int(current.read_text(encoding="utf-8")) - int(files.get(name, 0)))
        except (OSError, ValueError):
            return int(text), 0
    return 0, 0


def free_on(folder: Path) -> int:
    """Bytes left on the disk that a folder is on, or will be; 0 if it cannot be asked."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def disks(folders: Mapping[str, Path]) -> list[Fact]:
    """Room where things are written, by what the folder is for."""
    facts = []
    for name, folder in folders.items():
        free = free_on(folder)
        advice = "" if free > SMALL_DISK else "Free some, or give ComfyUI another folder."
        facts.append(Fact(f"disk of {name}", f"{gigabytes(free)} free", advice, problem=free < SMALL_DISK // 10))
    return facts


def as_text(facts: Sequence[Fact]) -> str:
    """A line a fact, and below it what to change."""
    width = max((len(fact.name) for fact in facts), default=0)
    lines = []
    for fact in facts:
        lines.append(f"{fact.name.ljust(width)}  {fact.value}")
        if fact.advice:
            lines.append(f"{' ' * width}  {'!' if fact.problem else '->'} {fact.advice}")
    return "\n".join(lines)
