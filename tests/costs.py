"""What a test run costs, in counts: seconds vary by two on shared cores, counts do not. LIMITS holds the quick tier's.

Counted while a test runs, its fixtures included: ComfyUI processes, graphs they took, frames × steps those graphs asked for, browser
pages, and programs. Every test's counts travel with its report, so that two processes (pytest-xdist) add up.
"""

import json
import logging
import sys
import urllib.request
from collections import Counter

import pytest

BOOTS, GRAPHS, WORK, PAGES, PROGRAMS = "ComfyUI processes", "graphs queued", "frames × steps", "browser pages", "programs started"
LIMITS = {BOOTS: 13, GRAPHS: 300, WORK: 13_000, PAGES: 2, PROGRAMS: 70}  # of the quick tier
TAKEN = "got prompt"  # what ComfyUI logs when a graph is queued
STEPS, FRAMES = ("steps",), ("frames", "clip_frames")  # names of inputs

counts: Counter[str] = Counter()


def _started(event: str, arguments: tuple) -> None:
    if event == "subprocess.Popen":
        command = [str(part) for part in arguments[1]] if isinstance(arguments[1], (list, tuple)) else [str(arguments[1])]
        is_comfyui = "--base-directory" in command and any(part.endswith("main.py") for part in command)
        counts[BOOTS if is_comfyui else PROGRAMS] += 1


sys.addaudithook(_started)


class _Taken(logging.Handler):
    """Graphs of a ComfyUI whose lines the worker's keeper logs."""

    def emit(self, record: logging.LogRecord) -> None:
        counts[GRAPHS] += TAKEN in record.getMessage()


def count_servers(server_class: type) -> None:
    """Count what every ComfyServer was asked for when it ends: its log has a line a graph, its history the graphs themselves."""
    close = server_class.__exit__

    def close_and_count(self, *exception):
        counts[GRAPHS] += self.log.read_text(encoding="utf-8", errors="replace").count(TAKEN)
        if self.process.poll() is None:
            count_work(self.url)
        return close(self, *exception)

    server_class.__exit__ = close_and_count


def count_work(url: str) -> None:
    """Add the frames × steps that a running ComfyUI was asked for; a long video counts as one clip."""
    with urllib.request.urlopen(f"{url}/history", timeout=30) as answer:
        counts[WORK] += sum(work_of(entry["prompt"][2]) for entry in json.load(answer).values())


def work_of(prompt: dict) -> int:
    """Frames of the longest clip × steps of a graph in API format; 0 where it does not sample."""
    given = [item for node in prompt.values() for item in node.get("inputs", {}).items() if isinstance(item[1], int)]
    steps, frames = (max((value for name, value in given if name in names), default=0) for names in (STEPS, FRAMES))
    return steps * frames


def too_many(found: Counter[str]) -> list[str]:
    """A line for every limit that was passed."""
    return [f"{found[name]} {name}; at most {limit} were expected" for name, limit in LIMITS.items() if found[name] > limit]


class Plugin:
    """Adds a test's counts to its last report; sums them where the run is reported, and fails a whole quick run that is over a limit."""

    def __init__(self, config: pytest.Config):
        self._is_worker, self._before, self.sums = hasattr(config, "workerinput"), Counter(), Counter()
        whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword and not config.option.markexpr
        self._is_held = whole and not config.option.all and not self._is_worker
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
        if self._is_held and too_many(self.sums):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.sums:
            of = {name: f" of {LIMITS[name]}" if self._is_held else "" for name in LIMITS}
            terminalreporter.write_line("costs: " + ", ".join(f"{self.sums[name]}{of[name]} {name}" for name in LIMITS))
        for line in too_many(self.sums) if self._is_held else ():
            terminalreporter.write_line(f"FAILED the quick tier stays quick: {line} (tests/costs.py)", red=True)
