"""What this Python and this machine have, as far as it matters here, and what to change. Nothing of the pack needs a compiler."""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .manifest import gigabytes

# pip's name of what the pack imports, and its own name
REQUIRED = {
    "einops": "einops",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "transformers": "transformers",
}
OPTIONAL = {"huggingface_hub": "models get", "pysubs2": "subtitles in Dialogue", "silero-vad": "clean in Dialogue"}
FASTER = ("sageattention", "flash-attn", "xformers", "triton")
WATCHED = ("torch", "torchvision", "torchaudio", "transformers", "xformers", "numba", "librosa", "sageattention")  # that break others
COMPILERS = ("cc", "gcc", "clang", "cl")
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
    missing = [package for package, module in REQUIRED.items() if importlib.util.find_spec(module) is None]
    told = ", ".join(f"{package} {_version(package)}" for package in REQUIRED if package not in missing)
    facts.append(Fact("packages", told or "none"))
    if missing:
        facts.append(Fact("missing", ", ".join(missing), f"{sys.executable} -m pip install {' '.join(missing)}", problem=True))
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
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "the CPU"
    return Fact("torch", f"{torch.__version__}, built for {built}")


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
    if named := environment.get("CC", "").split(" ")[0]:
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
    told = psutil.virtual_memory()
    limit = _limit()
    return (min(told.total, limit), min(told.available, limit)) if limit else (told.total, told.available)


def _limit() -> int:
    """Of the container that this runs in; 0 without one."""
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(place).read_text(encoding="utf-8").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() and int(text) < 2**60 else 0
    return 0


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
