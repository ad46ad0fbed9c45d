"""The beginning of a line of subtitles: is it a speaker's label, whose, and how surely. One line alone; `labels` weighs them together.

A label is one of these, with markup, dashes and invisible signs around it, and with asides such as (O.S.) behind the name:

    Name: …        [Name] …   (Name) …   【Name】…   <Name> …   [Name]: …   [Name:] …
    NAME (V.O.) …  a screenplay's cue, also without a colon
    Name           on a line of its own above the text
    名前「…」
    Name - …       Name> …    Name | …    only where `names` has it
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

SURE, LIKELY, UNLIKELY = 3, 2, 1  # how surely a beginning of a line is a name
ALL = "*"  # the name of everybody here

WORDS = 10  # of a name; more before a colon are speech
CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
LONGEST = 10  # letters of a name that is written without spaces

# Names that tools give to whom they tell apart; one such label is enough to be sure
NUMBERED = re.compile(
    r"(?:speaker|spk|guest|host|person|participant|voice|actor|character|man|woman|boy|girl|male|female|interviewer|caller"
    r"|sprecher(?:in)?|locuteur|hablante|relatore|orador|falante|спикер|диктор|화자|참석자|説話人|說話人|说话人|发言人|發言人|話者|話し手"
    r"|スピーカー|嘉宾|讲者|男|女|男性|女性)[\s_\-#]*(?:\d+|[a-z])",
    re.IGNORECASE,
)
UNKNOWN = re.compile(r"(?:speaker|spk)?[\s_\-#]*\?+", re.IGNORECASE)  # whisper.cpp where it cannot tell
EVERYBODY = re.compile(
    r"both|all|everyone|everybody|together|alle|beide|tous|todos|大家|众人|眾人|全員|两人|兩人|二人|双方|ふたり|みんな", re.IGNORECASE
)
TWO = re.compile(r"both|beide|两人|兩人|二人|双方|ふたり", re.IGNORECASE)

# Sounds and manners that stand in brackets: whole words, as Bella and Mr. Singh are people
SOUNDS = re.compile(
    r"\b(?:music|musical|songs?|hums|humming|(?:theme|instrumental)\b.*|laughter|inaudible|unintelligible|indistinct|foreign|silence|noise|noises"
    r"|sounds?|sfx|applause|crosstalk|blank_audio|no audio|static|chatter|thunder|gunshots?|explosions?|footsteps|beeps?|phone|door|engine"
    r"|(?:sing|laugh|chuckl|giggl|sigh|gasp|groan|moan|cough|sneez|sniff|sniffl|sob|scream|shout|yell|whisper|mutter|mumbl|clap|cheer|applaud"
    r"|speak|talk|breath|exhal|inhal|ring|buzz|bark|howl|chirp|knock|slam|rumbl|crash|crackl|honk|whistl|snor|grunt|pant|play|clear|ticking"
    r"|click|rustl|chatter|continu)(?:e?s|ing|ed)|cries|crying|pauses?|beat"
    r"|musik|gelächter|lachen|lacht|musique|rires?|música|risas|risos|musica|музыка|смех)\b"
    r"|音乐|音樂|音楽|笑|掌声|鼓掌|拍手|歌声|哭|叹气|咳嗽|음악|웃음|박수",
    re.IGNORECASE,
)
NO_PERSON = re.compile(
    r"www\..*|\S+\.(?:com|org|net|io)|music|laughter|applause|sounds?|sfx|fx|音乐|音樂|音楽"
    r"|(?:sub)?titles?(?: by)?|captions?(?: by)?|transcri(?:bed|pt)(?: by)?|translat(?:ed|ion)(?: by)?|credits?|source|location"
    r"|chapter.*|kapitel.*"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day|(?:mon|diens|donners|frei|sams|sonn)tag|mittwoch"
    r"|字幕.*|时间|時間|地点|地點|原因|标题|標題|制作|製作|翻译|翻譯|来源|來源|校对|校對|监制|監製",
    re.IGNORECASE,
)  # also before a colon

# What people say before a colon, by its first word or its last
SAID_FIRST = re.compile(
    r"(?:.*(?:n't|'ll|'re|'ve|'m)|he|she|it|it's|they|i|i'm|we|you|your|my|our|his|their|this|that|that's|these|those|there|here|note|remember|question|answer|warning"
    r"|caution|p\.?\s?s\.?|so|and|but|or|if|because|one|first|second|third|next|then|finally|yes|no|ok|okay|what|who|why|how|when|where|which"
    r"|look|listen|hey|hello|hi|well|now|today|please|thanks|rule|step|chapter|part|episode|lesson|tip|example|fact|update|result|reminder"
    r"|to|for|in|on|over|as|of|with|at|email|address|phone|time|date|subject|re|http|https|mailto"
    r"|achtung|hinweis|frage|antwort|er|sie|es|ich|wir|il|elle|je|nous)",
    re.IGNORECASE,
)
SAID_LAST = re.compile(
    r"(?:said|says|say|asks?|asked|told|replied|shouted|wrote|is|was|are|were|be|do|did|this|that|these|thing|things|following|to|for|of|the|a"
    r"|an|and|or|but|with|sagt|sagte|fragt|fragte|dit|dice|dijo)",
    re.IGNORECASE,
)
SAID_CJK = re.compile(
    r"(?:我|你|他|她|它|这|這|那么|那个|注意|请|請|例如|比如|私は|彼).*|.*(?:说|說|问|問|道|是|为|たのは|とは)|问题|答案|结果|結果"
)

SMALL = re.compile(r"a|an|and|at|da|de|del|der|die|di|el|from|in|la|le|of|on|the|und|van|von|with|y", re.IGNORECASE)  # in names
TITLES = re.compile(r"\b(?:mr|mrs|ms|dr|prof|st|sgt|capt|lt|rev|hon|jr|sr|\w)\.$", re.IGNORECASE)  # full stops that end no sentence

SPOKEN_CUE = r"(?:O\.?\s?S\.?|V\.?\s?O\.?|O\.?\s?C\.?|CONT(?:['’]?D|INUED)?\.?)"  # a screenplay's: off screen, voice over, off camera
CUE = re.compile(rf"\s*([^\W_][^:\n()\[\]]{{0,60}}?)\s*[(\[]\s*{SPOKEN_CUE}\s*(?:[,/][^()\[\]\n:]*)?[)\]]\s*:?\s*", re.IGNORECASE)
ASIDE = re.compile(  # (O.S.), [whispering], ", whispering", or O.S. alone; "Man (2)" and "Man (B)" keep what tells them apart
    rf"\s*(?:[(\[](?!\W*[A-Za-z0-9]\W*[)\]])[^()\[\]]*[^\W\d_][^()\[\]]*[)\]]|,\s+[a-z][a-z ]*|\s(?-i:O\.S\.?|OS|V\.O\.?|VO|{SPOKEN_CUE}))$"
)
TOGETHER = re.compile(r"\s*(?:[&+/,;、]|\band\b|\bund\b|\bet\b|\by\b|和|と)\s*", re.IGNORECASE)
MANNER = re.compile(rf"[(\[]\s*(?:{SPOKEN_CUE}|[^()\[\]]*\b(?:on|off|over|through|via)\b[^()\[\]]*)\s*[)\]]", re.IGNORECASE)  # how, not who
JOINS = re.compile(r"(?:[&+/,、]|\b(?:and|und|et|y)|和|と)$", re.IGNORECASE)
TAGS = re.compile(
    r"</[^>]*>|<(?:b|i|u|s|c|v|em|strong|font|span|lang|ruby|rt|br|p|div|\d)(?:[\s.:/][^>]*|\d*)>|\{[^}]*\}|\*+", re.IGNORECASE
)
# Times that tools write beside a name: "[00:01] Anna: …", "Anna (00:01): …", "00:01 Anna: …", "Anna  00:01" above the text
STAMP = re.compile(
    r"[\[(]\s*\d{1,2}:\d\d(?::\d\d)?(?:[.,]\d+)?\s*[)\]]|^\s*\d{1,2}:\d\d(?::\d\d)?\s+(?=\S)"
    r"|[ \t]{2,}\d{1,2}:\d\d(?::\d\d)?\s*$",
    re.MULTILINE,
)
DASH = re.compile(r"\s*[-–—‐•·]\s*(?=\S)")
BRACKETS = [("[", "]"), ("(", ")"), ("【", "】"), ("〔", "〕"), ("〈", "〉"), ("<", ">")]
_INSIDE = "|".join(rf"{re.escape(o)}([^{re.escape(o + c)}\n]{{1,60}}){re.escape(c)}" for o, c in BRACKETS)
BRACKETED = re.compile(rf"\s*(?:{_INSIDE})\s*(:?)\s*")
COLON = re.compile(r"\s*([^\W_][^:\n\"“”「」!?…]{0,80}?)\s*:(?!//)\s*")
FACE = re.compile(r"['-]?[)(DPp|/\\](?:\s|$)|\\\w")  # what follows a colon in :-) and in C:\file
ENDS = re.compile(r"(?<=[.!?…。！？])\s*|(?<=\])\s*")  # where a sentence ends, a label may follow
LISTED = re.compile(r"(?:(?<=[,;/&])|(?<=\s[-–—]))\s*(?=[^\s:][^:,;.!?]{0,20}:)")  # behind a label, another may follow within the sentence
QUOTED = re.compile(rf"\s*([{CJK}・]{{1,{LONGEST}}}\d*)\s*([「『][^「」『』]*[」』]?)\s*$")  # 太郎「…」
SIGNS = re.compile(r"^[\s♪♫♬@#]+(?=\w)")  # that may stand before a name
MUSIC = re.compile(r"\s*[♪♫♬]")


@dataclass(frozen=True)
class Label:
    """What a line begins with."""

    name: str  # empty: nobody's
    surely: int
    rest: str  # the line behind it


def plain(text: str) -> str:
    """Text without tags, with ordinary letters for full-width ones, ordinary spaces, and without what cannot be seen."""
    normal = unicodedata.normalize("NFKC", html.unescape(TAGS.sub("", text)).replace("\\h", " ")).translate({0x2236: ":"})
    normal = STAMP.sub(" ", normal) if any(letter.isalpha() for letter in STAMP.sub("", normal)) else normal
    return "".join(letter for letter in normal if letter in "\n\t" or unicodedata.category(letter) not in ("Cf", "Cc"))


def same_person(name: str) -> str:
    """Equal for one person: case, accents, signs and spaces do not tell people apart ("R2-D2" and "r2d2", "ELODIE" and "Élodie")."""
    letters = (letter for letter in unicodedata.normalize("NFKD", name).casefold() if not "\u0300" <= letter <= "\u036f")  # accents
    return "".join(letter for letter in letters if letter.isalnum() or unicodedata.category(letter)[0] == "M") or name.strip()


def label(text: str, above: bool, known: Mapping[str, str]) -> Label:
    """A plain line's label. `above`: other lines follow in the subtitle; `known`: names that decide, by `same_person`."""
    text = SIGNS.sub("", text)
    if found := BRACKETED.match(text):
        return _bracketed(found, text, above, known)
    if (found := CUE.match(text)) and looks_like_a_name(found[1]):
        return Label(found[1].strip(), SURE, text[found.end() :])
    if found := COLON.match(text):
        return _before_colon(found, text, known)
    if (found := QUOTED.match(text)) and not _is_said(found[1]):
        return Label(found[1], LIKELY, found[2])
    for name in known.values():  # in a form that only a name that is given has
        if found := re.match(rf"\W*{spelled(name)}[\"”’»]*\s*(?:[:|>»}}\t]|[-–—‐]\s)\s*(?=\S)", text, re.IGNORECASE):
            return Label(name, SURE, text[found.end() :])
    own_line = bare(text.strip(), known)
    if above and is_told(own_line, known):  # above the text, as Premiere writes it
        return Label(one_name(own_line, known), SURE, "")
    if above and looks_like_a_name(own_line) and not _is_said(own_line) and not own_line.endswith("."):
        return Label(own_line, LIKELY if own_line.isupper() and len(own_line) > 1 else UNLIKELY, "")
    return Label("", 0, text)


def _bracketed(found: re.Match[str], text: str, above: bool, known: Mapping[str, str]) -> Label:
    groups = found.groups()
    inside = next(group for group in groups[:-1] if group is not None).strip()
    colon = bool(groups[-1]) or inside.endswith(":")
    name, rest = bare(inside.rstrip(": "), known), text[found.end() :]
    if UNKNOWN.fullmatch(inside):
        return Label("", 0, rest)
    if is_told(name, known):
        return Label(one_name(name, known), SURE, rest)
    behind = label(rest, above, known) if rest.strip() else Label("", 0, text)
    if SOUNDS.search(name) or behind.surely >= LIKELY:  # a sound, or an aside before a label
        return behind if behind.name else Label("", 0, text)
    if looks_like_a_name(name) and not _is_said(name) and (rest.strip() or colon or above):
        capital = not name[0].islower()
        return Label(name, SURE if colon or "【" in found[0] else LIKELY if capital else UNLIKELY, rest)
    return Label("", 0, text)


def _before_colon(found: re.Match[str], text: str, known: Mapping[str, str]) -> Label:
    name, rest = bare(found[1], known), text[found.end() :]
    clock = found[1][-1].isdigit() and rest[:1].isdigit() and text[found.end() - 1] == ":"
    if is_told(name, known) and not (clock and same_person(name) not in known and not NUMBERED.fullmatch(name)):
        return Label(one_name(name, known), SURE, rest)
    glued = text[found.end() - 1] == ":"
    no_label = clock or (glued and FACE.match(rest)) or len(name.split()) > WORDS or _is_said(name) or NO_PERSON.fullmatch(name)
    if no_label or UNKNOWN.fullmatch(name):
        return Label("", 0, text)
    return Label(name, LIKELY if looks_like_a_name(name) else UNLIKELY, rest)


def is_told(name: str, known: Mapping[str, str]) -> bool:
    return same_person(name) in known or bool(NUMBERED.fullmatch(name) or EVERYBODY.fullmatch(name))


def one_name(name: str, known: Mapping[str, str]) -> str:
    return ALL if EVERYBODY.fullmatch(name) and same_person(name) not in known else name


def bare(name: str, known: Mapping[str, str]) -> str:
    """A name without what a screenplay adds to it, unless it is somebody's name with that."""
    name = name.strip()
    return name if same_person(name) in known else ASIDE.sub("", name).strip() or name


def looks_like_a_name(name: str) -> bool:
    """Every word begins with a capital, a digit, or a letter of a script without capitals; one word alone may be small."""
    words = [word for word in re.split(r"[\s_]+", name) if word]
    if not words or len(words) > WORDS or not any(letter.isalpha() for letter in name) or name[-1] in "!?,;…。！？":
        return False
    if re.search(rf"[{CJK}]", name) and len(name) > LONGEST:
        return False
    return len(words) == 1 or all(SMALL.fullmatch(word) or not word[0].islower() for word in words)


def spelled(name: str) -> str:
    """A pattern for a name, however its spaces are written."""
    return r"[\s_]+".join(re.escape(word) for word in re.split(r"[\s_]+", name.strip()))


def pieces(text: str, labels: Mapping[str, str]) -> list[str]:
    """A plain line, cut before every label within it: of people who are known (`labels`), and of others where a sentence ends."""
    cuts = {0, len(text), *_known_within(text, labels), *_others_within(text)}
    if (first := BRACKETED.match(text)) and label(text, False, labels).surely >= LIKELY:  # others in the same form as the first
        starts = [found.start() for found in BRACKETED.finditer(text, first.end())]
        cuts |= {start for start in starts if label(text[start:], False, labels).surely >= LIKELY}
    edges = sorted(cuts)
    return _joined([text[start:stop] for start, stop in zip(edges, edges[1:], strict=False)])


def _known_within(text: str, labels: Mapping[str, str]) -> Iterator[int]:
    names = "|".join([*sorted(map(spelled, labels.values()), key=len, reverse=True), NUMBERED.pattern])
    before = rf"(?:(?<=[^\w'’&+/-])|(?<=[{CJK}])|(?<=\s[-–—/&+]))"
    aside = r"(?:\s*\([^()\n]{1,30}\))?"
    label_within = rf"{before}(?:[\[(【<]\s*(?:{names}){aside}\s*:?\s*[\])】>]|(?<![\[(【<])(?:{names}){aside}\s*:(?!//))"
    first = COLON.match(text)
    whole = first.end(1) if first and looks_like_a_name(first[1]) else 0  # "Old Ben: …" is nobody's but Old Ben's
    for found in re.finditer(label_within, text, re.IGNORECASE):
        behind = text[: found.start()].rstrip()
        if found.start() >= whole and not _is_joined(behind, labels) and not TITLES.search(behind):
            yield found.start()


def _is_joined(behind: str, labels: Mapping[str, str]) -> bool:
    """Whether a name goes on a list of names ("Anna, Ben: …"); behind speech ("Anna: hi, Ben: …") it does not."""
    if not JOINS.search(behind):
        return False
    names = [name for name in TOGETHER.split(re.split(r"[.!?…。！？:]", JOINS.sub("", behind))[-1].strip()) if name]
    return not names or all(same_person(name) in labels or NUMBERED.fullmatch(name) or looks_like_a_name(name) for name in names)


def _others_within(text: str) -> Iterator[int]:
    first = COLON.match(text)
    begins = first is not None and _before_colon(first, text, {}).surely >= LIKELY
    for found in [*ENDS.finditer(text), *(LISTED.finditer(text, first.end()) if first and begins else ())]:
        rest = text[found.end() :]
        colon = None if TITLES.search(text[: found.start()]) else COLON.match(rest)
        short = colon is not None and (rest[0].isupper() or re.match(f"[{CJK}]", rest)) and len(colon[1].split()) <= 3
        if colon and short and _before_colon(colon, rest, {}).surely == LIKELY:
            yield found.end()


def _joined(parts: list[str]) -> list[str]:
    """Parts without letters (a dash, a bracket) belong to what follows."""
    found: list[str] = []
    for part in parts:
        if found and not any(letter.isalnum() for letter in found[-1]):
            found[-1] += part
        else:
            found.append(part)
    return found


def _is_said(text: str) -> bool:
    """Whether words before a colon are speech ("He said", "Note this")."""
    words = text.replace("’", "'").split()
    last = len(words) > 1 and SAID_LAST.fullmatch(words[-1])  # "A" alone is a person
    return bool(SAID_FIRST.fullmatch(words[0]) or last or SAID_CJK.fullmatch(text))


def is_no_speech(text: str) -> bool:
    """Only sounds in brackets, music, or what stands before or behind a film ("Title: …")."""
    if MUSIC.match(text) or ((found := COLON.match(text)) and NO_PERSON.fullmatch(found[1].strip())):
        return True
    inside = [next(group for group in found.groups()[:-1] if group is not None) for found in BRACKETED.finditer(text)]
    return not BRACKETED.sub("", text).strip(" \n.♪♫♬#*") and all(SOUNDS.search(one) or not looks_like_a_name(one) for one in inside)
