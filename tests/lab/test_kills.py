"""kill -9 of a real ComfyUI in every phase of a long video. Two or twelve here; a hundred by hand: python dev.py kills --count 100."""

import pytest

from multitalk_nodes.lab.kills import PHASES, kills


@pytest.mark.parametrize("count", [2, pytest.param(2 * len(PHASES), marks=pytest.mark.slow)])
def test_wherever_comfyui_is_killed_the_file_comes_out_the_same(comfy, tmp_path, count):
    done = kills(tmp_path, count, seed=0)
    text = "\n".join(map(str, done))
    assert len(done) == count and all(kill.same and kill.resumed for kill in done), text
    hit = {kill.phase for kill in done if kill.hit}
    assert hit >= {"denoise", "anywhere"} if count > 2 else hit, text  # the others last milliseconds
