"""Steps of training that can be broken off anywhere: checkpoints, resume, progress."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

SECONDS_BETWEEN_SAVES = 120.0
SECONDS_BETWEEN_LINES = 20.0
GRADIENT_NORM = 1.0
SMOOTHING = 0.97  # of the figures in progress lines

Report = Callable[[str], None]


class Saved(Protocol):
    """A module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class StageError(RuntimeError):
    """What lies in the folder is not this run's; the message says what to remove."""


class Stage:
    """A number of steps over parts whose state is kept in one file.

    `for step in stage:` begins where the file ends. Whatever a step draws comes from `random(step)`, so a run that was broken off
    goes on as if it had not been, on the same kind of device with as many threads.

    Raises:
        StageError: the file is that of another run: of other steps or seed, or begun from something else.
    """

    def __init__(self, file: Path, steps: int, parts: Mapping[str, Saved], report: Report, seed: int = 0, made_from: str = "") -> None:
        self._file, self._parts, self._report, self._seed = file, parts, report, seed
        self._run = {"steps": steps, "seed": seed, "made_from": made_from}
        self.steps = steps
        self.seconds_between_saves = SECONDS_BETWEEN_SAVES
        self.first = 0
        self.figures: dict[str, float] = {}
        self._history: list[dict[str, Any]] = []  # which commits trained it, and from which step on
        if file.exists():
            saved = torch.load(file, map_location="cpu", weights_only=True)
            check_run(file, saved["run"], self._run)
            self.first, self._history = saved["step"], saved["history"]
            for name, part in parts.items():
                part.load_state_dict(saved["parts"][name])

    def random(self, step: int) -> np.random.Generator:
        """The step's own randomness, a function of (seed, step); torch is seeded along with it."""
        torch.manual_seed(self._seed * 1_000_003 + step)
        return np.random.default_rng((self._seed, step))

    def optimise(self, loss: Tensor, step: int) -> None:
        """One step of every optimiser among the parts, at the learning rate it was made with times `cosine`."""
        optimisers = [part for part in self._parts.values() if isinstance(part, torch.optim.Optimizer)]
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        for group in groups:
            group["lr"] = group.setdefault("rate", group["lr"]) * cosine(step, self.steps)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], GRADIENT_NORM)
        for optimiser in optimisers:
            optimiser.step()

    def note(self, **figures: float) -> None:
        """Figures for the progress line, averaged over about thirty steps."""
        for name, value in figures.items():
            before = self.figures.get(name, value)
            self.figures[name] = SMOOTHING * before + (1 - SMOOTHING) * value

    def __iter__(self) -> Iterator[int]:
        if self.first < self.steps and (not self._history or self._history[-1]["commit"] != commit()):
            self._history.append({"commit": commit(), "first_step": self.first, "steps": self.steps})
        began = saved = found = time.monotonic()
        for step in range(self.first, self.steps):
            yield step
            now = time.monotonic()
            if now - found > SECONDS_BETWEEN_LINES or step + 1 == self.steps:
                found = now
                each = (now - began) / (step + 1 - self.first)
                figures = " ".join(f"{name} {value:.4f}" for name, value in sorted(self.figures.items()))
                left = (self.steps - step - 1) * each / 60
                self._report(f"{self._file.stem} {step + 1}/{self.steps}, {each:.2f} s each, {left:.0f} min left: {figures}")
            if now - saved >= self.seconds_between_saves or step + 1 == self.steps:
                saved = now
                self._save(step + 1)

    def _save(self, step: int) -> None:
        content = {"step": step, "run": self._run, "history": self._history}
        save(self._file, content | {"parts": {name: part.state_dict() for name, part in self._parts.items()}})


def check_run(file: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises StageError if a file belongs to another run."""
    if dict(found) != dict(expected):
        raise StageError(
            f"{file} belongs to another run: {_told(found)}; expected {_told(expected)}. Remove it, or name another folder with --work."
        )


def _told(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in run.items())


def histories(folder: Path) -> dict[str, Any]:
    """Of every stage whose file is in the folder: its run, and what trained it."""
    data = {}
    for file in sorted(folder.glob("*.pt")):
        saved = torch.load(file, map_location="cpu", weights_only=True)
        if "history" in saved:
            data[file.stem] = saved["run"] | {"history": saved["history"]}
    return data


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """What tells two sets of weights apart."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        hashed.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()[:16]


@functools.cache
def commit() -> str:
    """What the code is, with a plus where files were changed since; "unknown" without git."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def save(file: Path, content: Any) -> None:
    """torch.save that is there whole or not at all."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)


def cosine(step: int, steps: int, warmup: int = 40, floor: float = 0.01) -> float:
    """What a learning rate is multiplied by: up in `warmup` steps, then down along a cosine."""
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))
