"""What every measurement begins with. Found beside the program that runs, because the repository is no package there."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path


def begin(cpu: bool = False) -> None:
    """Makes the pack importable as `multitalk_nodes`, and ComfyUI beside it; on the CPU also where there is a card, if asked."""
    if cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    spec = importlib.util.spec_from_file_location(
        "multitalk_tools_pack", Path(__file__).resolve().parents[1] / "tools" / "environment" / "pack.py"
    )
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    pack.register_pack()
    pack.start_comfy()
    from multitalk_nodes.tools.processes import leave_on_signals

    leave_on_signals()
