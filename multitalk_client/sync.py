"""The client for programs that are not asynchronous."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from .client import AsyncClient
from .comfy import CANCEL_LIMIT, PATIENCE, SERVER, Result
from .queue import Output
from .request import Request
from .templates import DEFAULT, Prompt, Template


class Client:
    """AsyncClient for programs that are not asynchronous: the same methods, each of which waits.

    Its event loop runs in a thread of its own, so it also works where another loop runs already.
    """

    def __init__(self, server: str = SERVER, headers: Mapping[str, str] | None = None, patience: float = PATIENCE) -> None:
        self._client = AsyncClient(server, headers, patience)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="multitalk-client", daemon=True)

    def __enter__(self) -> Client:
        self._thread.start()
        self._wait(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def generate(self, request: Request, out: Path | str, template: str | Path | Template = DEFAULT, **more: Any) -> Path:
        return self._wait(self._client.generate(request, out, template, **more))

    def run(self, prompt: Prompt, prompt_id: str | None = None, **more: Any) -> list[Output]:
        return self._wait(self._client.run(prompt, prompt_id, **more))

    def upload(self, file: Path | str) -> str:
        return self._wait(self._client.upload(file))

    def download(self, output: Output, out: Path | str) -> Path:
        return self._wait(self._client.download(output, out))

    def cancel(self, prompt_id: str) -> None:
        self._wait(self._client.cancel(prompt_id))

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        return self._wait(self._client.object_info(node))

    def system_stats(self) -> dict[str, Any]:
        return self._wait(self._client.system_stats())

    async def _close(self) -> None:
        if called_off := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(called_off, timeout=CANCEL_LIMIT)
        await self._client.__aexit__()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result()
        finally:
            running.cancel()  # after Ctrl-C: what was asked for is called off
