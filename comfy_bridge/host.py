"""Which ComfyUI this is. Imports nothing of ComfyUI but its version, which every supported one has: it must run on any."""

from __future__ import annotations

import importlib
import re

OLDEST = (0, 18, 2)  # the oldest that the tests ran on; pyproject.toml says the same, but ComfyUI does not look there


def unsupported(version: str | None = None) -> str | None:
    """Why the pack cannot run in this ComfyUI, in one line; None if it can.

    Args:
        version: ComfyUI's, such as "0.30.0"; without it that of the ComfyUI that runs.
    """
    version = version or _version()
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if found >= OLDEST:
        return None
    return f"MultiTalk needs ComfyUI {'.'.join(map(str, OLDEST))} or newer; this is {version}. Update ComfyUI, then start it again."


def _version() -> str:
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):  # as ComfyUI was before it had versions
        return "one that does not tell its version"
