"""Measures the demo model on cases that it never saw, and says whether it reaches what it should.

Run by `python dev.py eval-demo`, in the environment that dev.py makes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...tools.launch import launched, start_comfy

ROOT = Path(__file__).resolve().parents[2]
SECONDS_BETWEEN_LINES = 10.0
DRAWN_AND_MEASURED_BY = (
    "lab/scenes/faces.py", "lab/scenes/scenes.py", "lab/scenes/speech.py",
    "lab/evaluation/cases.py", "lab/evaluation/evaluate.py", "lab/evaluation/files.py", "multitalk_core/*.py", "comfy_bridge/*.py",
)  # fmt: skip
TRAINING_SEEDS = 1000  # seeds below may draw what training drew
SAID_ABOUT_WEIGHTS = ("quick", "rows", "clips", "drift_videos", "vae_clips", "frames", "seed", "colour", "shuffle_audio")


class EvaluationError(RuntimeError):
    """The evaluation cannot go on; the message says what to change."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py eval-demo", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=ROOT / "demo" / "weights", help="folder of the four files (default: demo/weights)")
    parser.add_argument("--quick", action="store_true", help="eight clips and a few variants in three minutes, with bounds of their own")
    parser.add_argument("--rows", default="", metavar="NAME,NAME…", help="these rows only, such as one,two,steps,audio-3,drift")
    parser.add_argument("--clips", type=int, default=64, help="of one and of two speakers, and of their variants (default: %(default)s)")
    parser.add_argument("--few", type=int, default=16, help="of the rows that are only reported (default: %(default)s)")
    parser.add_argument("--drift-videos", type=int, default=4, help="of 12 clips, for each family (default: %(default)s)")
    parser.add_argument("--vae-clips", type=int, default=16, help="of 33 frames (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=81, help="of a clip, 4n + 1 (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the cases (default: one that training does not use)")
    parser.add_argument("--colour", type=float, default=1.0, help="strength of the colour correction in videos of many clips (default: 1)")
    parser.add_argument("--recordings", type=Path, help="folder of WAV, FLAC, MP3 or Ogg files of speech, each for a drawn face")
    parser.add_argument("--shuffle-audio", action="store_true", help="a control that must fail: audio projections in any order")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON lines, one for each video; what stands there already is not made again")
    parser.add_argument("--keep", type=Path, help="folder for the videos (default: they are removed)")
    parser.add_argument("--markdown", type=Path, help="write the tables here too")
    parser.add_argument("--json", type=Path, help="write all figures here too")
    parser.add_argument("--record", action="store_true", help="write the bounded figures into the metadata of the weight files")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here, PNG or JPG")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.frames % 4 != 1 or options.frames < 9:
        parser.error(f"--frames {options.frames} cannot be made; give 4n + 1 and at least 9, such as 81")
    if min(options.clips, options.few, options.drift_videos, options.vae_clips) < 0 or options.jobs < 1:
        parser.error("numbers of clips are 0 or more, and --jobs is at least 1")
    for folder in (options.weights, options.recordings):
        if folder and not folder.is_dir():
            parser.error(f"'{folder}' is not a folder")
    if options.seed is not None and options.seed < TRAINING_SEEDS:
        parser.error(f"--seed {options.seed} may draw cases that the model was trained on; give {TRAINING_SEEDS} or more")
    unlike = [name for name in SAID_ABOUT_WEIGHTS if getattr(options, name) != parser.get_default(name)]
    if options.record and unlike:
        parser.error(f"--record keeps what the whole evaluation says about the weights; leave out --{unlike[0].replace('_', '-')}")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    start_comfy()
    from ...tools.processes import leave_on_signals
    from .workers import WorkerError, work

    leave_on_signals()
    try:
        if options.worker:
            work(scope_of(options), options.weights, options.shuffle_audio, options.keep)
            return 0
        with folder_for_videos(options) as videos:
            return evaluate(options, videos)
    except (EvaluationError, WorkerError, OSError) as error:
        print(f"eval-demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def evaluate(options: argparse.Namespace, videos: Path) -> int:
    """Everything that is asked for: measure, print, write. 1 if a bound is missed."""
    from ..surroundings import surroundings
    from . import report
    from .metadata import add_metrics
    from .sheet import sheet_of

    scope = scope_of(options)
    check_recordings(scope)
    about = about_run(options, scope)
    found = report.figures(all_records(options, scope, about, videos))
    bounds = report.QUICK_BOUNDS if options.quick else report.BOUNDS
    tables = [table for table in (report.bounded_table(found, bounds), report.reported_table(found)) if len(table) > 1]
    missed = report.missed(found, bounds)
    if options.markdown:
        write(options.markdown, "\n\n".join(map(report.as_markdown, tables)) + "\n")
    if options.json:
        write(options.json, json.dumps({**about, **surroundings(), "figures": report.as_json(found, bounds)}, indent=1) + "\n")
    if options.record:
        add_metrics(options.weights, {"date": surroundings()["date"], "seed": scope.seed} | report.recorded(found, bounds))
    print("\n" + "\n\n".join(map(report.as_text, tables)))
    print("\n" + "\n".join([f"MISSED {sentence}" for sentence in missed] or ["all bounds of the rows measured are reached"]))
    if options.sheet:
        try:
            sheet_of(videos, scope, options.sheet)
        except FileNotFoundError as error:
            print(f"eval-demo: {error}", file=sys.stderr)
    return 1 if missed else 0


def all_records(options: argparse.Namespace, scope: Any, about: dict[str, Any], videos: Path) -> list[dict[str, Any]]:
    """What is asked for: as far as it stands in --out already, and the rest made now."""
    from .cases import groups
    from .workers import measured

    counts = counts_of(options, scope)
    wanted = groups([(row, counts[row.name]) for row in chosen_rows(options)])
    if not wanted:
        raise EvaluationError("There is nothing to measure: every row that was asked for has 0 clips. Real ones need --recordings.")
    asked = {(row, group.number) for group in wanted for row in group.rows}
    records = [record for record in stored(options.out, about) if (record["row"], record["number"]) in asked]
    pending = without(wanted, {(record["row"], record["number"]) for record in records})
    command = launched("lab.evaluation.main", *sys.argv[1:], "--worker", "--keep", str(videos))
    for record in with_progress(measured(pending, command, options.jobs), pending, len(records), scope):
        records.append(record)
        if options.out:
            append(options.out, record)
    return sorted(records, key=lambda record: record["number"])  # the same intervals whichever worker was faster


def scope_of(options: argparse.Namespace) -> Any:
    from .cases import RECORDINGS, SEED, Scope

    files = sorted(options.recordings.iterdir()) if options.recordings else []
    recordings = tuple(file for file in files if file.suffix.lower() in RECORDINGS)
    return Scope(SEED if options.seed is None else options.seed, options.frames, options.quick, options.colour, recordings)


def check_recordings(scope: Any) -> None:
    """Raises EvaluationError for a recording that nothing could be measured with: before anything is made."""
    from ...multitalk_core.errors import AudioError
    from .cases import frames_of, recorded_voice

    for file in scope.recordings:
        try:
            recorded_voice(file, frames_of("recordings", scope))
        except AudioError as error:
            raise EvaluationError(f"{file.name} of --recordings cannot be used. {error}") from error


def chosen_rows(options: argparse.Namespace) -> list[Any]:
    """The rows named, by their name or by what stands before its hyphen; all of them if none is named."""
    from .cases import QUICK, ROWS

    offered = {name: row for name, row in ROWS.items() if not options.quick or name in QUICK}
    names = [name.strip() for name in options.rows.split(",") if name.strip()] or list(offered)
    for name in names:
        if name not in offered and not any(row.startswith(f"{name}-") for row in offered):
            raise EvaluationError(f"There is no row '{name}'. Rows are {', '.join(offered)}.")
    return [row for name, row in offered.items() if name in names or name.split("-")[0] in names]


def counts_of(options: argparse.Namespace, scope: Any) -> dict[str, int]:
    from .cases import QUICK, ROWS

    if options.quick:
        return {name: min(options.clips, QUICK.get(name, 0)) for name in ROWS}
    counted = {
        "all": options.clips,
        "few": options.few,
        "drift": options.drift_videos,
        "vae": options.vae_clips,
        "recordings": len(scope.recordings),
    }
    return {name: counted[row.counted] for name, row in ROWS.items()}


def about_run(options: argparse.Namespace, scope: Any) -> dict[str, Any]:
    """What records depend on: those of one file must have it in common."""
    from ..surroundings import surroundings
    from .metadata import tensors_hash

    weights = sorted(options.weights.glob("*.safetensors"))
    code = b"".join(file.read_bytes() for pattern in DRAWN_AND_MEASURED_BY for file in sorted(ROOT.glob(pattern)))
    return {
        "weights": {file.name: tensors_hash(file) for file in weights},
        "code": hashlib.sha256(code).hexdigest()[:16],
        "shuffled_audio": options.shuffle_audio,
        "seed": scope.seed,
        "frames": scope.frames,
        "quick": scope.quick,
        "colour": scope.colour,
        "recordings": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in scope.recordings},
        "on": {name: value for name, value in surroundings().items() if name != "date"},
    }


@contextmanager
def folder_for_videos(options: argparse.Namespace) -> Iterator[Path]:
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        yield options.keep
        return
    with tempfile.TemporaryDirectory(prefix="multitalk-eval-") as folder:
        yield Path(folder)


def stored(file: Path | None, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of an earlier run; a new file gets a first line that says what they depend on.

    Raises:
        EvaluationError: the file belongs to other weights or other options.
    """
    if file is None:
        return []
    if not file.exists():
        write(file, json.dumps({"about": about}) + "\n")
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    if not lines or _about(lines[0]) != about:
        raise EvaluationError(f"{file} was written with other weights or other options. Give --out another name, or remove it.")
    if not lines[-1].endswith("\n"):  # half a line of a run that was broken off
        lines.pop()
        write(file, "".join(lines))
    return [json.loads(line) for line in lines[1:]]


def _about(line: str) -> Any:
    try:
        return json.loads(line)["about"]
    except (ValueError, KeyError, TypeError):
        return None


def append(file: Path, record: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def without(groups: list[Any], measured: set[tuple[str, int]]) -> list[Any]:
    """What is left to do."""
    from .cases import Group

    left = [Group(g.cases, g.number, tuple(row for row in g.rows if (row, g.number) not in measured)) for g in groups]
    return [group for group in left if group.rows]


def with_progress(records: Iterator[Any], pending: Sequence[Any], before: int, scope: Any) -> Iterator[Any]:
    """The records, with a line now and then that says how many there are and how long the rest will take."""
    from .cases import ROWS, cost

    total = sum(len(group.rows) for group in pending)
    work_left = whole = sum(cost(ROWS[row], group.number, scope) for group in pending for row in group.rows)
    print(f"eval-demo: {total} videos to make and measure, {before} measured before", flush=True)
    began = found = time.monotonic()
    for number, record in enumerate(records, start=1):
        yield record
        work_left -= cost(ROWS[record["row"]], record["number"], scope)
        now = time.monotonic()
        if now - found > SECONDS_BETWEEN_LINES or number == total:
            found = now
            minutes = (now - began) / 60
            left = max(0.0, minutes / (whole - work_left) * work_left)  # sums of floats
            print(f"eval-demo: {number}/{total} videos in {minutes:.1f} min, about {left:.0f} min left", flush=True)
