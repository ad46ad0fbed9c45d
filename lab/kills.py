"""`python dev.py kills --count 100`: kill -9 of ComfyUI while it makes a long video, again and again; the file must come out the same.

Every kill is aimed at a phase: where ComfyUI is, is seen from outside, by its progress messages and by what lies in the job's folder.
What is found afterwards says whether it was hit; a miss is reported and counts for nothing but the check of the file.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..tools.comfyui.server import ComfyServer
from ..tools.processes import leave_on_signals

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("denoise", "decode", "segment", "manifest", "join", "anywhere")
CLIPS, STEPS = 5, 2
SIDE = 96  # pixels: at 64, a clip is often decoded before word of its last step comes
POLL = 1e-4  # s; some phases last a few milliseconds, and a loop without a pause would take a core from ComfyUI
LONGEST = 120.0  # s that a phase may be waited for


@dataclass(frozen=True)
class Kill:
    """One kill -9, and what came of it."""

    seed: int
    phase: str  # that it was aimed at
    clip: int
    hit: bool
    finished: int  # clips on the disk when it came
    same: bool  # the finished file's bytes are those of a video that nobody stopped
    resumed: bool  # it went on from those clips, and left nothing behind

    def __str__(self) -> str:
        result = "same file" if self.same else "ANOTHER FILE"
        result += "" if self.resumed else ", NOT RESUMED"
        return f"seed {self.seed}: {self.phase} of clip {self.clip}{'' if self.hit else ' (missed)'}, {self.finished} finished: {result}"


class Progress:
    """How many steps a server says are done, from its websocket."""

    def __init__(self, server: ComfyServer) -> None:
        self.client, self.steps = uuid.uuid4().hex, 0
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._listen(server.port)), daemon=True).start()
        self._ready.wait(10)

    async def _listen(self, port: int) -> None:
        import aiohttp  # ComfyUI's own

        try:
            async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://127.0.0.1:{port}/ws?clientId={self.client}") as socket:
                self._ready.set()
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.TEXT and (data := json.loads(message.data))["type"] == "progress":
                        self.steps = data["data"]["value"] if data["data"]["max"] == CLIPS * STEPS else self.steps
        except aiohttp.ClientError:
            self._ready.set()  # it was killed


def graph(prefix: str) -> dict[str, Any]:
    """Five clips of a drawn face, two steps each; `prefix` changes no pixel, but ComfyUI runs the graph again."""
    prompt = json.loads((ROOT / "workflows" / "api" / "demo_long_talk.json").read_text(encoding="utf-8"))
    by_class = {node["class_type"]: node["inputs"] for node in prompt.values()}
    by_class["LoadImage"]["image"] = "face_small.png"
    for node in prompt.values():
        if node["class_type"] == "MultiTalkLoadAudio":
            node["inputs"]["duration"] = 0.45
    by_class["MultiTalkLongVideo"] |= {
        "width": SIDE,
        "height": SIDE,
        "steps": STEPS,
        "clip_frames": 9,
        "motion_frames": 5,
        "filename_prefix": prefix,
    }
    return prompt


def start(base: Path) -> ComfyServer:
    server = ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT, base=base)
    (base / "input").mkdir(parents=True, exist_ok=True)
    for file in (*(ROOT / "demo" / "samples").glob("*.png"), *(ROOT / "demo" / "samples").glob("*.wav")):
        (base / "input" / file.name).write_bytes(file.read_bytes())
    return server


def finish(server: ComfyServer, prefix: str) -> tuple[str, str]:
    """Queue the graph and let it end; the checksum of what is seen and heard, and the node's report."""
    import av

    outputs = server.run(graph(prefix))
    (file,) = [file for file in server.files(outputs) if file.suffix == ".mp4"]
    (report,) = [output["text"][0] for output in outputs.values() if "text" in output]
    with av.open(str(file)) as container:  # the file also holds the graph, with its prefix
        return hashlib.sha256(b"".join(bytes(packet) for packet in container.demux())).hexdigest(), report


def kills(
    base: Path, count: int, seed: int, report: Callable[[Kill], None] = lambda kill: None, phases: Sequence[str] = PHASES
) -> list[Kill]:
    """So many kills, aimed at the phases in turn; each server finishes what the one before was killed at, and is killed at the next."""
    done: list[Kill] = []
    aimed: tuple[str, int, bool, int] | None = None
    whole = ""
    for number in range(count + 1):
        with start(base) as server:
            if aimed is None:
                whole, _ = finish(server, "whole/a")
            else:
                made, item = finish(server, f"again/{number}")
                kept = f"{aimed[3]} clips were finished before" if aimed[3] else "all clips made now"
                left = os.listdir(base / "output" / "multitalk_jobs")
                kill = Kill(seed + number - 1, *aimed, same=made == whole, resumed=kept in item and not left)
                done.append(kill)
                report(kill)
            if number < count:
                aimed = aim(server, phases[number % len(phases)], random.Random(seed + number), f"killed/{number}")
    return done


def aim(server: ComfyServer, phase: str, drawn: random.Random, prefix: str) -> tuple[str, int, bool, int]:
    """Queue the graph, and kill the server when it is in the phase; tells phase, clip, whether it was hit, and how many clips are there."""
    clip = drawn.randrange(CLIPS)
    progress = Progress(server)
    server.queue(graph(prefix), progress.client)
    folder = Folder(server.base, prefix)
    while not folder.find():
        time.sleep(0.001)
    reached: dict[str, Callable[[], bool]] = {
        "denoise": lambda: progress.steps >= STEPS * clip + 1,
        "decode": lambda: progress.steps >= STEPS * (clip + 1),
        "segment": lambda: folder.has(f"partial_clip_{clip:05}.mp4") or folder.has(f"clip_{clip:05}.mp4"),
        "manifest": lambda: folder.has(f"clip_{clip:05}.mp4"),
        "join": folder.joining,
        "anywhere": lambda: True,
    }
    deadline = time.monotonic() + LONGEST
    while not reached[phase]() and not folder.is_removed():  # what is missed is missed
        if time.monotonic() > deadline or server.process.poll() is not None:
            raise RuntimeError(f"The phase {phase} of clip {clip} never came. {server.log_tail(20)}")
        time.sleep(POLL)
    wait = {"denoise": 0.1, "decode": 0.02, "anywhere": 4.0}.get(phase, 0.0)
    time.sleep(drawn.uniform(0, wait))
    server.process.kill()
    server.process.wait()
    return phase, clip, folder.died_in(phase, clip), folder.finished()


class Folder:
    """A job's folder as a killed process leaves it."""

    def __init__(self, base: Path, prefix: str) -> None:
        self._jobs, self._out = base / "output" / "multitalk_jobs", (base / "output" / prefix).parent
        self._job = self._jobs

    def find(self) -> bool:
        found = list(self._jobs.glob("*/manifest.jsonl"))
        if found:
            self._job = found[0].parent
        return bool(found)

    def has(self, name: str) -> bool:
        return (self._job / name).exists()

    def is_removed(self) -> bool:
        return not self._job.exists()

    def joining(self) -> bool:
        return (self._out / f".{self._job.name}.partial.mp4").exists()

    def finished(self) -> int:
        """Whole lines of the manifest but its first."""
        return (self._job / "manifest.jsonl").read_bytes().count(b"\n") - 1 if self.has("manifest.jsonl") else 0

    def died_in(self, phase: str, clip: int) -> bool:
        names = [f"{partial}clip_{clip:05}{end}" for partial in ("partial_", "") for end in (".mp4", "_motion.npy")]
        written = {name for name in names if self.has(name)}
        if phase in ("denoise", "decode"):
            return self.finished() == clip and not written
        if phase == "segment":
            return f"partial_clip_{clip:05}.mp4" in written
        if phase == "manifest":
            return self.finished() == clip and f"clip_{clip:05}.mp4" in written
        return self.joining() if phase == "join" else True


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py kills", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--least", type=int, default=0, help="hits that every phase must have (default: %(default)s)")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="to aim at (default: all, in turn)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    leave_on_signals()
    with tempfile.TemporaryDirectory(prefix="multitalk-kills-") as folder:
        done = kills(Path(folder), options.count, options.seed, lambda kill: print(kill, flush=True), options.phases)
    hits = Counter(kill.phase for kill in done if kill.hit)
    wrong = [kill for kill in done if not (kill.same and kill.resumed)]
    print(f"{len(done)} kills, {len(wrong)} not gone on from as they should; hit: " + ", ".join(f"{name} {hits[name]}" for name in PHASES))
    return 1 if wrong or min(hits[phase] for phase in options.phases) < options.least else 0
