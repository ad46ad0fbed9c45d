"""What is said along the way, to whoever asked: sentences about what was assumed, which stop nothing.

Code anywhere says `note("The voice is 4.2 s longer than the clip; …")`. Whoever runs it collects: the nodes show notes on the node and
hand them on in the run's result; without a collector they go to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

NOTES = "multitalk_notes"  # in a run's result, and the name of the message to the editor; web/notes.js shows both

OnProgress = Callable[[int, int], None]  # done, of; may raise to stop the work

logger = logging.getLogger(__name__)
_collected: ContextVar[tuple[list[str], Callable[[list[str]], None] | None] | None] = ContextVar("multitalk_notes", default=None)


def note(text: str) -> None:
    """Say a sentence, once per collector however often it is said; it is in the log as well."""
    notes, heard = _collected.get() or ([], None)
    if text in notes:
        return
    notes.append(text)
    logger.warning("MultiTalk: %s", text)
    if heard is not None:
        heard(notes)


@contextmanager
def noting(heard: Callable[[list[str]], None] | None = None) -> Iterator[list[str]]:
    """Collects in a list what is noted inside; a collector inside of another keeps its own.

    Args:
        heard: is called with the whole list as soon as a sentence is added.
    """
    notes: list[str] = []
    token = _collected.set((notes, heard))
    try:
        yield notes
    finally:
        _collected.reset(token)
