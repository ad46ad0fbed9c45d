"""kill -9 of a real ComfyUI in every phase of a long video. Twelve here; a hundred by hand: python dev.py kills --count 100."""

import pytest

from multitalk_nodes.tools.kills import PHASES, kills


@pytest.mark.slow
def test_wherever_comfyui_is_killed_the_file_comes_out_the_same(comfy, tmp_path):
    done = kills(tmp_path, 2 * len(PHASES), seed=0)
    told = "\n".join(map(str, done))
    assert len(done) == 12 and all(kill.same and kill.resumed for kill in done), told
    assert {kill.phase for kill in done if kill.hit} >= {"denoise", "anywhere"}, told  # the others last milliseconds
