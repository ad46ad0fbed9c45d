"""A stretch of sound that was decoded: consecutive samples of one rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..errors import MultiTalkError


class SoundError(MultiTalkError, ValueError):
    """A file whose sound cannot be decoded; the message says why."""


@dataclass
class Run:
    """Consecutive samples of one rate and as many channels, of which those between first and last are kept."""

    rate: int  # Hz
    channels: int
    names: tuple[str, ...]  # of the channels, where there are more than two and they are known
    first: float  # samples
    last: float
    passed: int = 0  # samples that went by, kept or not
    kept: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, rate: int, channels: int, names: tuple[str, ...], start: float, duration: float) -> Run:
        """A run from whose beginning on `start` s are left out, and `duration` s are kept; both may be endless."""
        if start < 0:
            start, duration = 0.0, max(0.0, duration + start)
        first = start if math.isinf(start) else round(start * rate)
        return cls(rate, channels, names, first, first + (duration if math.isinf(duration) else round(duration * rate)))

    def add(self, samples: np.ndarray) -> None:
        end = self.passed + samples.shape[1]
        if end > self.first and self.passed < self.last:
            begin = max(0, int(self.first) - self.passed)
            self.kept.append(samples[:, begin : int(min(samples.shape[1], self.last - self.passed))])
        self.passed = end

    @property
    def is_full(self) -> bool:
        return self.passed >= self.last


def seconds_of(runs: list[Run]) -> float:
    """How long runs last that were decoded to their end."""
    return sum(run.passed / run.rate for run in runs)
