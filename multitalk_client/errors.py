"""What can go wrong between a request and its video. Every error has a code that programs can rely on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LONGEST = 500  # characters of what a node says: some repeat whole lists


class ClientError(Exception):
    """Anything that keeps a request from its video; the message says what to do."""

    code = "error"

    @property
    def details(self) -> dict[str, Any]:
        """What is known beyond the message, as JSON can hold it."""
        return {}


class BadRequest(ClientError):
    """The request cannot be made into a prompt, or its result cannot be written."""

    code = "bad_request"


class Unreachable(ClientError):
    """ComfyUI did not answer."""

    code = "comfyui_unreachable"


class Refused(ClientError):
    """ComfyUI did not accept the prompt, or not all of it.

    Attributes:
        node_errors: by node, {"class_type", "errors": [{"type", "message", "details", …}], …}.
    """

    code = "prompt_refused"

    def __init__(self, error: Mapping[str, Any], node_errors: Mapping[str, Any]) -> None:
        super().__init__(error, node_errors)
        self.error, self.node_errors = error, dict(node_errors)

    def __str__(self) -> str:
        lines = [f"ComfyUI refused the prompt: {_told(self.error)}" if self.error else "ComfyUI refused parts of the prompt"]
        for node, item in self.node_errors.items():
            lines += [f"  node {node} ({item.get('class_type', '?')}): {_told(reason)}" for reason in item.get("errors", ())]
        return "\n".join(lines)

    @property
    def details(self) -> dict[str, Any]:
        """Without what ComfyUI adds for developers: lists of files, and stack traces."""
        data = {
            node: {"class_type": str(found.get("class_type")), "errors": [_short(error) for error in found.get("errors", ())]}
            for node, found in self.node_errors.items()
        }
        return {"node_errors": data}


class NodeFailed(ClientError):
    """A node raised an exception while the prompt ran."""

    code = "node_failed"

    def __init__(self, message: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.node, self.node_type = str(message.get("node_id")), str(message.get("node_type"))
        self.exception = str(message.get("exception_type"))
        self.message = str(message.get("exception_message", "")).strip()
        if "OutOfMemory" in self.exception or self.exception == "MemoryError" or "out of memory" in self.message.lower():
            self.code = "out_of_memory"

    def __str__(self) -> str:
        return f"{self.node_type} (node {self.node}) failed: {self.message}"

    @property
    def details(self) -> dict[str, Any]:
        return {"node_id": self.node, "node_type": self.node_type, "exception_type": self.exception}


class Interrupted(ClientError):
    """Somebody interrupted the prompt, or took it out of the queue."""

    code = "interrupted"


class Forgotten(ClientError):
    """ComfyUI was started anew while the prompt ran, again and again."""

    code = "comfyui_restarted"


class DeadlineExceeded(ClientError):
    """The time that the request was given is up."""

    code = "deadline_exceeded"


class NoVideo(ClientError):
    """The prompt ended well, but there is no video."""

    code = "no_video"


def _short(error: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(error[name])[:LONGEST] for name in ("type", "message", "details") if error.get(name)}


def _told(error: Mapping[str, Any]) -> str:
    """ "message (details)" of one of ComfyUI's error records."""
    text = str(error.get("message") or error.get("type") or "without a reason")
    return f"{text} ({error['details']})" if error.get("details") else text
