"""Whose mouth follows whose voice in a finished video, and how late: a matrix, and what it says in words.

Every place where a speaker's mouth may be (`mouths.places`) is compared with every voice, and the one that follows any voice best is taken
as the mouth. That choice favours no voice, but makes chance look better; so do the lags that are searched. CONVINCING accounts for both: it
was measured in the same way, on voices that the mouths did not follow.

Shapes: S speakers, F video frames at 25 a second, N samples at 16 kHz. Speakers and voices are counted from 0 here, from 1 in what is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio.loudness import speech_energy
from ..audio.sound import mono_16k
from ..clock import FPS, SAMPLE_RATE
from ..errors import SpeakerError
from ..people.places import Box
from ..people.speakers import Speaker, called
from ..people.voices import Voices
from .curves import SHORTEST, correlation
from .mouths import LONGEST, MouthArea, opening, places, watch

Verdict = Literal["in time", "late", "early", "swapped", "alike", "no match", "still", "not still", "moves", "unknown"]

# From lab/benchmarks/sync_check.py and docs/measured/sync-check.md: drawn faces only. By chance, mouths of 72 clips of the demo
# model reached 6.8, and silent ones moved by 0.046 at most.
CONVINCING = 7.5  # of a correlation by chance, Fisher's z times the root of the frames in which the voice speaks stays below
LEAST_CORRELATION = 0.3  # that is called following, however long the video is
LEAST_FRAMES = 33  # of a video from which something can be said
LEAST_SPOKEN = 10  # frames that a voice must sound in
LEAST_CHANGE = 0.1  # standard deviation of a voice's loudness where it speaks; a hum has less
ALSO = 0.2  # of correlation with another voice, beyond what the voices have in common, that is worth a word
BETTER = 0.1  # correlation by which another voice must win
LIKELIER = 0.01  # of correlation less, and the likelier place is taken as the mouth: an upper lip alone follows as well as all of it
TOLERATED = 1  # frames that a mouth may be late or early: a video frame is 40 ms, and lips begin before voices do
STILL = 0.05  # of opening, between the quietest and the widest fifth of frames: a mouth that keeps still; blinks are shorter
SLOW = 25  # frames; what changes more slowly than a second (light, a head that turns) is taken out of all curves
NEAR = 12  # frames around speech that tell as much as it


@dataclass(frozen=True)
class SyncCheck:
    """How mouths follow voices."""

    speakers: tuple[Speaker, ...]
    mouths: Tensor  # [S, F] openings
    voices: Tensor  # [S, F] loudness
    boxes: tuple[Box, ...]  # in the video's pixels, where each mouth was found
    correlations: Tensor  # [S, S] of mouth i with voice j at its best lag, −1…1
    lags: Tensor  # [S, S] frames that mouth i comes after voice j then
    alike: Tensor  # [S, S] correlations of the voices with each other, at their best lags
    needed: tuple[float, ...]  # correlation with each voice that is not chance; above 1 where the voice says next to nothing
    moves: tuple[float, ...]  # how far each mouth opens and closes
    max_lag: int  # frames that were searched
    whole: bool  # whether the video ends here

    @property
    def frames(self) -> int:
        return self.mouths.shape[1]

    def verdict(self, speaker: int) -> Verdict:
        """What holds for a speaker, in a word."""
        if self.frames < LEAST_FRAMES:
            return "unknown"
        own, other = float(self.correlations[speaker, speaker]), self._other(speaker)
        rest = -1.0 if other is None else float(self.correlations[speaker, other])
        follows = own >= self.needed[speaker]
        if not self.voices[speaker].any():
            if other is not None and float(self.mouths[speaker].std(correction=0)) >= STILL / 2:
                return "not still"
            return "still" if self.moves[speaker] < STILL else "moves"
        if other is not None and rest > own:
            return "swapped" if rest > own + BETTER else "alike"
        if follows:
            lag = int(self.lags[speaker, speaker])
            return "in time" if abs(lag) <= TOLERATED else "late" if lag > 0 else "early"
        return "unknown" if self.needed[speaker] > 1 else "no match"

    def line(self, speaker: int) -> str:
        """What holds for a speaker, in a sentence, and what to do."""
        who, verdict = self._who(speaker), self.verdict(speaker)
        other = self._other(speaker)
        own, lag = float(self.correlations[speaker, speaker]), int(self.lags[speaker, speaker])
        theirs = "" if other is None else f"{self._voice(other)} ({float(self.correlations[speaker, other]):.2f})"
        if verdict in ("in time", "late", "early"):
            also = f" The mouth also follows {theirs}: does that voice reach into their mask?" if self._also(speaker) else ""
            return f"{who} follows their own voice ({own:.2f}){self._timing(lag)}.{also}"
        if verdict == "swapped":
            mutual = self._other(other) == speaker and self.verdict(other) == "swapped" if other is not None else False
            pair = " Exchange the two." if mutual else ""
            return f"{who} follows {theirs}, not their own voice ({own:.2f}): are the masks swapped?{pair}"
        most = float(self.correlations[speaker].max())
        return {
            "alike": f"{who} follows {theirs} as well as their own voice ({own:.2f}). The two sound too alike in time to tell which.",
            "no match": f"{who} follows no voice: {most:.2f} at most, {self.needed[speaker]:.2f} would tell. Is it another voice or video, "
            "is the mouth outside of the mask, or too small, dark or covered to be measured?"
            + (" Nothing moves there." if self.moves[speaker] < STILL else ""),
            "still": f"{who} keeps still, as they should.",
            "not still": f"{who} says nothing, but follows {theirs}. Give them a mask of their own, so that they hear silence.",
            "moves": f"{who} says nothing, and something moves in their region; it follows no voice ({most:.2f} at most).",
            "unknown": f"Nothing can be said about {called(self.speakers, speaker)}: their voice says next to nothing.",
        }[verdict]

    @property
    def report(self) -> str:
        """All of it in words, what needs attention first."""
        if self.frames < LEAST_FRAMES:
            return (
                f"Nothing can be said: the video has {self.frames} frames ({self.frames / FPS:.2f} s), and {LEAST_FRAMES} "
                f"({LEAST_FRAMES / FPS:.2f} s) are the least. Check a longer one."
            )
        lines = [self.line(speaker) for speaker in range(len(self.speakers))]
        good = [self.verdict(i) in ("in time", "still") and not self._also(i) for i in range(len(self.speakers))]
        head = "All is as it should be." if all(good) else f"{sum(good)} of {len(good)} speakers are as they should be."
        if not self.whole:
            lines.append(f"Only the first {LONGEST / FPS / 60:g} minutes were looked at.")
        return "\n".join([head, *lines])

    @property
    def values(self) -> dict[str, Any]:
        """All of it in numbers, for programs; speakers and voices are counted from 1, as in the report."""
        people = range(len(self.speakers))
        return {
            "frames": self.frames,
            "fps": FPS,
            "max_lag": self.max_lag,
            "speakers": [
                {
                    "speaker": i + 1,
                    "name": self.speakers[i].name,
                    "verdict": self.verdict(i),
                    "mouth": [round(edge, 1) for edge in self.boxes[i]],
                    "moves": round(self.moves[i], 4),
                    "needed": round(min(1.0, self.needed[i]), 4),
                }
                for i in people
            ],
            "pairs": [
                {"speaker": i + 1, "voice": j + 1, "correlation": round(float(self.correlations[i, j]), 4), "lag": int(self.lags[i, j])}
                for i in people
                for j in people
            ],
        }

    def _other(self, speaker: int) -> int | None:
        """The other voice that a mouth follows best, if it follows one."""
        row = [(float(self.correlations[speaker, j]), j) for j in range(len(self.speakers)) if j != speaker]
        found = max(((value, j) for value, j in row if value >= self.needed[j]), default=None)
        return found[1] if found else None

    def _also(self, speaker: int) -> bool:
        """Whether a mouth follows another voice by more than what its own has in common with that one."""
        other = self._other(speaker)
        if other is None or not self.voices[speaker].any():
            return False
        share = float(self.correlations[speaker, speaker] * self.alike[speaker, other])
        return float(self.correlations[speaker, other]) > share + ALSO

    def _who(self, speaker: int) -> str:
        name = called(self.speakers, speaker)
        return name[:1].upper() + name[1:]

    def _voice(self, voice: int) -> str:
        name = self.speakers[voice].name
        return f"voice {voice + 1} ({name})" if name else f"voice {voice + 1}"

    def _timing(self, lag: int) -> str:
        if abs(lag) <= TOLERATED:
            return ", in time"
        least = "at least " if abs(lag) == self.max_lag else ""
        way, move = ("late", "later") if lag > 0 else ("early", "earlier")
        seconds = abs(lag) / FPS
        return f", but the mouth comes {least}{abs(lag)} frames {way} ({seconds:.2f} s): move the sound {seconds:.2f} s {move}"


def check_sync(
    parts: Iterable[Tensor], regions: Sequence[Box], speakers: Sequence[Speaker], tracks: Sequence[Tensor], max_lag: int = 5
) -> SyncCheck:
    """Measure a finished video.

    Args:
        parts: of the video at 25 frames a second, each [n, H, W, 3] in 0…1; read once and not kept.
        regions: where each speaker is, in the video's pixels: the face, or more of the picture.
        speakers: who is named; nothing else of them is used.
        tracks: every speaker's own voice [N] at 16 kHz on the video's clock, zeros where they are silent. What the video is shorter than
            them is left out, and what it is longer is silent.
        max_lag: frames that mouths may be early or late.
    Raises:
        SpeakerError: numbers of regions, speakers and tracks that differ, or a region that the video does not show.
        VideoError: no frames, or frames of different sizes.
    """
    if not len(regions) == len(speakers) == len(tracks) > 0:
        raise SpeakerError(
            f"{len(speakers)} speakers, {len(regions)} regions and {len(tracks)} voices were given; one of each for everybody was expected."
        )
    seen = watch(parts, regions)
    frames = seen[0].pixels.shape[0]
    max_lag = max(0, min(max_lag, frames - SHORTEST))
    voices = torch.stack([speech_energy(track, frames) for track in tracks])
    needed = [needed_correlation(voice) for voice in voices]
    found = [_mouth(region.pixels, voices, needed, max_lag) for region in seen]
    matrix = torch.tensor([mouth.row for mouth in found])
    return SyncCheck(
        speakers=tuple(speakers),
        mouths=torch.stack([mouth.opening for mouth in found]),
        voices=voices,
        boxes=tuple(region.box_of(mouth.place) for region, mouth in zip(seen, found, strict=True)),
        correlations=matrix[..., 0],
        lags=matrix[..., 1].long(),
        alike=torch.tensor(
            [[correlation(_quick(a), _quick(b), max_lag)[0] if frames >= SHORTEST else 0.0 for b in voices] for a in voices]
        ),
        needed=tuple(needed),
        moves=tuple(mouth.moves for mouth in found),
        max_lag=max_lag,
        whole=frames < LONGEST,
    )


@dataclass(frozen=True)
class _Mouth:
    place: MouthArea
    opening: Tensor  # [F]
    row: list[tuple[float, int]]  # correlation and lag with every voice
    moves: float


def _mouth(pixels: Tensor, voices: Tensor, needed: Sequence[float], max_lag: int) -> _Mouth:
    """The place of a region's small pictures [F, h, w] that follows any of the voices [S, F] best.

    Of places that follow about as well, the mouth is where one is likelier: `places` has the likeliest first. How far it moves is told by
    the liveliest place, because a mouth that keeps still follows nothing wherever it is.
    """
    if voices.shape[1] < SHORTEST:
        place = places(pixels)[0]
        return _Mouth(place, opening(pixels, place), [(0.0, 0)] * len(voices), 0.0)
    telling = [j for j, least in enumerate(needed) if least <= 1] or range(len(voices))
    tried = []
    for place in places(pixels):
        mouth = opening(pixels, place)
        row = [correlation(_quick(mouth), _quick(voice), max_lag) for voice in voices]
        tried.append(_Mouth(place, mouth, row, _moves(mouth)))
    follows = [max(mouth.row[j][0] for j in telling) for mouth in tried]
    best = max(follows)
    place = next(mouth.place for mouth, value in zip(tried, follows, strict=True) if value >= best - LIKELIER)
    return replace(tried[follows.index(best)], place=place, moves=max(mouth.moves for mouth in tried))


def video_parts(frame: Callable[[int], Tensor], frames: int, part: int) -> Iterator[Tensor]:
    """A video's frames [n, H, W, 3], so many at a time, from what gives frame after frame as [1, H, W, 3]."""
    for start in range(0, frames, part):
        yield torch.cat([frame(number) for number in range(start, min(frames, start + part))])


def needed_correlation(voice: Tensor) -> float:
    """The correlation with a voice's loudness [F] that chance does not reach; above 1 if the voice says next to nothing.

    Chance grows as the frames around speech become fewer; Fisher's transformation (the inverse of tanh) makes it the same for all.
    """
    near = _near(voice)
    if int((voice > 0).sum()) < LEAST_SPOKEN or float(voice[near].std(correction=0)) < LEAST_CHANGE:
        return 2.0
    return max(LEAST_CORRELATION, math.tanh(CONVINCING / frames_near(voice) ** 0.5))


def frames_near(voice: Tensor) -> int:
    """How many frames tell something about who follows a voice's loudness [F]: those in which it speaks, and those around them."""
    return int(_near(voice).sum())


def _near(voice: Tensor) -> Tensor:
    return F.max_pool1d((voice > 0).float()[None], 2 * NEAR + 1, stride=1, padding=NEAR)[0] > 0


def own_tracks(voices: Voices) -> list[Tensor]:
    """Every speaker's own voice [N] at 16 kHz on the video's clock, nothing after it.

    Raises:
        SpeakerError: voices that do not say what each speaker's own is.
    """
    if len(voices.starts) != len(voices.speakers) or all(speaker.waveform is None for speaker in voices.speakers):
        raise SpeakerError("These voices hold no sound for each speaker. Connect the voices of MultiTalk Wav2Vec2 Embeds.")
    tracks = []
    for speaker, start in zip(voices.speakers, voices.starts, strict=True):
        own = torch.zeros(0) if speaker.waveform is None else mono_16k(speaker.waveform, speaker.rate)
        tracks.append(F.pad(own, (round(start * SAMPLE_RATE), 0)))
    return tracks


def _moves(mouth: Tensor) -> float:
    """Between which openings [F] a mouth is for most of the time; blinks beside it are too short to count."""
    return float(mouth.quantile(0.8) - mouth.quantile(0.2))


def _quick(curve: Tensor) -> Tensor:
    """What changes within a second."""
    half = SLOW // 2
    padded = F.pad(curve[None, None], (half, half), mode="replicate")
    return curve - F.avg_pool1d(padded, SLOW, stride=1)[0, 0]
