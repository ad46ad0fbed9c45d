"""Who speaks when: turns as people write them or as subtitles have them, and every speaker's own track from them.

Times are in seconds. A *sound* is (waveform [C, N], rate in Hz).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clock import BETWEEN, TIME, ordinary, read_list, seconds_of
from ..errors import MultiTalkError
from ..notes import note
from .label_forms import BRACKETED, EVERYBODY, TOGETHER, bare, same_person
from .labels import NobodyKnows, who_speaks

Sound = tuple[Tensor, int]

SUBTITLES = re.compile(r"-->|\[Script Info\]|^Dialogue:", re.MULTILINE)  # SRT and WebVTT, and what other formats pysubs2 tells apart
FADE = 0.005  # s; a turn that is cut out of a recording begins and ends without a click
NAME = r"(?:(?P<name>(?:[^\W\d]|[\[(<【])[^:,;\n]*?\s*:\s*|[^:,;\n]+?\s*:\s+|[\[【][^\]】,;\n]+[\]】]\s*))?"
ENTRY = re.compile(rf"{NAME}(?P<start>{TIME})\s*s?\s*{BETWEEN}\s*(?P<stop>{TIME})?\s*s?")
GLUED = re.compile(r"(.*\D)(\d+):", re.DOTALL)  # a name that may end in the minutes of a time: "Anna 1:10-1:20"
CONSOLE = re.compile(r"^\[(\d+:[\d:]+[.,]\d+) --> (\d+:[\d:]+[.,]\d+)\][ \t]*(.*)$", re.MULTILINE)  # whisper.cpp's own output
WHOLE_SECONDS = re.compile(r"^(\s*\d+:\d\d:\d\d)(\s*-->\s*\d+:\d\d:\d\d)(\s*)$", re.MULTILINE)
EXAMPLE = "'A: 0-3.2, B: 3.2-7'"
NUMBERED = re.compile(r"[A-Da-d1-4]")  # names that say which speaker they are
PUNCTUATION = re.compile(r"[,:;\n]+")
BOM = "\ufeff"


class TimelineError(MultiTalkError, ValueError):
    """Nobody can tell from the text who speaks when; the message quotes what is wrong."""


@dataclass(frozen=True)
class Turn:
    """One speaker talks."""

    speaker: int  # counted from 0
    start: float
    stop: float  # math.inf is the end of the audio


@dataclass(frozen=True)
class Timeline:
    """Who speaks when."""

    names: tuple[str, ...]
    turns: tuple[Turn, ...]  # by start

    def of(self, speaker: int) -> list[Turn]:
        return [turn for turn in self.turns if turn.speaker == speaker]

    @property
    def text(self) -> str:
        """As `parse_turns` reads it, to the millisecond."""
        lines = [(PUNCTUATION.sub(" ", self.names[turn.speaker]), turn) for turn in self.turns]
        return "\n".join(f"{name}: {_milliseconds(turn.start, math.floor)}-{_milliseconds(turn.stop, math.ceil)}" for name, turn in lines)

    def overlaps(self) -> list[tuple[float, float]]:
        """When two or more speak at once."""
        edges = sorted({edge for turn in self.turns for edge in (turn.start, turn.stop)})
        found: list[tuple[float, float]] = []
        for start, stop in zip(edges, edges[1:], strict=False):
            if len({turn.speaker for turn in self.turns if turn.start <= start and turn.stop >= stop}) > 1:
                joined = found and found[-1][1] == start
                found[-1:] = [(found[-1][0], stop)] if joined else [*found[-1:], (start, stop)]
        return found


def _milliseconds(time: float, rounded: Callable[[float], int]) -> str:
    return f"{rounded(round(1000 * time, 6)) / 1000:.3f}"


def parse_names(text: str) -> tuple[str, ...]:
    """ "Anna, Ben" → the speakers from left to right; none from an empty text.

    Raises:
        TimelineError: a name twice.
    """
    names = tuple(name.strip() for name in re.split(r"[,;\n]", ordinary(text)) if name.strip())
    if len({same_person(name) for name in names}) < len(names):
        raise TimelineError(f"'{text}' has a name twice. Give every speaker another one.")
    return names


def parse_turns(text: str, seconds: float, names: Sequence[str] = ()) -> Timeline:
    """Who speaks when in a recording: lines or a list such as "A: 0-3.2, B: 3.2-7", or SRT or WebVTT subtitles with speakers' names.

    A time without a name goes on with the name before it; a missing end is the end of the recording. Speakers are counted in the order
    of `names`; without those, letters A to D and numbers 1 to 4 count themselves, and other names count in the order in which they come.

    Args:
        seconds: length of the recording; turns are cut there.
    Raises:
        TimelineError: what is no turn, lies outside of the recording, or belongs to nobody.
        ImportError: subtitles without pysubs2.
    """
    subtitled = SUBTITLES.search(text) is not None
    spoken = _subtitles(text, names) if subtitled else _each_alone(_without_asides(_entries(text), names), names)
    if not spoken:
        raise TimelineError(f"Nobody is said to speak. Write who speaks when, such as {EXAMPLE}, or paste subtitles with names.")
    order = speaking_order([name for name, *_ in spoken], names)
    places = {same_person(name): place for place, name in enumerate(order)}
    turns = []
    for name, start, stop in spoken:
        if start >= seconds and subtitled and any(begin < seconds for _, begin, _ in spoken):
            continue  # credits, or a clip shorter than its subtitles
        if start >= seconds:
            raise TimelineError(f"{name} is to speak from {start:g} s on, but the audio ends at {seconds:.2f} s.")
        if stop <= start:
            raise TimelineError(f"{name}'s turn at {start:g} s ends before it begins. Write the earlier time first, such as {EXAMPLE}.")
        turns.append(Turn(places[same_person(name)], start, min(stop, seconds)))
    return Timeline(tuple(order), tuple(sorted(turns, key=lambda turn: (turn.start, turn.speaker))))


def _entries(text: str) -> list[tuple[str, float, float]]:
    try:
        return read_list(text, _listed)
    except TimelineError:
        raise
    except ValueError as error:
        raise TimelineError(str(error)) from error


def _listed(text: str) -> list[tuple[str, float, float]]:
    found: list[tuple[str, float, float]] = []
    for entry in re.split(r"[,;\n]", text):
        if not entry.strip():
            continue
        match = ENTRY.fullmatch(entry.strip())
        name = _unbracketed(match["name"]) if match and match["name"] else found[-1][0] if found else ""
        if match is None or not name:
            raise TimelineError(f"'{entry.strip()}' does not say who speaks when. Write a list such as {EXAMPLE}, in seconds.")
        glued = GLUED.fullmatch(match["name"] or "")
        if glued and re.match(r"\d\d(?!\d)", match["start"]):
            before, minutes = glued[1].strip(), glued[2]
            raise TimelineError(
                f"'{entry.strip()}' does not say where the name ends. Write '{before}: {minutes}:{match['start']}-…' for that time, or a "
                f"space behind the colon: '{glued[1]}{minutes}: {match['start']}-…'."
            )
        found.append((name, seconds_of(match["start"]), seconds_of(match["stop"]) if match["stop"] else math.inf))
    return found


def _unbracketed(name: str) -> str:
    name = name.strip().removesuffix(":").strip()
    found = BRACKETED.fullmatch(name)
    return next(inside for inside in found.groups() if inside).strip() if found else name


def _without_asides(spoken: list[tuple[str, float, float]], names: Sequence[str]) -> list[tuple[str, float, float]]:
    """ "Anna (guest)" is Anna where she is named so elsewhere; without that, it may be what tells two Annas apart."""
    known = {same_person(name): name for name in names}
    plainly = known or {same_person(name): name for name, *_ in spoken}
    found = []
    for name, start, stop in spoken:
        short = bare(name, known)
        found.append((short if same_person(short) in plainly else name, start, stop))
    return found


def _each_alone(spoken: list[tuple[str, float, float]], names: Sequence[str]) -> list[tuple[str, float, float]]:
    """ "Anna & Ben" and "both" are turns of people who are named alone as well."""
    alone = {same_person(name): name for name in names} or {same_person(name): name for name, *_ in spoken}
    people = {key: name for key, name in alone.items() if not EVERYBODY.fullmatch(name) and len(_several(name, alone)) == 1}
    found = []
    for name, start, stop in spoken:
        everybody = EVERYBODY.fullmatch(name) and people and (not names or same_person(name) not in alone)
        found += [(one, start, stop) for one in (people.values() if everybody else _several(name, alone))]
    return found


def _several(name: str, alone: Mapping[str, str]) -> list[str]:
    parts = [part for part in TOGETHER.split(name) if part]
    return [alone[same_person(part)] for part in parts] if len(parts) > 1 and all(same_person(part) in alone for part in parts) else [name]


def _subtitles(text: str, names: Sequence[str]) -> list[tuple[str, float, float]]:
    """Who speaks in SRT, WebVTT or ASS subtitles, by the labels that `who_speaks` reads."""
    console = [("", said, _clock(start), _clock(stop)) for start, stop, said in CONSOLE.findall(text)]
    lines = console or _read_subtitles(text)
    if backwards := [start for _, said, start, stop in lines if stop <= start and said.strip()]:
        at = ", ".join(f"{start:g} s" for start in backwards[:3]) + (" and more" if len(backwards) > 3 else "")
        note(f"Subtitles that end before they begin, or at once, are left out: at {at}.")
    messages = [line for line in lines if line[3] > line[2]]
    try:
        spoken = who_speaks(messages, names, note)
    except NobodyKnows as error:
        raise TimelineError(
            f"The subtitle '{error}' does not say who speaks. Begin it with a name: 'Anna: …', '[Anna] …' or '<v Anna>…'."
        ) from error
    return [(name, turn.start, turn.stop) for turn in spoken for name in turn.names]


def _clock(time: str) -> float:
    return seconds_of(time.replace(",", "."))


def _read_subtitles(text: str) -> list[tuple[str, str, float, float]]:
    """(actor, text, start, stop) of SRT, WebVTT or ASS; times in s."""
    try:
        import pysubs2
    except ImportError as error:
        raise ImportError("Reading subtitles needs pysubs2: pip install pysubs2") from error
    whole = WHOLE_SECONDS.sub(r"\1,000\2,000\3", text.strip().lstrip(BOM))
    try:
        lines = pysubs2.SSAFile.from_string(whole + "\n", keep_html_tags=True, keep_unknown_html_tags=True)
    except (pysubs2.exceptions.Pysubs2Error, ValueError) as error:
        raise TimelineError(f"The subtitles cannot be read ({error}). Paste a whole SRT or WebVTT file, or write {EXAMPLE}.") from error
    return [(line.name, line.text, line.start / 1000, line.end / 1000) for line in lines if not line.is_comment]


def speaking_order(spoken: Iterable[str], names: Sequence[str]) -> list[str]:
    """The speakers from left to right: `names`, else letters and numbers by themselves, else in the order in which they come."""
    come: dict[str, str] = {}
    for name in spoken:
        come.setdefault(same_person(name), name)
    if not names:
        numbered = all(NUMBERED.fullmatch(name) for name in come.values())
        return sorted(come.values(), key=str.casefold) if numbered else list(come.values())
    known = {same_person(name) for name in names}
    if strangers := [name for key, name in come.items() if key not in known]:
        speaks = f"{', '.join(strangers)} {'speak' if len(strangers) > 1 else 'speaks'}"
        raise TimelineError(f"{speaks}, but the names are {', '.join(names)}. Write one of these, or add to the names.")
    return list(names)


def turns_of_clips(lengths: Sequence[float], pause: float, order: Sequence[int]) -> list[Turn]:
    """Clips one after the other: clip i is spoken by order[i]."""
    turns: list[Turn] = []
    for length, speaker in zip(lengths, order, strict=True):
        start = turns[-1].stop + pause if turns else 0.0
        turns.append(Turn(speaker, start, start + length))
    return turns


def own_track(sound: Sound, turns: Sequence[Turn]) -> Sound:
    """A recording with zero samples wherever a speaker is not said to speak, as long as before."""
    waveform, rate = sound
    return waveform * own_gain(waveform.shape[-1], rate, turns), rate


def own_gain(samples: int, rate: int, turns: Sequence[Turn]) -> Tensor:
    """[samples]: 1 in a speaker's turns, 0 elsewhere, with short ramps inside the turns."""
    gain = torch.zeros(samples)
    for turn in turns:
        start, stop = round(turn.start * rate), min(round(turn.stop * rate), samples)
        if stop > start:
            ramp = torch.arange(1, stop - start + 1) / max(1, round(FADE * rate))
            gain[start:stop] = torch.maximum(gain[start:stop], torch.minimum(ramp, ramp.flip(0)).clamp(max=1))
    return gain


def spans(active: Tensor, fps: int, longest_gap: float = 0.3) -> list[tuple[float, float]]:
    """Where a curve [F] is above 0, in seconds; gaps that are not longer than `longest_gap` are closed."""
    found: list[tuple[float, float]] = []
    for frame in (active > 0).nonzero().flatten().tolist():
        start, stop = frame / fps, (frame + 1) / fps
        if found and start - found[-1][1] <= longest_gap + 1e-9:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found
