"""What every measurement begins with."""

from __future__ import annotations

import os

from ...tools.launch import start_comfy
from ...tools.processes import leave_on_signals


def begin(cpu: bool = False) -> None:
    """Make ComfyUI importable; on the CPU even where there is a card, if asked."""
    if cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    start_comfy()
    leave_on_signals()
