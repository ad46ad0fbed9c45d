"""Times as people write them."""

from __future__ import annotations

import re

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
