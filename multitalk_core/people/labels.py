"""Who speaks in subtitles: labels as people and tools write them, and what is a guess.

Tools and people whose labels are read: whisperX (`[SPEAKER_00]: …`), whisper.cpp (`(speaker 0) …`, `[SPEAKER_TURN]`), Premiere (a line
`Speaker 1` above the text), Aegisub (the actor of a line), WebVTT (`<v Anna>`), YouTube (`>> ANNA: …`), screenplays (`BEN (O.S.):`), dashes
for two people in one subtitle, and full-width brackets and colons. What a single line says is in `label_forms`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .label_forms import (
    ALL,
    COLON,
    DASH,
    LIKELY,
    MANNER,
    SOUNDS,
    SURE,
    TOGETHER,
    TWO,
    UNLIKELY,
    bare,
    is_no_speech,
    label,
    looks_like_a_name,
    one_name,
    pieces,
    plain,
    same_person,
)

SHOWN = 3  # guesses that a note names
FEW = 3  # subtitles among which a name that comes once is no rarity
CHANGE = re.compile(r">>+|≫|\[\s*(?:SPEAKER[_ ]TURN|speaker change)\s*\]", re.IGNORECASE)
SECOND_DASH = re.compile(r"(?<=[.!?…。！？])\s+[-–—]\s+")
ENDED = re.compile(r"[.!?…。！？][\"”’»)\]]*\s*$")
VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>", re.IGNORECASE)  # WebVTT


@dataclass(frozen=True)
class Spoken:
    """A stretch of time, and who speaks."""

    names: tuple[str, ...]  # several speak together
    start: float  # s
    stop: float


@dataclass(frozen=True)
class _Part:
    """What one person says in a subtitle; times are s."""

    text: str
    start: float = 0.0
    stop: float = 0.0
    name: str = ""
    surely: int = 0
    rest: str = ""  # without the name
    turn: bool = False  # another person than before, whoever it is
    shared: bool = False  # the subtitle's time is shared by length of text
    stranger: str = ""  # a name that is not among those that are given


class NobodyKnows(ValueError):
    """A subtitle of which nobody can tell who speaks; the message is the subtitle."""


def who_speaks(subtitles: Iterable[tuple[str, str, float, float]], names: Sequence[str], tell: Callable[[str], None]) -> list[Spoken]:
    """Who speaks in subtitles (actor, text, start, stop; times in s).

    A name is sure where a format or a tool says so (an actor, `<v Anna>`, `[Anna]: …`, `Speaker 1`), where it is in `names`, where two
    subtitles begin with it, or where all of them begin with one. A single beginning may be speech ("Tomorrow: …"); it counts as a name if
    it looks like one, and is reported. A subtitle without a name goes on with the speaker before; where only a change is marked (a
    second dash, ">> …") and there are two speakers, it is the other one.

    With `names`, only they count. A label that is sure and not among them is handed on, so that the caller can refuse it: somebody speaks
    who has no place. One that may be speech is not worth a stop: it is reported, and the speaker before goes on.

    Args:
        tell: gets a sentence about all that is a guess.
    Raises:
        NobodyKnows: the first subtitle has no name, or a change among more than two leaves open who it is.
    """
    known = {same_person(name): name for name in names}
    subtitles = list(subtitles)
    labels = known
    parts: list[_Part] = []
    kept_apart = {**known, **_kept_apart(text for _, text, *_ in subtitles)}
    for _ in range(2):  # the second time with all who begin a line: they may begin within one as well
        parts = _weighed(_turned(part for subtitle in subtitles for part in _parts(*subtitle, kept_apart, labels)), known)
        labels = {**{same_person(part.name): part.name for part in parts if part.name not in ("", ALL)}, **known}
    if parts and not any(part.name for part in parts) and any(part.turn for part in parts) and len(known) in (0, 2):
        known = known or {"a": "A", "b": "B"}  # only changes are marked
        parts[0] = replace(parts[0], name=next(iter(known.values())), surely=UNLIKELY, turn=False)
    spelled = {**{same_person(part.name): part.name for part in reversed(parts) if part.name}, **known}
    named = (one for part in parts if part.name not in ("", ALL) for one in _each(part.name, spelled))
    people = list(known or dict.fromkeys(named))
    found: list[Spoken] = []
    guesses: list[str] = []
    for part in parts:
        guess = ""
        if part.name == ALL and people:
            who = tuple(spelled[one] for one in people)
            guess = "everybody, although two are meant" if TWO.search(part.text) and len(people) > 2 else ""
        elif part.name and part.name != ALL:
            who = tuple(spelled[one] for one in _each(part.name, spelled))
            guess = {SURE: "", LIKELY: f"'{part.name}' may be speech"}.get(part.surely, "no names, only changes of the speaker")
        elif not found and is_no_speech(part.text):
            guesses.append(f"{part.start:.1f} s ('{_beginning(part.text)}' has no name of a speaker, so nobody speaks)")
            continue
        elif not found and part.stranger:
            who = (part.stranger,)  # nobody before to go on with: the caller refuses
        elif not found or (part.turn and (len(people) != 2 or same_person(found[-1].names[0]) not in people)):
            raise NobodyKnows(part.text.strip())
        elif part.turn:
            who = (spelled[people[1 - people.index(same_person(found[-1].names[0]))]],)
            guess = "another person, without a name"
        else:
            who = found[-1].names
            why = f"'{part.stranger}' is not among the names" if part.stranger else f"'{_beginning(part.text)}' has no name of a speaker"
            guess = f"{why}, so the one before goes on"
        if guess or part.shared:
            guesses.append(f"{part.start:.1f} s ({guess or 'several speak in one subtitle'})")
        found.append(Spoken(who, part.start, part.stop))
    if guesses:
        more = f", and {len(guesses) - SHOWN} more" if len(guesses) > SHOWN else ""
        tell(
            f"Who speaks is a guess at {', '.join(guesses[:SHOWN])}{more}. Begin these subtitles with a name, such as 'Anna: …', and write "
            "all speakers in names."
        )
    return found


def _kept_apart(texts: Iterable[str]) -> dict[str, str]:
    """Names with what stands in brackets behind them, where that distinguishes people: "Man (young)" and "Man (old)"."""
    found: dict[str, dict[str, str]] = {}
    for text in texts:
        for line in plain(text.replace("\\N", "\n")).splitlines():
            if (label := COLON.match(DASH.sub("", line, count=1))) and not MANNER.search(label[1]):
                whole, short = label[1].strip(), bare(label[1], {})
                aside = whole.removeprefix(short)
                if not aside or not SOUNDS.search(aside):
                    found.setdefault(same_person(short), {})[same_person(whole)] = whole
    twins = (wholes for short, wholes in found.items() if len(wholes) > 1 and short not in wholes)
    return {key: whole for wholes in twins for key, whole in wholes.items()}


def _each(name: str, spelled: Mapping[str, str]) -> list[str]:
    """The people of a label, by `same_person`: one, or several who are known ("Anna & Ben")."""
    several = [same_person(one) for one in TOGETHER.split(name) if one]
    return several if len(several) > 1 and all(one in spelled for one in several) else [same_person(name)]


def _beginning(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 24 else f"{text[:23]}…"


# -- one subtitle


def _parts(actor: str, text: str, start: float, stop: float, known: Mapping[str, str], labels: Mapping[str, str]) -> list[_Part]:
    """What each says in a subtitle; they share its time by how much that is. A part without text is a change that the text ends in.

    `labels`: who may begin within a line.
    """
    if actor.strip():
        name = bare(plain(actor), known)
        return [_Part(text, start, stop, one_name(name, known), SURE, text)]
    lines = [line for line in re.split(r"\\[Nn]|\n|<br ?/?>|(?=<[vV][ .])", text) if line.strip()]
    dashes = 0
    parts: list[_Part] = []
    for number, line in enumerate(lines):
        is_dashed = bool(DASH.match(plain(line)))
        dashes += is_dashed
        answers = is_dashed and bool(number) and bool(ENDED.search(plain(lines[number - 1])))
        for part in _line(line, dashes > 1 or answers, number + 1 < len(lines), known, labels):
            if parts and not part.name and not part.turn:  # the text goes on, or a name stood above it
                parts[-1] = replace(parts[-1], text=f"{parts[-1].text}\n{part.text}", rest=f"{parts[-1].rest} {part.rest}")
            else:
                parts.append(part)
    if any(part.name for part in parts):
        parts = [part for part in parts if part.name or part.turn or not is_no_speech(part.text)]
    lengths = [len((part.rest if part.surely >= LIKELY else part.text).strip()) for part in parts]
    scale = (stop - start) / max(1, sum(lengths))
    placed = []
    for part, length in zip(parts, lengths, strict=True):
        if not length and part.name and any(lengths):
            continue  # a sound or a name, and then somebody else
        end = start + length * scale if sum(lengths) else stop
        placed.append(replace(part, start=start, stop=end, shared=not placed and sum(map(bool, lengths)) > 1))
        start = end
    return placed


def _line(line: str, turn: bool, above: bool, known: Mapping[str, str], labels: Mapping[str, str]) -> Iterator[_Part]:
    """One line, or several where it changes speakers within."""
    if voice := VOICE.search(line):
        rest = plain(line[voice.end() :])
        yield _Part(rest, name=plain(voice[1]).strip(), surely=SURE, rest=rest)
        return
    before, *after = CHANGE.split(plain(line))
    if before.strip():
        first, *dashed = SECOND_DASH.split(before) if DASH.match(before) else [before]
        yield from _begin(first, turn, above, known, labels)
        for text in dashed:
            yield from _begin(text, True, above, known, labels)
    for text in after:
        yield from _begin(text, True, above, known, labels)


def _begin(text: str, turn: bool, above: bool, known: Mapping[str, str], labels: Mapping[str, str]) -> Iterator[_Part]:
    text = DASH.sub("", text, count=1) if DASH.match(text) else text
    for number, piece in enumerate(pieces(text, labels) or [text]):
        found = label(piece, above and piece == text, known)
        yield _Part(piece, name=found.name, surely=found.surely, rest=found.rest, turn=turn and not number)


# -- all subtitles


def _turned(parts: Iterable[_Part]) -> list[_Part]:
    """A change at the end of a subtitle is that of the one that follows."""
    found: list[_Part] = []
    changes = False
    for part in parts:
        if part.turn and not part.name and not part.text.strip():
            changes = True
        else:
            found.append(replace(part, turn=part.turn or changes))
            changes = False
    return found


def _weighed(parts: list[_Part], known: Mapping[str, str]) -> list[_Part]:
    """What is a name by how often it comes; what is none loses it. With names, a single beginning that only looks like one is speech."""
    often = Counter(same_person(part.name) for part in parts if part.rest or part.surely > UNLIKELY)
    if parts and not known and all(part.surely == UNLIKELY and looks_like_a_name(part.name) for part in parts):
        parts = [replace(part, surely=LIKELY) for part in parts]  # a name above each
    elif parts and not known and not any(part.surely > UNLIKELY for part in parts) and parts[0].name:
        parts = [replace(parts[0], surely=LIKELY), *parts[1:]]  # somebody must begin
    elif not known and all(
        part.surely >= LIKELY or (not part.name and is_no_speech(part.text)) for part in parts
    ):  # all begin with one: they are names, but for a rare one among many
        rare = {key for key in often if often[key] == 1} if len(parts) > FEW else set()
        rare = rare if 2 * len(rare) < len(often) else set()
        parts = [part if not part.name or same_person(part.name) in rare else replace(part, surely=SURE) for part in parts]
    sure = {same_person(part.name) for part in parts if part.surely == SURE} | {key for key in often if often[key] > 1} | {*known}
    weighed = []
    for part in parts:
        key = same_person(part.name) if part.name else ""
        several = [same_person(one) for one in TOGETHER.split(part.name) if one]
        if not part.name:
            weighed.append(part)
        elif (
            part.surely == SURE
            or (key in sure and (part.surely == LIKELY or key in known))
            or (len(several) > 1 and all(one in sure or often[one] for one in several))
        ):
            weighed.append(replace(part, surely=SURE))
        elif not known and (part.surely == LIKELY or key in sure):
            weighed.append(replace(part, surely=LIKELY))
        else:
            stranger = part.name if part.surely == LIKELY else ""
            weighed.append(replace(part, name="", surely=0, rest=part.text, stranger=stranger))
    return weighed
