"""Who speaks in subtitles: labels as people and tools write them, and what is a guess.

Tools and people whose labels are read: whisperX (`[SPEAKER_00]: …`), whisper.cpp (`(speaker 0) …`, `[SPEAKER_TURN]`), Premiere (a line
`Speaker 1` above the text), Aegisub (the actor of a line), WebVTT (`<v Anna>`), YouTube (`>> ANNA: …`), screenplays (`BEN (O.S.):`), dashes
for two people in one subtitle, and full-width brackets and colons.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

WORDS = 6  # of a name; more before a colon are speech
SHOWN = 3  # guesses that a note names
# Names that tools give to whom they tell apart; one such label is enough to be sure
NUMBERED = re.compile(
    r"(?:speaker|spk|guest|person|voice|actor|character|man|woman|male|female|interviewer|sprecher(?:in)?|locuteur|hablante|relatore"
    r"|說話人|说话人|发言人|發言人|话者|話者|嘉宾|讲者)[\s_\-#]*(?:\d+|[a-z]|\?)",
    re.IGNORECASE,
)
# What stands in brackets and is a sound or a manner; beginnings of words
SOUNDS = re.compile(
    r"(?:music|song|sing|hum|laugh|chuckl|giggl|sigh|gasp|groan|moan|cough|sneez|sniff|sob|cry|cries|scream|shout|yell|whisper|applau|cheer"
    r"|clap|crowd|noise|sound|silen|inaudible|unintelligible|indistinct|foreign|speak|pause|beat|breath|exhal|inhal|phone|door|ring|beep|bell"
    r"|thunder|rain|wind|gun|explo|engine|foot|knock|static|background|chatter|continu|blank_audio|no audio|musik|lach|musique|rire|música"
    r"|risas|音乐|音樂|音楽|笑|掌声|鼓掌|拍手)",
    re.IGNORECASE,
)
# First words of what people say before a colon
SPEECH = re.compile(
    r"(?:he|she|it|they|i|we|you|this|that|these|there|here|note|remember|question|answer|warning|p\.?s\.?|so|and|but|because|one|first"
    r"|second|third|next|then|finally|yes|no|ok|okay)",
    re.IGNORECASE,
)
SMALL = re.compile(r"a|an|and|at|da|de|del|der|die|di|el|from|in|la|le|of|on|the|und|van|von|with|y", re.IGNORECASE)  # in names
CHANGE = re.compile(r">>+|\[\s*(?:SPEAKER[_ ]TURN|speaker change)\s*\]", re.IGNORECASE)
VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")  # WebVTT
MARKUP = re.compile(r"<[^>]*>|\{[^}]*\}")
DASH = re.compile(r"\s*[-–—‐]\s*(?=\S)")
BRACKETED = re.compile(r"\s*(?:\[([^\[\]]{1,60})\]|\(([^()]{1,60})\)|【([^【】]{1,60})】|〔([^〔〕]{1,60})〕)\s*(:?)\s*")
COLON = re.compile(r"\s*([^\W_][^:\n\"“”「」!?…]{0,60}?)\s*:(?!//)\s*")
EVERYBODY = re.compile(r"both|all|everyone|everybody|together|alle|beide|tous|todos|大家|众人|全員", re.IGNORECASE)
ALL = "*"  # their name here
ASIDE = re.compile(r"\s*[(\[][^()\[\]]*[^\W\d_][^()\[\]]*[)\]]$")  # (O.S.), (CONT'D), (whispering); "Man (2)" keeps his number
TOGETHER = re.compile(r"\s*(?:&|\+|/|\band\b|\bund\b|\bet\b|\by\b)\s*", re.IGNORECASE)

SURE, LIKELY, UNLIKELY = 3, 2, 1  # how surely a beginning of a line is a name


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


class NobodyKnows(ValueError):
    """A subtitle of which nobody can tell who speaks; the message is the subtitle."""


def plain(text: str) -> str:
    """Text with ordinary letters for full-width ones, ordinary spaces, and without what cannot be seen."""
    normal = unicodedata.normalize("NFKC", text)
    return "".join(letter for letter in normal if letter == "\n" or unicodedata.category(letter) not in ("Cf", "Cc"))


def who_speaks(subtitles: Iterable[tuple[str, str, float, float]], names: Sequence[str], tell: Callable[[str], None]) -> list[Spoken]:
    """Who speaks in subtitles (actor, text, start, stop; times in s).

    A name is sure where a format or a tool says so (an actor, `<v Anna>`, `[Anna]: …`, `Speaker 1`), where it is in `names`, where two
    subtitles begin with it, or where all of them begin with one. A single beginning may be speech ("Note: …"); it counts as a name if it
    looks like one. With `names`, only they count, and labels that a format or a tool gives: what else stands before a colon is speech. A
    subtitle without a name goes on with the speaker before; where only a change is marked (a second dash, ">> …") and there are two
    speakers, it is the other one.

    Args:
        tell: gets a sentence about all that is a guess.
    Raises:
        NobodyKnows: the first subtitle has no name, or a change among more than two leaves open who it is.
    """
    known = {_key(name): name for name in names}
    parts = _turned([part for subtitle in subtitles for part in _parts(*subtitle, known)])
    if parts and not known and not any(part.surely > UNLIKELY for part in parts) and parts[0].name:
        parts[0] = replace(parts[0], surely=LIKELY)  # somebody must begin
    if all(part.surely >= LIKELY for part in parts):  # all subtitles begin with one: they are names
        parts = [replace(part, surely=SURE) for part in parts]
    parts = _weighed(parts, known)
    if parts and not any(part.name for part in parts) and any(part.turn for part in parts) and len(known) in (0, 2):
        known = known or {"a": "A", "b": "B"}  # only changes are marked
        parts[0] = replace(parts[0], name=next(iter(known.values())), surely=UNLIKELY, turn=False)
    spelled = {**{_key(part.name): part.name for part in reversed(parts) if part.name}, **known}
    named = (one for part in parts if part.name not in ("", ALL) for one in _each(_key(part.name), spelled))
    people = list(known or dict.fromkeys(named))
    found: list[Spoken] = []
    guesses: list[str] = []
    for part in parts:
        guess = ""
        if part.name == ALL and people:
            who = tuple(spelled[one] for one in people)
        elif part.name and part.name != ALL:
            who = tuple(spelled[one] for one in _each(_key(part.name), spelled))
            guess = {SURE: "", LIKELY: f"'{part.name}' may be speech"}.get(part.surely, "no names, only changes of the speaker")
        elif not found or (part.turn and (len(people) != 2 or _key(found[-1].names[0]) not in people)):
            raise NobodyKnows(part.text.strip())
        elif part.turn:
            who = (spelled[people[1 - people.index(_key(found[-1].names[0]))]],)
            guess = "another person, without a name"
        else:
            who = found[-1].names
            guess = f"'{_beginning(part.text)}' has no name of a speaker, so the one before goes on"
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


def _key(name: str) -> str:
    return plain(name).casefold()


def _each(key: str, spelled: Mapping[str, str]) -> list[str]:
    """The people of a label: one, or several who are known ("Anna & Ben")."""
    several = TOGETHER.split(key)
    return several if len(several) > 1 and all(one in spelled for one in several) else [key]


def _beginning(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 24 else f"{text[:23]}…"


# -- one subtitle


def _parts(actor: str, text: str, start: float, stop: float, known: Mapping[str, str]) -> list[_Part]:
    """What each says in a subtitle; they share its time by how much that is. A part without text is a change that the text ends in."""
    if actor.strip():
        return [_Part(text, start, stop, plain(actor).strip(), SURE)]
    lines = [line for line in re.split(r"\\[Nn]|\n|(?=<v[ .])", text) if line.strip()]
    dashes = 0
    parts: list[_Part] = []
    for number, line in enumerate(lines):
        dashes += bool(DASH.match(plain(MARKUP.sub("", line))))
        for part in _line(line, dashes > 1, number + 1 < len(lines), known):
            if parts and not part.name and not part.turn:  # the text goes on, or a name stood above it
                parts[-1] = replace(parts[-1], text=f"{parts[-1].text}\n{part.text}", rest=f"{parts[-1].rest} {part.rest}")
            else:
                parts.append(part)
    lengths = [len((part.rest if part.surely >= LIKELY else part.text).strip()) for part in parts]
    scale = (stop - start) / max(1, sum(lengths))
    placed = []
    for part, length in zip(parts, lengths, strict=True):
        end = start + length * scale if sum(lengths) else stop
        placed.append(replace(part, start=start, stop=end, shared=sum(map(bool, lengths)) > 1))
        start = end
    return placed


def _line(line: str, turn: bool, above: bool, known: Mapping[str, str]) -> Iterator[_Part]:
    """One line, or several where it changes speakers within."""
    if voice := VOICE.search(line):
        rest = plain(MARKUP.sub("", line[voice.end() :]))
        yield _Part(rest, name=plain(voice[1]).strip(), surely=SURE, rest=rest)
        return
    before, *after = CHANGE.split(plain(MARKUP.sub("", line)).replace("\\h", " "))
    if before.strip():
        yield _begin(before, turn, above, known)
    for text in after:
        yield _begin(text, True, above, known)


def _begin(text: str, turn: bool, above: bool, known: Mapping[str, str]) -> _Part:
    text = DASH.sub("", text, count=1) if DASH.match(text) else text
    name, surely, rest = _label(text, above, known)
    if not name and above and not BRACKETED.match(text) and _looks_like_a_name(text.strip()):
        return _Part(text, name=text.strip(), surely=UNLIKELY, turn=turn)
    return _Part(text, name=name, surely=surely, rest=rest, turn=turn)


def _label(text: str, above: bool, known: Mapping[str, str]) -> tuple[str, int, str]:
    """(name, how surely, what follows) of a line's beginning; without a name, ("", 0, the line). `above`: other lines follow."""
    if found := BRACKETED.match(text):
        inside = next(group for group in found.groups()[:4] if group is not None).strip()
        name, rest = _bare(inside, known), text[found.end() :]
        if _is_told(name, known):
            return _told(name, known), SURE, rest
        if SOUNDS.match(inside):  # somebody may be named behind it
            name, surely, rest = _label(rest, above, known)
            return (name, surely, rest) if name else ("", 0, text)
        if _looks_like_a_name(name) and (rest.strip() or found[5] or above):
            return name, SURE if found[5] or found[3] else LIKELY, rest
    elif found := COLON.match(text):
        name, rest = _bare(found[1], known), text[found.end() :]
        clock = found[1][-1].isdigit() and rest[:1].isdigit() and text[found.end() - 1] == ":"
        if _is_told(name, known):
            return _told(name, known), SURE, rest
        if not clock and len(name.split()) <= WORDS and not SPEECH.fullmatch(name.split()[0]) and not SOUNDS.match(name):
            return name, LIKELY if _looks_like_a_name(name) else UNLIKELY, rest
    elif _is_told(text.strip(), known):  # above the text, as Premiere writes it
        return _told(text.strip(), known), SURE, ""
    return "", 0, text


def _is_told(name: str, known: Mapping[str, str]) -> bool:
    return _key(name) in known or bool(NUMBERED.fullmatch(name) or EVERYBODY.fullmatch(name))


def _told(name: str, known: Mapping[str, str]) -> str:
    return ALL if EVERYBODY.fullmatch(name) and _key(name) not in known else name


def _bare(label: str, known: Mapping[str, str]) -> str:
    """A name without what a screenplay adds to it, unless it is somebody's name with that."""
    label = label.strip()
    return label if _key(label) in known else ASIDE.sub("", label).strip() or label


def _looks_like_a_name(name: str) -> bool:
    """Every word begins with a capital, a digit, or a letter of a script without capitals; one word alone may be small."""
    words = [word for word in re.split(r"[\s_]+", name) if word]
    if not words or len(words) > WORDS or not any(letter.isalpha() for letter in name) or name[-1] in "!?,;…":
        return False
    return len(words) == 1 or all(SMALL.fullmatch(word) or not word[0].islower() for word in words)


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


def _weighed(parts: Iterable[_Part], known: Mapping[str, str]) -> list[_Part]:
    """What is a name by how often it comes; what is none loses it. With names, what only looks like one is speech."""
    parts = list(parts)
    often = Counter(_key(part.name) for part in parts if part.rest or part.surely > UNLIKELY)
    sure = {_key(part.name) for part in parts if part.surely == SURE} | {key for key in often if often[key] > 1 and not known} | {*known}
    weighed = []
    for part in parts:
        key = _key(part.name)
        if not part.name or part.surely == SURE or key in sure and (part.surely == LIKELY or key in known):
            surely = SURE if part.name else 0
        elif len(several := TOGETHER.split(key)) > 1 and all(one in sure or often[one] for one in several):
            surely = SURE
        else:
            surely = LIKELY if not known and (part.surely == LIKELY or key in sure) else 0
        weighed.append(replace(part, surely=surely) if surely else replace(part, name="", surely=0, rest=part.text))
    return weighed
