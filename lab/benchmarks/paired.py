"""Timing in pairs: two ways in turn, round after round, in one process, so that a machine that is slow for a while is slow for both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def compare(way: Callable[[], Any], base: Callable[[], Any], rounds: int, synchronise: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """The ratio of their times: the median of the rounds' ratios, and the quartiles. One round before warms up and does not count.

    Args:
        synchronise: waits for a device that works on after the call.
    """
    taken: list[tuple[float, float]] = []
    for number in range(-1, rounds):
        first, second = (way, base) if number % 2 else (base, way)
        spent = (_seconds(first, synchronise), _seconds(second, synchronise))
        if number >= 0:
            taken.append(spent if number % 2 else spent[::-1])
    ratios = [a / b for a, b in taken]
    lower, median, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    return {
        "ratio": median,
        "lower": lower,
        "upper": upper,
        "rounds": rounds,
        "seconds": statistics.median(a for a, _ in taken),
        "base_seconds": statistics.median(b for _, b in taken),
    }


def _seconds(compute: Callable[[], Any], synchronise: Callable[[], Any]) -> float:
    synchronise()
    began = time.perf_counter()
    compute()
    synchronise()
    return time.perf_counter() - began
