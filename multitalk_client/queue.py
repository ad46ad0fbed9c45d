"""What ComfyUI says of a prompt, in our words."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .errors import Interrupted, NodeFailed, NoVideo

NAMESPACE = uuid.UUID("6b0f6d3e-3c0e-5f0b-9a52-0c9d1a6f5a11")  # ours, so that our ids are nobody else's
FILES = ("images", "video", "gifs", "audio")  # where nodes list the files they saved; SaveVideo says "images"
VIDEOS = (".mp4", ".mkv", ".webm", ".mov")
PREFIX = "filename_prefix"  # the input by which nodes name their files
TEXT = 3  # number of a binary message that holds a node's text

State = Literal["waiting", "running", "reconnecting"]


@dataclass(frozen=True)
class Progress:
    """Where a prompt is.

    `done` of `of` are the running node's own, such as the steps of a sampler; `text` is what the node says of itself.
    """

    state: State
    ahead: int = 0  # prompts that come before
    node: str = ""
    done: int = 0
    of: int = 0
    text: str = ""


@dataclass(frozen=True)
class Output:
    """A file that a node has saved."""

    node: str
    filename: str
    subfolder: str
    type: str  # "output" or "temp"

    @property
    def is_video(self) -> bool:
        return self.type == "output" and self.filename.lower().endswith(VIDEOS)


def id_of(*names: Any) -> str:
    """The same id for the same names: asking twice for one thing makes it once."""
    return str(uuid.uuid5(NAMESPACE, json.dumps(names, sort_keys=True)))


def is_success(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of the history is that of a prompt that ended well."""
    return (entry.get("status") or {}).get("status_str") == "success"


def is_same(prompt: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two prompts have the same nodes and inputs, whatever their files are called."""
    return _essence(prompt) == _essence(other)


def _essence(prompt: Mapping[str, Any]) -> dict[str, Any]:
    return {
        number: (node.get("class_type"), {name: value for name, value in node.get("inputs", {}).items() if name != PREFIX})
        for number, node in prompt.items()
    }


def outputs_of(entry: Mapping[str, Any]) -> list[Output]:
    """The files of a prompt that has ended, from its entry in the history.

    Raises:
        NodeFailed: a node raised an exception.
        Interrupted: somebody stopped it.
    """
    status = entry.get("status") or {}
    data = {name: message for name, message in status.get("messages") or ()}
    if "execution_error" in data:
        raise NodeFailed(data["execution_error"])
    if "execution_interrupted" in data:
        at = data["execution_interrupted"]
        raise Interrupted(f"Somebody interrupted the prompt, at {at.get('node_type')} (node {at.get('node_id')}).")
    if not is_success(entry):
        raise Interrupted(f"The prompt ended without a result: {json.dumps(status)[:300]}")
    return files_of(entry)


def files_of(entry: Mapping[str, Any]) -> list[Output]:
    """The files that a prompt saved, however it ended."""
    return [
        Output(node, file["filename"], file.get("subfolder", ""), file.get("type", "output"))
        for node, saved in entry.get("outputs", {}).items()
        for kind in FILES
        for file in saved.get(kind) or ()
        if isinstance(file, Mapping) and "filename" in file
    ]


def reports_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What MultiTalk Long Video reports of the videos that a prompt made."""
    shown = (shown.get("multitalk_report") or () for shown in entry.get("outputs", {}).values())
    return [report for reports in shown for report in reports if isinstance(report, dict)]


def seconds_of(entry: Mapping[str, Any]) -> float | None:
    """How long a prompt ran, by ComfyUI's clock; None if its history does not say."""
    at = {name: item.get("timestamp") for name, item in (entry.get("status") or {}).get("messages") or () if isinstance(item, Mapping)}
    began, ended = at.get("execution_start"), at.get("execution_success")
    return None if began is None or ended is None else (ended - began) / 1000


def video_of(outputs: Sequence[Output]) -> Output:
    """The video among the files: the last, if there are several.

    Raises:
        NoVideo: none is.
    """
    videos = [output for output in outputs if output.is_video]
    if not videos:
        names = ", ".join(output.filename for output in outputs) or "none"
        raise NoVideo(f"The prompt ended without a video file; files it saved: {names}. Does the graph end in a node that saves one?")
    return videos[-1]


def event_of(message: str) -> tuple[str, Mapping[str, Any]]:
    """Kind and content of a text message, ("", {}) if it is none of ComfyUI's: other packs may send what they like."""
    try:
        data = json.loads(message)
    except ValueError:
        return "", {}
    kind, content = (data.get("type"), data.get("data")) if isinstance(data, Mapping) else ("", {})
    return (kind, content) if isinstance(kind, str) and isinstance(content, Mapping) else ("", {})


def progress_of(message: str | bytes, prompt: str) -> Progress | None:
    """What a websocket message says of a running prompt; None if it says nothing of it."""
    if isinstance(message, bytes):
        return _text_of(message)
    kind, content = event_of(message)
    if content.get("prompt_id", prompt) != prompt:
        return None
    if kind == "executing" and content.get("node"):
        return Progress("running", node=str(content["node"]))
    done, of = content.get("value"), content.get("max")
    if kind == "progress" and all(isinstance(number, (int, float)) and math.isfinite(number) for number in (done, of)):
        return Progress("running", node=str(content.get("node", "")), done=int(done), of=int(of))
    return None


def says_that_something_ended(message: str | bytes) -> bool:
    """Whether it is worth a look at the queue and the history."""
    if isinstance(message, bytes):
        return False
    kind, content = event_of(message)
    return kind == "status" or (kind.startswith("execut") and not content.get("node"))


def _text_of(message: bytes) -> Progress | None:
    """Four bytes of kind, four of the node's length, the node, the text."""
    if len(message) < 8 or int.from_bytes(message[:4], "big") != TEXT:
        return None
    end = 8 + int.from_bytes(message[4:8], "big")
    return Progress("running", node=message[8:end].decode("utf-8", "replace"), text=message[end:].decode("utf-8", "replace"))
