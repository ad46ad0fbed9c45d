"""`python dev.py bench sync-check`: how often MultiTalk Sync Check is wrong, on clips of the demo model and on drawn ones.

Faces, voices and words are new to the model. Every clip goes through an MP4, and is checked as it is, with the speakers exchanged, with
the sound shifted, and with the voices of another clip; from the faces' boxes, and from equal parts of the picture.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "lab" / "benchmarks" / "results"
SEED = 20_280_000  # of no training, and of no other measurement
KINDS = ("one", "two", "silent")  # lab/evaluation/cases.py
SHIFTS = (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5)  # frames that mouths are late
MAX_LAG = 5  # the node's default
SOURCES, PLACES = ("model", "drawn"), ("faces", "parts")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py bench sync-check", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=24, help="of each kind: one speaker, two, two of whom one is silent (default: 24)")
    parser.add_argument("--drawn", type=int, default=96, help="clips of each kind that are drawn, not made (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of denoising (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="of faces, voices and noise (default: %(default)s)")
    parser.add_argument("--videos", type=Path, help="a folder that keeps the clips: those that are there are not made again")
    parser.add_argument("--out", type=Path, default=RESULTS / "sync_check.json")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    from .begin import begin

    begin()
    from ..surroundings import surroundings

    with tempfile.TemporaryDirectory(prefix="multitalk-sync-") as folder:
        options.videos = options.videos or Path(folder)
        options.videos.mkdir(parents=True, exist_ok=True)
        run(options, surroundings())
    return 0


def run(options: argparse.Namespace, where: dict[str, Any]) -> None:
    """All checks; what was found so far is written after each clip."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = {
        "what": __doc__.splitlines()[0],
        **where,
        "steps": options.steps,
        "seed": options.seed,
        "max_lag": MAX_LAG,
        "clips": {},
        "rows": [],
    }
    checks: list[dict[str, Any]] = []
    for source, count in zip(SOURCES, (options.clips, options.drawn), strict=True):
        made = Clips(source, options)
        for number in range(count):
            for kind in KINDS:
                checks += measure(made, kind, number, count)
            found["clips"][source] = number + 1
            found["rows"] = rows(checks)
            options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(f"{source}: clip {number + 1} of {count} of each kind", flush=True)
    print(table(found["rows"]))


class Clips:
    """Cases, and their videos as MP4."""

    def __init__(self, source: str, options: argparse.Namespace) -> None:
        from ..evaluation.cases import Scope
        from ..evaluation.evaluate import Product

        self.source, self.options, self.scope = source, options, Scope(seed=options.seed)
        self.product = Product(ROOT / "demo" / "weights")

    def case(self, kind: str, number: int) -> Any:
        from ..evaluation.cases import draw_case

        return draw_case(kind, number, self.scope)

    def frames(self, kind: str, number: int, case: Any) -> Any:
        """The finished video [F, H, W, 3]."""
        import torch

        from ..evaluation.files import read_video, write_video

        file = self.options.videos / f"{self.source}-{kind}-{number:03}-{self.options.steps}-{self.options.seed}.mp4"
        if not file.exists():
            half = file.with_suffix(".part.mp4")
            with torch.inference_mode():
                write_video(half, [case.truth()] if self.source == "drawn" else self.product.make(self._take(kind, case)))
            half.rename(file)
        return read_video(file)

    def _take(self, kind: str, case: Any) -> Any:
        from ...multitalk_core.clock import SAMPLE_RATE
        from ...multitalk_core.people.speakers import Speaker
        from ..evaluation.cases import Settings, plan_of
        from ..evaluation.evaluate import Take

        heard = tuple(
            Speaker(voice[None], SAMPLE_RATE, box=box) if voice.any() else Speaker(box=box)
            for voice, box in zip(case.voices, case.boxes, strict=True)
        )
        return Take(case.picture, heard, plan_of(kind, self.scope), Settings(steps=self.options.steps), 0.0, case.seed)


def measure(clips: Clips, kind: str, number: int, count: int) -> list[dict[str, Any]]:
    """Every check of one clip."""
    from ...multitalk_core.lipsync.check import check_sync
    from ...multitalk_core.people.speakers import Speaker

    case = clips.case(kind, number)
    frames = clips.frames(kind, number, case)
    people, (height, width) = len(case.boxes), frames.shape[1:3]
    parts = [(width * i // people, 0, width * (i + 1) // people, height) for i in range(people)]
    checked = []
    for place, regions in zip(PLACES, (case.boxes, parts), strict=True):
        for name, voices, order in variants(clips, kind, number, count, case):
            check = check_sync([frames], [regions[i] for i in order], [Speaker()] * people, voices, MAX_LAG)
            speakers = [
                {
                    "verdict": check.verdict(i),
                    "speaks": bool(voices[i].any()),
                    "correlation": float(check.correlations[i, i]),
                    "most": float(check.correlations[i].max()),
                    "lag": int(check.lags[i, i]),
                    "chance": chance(check, i),
                    "moves": check.moves[i],
                    "also": "also follows" in check.line(i),
                }
                for i in range(people)
            ]
            checked.append({"source": clips.source, "place": place, "kind": kind, "number": number, "variant": name, "speakers": speakers})
    return checked


def variants(clips: Clips, kind: str, number: int, count: int, case: Any) -> Any:
    """(name, voices, the order of the regions) of everything that is done to a clip."""
    order = list(range(len(case.boxes)))
    yield "good", list(case.voices), order
    if kind == "silent":
        return
    if kind == "two":
        yield "swapped", list(case.voices), order[::-1]
    yield "shuffled", list(clips.case(kind, (number + 1) % count if count > 1 else 1).voices), order
    for late in SHIFTS:
        yield f"{late:+d}", [shifted(voice, -late) for voice in case.voices], order


def shifted(voice: Any, frames: int) -> Any:
    """A voice [N] that comes so many frames later, or earlier below 0; what is cut off is gone, and silence comes in."""
    import torch

    samples = frames * 640
    if samples >= 0:
        return torch.nn.functional.pad(voice, (samples, 0))[: len(voice)]
    return torch.nn.functional.pad(voice[-samples:], (0, -samples))


def chance(check: Any, speaker: int) -> float:
    """The greatest of a mouth's correlations with voices, in the unit of sync_check.CONVINCING."""
    from ...multitalk_core.lipsync.check import frames_near

    pairs = zip(check.correlations[speaker].tolist(), check.voices, strict=True)
    return max(math.atanh(min(0.999, value)) * frames_near(voice) ** 0.5 for value, voice in pairs)


GOOD = {
    "good": ("in time",),
    "swapped": ("swapped",),
    "shuffled": ("no match", "unknown"),
    **{f"{late:+d}": ("in time", "late", "early") for late in SHIFTS},
}


def rows(checks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was right and wrong of each source, place and variant."""
    found = []
    kinds = sorted({(c["source"], c["place"], c["variant"]) for c in checks}, key=lambda kind: (SOURCES.index(kind[0]), kind[1], kind[2]))
    for source, place, variant in kinds:
        chosen = [c for c in checks if (c["source"], c["place"], c["variant"]) == (source, place, variant)]
        speaking = [s for c in chosen for s in c["speakers"] if s["speaks"]]
        silent = [s for c in chosen for s in c["speakers"] if not s["speaks"]]
        row: dict[str, Any] = {
            "source": source,
            "regions": place,
            "variant": variant,
            "clips": len(chosen),
            "speakers": len(speaking),
            "right": sum(s["verdict"] in GOOD[variant] and not (variant == "good" and s["also"]) for s in speaking),
            "also": sum(s["also"] for s in speaking),
            "verdicts": {v: sum(s["verdict"] == v for s in speaking) for v in sorted({s["verdict"] for s in speaking})},
            "correlation": mean([s["correlation"] for s in speaking]),
            "lowest": min(s["correlation"] for s in speaking),
            "most": max(s["most"] for s in speaking),
        }
        if variant == "shuffled":
            chances = sorted(s["chance"] for s in speaking)
            row["chance"] = {"median": chances[len(chances) // 2], "95 %": chances[int(0.95 * len(chances))], "most": chances[-1]}
        if variant[0] in "+-":
            row["clips_within_a_frame"] = sum(all(abs(s["lag"] - int(variant)) <= 1 for s in c["speakers"]) for c in chosen)
            row["exact"] = sum(s["lag"] == int(variant) for s in speaking)
        if silent:
            row |= {"silent": len(silent), "silent_still": sum(s["verdict"] == "still" for s in silent)}
            row |= {"silent_moves": max(s["moves"] for s in silent), "speaking_moves": min(s["moves"] for s in speaking)}
        found.append(row)
    return found


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(found: list[dict[str, Any]]) -> str:
    """The rows as they stand in docs/measured/sync-check.md: what was called right, of speakers; of shifts, of clips."""
    columns = [(source, place) for source in SOURCES for place in PLACES if any(row["source"] == source for row in found)]
    lines = ["|  | " + " | ".join(f"{source}, {place}" for source, place in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for title, variant, right, of in LINES:
        cells = []
        for column in columns:
            (row,) = [row for row in found if (row["source"], row["regions"], row["variant"]) == (*column, variant)]
            cells.append(f"{row[right]} of {row[of]}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


LINES = (
    ("good: in time", "good", "right", "speakers"),
    ("good, of one who is silent: still", "good", "silent_still", "silent"),
    ("exchanged: swapped", "swapped", "right", "speakers"),
    ("another clip's voices: no match", "shuffled", "right", "speakers"),
    *((f"{late:+d} frames: found within one frame", f"{late:+d}", "clips_within_a_frame", "clips") for late in SHIFTS),
)
