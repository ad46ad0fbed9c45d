"""Messages to the editor that queued what runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from comfy_execution.utils import get_executing_context


def send(event: str, about: Mapping[str, Any]) -> None:
    """Sends an event about the node that runs; to nobody where no editor waits, or where nodes are called without a server."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    context = get_executing_context()
    if server is not None and server.client_id is not None and context is not None:
        server.send_sync(event, {"node": context.node_id, "prompt_id": context.prompt_id, **about}, server.client_id)
