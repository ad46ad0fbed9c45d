"""The quick tier: what must be in it, and what it may cost. And the faults that it is tried with."""

import ast
import os
import subprocess
import sys
from collections import Counter

import pytest

from multitalk_nodes.lab import faults
from multitalk_nodes.lab.parity.mutants import MUTANTS
from multitalk_nodes.tests.nodes.test_workflows import KINDS
from multitalk_nodes.tests.support import costs
from multitalk_nodes.tests.support.graphs import ROOT, Graph, workflow
from multitalk_nodes.tests.support.kept import kept
from multitalk_nodes.tools.testing import SHORT


def without_folder(test: str) -> str:
    """A test's name, from its file's name on; a parameter may hold a path, too."""
    file, _, name = test.partition("::")
    return f"{file.rpartition('/')[2]}::{name}"


# of each promise, a test that must be in the quick tier
PROMISED = (
    *(f"test_parity.py::test_the_pack_computes_what_the_published_code_computed[{number:02}]" for number in range(1, 16)),
    *(f"test_parity.py::test_parity_notices_a_mutant[{mutant.file}]" for mutant in MUTANTS if mutant.quick),
    "test_kills.py::test_wherever_comfyui_is_killed_the_file_comes_out_the_same[2]",
    *(f"test_workflows.py::test_it_makes_a_video_at_its_smallest[{name}]" for name in KINDS),
    "test_nodes.py::test_bad_input_is_refused_in_plain_words[a file that is not audio]",
    *(f"test_browser.py::test_an_example_loads_runs_and_plays[{renderer}-0.8]" for renderer in ("classic", "nodes2")),
    "test_serverless.py::test_old_requests_end_in_the_bucket[old0-None-101]",
    "test_serverless_faults.py::test_comfyui_killed_while_it_samples_and_while_a_job_waits",
    "test_serverless_faults.py::test_nodes_that_fail_and_prompts_that_are_refused",
    "test_signatures.py::test_released_nodes_are_as_they_were_or_replaced[0.1.0]",
    "test_speaker_nodes.py::test_boxes_that_are_exchanged_exchange_the_faces",
    *(without_folder(test) for test in SHORT if "::" in test),
)


def test_what_guards_a_promise_is_in_the_quick_tier(request):
    if not costs.is_whole(request.config):
        pytest.skip("a part of the tests runs")
    there = [without_folder(item.nodeid) for item in request.session.items if item.get_closest_marker("quick")]
    there += [name.split("[")[0] for name in there]
    assert {*PROMISED} <= {*there}, {*PROMISED} - {*there}
    assert len(KINDS) >= 6 and sum(mutant.quick for mutant in MUTANTS) >= 6


def test_a_graph_costs_its_frames_times_its_steps():
    assert costs.work_of(Graph(frames=9, steps=4)) == 36
    assert costs.work_of(workflow("demo_long_dialogue")) == 8 * 200  # two voices of 4 s, eight steps
    assert costs.work_of({"1": {"class_type": "PreviewAny", "inputs": {"source": "x"}}}) == 0


def test_what_passes_its_limit_is_told():
    found = Counter(costs.LIMITS) + Counter({costs.BOOTS: 1})
    most = costs.LIMITS[costs.BOOTS]
    assert costs.too_many(found) == [f"{most + 1} ComfyUI processes; at most {most} were expected"]


SMALL_SUITE = """
import subprocess, sys
import pytest
sys.path.insert(0, {tests!r})
import costs

costs.LIMITS = {{costs.BOOTS: {limit}}}

def pytest_addoption(parser):
    parser.addoption("--all", action="store_true")

def pytest_configure(config):
    config.pluginmanager.register(costs.Plugin(config))
"""


@pytest.mark.parametrize(("limit", "code", "processes"), [(2, 0, 0), (1, 1, 2)])
def test_a_quick_run_that_costs_too_much_fails(tmp_path, limit, code, processes):
    """Two tests that start what looks like a ComfyUI; in two processes they add up."""
    (tmp_path / "conftest.py").write_text(SMALL_SUITE.format(tests=str(ROOT / "tests" / "support"), limit=limit))
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = .")
    main = os.path.join(os.environ["COMFYUI_PATH"], "main.py")
    started = f"[sys.executable, '-I', '-S', '-c', '', {main!r}, '--base-directory']"
    body = f"import subprocess, sys\ndef test_it(): assert subprocess.run({started}).returncode == 0\n"
    for name in ("a", "b"):
        (tmp_path / f"test_{name}.py").write_text(body)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(["-n", str(processes)] if processes else [])]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert ("2 ComfyUI processes; at most 1 were expected" in ended.stdout) == bool(code) and "2 passed" in ended.stdout


def test_every_possible_fault_is_python_and_changes_one_place():
    for file in ("multitalk_core/windows.py", "nodes/inputs.py", "serverless/prepare.py", "multitalk_core/model.py"):
        source = (ROOT / file).read_bytes()
        found = faults.faults_of(file, source)
        assert len({(fault.start, fault.end) for fault in found}) == len(found) > 0
        for fault in found:
            changed = source[: fault.start] + fault.after + source[fault.end :]
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


def test_what_is_kept_is_made_once_and_anew_from_another_source(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTITALK_CACHE", str(tmp_path / "cache"))
    source, made = tmp_path / "source", []

    def make(folder):
        made.append(source.read_text())
        folder.mkdir()
        (folder / "result").write_text(made[-1])

    for text in ("a", "a", "b", "b"):
        source.write_text(text)
        assert (kept("thing", [source], make) / "result").read_text() == text
    assert made == ["a", "b"] and len(list((tmp_path / "cache" / "tests").iterdir())) == 1
    source.write_text("c")
    with pytest.raises(ZeroDivisionError):
        kept("thing", [source], lambda folder: 1 / 0)
    assert (kept("thing", [source], make) / "result").read_text() == "c", "what failed half-way is not taken for made"


def test_a_draw_is_the_same_again_and_takes_each_module_once(tmp_path):
    drawn = faults.draw(ROOT, 7, 10)
    assert drawn == faults.draw(ROOT, 7, 10) != faults.draw(ROOT, 8, 10)
    assert len({fault.file for fault in drawn}) == 10
    source, shown = "x = 1\nif x < 2:\n    y = x + 3\n", []
    for fault in faults.faults_of("m.py", source.encode()):
        (tmp_path / "m.py").write_text(source)
        shown.append(fault.apply(tmp_path))
    assert sorted(shown) == [
        "m.py:2\n    - if x < 2:\n    + if (not (x < 2)):",
        "m.py:2\n    - if x < 2:\n    + if x >= 2:",
        "m.py:3\n    - y = x + 3\n    + y = x - 3",
    ]
