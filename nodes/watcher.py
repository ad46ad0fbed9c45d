"""Who watches a run: the client that queued it."""

from __future__ import annotations

from typing import Any


class Watcher:
    """The client whose prompt is running. Whoever queues without a client's id has none; ComfyUI would then tell every editor.

    Args:
        server: ComfyUI's PromptServer.
        node_id: the node that lines are written on.
    """

    def __init__(self, server: Any, node_id: str) -> None:
        self._server, self._client, self._node_id = server, server.client_id, node_id

    @property
    def is_there(self) -> bool:
        return self._client is not None

    def tell(self, line: str) -> None:
        """Writes on the node."""
        if self.is_there:
            self._server.send_progress_text(line, self._node_id, self._client)
