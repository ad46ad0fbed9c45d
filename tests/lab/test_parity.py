"""Every item of the golden set, and a proof that parity can fail. All mutants run by hand: python dev.py mutants."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multitalk_nodes.tools.launch import launched

ROOT = Path(__file__).resolve().parents[2]
ITEMS = [f"{number:02}" for number in range(1, 16)]


@pytest.mark.parametrize("item", ITEMS)
def test_the_pack_computes_what_the_published_code_computed(comfy, goldens, item):
    from multitalk_nodes.lab.parity import runner
    from multitalk_nodes.lab.parity.goldens import Goldens

    results = list(runner.checks(Goldens(goldens), [item]))
    assert results
    outside = [runner.line(check) for check in results if not check.passed]
    assert not outside, "\n".join(outside)


def parity(folder, *items):
    command = launched("lab.parity.main", "--goldens", str(folder), "--only", *items)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ)


def test_the_command_exits_with_one_for_a_tensor_that_differs(comfy, goldens, tmp_path):
    from safetensors.torch import load_file, save_file

    from multitalk_nodes.lab.parity import runner

    folder = shutil.copytree(
        goldens, tmp_path / "set", ignore=shutil.ignore_patterns("05_*", "06_*", "12_*"), copy_function=shutil.copyfile
    )
    name = "13_clip_preprocess.safetensors"
    tensors = load_file(goldens / name)
    tensors["image0.output"][0, 0, 0] += 1e-3
    (folder / name).unlink()
    save_file(tensors, folder / name)
    result = parity(folder, "13")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAIL    13 image0" in result.stdout
    assert runner.run(goldens, ["07"]) == 0


def test_what_is_no_golden_set_is_refused(comfy, tmp_path, capsys):
    from multitalk_nodes.lab.parity import runner

    assert runner.run(tmp_path, ["13"]) == 2
    assert "params.json" in capsys.readouterr().out


def quick_mutants():
    from multitalk_nodes.lab.parity.mutants import MUTANTS

    return [mutant for mutant in MUTANTS if mutant.quick]


@pytest.mark.parametrize("mutant", quick_mutants(), ids=lambda mutant: mutant.file)
def test_parity_notices_a_mutant(comfy, goldens, mutant):
    from multitalk_nodes.lab.parity.mutants import survives

    assert not survives(mutant, goldens), f"parity stays green with {mutant}"


def test_an_unchanged_copy_is_green_behind_the_mutants(comfy, goldens):
    from multitalk_nodes.lab.parity.mutants import COPY, parity

    done = parity(ROOT, goldens, ["01", "02", "04", "05", "13"])
    assert done and all(check.passed for check in done)
    assert not [name for name in sys.modules if name.startswith(COPY)]


def test_every_mutant_still_names_one_place_of_the_code():
    from multitalk_nodes.lab.parity.mutants import MUTANTS

    lost = [str(m) for m in MUTANTS if (ROOT / m.file).read_text(encoding="utf-8").count(m.before) != 1]
    assert not lost
    assert len(MUTANTS) >= 20
