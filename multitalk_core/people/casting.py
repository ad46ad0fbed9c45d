"""Who is connected, and which place in the picture is whose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import SpeakerError
from ..notes import note
from .places import Box, check_box
from .speakers import COUNTED, MAX_SPEAKERS, Speaker, called, capital

LARGEST = 1e6  # pixels
STATE = '[{"box": [0.1, 0.1, 0.4, 0.9], "name": "Anna", "speaker": 1}, {"box": [0.6, 0.1, 0.9, 0.9], "silent": true}]'
ABSENT = Speaker()  # whose node is muted or bypassed in the editor: silent, and the others keep their numbers and places


@dataclass(frozen=True)
class DrawnBox:
    """A box for one person."""

    box: Box
    name: str = ""
    speaker: int | None = None  # counted from 1; None is found by name, or by the order from left to right
    silent: bool = False


def everyone(connected: Iterable[Speaker | Iterable[Speaker]]) -> tuple[Speaker, ...]:
    """All speakers of sockets that bring one or several, in order.

    Raises:
        SpeakerError: more than MAX_SPEAKERS.
    """
    speakers = tuple(one for value in connected for one in ((value,) if isinstance(value, Speaker) else value))
    if len(speakers) > MAX_SPEAKERS:
        raise SpeakerError(
            f"There are {len(speakers)} speakers, silent ones included; at most {MAX_SPEAKERS} were expected. Leave some out."
        )
    return speakers


def settled(speakers: Sequence[Speaker]) -> tuple[Speaker, ...]:
    """Speakers as they will be heard: who is absent is silent in their part of the picture, and left out where others have own places."""
    placed = any(speaker.mask is not None or speaker.box is not None for speaker in speakers)
    for number, speaker in enumerate(speakers, start=1):
        if speaker is ABSENT:
            note(f"Speaker {number} is not connected (is the node muted or bypassed?). The others go on in their own places.")
    return tuple(speaker for speaker in speakers if not (placed and speaker is ABSENT))


def parse_boxes(text: str) -> list[DrawnBox]:
    """What the box editor keeps, or an API user writes: a JSON list such as STATE. An empty text is no places.

    Raises:
        SpeakerError: anything else, by the number of the box.
    """
    if not text.strip():
        return []
    try:
        drawn = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpeakerError(f"The boxes are no JSON ({error}). A list such as {STATE} was expected.") from error
    if not isinstance(drawn, list):
        raise SpeakerError(f"The boxes are no list. A list such as {STATE} was expected.")
    return [_place(number, entry) for number, entry in enumerate(drawn, start=1)]


def _place(number: int, entry: object) -> DrawnBox:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("box"), list) or len(entry["box"]) != 4:
        raise SpeakerError(f"Box {number} has no 'box' of four numbers: left, top, right, bottom. Something like {STATE} was expected.")
    if not all(isinstance(edge, (int, float)) and not isinstance(edge, bool) for edge in entry["box"]):
        raise SpeakerError(f"Box {number} is {entry['box']}; four numbers were expected: left, top, right, bottom.")
    x0, y0, x1, y1 = (float(edge) if abs(edge) < LARGEST else math.inf for edge in entry["box"])
    check_box((x0, y0, x1, y1), f"box {number}")
    speaker = entry.get("speaker") or None
    if speaker is not None and (not isinstance(speaker, int) or isinstance(speaker, bool) or not 1 <= speaker <= MAX_SPEAKERS):
        raise SpeakerError(f"Box {number} belongs to speaker {speaker!r}; a number from 1 to {MAX_SPEAKERS} was expected.")
    return DrawnBox((x0, y0, x1, y1), str(entry.get("name") or "").strip(), speaker, bool(entry.get("silent")))


def take_boxes(speakers: Sequence[Speaker], places: Sequence[DrawnBox]) -> tuple[Speaker, ...]:
    """Speakers at their places; places that nobody takes become silent people, who come last.

    A place goes to the speaker with its number, else to the one with its name, else from left to right: to those who have neither mask nor
    box, and if boxes are left, to the others as well. Without any places, speakers keep what they have.

    Raises:
        SpeakerError: a speaker without a place, two places for one speaker, a number that nobody has.
    """
    taken: dict[int, DrawnBox] = {}
    free = []
    for place in places:
        if place.silent:
            continue
        index = _owner(place, speakers)
        if index is None:
            free.append(place)
        elif index in taken:
            raise SpeakerError(f"{capital(called(speakers, index))} has two boxes. Delete one, or give it to somebody else.{COUNTED}")
        else:
            taken[index] = place
    own = {i for i, speaker in enumerate(speakers) if speaker.mask is not None or speaker.box is not None}
    waiting = sorted((i for i in range(len(speakers)) if i not in taken), key=lambda i: i in own)
    if len(free) < len(waiting):  # places are drawn for those who are there
        waiting = [i for i in waiting if speakers[i] is not ABSENT]
    free.sort(key=lambda place: place.box[0] + place.box[2])
    taken |= dict(zip(sorted(waiting[: len(free)]), free, strict=False))
    missing = [i for i in waiting if i not in taken and i not in own]
    if places and missing and len(speakers) + len(places) > 1:
        raise SpeakerError(
            f"{capital(' and '.join(called(speakers, i) for i in missing))} {'have' if len(missing) > 1 else 'has'} no place: there are "
            f"{len(speakers)} speakers, but only {len(taken.keys() | own)} with a box. Draw one over each face.{COUNTED}"
        )
    there = [(i, s) for i, s in enumerate(speakers) if i in taken or s is not ABSENT or not places]
    placed = [replace(s, box=taken[i].box, mask=None, name=s.name or taken[i].name) if i in taken else s for i, s in there]
    silent = [place for place in places if place.silent] + free[len(waiting) :]
    return everyone([*placed, *(Speaker(box=place.box, name=place.name) for place in silent)])


def _owner(place: DrawnBox, speakers: Sequence[Speaker]) -> int | None:
    if place.speaker is not None:
        if place.speaker > len(speakers):
            raise SpeakerError(f"A box belongs to speaker {place.speaker}, but there are only {len(speakers)} speakers.{COUNTED}")
        return place.speaker - 1
    names = [speaker.name.casefold() for speaker in speakers]
    return names.index(place.name.casefold()) if place.name and place.name.casefold() in names else None
