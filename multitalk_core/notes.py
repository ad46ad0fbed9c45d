"""What was assumed along the way: sentences for whoever asked, which stop nothing.

Code anywhere says `note("The voice is 4.2 s longer than the clip; …")`. Whoever runs it collects: the nodes show notes on the node and
hand them on in the run's result; without a collector they go to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

logger = logging.getLogger(__name__)
_collected: ContextVar[list[str] | None] = ContextVar("multitalk_notes", default=None)


def note(text: str) -> None:
    """Say a sentence, once per collector however often it is said; it is in the log as well."""
    notes = _collected.get()
    if notes is None or text not in notes:
        logger.warning("MultiTalk: %s", text)
    if notes is not None and text not in notes:
        notes.append(text)


@contextmanager
def noting() -> Iterator[list[str]]:
    """Collects in a list what is noted inside; a collector inside of another keeps its own."""
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)
