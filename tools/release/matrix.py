"""`python dev.py test --matrix`: the demo on every supported ComfyUI, Python, transformers and torch.

Writes docs/measured/compatibility.md.

Every cell gets an environment of its own in the cache, made from the ComfyUI's requirements and the pack's, and removed before the next
one. In it that ComfyUI runs the demo's graphs through its queue, and the frames are compared with the first cell's, the newest of all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..comfyui.server import ComfyServer, ServerError
from ..environment.environment import CONSTRAINTS, ROOT, cache_folder
from ..environment.host import DEFAULT, PINNED, pinned
from ..environment.steps import Step, StepFailed, locked
from ..environment.venvs import clean_variables, make_venv
from ..processes import leave_on_signals
from .matrix_report import SHOWN, Result, report

if TYPE_CHECKING:
    import numpy as np

Frames: TypeAlias = "dict[str, np.ndarray]"  # a graph's name: its frames, [F, H, W, 3] uint8

NEWEST, NONE = "newest", "none"
PYTHONS = ("3.13", "3.12", "3.11", "3.10")
TRANSFORMERS = (NEWEST, "4.50.3")  # 4.50.3 is what ComfyUI asks for at least
# pip's arguments. Not older than this: with torch 2.6 and its Triton, comfy-kitchen, which ComfyUI 0.30 asks for, does not import without a
# GPU. An older torch with the two that go with it, which all have wheels for the Pythons above
TORCH = {NEWEST: ("-c", str(CONSTRAINTS)), "2.8.0": ("torch==2.8.0", "torchvision==0.23.0", "torchaudio==2.8.0")}
GRAPHS = ("demo_one_speaker", "demo_two_speakers")  # what `dev.py demo` runs
FRAMES = 41  # of a clip, instead of 101: a cell's run takes less than a minute
SAMPLES = ("face.png", "two_faces.png", "voice_1.wav", "voice_2.wav")
CONTROL, SEED = "control", 2  # the first graph with another seed than its own, 1
GRAPH_LIMIT = 900.0  # seconds; 10 are usual on two idle cores
SPACE = 9e9  # bytes of free disk that making an environment needs
REPORT = ROOT / "docs" / "measured" / "compatibility.md"
BROKEN_OFF = "the run was broken off before"
INSTALLED = f"""import importlib.metadata, json, platform
there = {{"torchaudio": "none"}} | {{part.metadata["Name"]: part.version for part in importlib.metadata.distributions()}}
print(json.dumps({{name: there[name] for name in {SHOWN}}} | {{"Python": platform.python_version()}}))"""
REMEDY = "read the log; check the network, pip's package index and free disk space; then run the same command again."


@dataclass(frozen=True)
class Cell:
    """What one environment is made of; NEWEST is what pip chooses within tools/constraints.txt."""

    comfyui: str = DEFAULT
    python: str = PYTHONS[0]
    transformers: str = NEWEST
    torch: str = NEWEST
    torchaudio: str = NEWEST  # or NONE

    @property
    def name(self) -> str:
        return "_".join(f"{name.lower()}-{version}" for name, version in self.asked.items())

    @property
    def asked(self) -> dict[str, str]:
        asked = {"ComfyUI": self.comfyui, "Python": self.python, "transformers": self.transformers, "torch": self.torch}
        return asked | ({"torchaudio": NONE} if self.torchaudio == NONE else {})


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py test --matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="the first cell and those with this in their name; no report")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    leave_on_signals()
    step = Step("matrix")
    found = interpreters()
    asks = asks_for_torchaudio(pinned(DEFAULT, cache_folder(), step).path)
    chosen = cells(next((version for version in PYTHONS if version in found), PYTHONS[0]), without_torchaudio=not asks)
    if options.only:
        chosen = [cell for cell in chosen if cell == chosen[0] or any(text in cell.name for text in options.only)]
    with locked(cache_folder() / "matrix", step):
        results = run_all(chosen, found, step)
    if not options.only and not any(result.said == BROKEN_OFF for result in results):
        REPORT.write_text(report(results, surroundings() | ({"torchaudio": DEFAULT} if asks else {})), encoding="utf-8")
        step.say(f"wrote {REPORT.relative_to(ROOT)}")
    return int(any(result.state != "passed" for result in results))


def asks_for_torchaudio(comfyui: Path) -> bool:
    """Whether a ComfyUI has it among its requirements; 0.38 and later have not."""
    return bool(re.search(r"^torchaudio\b", (comfyui / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE))


def cells(python: str, without_torchaudio: bool = False) -> list[Cell]:
    """The newest of everything on this Python first; then every other value with the newest of the rest."""
    first = Cell(python=python)
    others = [Cell(comfyui, python) for comfyui in PINNED] + [Cell(python=version) for version in PYTHONS]
    others += [Cell(python=python, transformers=version) for version in TRANSFORMERS] + [Cell(python=python, torch=t) for t in TORCH]
    others += [Cell(python=python, torchaudio=NONE)] if without_torchaudio else []
    return [first, *(cell for cell in others if cell != first)]


def interpreters() -> dict[str, Path]:
    """Python by its version: those of MULTITALK_PYTHONS (files, parted as in PATH), then python3.x on PATH, if they have venv and pip."""
    candidates = [entry for entry in os.environ.get("MULTITALK_PYTHONS", "").split(os.pathsep) if entry]
    candidates += [path for version in PYTHONS if (path := shutil.which(f"python{version}"))]
    found: dict[str, Path] = {}
    for candidate in candidates:
        command = [candidate, "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"]
        try:
            version = subprocess.run(command, capture_output=True, text=True, env=clean_variables(), timeout=60).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            continue
        if version in PYTHONS:
            found.setdefault(version, Path(candidate))
    return found


def run_all(chosen: list[Cell], found: Mapping[str, Path], step: Step) -> list[Result]:
    """Cell after cell; one that fails does not stop the others, and Ctrl-C leaves the results that there are."""
    results = [Result(cell.asked, first=cell is chosen[0], state="not run", said=BROKEN_OFF) for cell in chosen]
    reference: Frames = {}
    with suppress(KeyboardInterrupt):
        for number, (cell, result) in enumerate(zip(chosen, results, strict=True), start=1):
            step.say(f"cell {number} of {len(chosen)}: {cell.name}")
            frames = run_cell(cell, found, reference, result)
            if result.first and result.state == "passed":
                reference = frames
            step.say(f"cell {number} of {len(chosen)}: {result.state}: {result.said}")
    return results


def run_cell(cell: Cell, found: Mapping[str, Path], reference: Frames, result: Result) -> Frames:
    """Makes the environment, runs the graphs, compares with the first cell's frames, removes the environment; fills in the result."""
    step = Step("cell")
    if reason := _missing(cell, found):
        result.state, result.said = "not run", reason
        return {}
    try:
        with _environment(cell, found[cell.python], result, step) as python:
            began = time.monotonic()
            frames = _run_graphs(cell, python, result, step)
            result.run_seconds = time.monotonic() - began
        if result.first:
            result.control = psnr(frames.pop(CONTROL), frames[GRAPHS[0]])
        elif reference:
            result.psnr = min(psnr(frames[name], reference[name]) for name in GRAPHS)
        result.judge()
        return frames
    except (StepFailed, ServerError, OSError, ValueError, subprocess.CalledProcessError) as error:
        step.say(f"{type(error).__name__}: {error}")
        result.state, result.said = "failed", (str(error) or type(error).__name__).splitlines()[0]
        return {}


def _missing(cell: Cell, found: Mapping[str, Path]) -> str | None:
    if cell.python not in found:
        return f"no python{cell.python} with venv on PATH or in MULTITALK_PYTHONS"
    free = shutil.disk_usage(cache_folder()).free
    return f"{free / 1e9:.0f} GB of disk are free; an environment needs {SPACE / 1e9:.0f}" if free < SPACE else None


@contextmanager
def _environment(cell: Cell, interpreter: Path, result: Result, step: Step) -> Iterator[Path]:
    """The cell's environment, there until the end of the block; its Python."""
    cache = cache_folder()
    for old in cache.glob("matrix-*"):
        if old.is_dir():  # of a run that was killed
            shutil.rmtree(old, ignore_errors=True)
    folder = cache / f"matrix-{cell.name}"
    log = folder.with_name(f"{folder.name}.log")
    began = time.monotonic()
    try:
        host = pinned(cell.comfyui, cache, step)
        python = make_venv(folder, log, step, interpreter)
        pip = [str(python), "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
        pip += ["-r", str(host.path / "requirements.txt"), "-r", str(ROOT / "requirements.txt"), *TORCH[cell.torch]]
        pip += [f"transformers=={cell.transformers}"] if cell.transformers != NEWEST else []
        step.run(pip, log, clean_variables(), REMEDY)
        if cell.torchaudio == NONE:
            step.run([str(python), "-m", "pip", "uninstall", "-y", "torchaudio"], log, clean_variables(), REMEDY)
        packages = subprocess.run([str(python), "-c", INSTALLED], capture_output=True, text=True, check=True, env=clean_variables())
        result.versions |= json.loads(packages.stdout)
        result.install_seconds = time.monotonic() - began
        step.say(f"installed {result.versions}")
        yield python
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_graphs(cell: Cell, python: Path, result: Result, step: Step) -> Frames:
    """The demo's graphs, short, with a node that saves the frames losslessly; in the first cell one of them also with another seed."""
    frames: Frames = {}
    host = pinned(cell.comfyui, cache_folder(), step)
    with ComfyServer(host.path, ROOT, python=python) as server:
        for sample in SAMPLES:
            server.upload(ROOT / "demo" / "samples" / sample)
        for name in GRAPHS:
            frames[name] = _frames_of(server, _graph(name))
            step.say(f"{name}: {len(frames[name])} frames")
        if result.first:
            frames[CONTROL] = _frames_of(server, _graph(GRAPHS[0], SEED))
    return frames


def _graph(name: str, seed: int | None = None) -> dict[str, Any]:
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    by_class = {node["class_type"]: key for key, node in graph.items()}
    graph["frames"] = {"class_type": "SaveImage", "inputs": {"images": [by_class["MultiTalkDecode"], 0], "filename_prefix": "frames"}}
    graph[by_class["MultiTalkConditioning"]]["inputs"]["frames"] = FRAMES
    if seed is not None:
        graph[by_class["RandomNoise"]]["inputs"]["noise_seed"] = seed
    return graph


def _frames_of(server: ComfyServer, graph: dict[str, Any]) -> np.ndarray:
    import numpy as np
    from PIL import Image

    outputs = server.run(graph, timeout=GRAPH_LIMIT)
    files = [file for file in server.files(outputs) if file.suffix == ".png"]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the worst frame, in dB of 8 bits; infinite for the same.

    Raises:
        ValueError: not as many frames, or of another size.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"made frames of shape {ours.shape}, expected {theirs.shape}: frames, height, width, colours")
    worst = ((ours.astype("float64") - theirs) ** 2).mean(axis=(1, 2, 3)).max()
    return math.inf if worst == 0 else 10 * math.log10(255**2 / worst)


def surroundings() -> dict[str, str]:
    date = datetime.now(timezone.utc).date().isoformat()
    return {
        "date": date,
        "system": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} CPU cores, no GPU used",
    }
