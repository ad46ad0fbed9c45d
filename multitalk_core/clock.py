"""Times as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Full-width letters, digits and signs, other dashes and separators, and what cannot be seen, as the ones that are read here; one for one
OTHERS = {
    "-": "‐‑‒–—―−﹣→",
    "~": "〜∼",
    ":": "∶﹕",
    ",": "﹐،",
    ";": "、﹔؛､",
    ".": "﹒",
    " ": "\u3000\u00a0\u200b\u200c\u200d\u200e\u200f\u2060\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff",
}
ORDINARY = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
ORDINARY |= {ord(other): sign for sign, others in OTHERS.items() for other in others}
BETWEEN = r"(?:->?|~|(?:to|until|till|bis)(?![^\W\d])|至|到)"  # two times, in ordinary signs
WIDE_COMMA = re.compile(r"[，﹐،]")  # never a decimal one in a list
DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")

TIME = r"\d+(?::\d{1,2}){0,2}(?:\.\d*)?"  # 5, 5.5, 1:30, 1:02:03.5


def seconds_of(text: str) -> float:
    """Seconds, minutes:seconds or hours:minutes:seconds.

    Raises:
        ValueError: no such time.
    """
    if not re.fullmatch(TIME, text):
        raise ValueError(f"'{text}' is no time. Write seconds such as 12.5, or minutes and seconds such as 1:30.")
    first, *others = map(float, text.split(":"))
    if any(part >= 60 for part in others):
        raise ValueError(f"'{text}' is no time: there are only 60 seconds in a minute, and 60 minutes in an hour.")
    seconds = first
    for part in others:
        seconds = 60 * seconds + part
    return seconds


def ordinary(text: str) -> str:
    """Text with full-width letters, digits and signs as ordinary ones, as long as before."""
    return text.translate(ORDINARY)


def with_decimal_points(text: str) -> str:
    """Commas between digits as decimal points; as long as before."""
    return DECIMAL_COMMA.sub(".", text)


def read_list(text: str, read: Callable[[str], T]) -> T:
    """What `read` makes of a list of times in which a comma between two digits may be a decimal one ("0,8").

    A reading of which `read` makes nothing is none.

    Raises:
        ValueError: `read`'s, or both readings are possible: they are shown.
    """
    text = ordinary(WIDE_COMMA.sub("; ", text))
    if not DECIMAL_COMMA.search(text):
        return read(text)
    apart, decimal = DECIMAL_COMMA.sub("; ", text), with_decimal_points(text)
    found: dict[str, T] = {}
    problem: ValueError | None = None
    for reading in (apart, decimal):
        try:
            found[reading] = read(reading)
        except ValueError as error:
            problem = problem or error
    if not found:
        raise problem or ValueError(text)
    if len(found) > 1 and found[apart] != found[decimal]:
        raise ValueError(f"'{text}' can be read in two ways: is the comma a decimal one? Write '{apart}' or '{decimal}'.")
    return next(iter(found.values()))


SAMPLE_RATE = 16_000  # Hz, what Wav2Vec2 was trained on


FPS = 25  # video frames a second, the models' training rate


def embed_frames(samples: int) -> int:
    """Embeddings of a track of `samples`, never none: int(seconds · 25) in floating point, as get_embedding() computes it."""
    return max(1, int(samples / SAMPLE_RATE * FPS))


def video_frames(samples: int, rate: int = SAMPLE_RATE) -> int:
    """Frames of the finished video: it ends with the audio, to the nearest frame, and has at least one."""
    return max(1, round(samples / rate * FPS))
