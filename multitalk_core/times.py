"""Times as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Full-width letters, digits and signs, and other dashes and separators, as the ones that are read here; one for one
ORDINARY = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
ORDINARY |= {ord("、"): ord(";"), ord("〜"): ord("~"), ord("−"): ord("-"), 0x3000: ord(" ")}
BETWEEN = r"(?:[-–—~]|to\b|until\b)"  # two times
DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")

TIME = r"\d+(?::\d{1,2}){0,2}(?:\.\d*)?"  # 5, 5.5, 1:30, 1:02:03.5


def seconds_of(text: str) -> float:
    """Seconds, minutes:seconds or hours:minutes:seconds.

    Raises:
        ValueError: no such time.
    """
    if not re.fullmatch(TIME, text):
        raise ValueError(f"'{text}' is no time. Write seconds such as 12.5, or minutes and seconds such as 1:30.")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def ordinary(text: str) -> str:
    """Text with full-width letters, digits and signs as ordinary ones, as long as before."""
    return text.translate(ORDINARY)


def with_decimal_points(text: str) -> str:
    """Commas between digits as decimal points; as long as before."""
    return DECIMAL_COMMA.sub(".", text)


def read_list(text: str, read: Callable[[str], T]) -> T:
    """What `read` makes of a list of times in which a comma between two digits may be a decimal one ("0,8").

    Raises:
        ValueError: `read`'s, or both readings are possible: they are shown.
    """
    text = ordinary(text)
    if not DECIMAL_COMMA.search(text):
        return read(text)
    apart, decimal = DECIMAL_COMMA.sub("; ", text), with_decimal_points(text)
    found: list[T] = []
    problem: ValueError | None = None
    for reading in (apart, decimal):
        try:
            found.append(read(reading))
        except ValueError as error:
            problem = problem or error
    if len(found) > 1 and found[0] != found[1]:
        raise ValueError(f"'{text}' can be read in two ways. Write '{apart}' or '{decimal}'.")
    if not found:
        raise problem or ValueError(text)
    return found[0]
