"""`python dev.py test`: two tiers of tests in two processes, a few of them on the oldest ComfyUI, and which lines they cover."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from .environment.environment import ROOT, Environment, cache_folder

PROCESSES = 2  # each with a ComfyUI of its own, if its tests need one
TOGETHER = ("-n", str(PROCESSES), "--dist", "loadfile", "--no-loadscope-reorder")
DEBUGGING = ("--pdb", "--trace")  # pytest's options that read from the terminal
# on the oldest ComfyUI: the pack loads, its nodes are as released, faces talk, one and two
SHORT = (
    "tests/nodes/test_pack.py",
    "tests/nodes/test_signatures.py",
    "tests/nodes/test_nodes.py::test_two_speakers_without_masks_get_the_halves_and_all_layouts_run",
    "tests/bridge/test_step_cache.py::test_first_and_last_steps_are_always_made",
    "tests/bridge/test_step_cache.py::test_a_reused_step_is_the_head_on_the_last_residual",
    "tests/nodes/test_workflows.py::test_it_makes_a_video_at_its_smallest[demo_one_speaker]",
)


def test(made: Environment, arguments: Sequence[str], everything: bool, coverage: bool) -> int:
    """Run ruff and pytest. Without arguments to pytest: in two processes, and then in short on the oldest ComfyUI.

    Args:
        arguments: pytest's; with any, pytest runs in one process and selects by them.
        everything: the slow tier, too.
        coverage: measure the lines that run, ComfyUI's processes included, and print a table at the end.
    Returns:
        An exit code: pytest's, or ruff's.
    """
    variables = {} if arguments else share_of_cores()
    data = cache_folder() / f"coverage-{'part' if arguments else 'all' if everything else 'quick'}"
    if coverage:
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir(parents=True, exist_ok=True)
        variables |= {"COVERAGE_PROCESS_START": str(ROOT / "tools" / "coverage.ini"), "COVERAGE_FILE": str(data / "lines")}
        variables |= {"MULTITALK_ROOT": str(ROOT)}
    lint_code = made.run(["-m", "ruff", "check", "--quiet"])
    tier = ["--all"] if everything else []
    debugs = any(argument.startswith(DEBUGGING) for argument in arguments)
    test_code = made.run(["-m", "pytest", *tier, *(arguments or TOGETHER)], more=variables, reads_terminal=debugs)
    if not arguments:
        test_code = _on_oldest(made, variables) or test_code
    if coverage:
        for command in (["combine", "--quiet"], ["report", "--skip-covered", "--sort=cover", "--precision=2"]):
            made.run(["-m", "coverage", *command, "--rcfile", variables["COVERAGE_PROCESS_START"]], more=variables)
    if lint_code:
        print("ruff found problems: see above pytest's output, or run: python dev.py lint")
    return test_code or lint_code


def share_of_cores() -> dict[str, str]:
    """Environment variables that give each process, and the ComfyUI it starts, its share; what the user has set stays."""
    threads = str(max(1, (os.cpu_count() or 1) // PROCESSES))
    return {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _on_oldest(made: Environment, variables: dict[str, str]) -> int:
    oldest = made.on_oldest()
    if oldest is None:
        print(f"\nNot tested on the oldest ComfyUI, because this one was chosen: {made.host.found}.")
        return 0
    print(f"\nThe same environment with ComfyUI {oldest.host.version}, the oldest:", flush=True)
    return oldest.run(["-m", "pytest", *SHORT], more=variables)
