"""Recordings into a cast: every speaker's own track on one clock, the mixed sound, and who speaks when."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..audio.loudness import speech_energy
from ..audio.sound import mix, mono_16k, to_mono
from ..clock import FPS, ordinary, read_list, seconds_of, video_frames
from ..errors import AudioError
from ..notes import note
from .label_forms import same_person
from .speakers import MAX_SPEAKERS, Speaker
from .timeline import Sound, Timeline, TimelineError, Turn, own_track, parse_names, parse_turns, spans, speaking_order, turns_of_clips

LETTERS = "ABCD"
SEPARATORS = re.compile(r"[,;\n]")
STEREO = 2  # channels that a video plays as they are
LATEST = 36_000  # s, as a start time of MultiTalk Speaker


@dataclass(frozen=True)
class Dialogue:
    """What a video's people say, on one clock."""

    speakers: tuple[Speaker, ...]
    timeline: Timeline
    tracks: tuple[Sound, ...]  # what each says, equally long
    sound: Sound  # all of it, as it will be heard


def in_turn(sounds: Sequence[Sound], order: str, pause: float, names: Sequence[str]) -> tuple[Timeline, list[Sound]]:
    """Clips one after the other with a pause between; `order` says who speaks each ("A, B, A"), without it everybody has one."""
    who = [name.strip() for name in SEPARATORS.split(ordinary(order)) if name.strip()]
    known = speaking_order(who, names) if who else list(names) or list(LETTERS[: len(sounds)])
    who = who or known[: len(sounds)]
    if len(who) != len(sounds):
        raise TimelineError(
            f"{len(sounds)} clips are connected, but {len(who)} speakers are named in turn. Write one for each, such as A, B, A."
        )
    places = {same_person(name): place for place, name in enumerate(known)}
    turns = turns_of_clips([_seconds(sound) for sound in sounds], pause, [places[same_person(name)] for name in who])
    return _laid(sounds, turns, known)


def at_once(sounds: Sequence[Sound], starts: str, names: Sequence[str]) -> tuple[Timeline, list[Sound]]:
    """One clip for every speaker, each from a time on ("0, 3.5"); without a time, from the beginning."""
    try:
        times = read_list(starts, lambda listed: _starts(listed, len(sounds))) if starts.strip() else []
    except TimelineError:
        raise
    except ValueError as error:
        raise TimelineError(str(error)) from error
    times += [0.0] * (len(sounds) - len(times))
    turns = [Turn(i, start, start + _seconds(sound)) for i, (sound, start) in enumerate(zip(sounds, times, strict=True))]
    return _laid(sounds, turns, list(names) or list(LETTERS[: len(sounds)]))


def by_turns(sounds: Sequence[Sound], text: str, names: Sequence[str]) -> tuple[Timeline, list[Sound]]:
    """One recording of all, cut up by who speaks when."""
    sound = _only(sounds, "who speaks when")
    timeline = parse_turns(text, _seconds(sound), names)
    heard = (to_mono(*sound)[None], sound[1])  # the model hears one channel; a copy of all for everybody would be large
    return timeline, [own_track(heard, timeline.of(i)) for i in range(len(timeline.names))]


ALIKE = 0.9  # correlation of two channels that are one person's


def by_channels(sounds: Sequence[Sound], names: Sequence[str]) -> tuple[Timeline, list[Sound]]:
    """One recording with a speaker on every channel."""
    waveform, rate = _only(sounds, "channels")
    count = waveform.shape[0]
    if count < 2:
        raise AudioError("The audio is mono, so its channels cannot be speakers. Use 'who speaks when', or a stereo recording.")
    if _alike(waveform):
        note(
            "The channels of the audio hold nearly the same sound, so everybody would speak at once. For a recording of all together, use "
            "'who speaks when'."
        )
    tracks = [(waveform[i : i + 1], rate) for i in range(count)]
    turns = [Turn(i, *span) for i, track in enumerate(tracks) for span in _active(track)]
    return Timeline(tuple(names or LETTERS[:count]), tuple(sorted(turns, key=lambda turn: (turn.start, turn.speaker)))), tracks


def _alike(waveform: Tensor) -> bool:
    """Whether two channels [C, N] are nearly the same, but for how loud they are."""
    whole = waveform.double() - waveform.double().mean(dim=1, keepdim=True)
    length = whole.square().sum(dim=1).sqrt().clamp(min=1e-12)
    alike = (whole @ whole.T / (length[:, None] * length)).abs() - torch.eye(len(whole), dtype=torch.float64)
    return bool(alike.max() > ALIKE)


def dialogue(
    sounds: Sequence[Sound], mode: str, when: str = "", pause: float = 0.0, names: str = "", clean: Callable[[Sound], Sound] | None = None
) -> Dialogue:
    """Bring recordings onto one clock.

    Args:
        mode: one of MODES.
        when: by mode: who speaks each clip, the clips' start times, or who speaks when; see the functions above.
        pause: s between clips in turn.
        names: of the speakers, from left to right.
        clean: what a speaker hears of their own track, such as speech alone; what is played stays.
    Raises:
        AudioError, TimelineError, ImportError: what is ambiguous, or cannot be read.
    """
    if not sounds:
        raise AudioError("No audio is connected. Connect one for every speaker, or one for all with who speaks when.")
    if mode not in MODES:
        raise TimelineError(f"The mode '{mode}' is not known. Use {', '.join(MODES)}.")
    timeline, tracks = MODES[mode](sounds, when, pause, parse_names(names))
    if not len(tracks) == len(timeline.names) <= MAX_SPEAKERS:
        raise TimelineError(
            f"{len(tracks)} speakers were found for {len(timeline.names)} names; "
            f"one name for each, and at most {MAX_SPEAKERS}, were expected."
        )
    recorded = mode in ("who speaks when", "channels")
    too_wide = mode == "channels" and len(tracks) > STEREO  # a player's average of all channels would make each of them quiet
    sound = sounds[0] if recorded and not too_wide else mix(tracks, "parallel")
    if recorded:  # what is played is the recording, once: it goes with the first who speaks, and the others add nothing
        first = timeline.turns[0].speaker if timeline.turns else 0
        played = [sound if i == first else (torch.zeros(1, 1), sound[1]) for i in range(len(tracks))]
    else:
        played = tracks
    heard = [clean(track) for track in tracks] if clean else tracks
    speakers = tuple(
        # somebody who never speaks is a silent speaker
        Speaker(*track, start=0.0, name=name, played=share) if timeline.of(i) else Speaker(name=name)
        for i, (track, share, name) in enumerate(zip(heard, played, timeline.names, strict=True))
    )
    return Dialogue(speakers, timeline, tuple(tracks), sound)


def _laid(sounds: Sequence[Sound], turns: Sequence[Turn], names: Sequence[str]) -> tuple[Timeline, list[Sound]]:
    """Every speaker's clips at their times, all tracks equally long."""
    count = max(len(names), 1 + max(turn.speaker for turn in turns))
    if count > MAX_SPEAKERS or count > len(names):
        raise TimelineError(f"There are {count} speakers and {len(names)} names; at most {MAX_SPEAKERS}, each with a name, were expected.")
    end = max(turn.stop for turn in turns)
    tracks = []
    for speaker in range(len(names)):
        own = [(sound, turn.start) for sound, turn in zip(sounds, turns, strict=True) if turn.speaker == speaker]
        clips, starts = zip(*own, strict=True) if own else ([(torch.zeros(1, 1), sounds[0][1])], [0.0])
        waveform, rate = mix(clips, "parallel", starts)
        missing = round(end * rate) - waveform.shape[-1]
        tracks.append((torch.nn.functional.pad(waveform, (0, max(0, missing))), rate))
    ordered = tuple(sorted(turns, key=lambda turn: (turn.start, turn.speaker)))
    return Timeline(tuple(names), ordered), tracks


def _active(track: Sound) -> list[tuple[float, float]]:
    voice = mono_16k(*track)
    return spans(speech_energy(voice, video_frames(len(voice))), FPS)


def _only(sounds: Sequence[Sound], mode: str) -> Sound:
    if len(sounds) != 1:
        raise AudioError(f"{len(sounds)} audios are connected; '{mode}' takes one recording of everybody.")
    return sounds[0]


def _seconds(sound: Sound) -> float:
    return sound[0].shape[-1] / sound[1]


def _starts(text: str, clips: int) -> list[float]:
    times = [_start(part) for part in SEPARATORS.split(text)]
    if len(times) > clips:
        raise TimelineError(f"{len(times)} start times are given for {clips} clips. Write one for each, such as 0, 3.5.")
    return times


def _start(text: str) -> float:
    try:
        start = seconds_of(text.strip())
    except ValueError as error:
        raise TimelineError(f"'{text.strip()}' is no start time. Write one for each clip, such as 0, 3.5.") from error
    if start > LATEST:
        raise TimelineError(f"A clip starts at {start:g} s; at most {LATEST} s (ten hours) was expected.")
    return start


# what each makes of (sounds, when, pause, names)
MODES: dict[str, Callable[[Sequence[Sound], str, float, Sequence[str]], tuple[Timeline, list[Sound]]]] = {
    "in turn": in_turn,
    "at once": lambda sounds, when, pause, names: at_once(sounds, when, names),
    "who speaks when": lambda sounds, when, pause, names: by_turns(sounds, when, names),
    "channels": lambda sounds, when, pause, names: by_channels(sounds, names),
}
