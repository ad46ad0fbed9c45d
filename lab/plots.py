"""Figures of what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def figure(file: Path) -> Iterator[Any]:
    """Matplotlib's axes to draw lines on; afterwards they get a legend and are written to the file."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("bench: drawing figures needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    yield axes
    axes.legend()
    drawn.savefig(file)
