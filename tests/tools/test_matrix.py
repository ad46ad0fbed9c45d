"""The matrix of versions: which cells there are, when one has passed, and what the report says."""

import contextlib
import math
import os
import stat
import sys

import numpy as np
import pytest

from multitalk_nodes.tools.environment.host import DEFAULT, PINNED
from multitalk_nodes.tools.environment.steps import Step
from multitalk_nodes.tools.release import matrix
from multitalk_nodes.tools.release.matrix_report import LEAST, Result, report

SURROUNDINGS = {"date": "2026-01-01", "system": "a machine"}
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_every_value_is_there_once_with_the_newest_of_the_rest():
    first, *others = cells = matrix.cells("3.13", without_torchaudio=True)
    assert first.asked == {"ComfyUI": DEFAULT, "Python": "3.13", "transformers": "newest", "torch": "newest"}
    for name, values in {"ComfyUI": PINNED, "Python": matrix.PYTHONS, "transformers": matrix.TRANSFORMERS, "torch": matrix.TORCH}.items():
        assert {cell.asked[name] for cell in cells} == set(values)
    for cell in others:
        assert sum(cell.asked[name] != first.asked.get(name) for name in cell.asked) == 1
    assert len(set(cells)) == len(cells) == 10 and [cell.torchaudio for cell in cells].count(matrix.NONE) == 1


def test_psnr_is_that_of_the_worst_frame():
    frames = np.full((3, 4, 5, 3), 100, np.uint8)
    assert matrix.psnr(frames, frames) == math.inf
    other = frames.copy()
    other[1] += 2
    assert matrix.psnr(frames, other) == pytest.approx(20 * math.log10(255 / 2))
    with pytest.raises(ValueError, match="expected"):
        matrix.psnr(frames, frames[:2])


def judged(**figures):
    result = Result(matrix.Cell().asked, **{"first": False, "state": "not run", **figures})
    result.judge()
    return result.state


def test_a_cell_passes_by_its_frames_alone():
    assert judged(psnr=math.inf) == judged(psnr=LEAST) == "passed"
    assert judged(psnr=LEAST - 0.1) == "failed"
    with pytest.raises(ValueError, match="no frames to compare with"):
        judged(psnr=None)


def test_the_first_passes_only_if_the_comparison_notices_another_seed():
    assert judged(first=True, control=31.0) == "passed"
    for control in (None, math.inf, LEAST):
        with pytest.raises(ValueError, match="would notice nothing"):
            judged(first=True, control=control)


@pytest.mark.skipif(os.name == "nt", reason="a shell script as an interpreter")
def test_only_interpreters_that_run_are_found(tmp_path, monkeypatch):
    broken = tmp_path / "python3.13"  # as pyenv's are for versions that are not chosen
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MULTITALK_PYTHONS", os.pathsep.join([str(tmp_path / "gone"), sys.executable]))
    assert matrix.interpreters() == {HERE: matrix.Path(sys.executable)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with the ComfyUI that the tests run on under the pinned name, so that none is downloaded."""
    monkeypatch.setenv("MULTITALK_CACHE", str(tmp_path))
    (tmp_path / f"comfyui-{DEFAULT}").symlink_to(os.environ["COMFYUI_PATH"], target_is_directory=True)
    return tmp_path


def test_what_cannot_be_had_was_not_run_and_what_fails_does_not_stop_the_rest(cache, monkeypatch):
    monkeypatch.setattr(matrix, "SPACE", 0)
    chosen = [matrix.Cell(python="3.12"), matrix.Cell(python="3.13"), matrix.Cell(python="3.12", transformers="4.50.3")]
    results = matrix.run_all(chosen, {"3.12": cache / "gone"}, Step("test"))
    assert [result.state for result in results] == ["failed", "not run", "failed"]
    assert "No such file" in results[0].said
    assert "no python3.13" in results[1].said
    assert not [path for path in cache.glob("matrix-*") if path.is_dir()]
    text = report(results, SURROUNDINGS)
    assert "0 passed, 2 failed, 1 not run" in text
    assert text.count("not run: no python3.13") == 1


def test_a_row_without_torchaudio_is_there_where_comfyui_no_longer_asks_for_it(tmp_path):
    for lines, asks in (("torch\ntorchaudio\n", True), ("torch\n# torchaudio went\n", False)):
        (tmp_path / "requirements.txt").write_text(lines)
        assert matrix.asks_for_torchaudio(tmp_path) == asks
    assert len(matrix.cells("3.13")) == len(matrix.cells("3.13", without_torchaudio=True)) - 1
    results = [Result(matrix.Cell().asked, True), Result(matrix.Cell(torchaudio=matrix.NONE).asked, False)]
    text = report(results, SURROUNDINGS)
    assert "**none**" in text and "no torchaudio: failed" in text and "There is no row" not in text
    assert "ComfyUI 0.30.0 itself asks for it" in report(results[:1], SURROUNDINGS | {"torchaudio": "0.30.0"})


def test_a_cell_is_compared_with_the_first_ones_frames(cache, monkeypatch):
    """The environments and graphs are stand-ins here; the whole of it runs by hand."""
    made = {"3.13": 100, "3.12": 100, "3.11": 101, "3.10": 160}  # grey of every frame

    @contextlib.contextmanager
    def environment(cell, *_):
        yield cell.python

    def run_graphs(cell, _python, result, _step):
        frames = {name: np.full((2, 4, 4, 3), made[cell.python], np.uint8) for name in matrix.GRAPHS}
        return frames | ({matrix.CONTROL: frames[matrix.GRAPHS[0]] + 50} if result.first else {})

    monkeypatch.setattr(matrix, "_missing", lambda *_: None)
    monkeypatch.setattr(matrix, "_environment", environment)
    monkeypatch.setattr(matrix, "_run_graphs", run_graphs)
    results = matrix.run_all([matrix.Cell(python=version) for version in made], dict.fromkeys(made), Step("test"))
    assert [result.state for result in results] == ["passed", "passed", "failed", "failed"]
    assert results[1].psnr == math.inf and results[2].psnr == pytest.approx(20 * math.log10(255))


def test_a_run_that_is_broken_off_says_what_was_not_run(cache, monkeypatch):
    def interrupted(cell, *_):
        if cell.python == "3.13":
            raise KeyboardInterrupt
        return "no such Python"

    monkeypatch.setattr(matrix, "_missing", interrupted)
    results = matrix.run_all([matrix.Cell(python=version) for version in ("3.12", "3.13", "3.11")], {}, Step("test"))
    assert [(result.state, result.said[:7]) for result in results] == [
        ("not run", "no such"),
        ("not run", "the run"),
        ("not run", "the run"),
    ]


def test_too_little_disk_is_said(cache, monkeypatch):
    monkeypatch.setattr(matrix, "SPACE", 1e18)
    (result,) = matrix.run_all([matrix.Cell()], {"3.13": cache}, Step("test"))
    assert result.state == "not run" and "GB of disk are free" in result.said


def test_the_report_shows_what_was_installed_and_what_a_row_is_about():
    installed = dict.fromkeys(("transformers", "torch", "torchvision", "torchaudio", "numpy", "av"), "1.2") | {"Python": "3.13.9"}
    first = Result(matrix.Cell().asked, True, installed, "passed", "", None, 31.04, 100.0, 50.0)
    other = Result(matrix.Cell(torch="2.8.0").asked, False, {**installed, "torch": "2.8.0"}, "passed", "", 65.55, None, 90.0, 40.0)
    rows = [line for line in report([first, other], SURROUNDINGS).splitlines() if line.startswith("| 0")]
    assert rows == [
        "| 0.30.0 | 3.13.9 | 1.2 | 1.2 | 1.2 | 1.2 | 1.2 | 1.2 | passed | compared with | 100 s, 50 s |",
        "| 0.30.0 | 3.13.9 | 1.2 | **2.8.0** | 1.2 | 1.2 | 1.2 | 1.2 | passed | 65.5 dB | 90 s, 40 s |",
    ]
    assert "comes to 31.0 dB" in report([first, other], SURROUNDINGS).replace("\n", " ")
