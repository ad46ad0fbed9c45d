"""The client for programs that are not asynchronous."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from .client import AsyncClient, Made, OnProgress
from .comfy import CANCEL_LIMIT, SERVER, SUBFOLDER, Result
from .queue import Output
from .request import Request
from .templates import DEFAULT, Prompt, Template

TICK = 0.2  # seconds; on Windows, Ctrl-C does not end a wait without a limit


class Client:
    """AsyncClient for programs that are not asynchronous: the same methods, each of which waits.

    Its event loop runs in a thread of its own, so it also works where another loop runs already. Progress callbacks are called in that
    thread, and cannot ask the client for anything.
    """

    def __init__(self, server: str = SERVER, headers: Mapping[str, str] | None = None, patience: float | None = None) -> None:
        self._client = AsyncClient(server, headers, patience)
        self._thread: threading.Thread | None = None
        self._calls: set[concurrent.futures.Future[Any]] = set()

    def __enter__(self) -> Client:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="multitalk-client", daemon=True)
        self._thread.start()
        self._wait(self._client.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        thread = self._thread
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()
            self._thread = None

    def generate(
        self,
        request: Request,
        out: Path | str,
        template: str | Path | Template = DEFAULT,
        *,
        job: str | None = None,
        timeout: float = 3600.0,
        progress: OnProgress | None = None,
    ) -> Path:
        return self._wait(self._client.generate(request, out, template, job=job, timeout=timeout, progress=progress))

    def make(
        self,
        prompt: Prompt,
        out: Path | str,
        *,
        job: str | None = None,
        files: Sequence[Path] = (),
        folder: str = SUBFOLDER,
        timeout: float = 3600.0,
        progress: OnProgress | None = None,
    ) -> Made:
        return self._wait(self._client.make(prompt, out, job=job, files=files, folder=folder, timeout=timeout, progress=progress))

    def run(
        self, prompt: Prompt, prompt_id: str | None = None, *, timeout: float = 3600.0, progress: OnProgress | None = None
    ) -> list[Output]:
        return self._wait(self._client.run(prompt, prompt_id, timeout=timeout, progress=progress))

    def upload(self, file: Path | str, folder: str = SUBFOLDER) -> str:
        return self._wait(self._client.upload(file, folder))

    def download(self, output: Output, out: Path | str) -> Path:
        return self._wait(self._client.download(output, out))

    def cancel(self, prompt_id: str) -> bool:
        return self._wait(self._client.cancel(prompt_id))

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        return self._wait(self._client.object_info(node))

    def model_files(self) -> dict[str, dict[str, int]]:
        return self._wait(self._client.model_files())

    def system_stats(self) -> dict[str, Any]:
        return self._wait(self._client.system_stats())

    async def _close(self) -> None:
        for call in list(self._calls):  # of other threads; after Ctrl-C ours is over already, and its prompt is being called off
            call.cancel()
        await asyncio.sleep(0)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=2 * CANCEL_LIMIT)
        await self._client.__aexit__()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._thread is None or self._thread is threading.current_thread():
            work.close()
            raise RuntimeError(
                "The client is not open; use it in `with Client(…) as client`."
                if self._thread is None
                else "A progress callback cannot ask the client for anything; it would wait for itself."
            )
        running = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._calls.add(running)
        try:
            while True:
                if concurrent.futures.wait([running], timeout=TICK).done:
                    return running.result()
        finally:
            self._calls.discard(running)
            running.cancel()  # after Ctrl-C: what was asked for is called off
