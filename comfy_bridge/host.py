"""Which ComfyUI this is."""

from __future__ import annotations

import re

import comfyui_version

OLDEST = (0, 18, 2)  # the oldest that the tests ran on; pyproject.toml says the same, but ComfyUI does not look there


def check_host(version: str = comfyui_version.__version__) -> None:
    """Raises RuntimeError on a ComfyUI that lacks what the bridge needs."""
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if found < OLDEST:
        raise RuntimeError(
            f"MultiTalk needs ComfyUI {'.'.join(map(str, OLDEST))} or newer; this is {version}. Update ComfyUI, then start it again."
        )
