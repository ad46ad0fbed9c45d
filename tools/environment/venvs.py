"""Virtual environments: making one, and the variables that must not reach into it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .steps import Step

# the caller's modules, and pip settings that would install somewhere else
LEAKS = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")


def clean_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in LEAKS}


def python_of(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def make_venv(folder: Path, log: Path, step: Step, python: Path | str = sys.executable) -> Path:
    """Makes an empty virtual environment with pip, of this Python if no other is given; returns its Python."""
    remedy = "on Debian and Ubuntu install python3-venv; elsewhere use a Python that has venv and ensurepip."
    step.run([str(python), "-m", "venv", str(folder)], log, clean_variables(), remedy)
    return python_of(folder)
