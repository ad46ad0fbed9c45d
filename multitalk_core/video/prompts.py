"""Prompts by time, as a user writes them: what holds when."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from ..clock import BETWEEN, TIME, ordinary, seconds_of, with_decimal_points

SPAN = re.compile(rf"\s*({TIME})?\s*s?\s*{BETWEEN}\s*({TIME})?\s*s?\s*:(.*)")

UNIT = r"(?:s|sec|secs|seconds)\b"
NEARLY = re.compile(rf"\s*(?:[\[(]\s*)?{TIME}\s*(?:{UNIT}|-->|[-–—]\s*{TIME}\s*(?:{UNIT}|[\])]))")


@dataclass(frozen=True)
class Prompt:
    """What holds from `start` until `stop`, in seconds."""

    start: float
    stop: float
    text: str


def parse_prompts(text: str) -> list[Prompt]:
    """Prompts that follow one another from 0 to the end of time, without gaps.

    A line such as `0-5s: she smiles`, `1:30-2:00: …` or `90-: …` says what holds when; lines without a time go on with the one above.
    What stands before the first time holds wherever nothing else does. Without that, a prompt stays until the next begins.

    Raises:
        ValueError: times that end before they begin, or overlap; nothing at all.
    """
    otherwise: list[str] = []
    spans: list[tuple[float, float, list[str]]] = []
    for line in text.splitlines():
        result = with_decimal_points(ordinary(line))  # as long as the line
        found = SPAN.fullmatch(result)
        if found and (found[1] or found[2]):
            spans.append((*_times(found), [line[found.start(3) :].strip()]))
        elif NEARLY.match(result):
            raise ValueError(
                f"'{line.strip()}' begins like a time, but is none. Write lines such as '0-5s: …', '1:30-2:00: …' or '90-: …'."
            )
        else:
            (spans[-1][2] if spans else otherwise).append(line.strip())
    timed = sorted((Prompt(start, stop, _joined(lines)) for start, stop, lines in spans), key=lambda prompt: prompt.start)
    usual = _joined(otherwise)
    if not timed and not usual:
        raise ValueError("The prompt schedule is empty. Write a prompt, or lines such as '0-5s: she smiles'.")
    for before, after in zip(timed, timed[1:], strict=False):
        if after.start < before.stop:
            raise ValueError(
                f"'{before.text}' ({_told(before)}) and '{after.text}' ({_told(after)}) overlap. Let one end before the other begins."
            )
    return _without_gaps(timed, usual)


def _without_gaps(timed: list[Prompt], usual: str) -> list[Prompt]:
    found: list[Prompt] = []
    covered = 0.0
    for prompt in [*timed, Prompt(math.inf, math.inf, "")]:
        if prompt.start > covered:
            if usual:
                found.append(Prompt(covered, prompt.start, usual))
            elif found:
                found[-1] = replace(found[-1], stop=prompt.start)
            else:
                prompt = replace(prompt, start=0.0)
        if prompt.start < math.inf:
            found.append(prompt)
        covered = prompt.stop
    return found


def _times(found: re.Match[str]) -> tuple[float, float]:
    start = seconds_of(found[1]) if found[1] else 0.0
    stop = seconds_of(found[2]) if found[2] else math.inf
    if stop <= start:
        raise ValueError(f"'{found[0].strip()}' ends before it begins. Write the earlier time first, such as 0-5s: …")
    return start, stop


def _joined(lines: list[str]) -> str:
    return "\n".join(lines).strip()


def _told(prompt: Prompt) -> str:
    return f"{prompt.start:g}s to the end" if prompt.stop == math.inf else f"{prompt.start:g}-{prompt.stop:g}s"
