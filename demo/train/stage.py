"""Steps of training that can be broken off anywhere: checkpoints, resume, progress."""

from __future__ import annotations

import math
import os
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


class Stage:
    """A number of steps over parts whose state is kept in one file.

    `for step in stage:` begins where the file ends. Whatever a step draws comes from `random(step)`, so a run that was broken off
    goes on as if it had not been.
    """

    def __init__(self, file: Path, steps: int, parts: Mapping[str, Saved], report: Report, seed: int = 0) -> None:
        self._file, self._parts, self._report, self._seed = file, parts, report, seed
        self.steps = steps
        self.seconds_between_saves = SECONDS_BETWEEN_SAVES
        self.first = 0
        self.figures: dict[str, float] = {}
        if file.exists():
            saved = torch.load(file, map_location="cpu", weights_only=True)
            self.first = saved["step"]
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
        began = saved = told = time.monotonic()
        for step in range(self.first, self.steps):
            yield step
            now = time.monotonic()
            if now - told > SECONDS_BETWEEN_LINES or step + 1 == self.steps:
                told = now
                each = (now - began) / (step + 1 - self.first)
                figures = " ".join(f"{name} {value:.4f}" for name, value in sorted(self.figures.items()))
                left = (self.steps - step - 1) * each / 60
                self._report(f"{self._file.stem} {step + 1}/{self.steps}, {each:.2f} s each, {left:.0f} min left: {figures}")
            if now - saved >= self.seconds_between_saves or step + 1 == self.steps:
                saved = now
                self._save(step + 1)

    def _save(self, step: int) -> None:
        save(self._file, {"step": step, "parts": {name: part.state_dict() for name, part in self._parts.items()}})


def save(file: Path, content: Any) -> None:
    """torch.save that is there whole or not at all."""
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, file)


def cosine(step: int, steps: int, warmup: int = 40, floor: float = 0.01) -> float:
    """What a learning rate is multiplied by: up in `warmup` steps, then down along a cosine."""
    return min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))
