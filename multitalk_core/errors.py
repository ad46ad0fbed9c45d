"""The pack's own errors, as users meet them."""

from __future__ import annotations


class MultiTalkError(Exception):
    """What a user can mend: the message says what happened, what was expected, and what to do.

    ComfyUI shows an error's type with the path of its module before every message, unless Python itself is where it comes from. So that is
    what these say: in the editor stands `SpeakerError: Box 1 …`.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__module__ = "builtins"
