"""Messages to the client that queued what runs, and to nobody else: without an id ComfyUI tells every editor."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from comfy_execution.utils import get_executing_context


def running_server() -> Any:
    """ComfyUI's PromptServer; None where nodes are called without one."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def is_watched() -> bool:
    """Whether who queued the prompt hears of it; scripts often have no client id."""
    return getattr(running_server(), "client_id", None) is not None


def send(event: str, about: Mapping[str, Any]) -> None:
    """An event about the node that runs."""
    context = get_executing_context()
    if is_watched() and context is not None:
        server = running_server()
        server.send_sync(event, {"node": context.node_id, "prompt_id": context.prompt_id, **about}, server.client_id)


def tell(line: str) -> None:
    """Writes on the node that runs."""
    context = get_executing_context()
    if is_watched() and context is not None:
        server = running_server()
        server.send_progress_text(line, context.node_id, server.client_id)
