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


class EncoderError(MultiTalkError, ValueError):
    """The encoder's files cannot be used; the message says what to change."""


class AudioError(MultiTalkError, ValueError):
    """The audio itself cannot be used; the message says what to change."""


class WeightsError(MultiTalkError, ValueError):
    """Weights that are not MultiTalk's, or do not fit what they are used with; the message names what and the sizes."""


class IncompleteError(WeightsError):
    """A weight file that ends too early or lacks a part: getting it again helps."""


class JobError(MultiTalkError, RuntimeError):
    """A long video cannot go on; what is finished stays. The message says what to do."""


class DiskFullError(JobError):
    """A long video cannot go on because the disk is full."""


class SpeakerError(MultiTalkError, ValueError):
    """The speakers cannot be distinguished; the message names the speaker (counted from 1) and what to change."""
