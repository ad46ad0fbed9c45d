"""What a test run costs, in counts: seconds vary by two on shared cores, counts do not. LIMITS holds the quick tier's.

Counted while a test runs, its fixtures included: ComfyUI processes, graphs sent to them, frames × steps those graphs asked for, browser
pages, and other programs. Every test's counts travel with its report, so that two processes (pytest-xdist) add up.
Not counted: what a program that a test starts does in its turn (`dev.py serve` starts a ComfyUI), sampling without a ComfyUI process,
and the frames × steps of a ComfyUI that was killed.
"""

import json
import logging
import os
import sys
import urllib.request
from collections import Counter
from contextlib import suppress

import pytest

BOOTS, GRAPHS, WORK, PAGES, PROGRAMS = "ComfyUI processes", "graphs sent", "frames × steps", "browser pages", "programs started"
LIMITS = {BOOTS: 8, GRAPHS: 320, WORK: 26_000, PAGES: 2, PROGRAMS: 70}  # of the quick tier
TAKEN = "got prompt"  # what ComfyUI logs for every graph that is sent, before it looks at it
STEPS, FRAMES = ("steps",), ("frames", "clip_frames")  # names of inputs
FPS, WHOLE_SAMPLE = 25, 4.0  # frames a second; seconds of one of the demo's voices, where no duration is given

counts: Counter[str] = Counter()
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's loopback


def _started(event: str, arguments: tuple) -> None:
    if event != "subprocess.Popen":
        return
    given = arguments[1]  # a list, or on Windows a line
    command = given if isinstance(given, str) else " ".join(map(str, given))
    if "watcher.py" not in command:  # what ends a process whose starter is gone
        main = os.path.join(os.environ.get("COMFYUI_PATH", "?"), "main.py")
        counts[BOOTS if main in command and "--base-directory" in command else PROGRAMS] += 1


sys.addaudithook(_started)


class _Taken(logging.Handler):
    """Graphs of a ComfyUI whose lines the worker's keeper logs."""

    def emit(self, record: logging.LogRecord) -> None:
        counts[GRAPHS] += TAKEN in record.getMessage()


def count_servers(server_class: type) -> None:
    """Count what every server of this class was asked for when it ends: its log has a line a graph, its history the graphs."""
    close = server_class.__exit__

    def count_and_close(self, *exception):
        try:
            counts[GRAPHS] += self.log.read_text(encoding="utf-8", errors="replace").count(TAKEN)
            count_work(self.url)
        finally:
            close(self, *exception)

    server_class.__exit__ = count_and_close


def count_work(url: str) -> None:
    """Add the frames × steps that a running ComfyUI was asked for; nothing where none answers."""
    with suppress(OSError, ValueError), _direct.open(f"{url}/history", timeout=10) as answer:
        counts[WORK] += sum(work_of(entry["prompt"][2]) for entry in json.load(answer).values())


def work_of(prompt: dict) -> int:
    """Frames × steps of a graph in API format; 0 where it does not sample. A long video has the frames of its voices."""
    given = [item for node in prompt.values() for item in node.get("inputs", {}).items() if isinstance(item[1], int)]
    steps, frames = (max((value for name, value in given if name in names), default=0) for names in (STEPS, FRAMES))
    if any(node["class_type"] == "MultiTalkLongVideo" for node in prompt.values()):
        voices = [node["inputs"] for node in prompt.values() if node["class_type"] == "MultiTalkLoadAudio"]
        frames = max(frames, round(FPS * sum(voice["duration"] or WHOLE_SAMPLE for voice in voices)))
    return steps * frames


def too_many(found: Counter[str]) -> list[str]:
    """A line for every limit that was passed."""
    return [f"{found[name]} {name}; at most {limit} were expected" for name, limit in LIMITS.items() if found[name] > limit]


def is_whole(config: pytest.Config) -> bool:
    """Whether a tier runs with all of its tests, so that what is missing from it is missing."""
    chosen = ("keyword", "markexpr", "lf", "deselect", "ignore", "ignore_glob")
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not any(getattr(config.option, name, None) for name in chosen)


class Plugin:
    """Adds a test's counts to its last report; sums them where the run is reported, and fails a whole quick run that is over a limit."""

    def __init__(self, config: pytest.Config):
        self._is_worker, self._before, self.sums = hasattr(config, "workerinput"), Counter(), Counter()
        self._is_held = is_whole(config) and not config.option.all and not self._is_worker
        keepers = logging.getLogger("comfyui")
        keepers.setLevel(logging.INFO)
        keepers.addHandler(_Taken())

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = (yield).get_result()
        if report.when == "teardown":
            spent = counts - self._before
            self._before = counts.copy()
            report.user_properties = [*report.user_properties, ("costs", dict(spent))]

    def pytest_runtest_logreport(self, report):
        if not self._is_worker and report.when == "teardown":
            self.sums.update(dict(report.user_properties).get("costs", {}))

    def pytest_sessionfinish(self, session):
        if self._is_held and too_many(self.sums) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.sums:
            of = {name: f" of {LIMITS[name]}" if self._is_held else "" for name in LIMITS}
            terminalreporter.write_line("costs: " + ", ".join(f"{self.sums[name]}{of[name]} {name}" for name in LIMITS))
        for line in too_many(self.sums) if self._is_held else ():
            terminalreporter.write_line(f"FAILED the quick tier stays quick: {line} (tests/support/costs.py)", red=True)
