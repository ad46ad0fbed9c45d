"""One ComfyUI over HTTP: files in and out, the queue, the history. Every question is asked again while there is no answer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential
from typing_extensions import Self

from .errors import BadRequest, ClientError, NoVideo, Unreachable
from .queue import Output

SERVER = "http://127.0.0.1:8188"
SUBFOLDER = "multitalk_client"  # of ComfyUI's input folder
PATIENCE = 60.0  # seconds that ComfyUI may be gone; it starts in 15 to 40
CANCEL_LIMIT = 15.0  # seconds that an interrupted node gets to stop
CONNECT, SILENCE = 10.0, 60.0  # seconds for a connection, and for the next bytes of an answer
BUSY = (502, 503, 504)  # what a proxy says while ComfyUI is not there
BLOCK = 2**20  # bytes of a file at a time

Result = TypeVar("Result")


class Comfy:
    """A connection to one ComfyUI, from `async with` to the end of its block.

    Args:
        server: its address.
        headers: sent with every request, such as a proxy's Authorization.
        patience: seconds for which ComfyUI may be gone before a request gives up.
    """

    def __init__(self, server: str = SERVER, headers: Mapping[str, str] | None = None, patience: float = PATIENCE) -> None:
        self.server, self.patience = server.rstrip("/"), patience
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def upload(self, file: Path | str) -> str:
        """Sends a file to ComfyUI's input folder; returns what its loader nodes call it. The same bytes have the same name.

        Raises:
            BadRequest: there is no such file.
        """
        file = Path(file)
        try:
            digest = await asyncio.to_thread(_digest, file)
        except OSError as error:
            raise BadRequest(f"'{file}' cannot be read: {error.strerror or error}") from error
        name = digest[:24] + file.suffix.lower()

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData({"subfolder": SUBFOLDER, "type": "input", "overwrite": "true"})
            # any file is called an image; aiohttp closes it
            data.add_field("image", file.open("rb"), filename=name, content_type="application/octet-stream")
            return data

        answer = await self.ask("POST", "/upload/image", form)
        return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else answer["name"]

    async def download(self, output: Output, out: Path | str) -> Path:
        """Writes a prompt's file to `out`, whole or not at all.

        Raises:
            NoVideo: ComfyUI no longer has it.
        """
        out = Path(out)
        partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.part")
        where = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}

        async def fetch() -> None:
            async with self.open("GET", "/view", params=where) as response:
                if response.status == 404:
                    raise NoVideo(f"'{output.filename}' is no longer in ComfyUI's {output.type} folder.")
                await _expect_ok("/view", response)
                with partial.open("wb") as stream:
                    async for block in response.content.iter_chunked(BLOCK):
                        stream.write(block)

        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            await self.patiently(fetch)
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
        return out

    async def exists(self, output: Output) -> bool:
        where = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}

        async def look() -> bool:
            async with self.open("HEAD", "/view", params=where) as response:
                return response.status == 200

        return await self.patiently(look)

    async def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue, or interrupts it and gives it a moment to stop.

        The interrupt is repeated: ComfyUI forgets one that comes just before a prompt's first node.
        """
        await self.ask("POST", "/queue", {"delete": [prompt_id]})
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._interrupt(prompt_id), CANCEL_LIMIT)

    async def object_info(self, node: str | None = None) -> dict[str, Any]:
        """What nodes there are, and what their inputs are: of all, or of one."""
        return await self.ask("GET", f"/object_info/{node}" if node else "/object_info")

    async def system_stats(self) -> dict[str, Any]:
        """ComfyUI's version, devices and memory."""
        return await self.ask("GET", "/system_stats")

    async def look(self, number: str) -> tuple[str, Any]:
        """("ended", entry), ("running", None), ("waiting", prompts ahead) or ("unknown", None)."""
        for _ in range(2):  # between two questions it may have ended
            history = await self.once("GET", f"/history/{number}")
            if number in history:
                return "ended", history[number]
            queue = await self.once("GET", "/queue")
            if any(item[1] == number for item in queue["queue_running"]):
                return "running", None
            waiting = sorted(queue["queue_pending"], key=lambda item: item[0])
            for place, item in enumerate(waiting):
                if item[1] == number:
                    return "waiting", place + len(queue["queue_running"])
        return "unknown", None

    async def forget(self, number: str) -> None:
        await self.once("POST", "/history", {"delete": [number]})

    async def forget_results(self) -> None:
        """Makes ComfyUI run what it has run before; models stay loaded."""
        await self.ask("POST", "/free", {"unload_models": False, "free_memory": True})

    async def _interrupt(self, number: str) -> None:
        while any(item[1] == number for item in (await self.ask("GET", "/queue"))["queue_running"]):
            await self.ask("POST", "/interrupt", {"prompt_id": number})
            await asyncio.sleep(0.2)

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("The client is not open; use it in `async with AsyncClient(…) as client`.")
        return self._session

    def open(self, method: str, path: str, **more: Any) -> Any:
        return self.session.request(method, self.server + path, **more)

    async def once(self, method: str, path: str, content: Any = None) -> Any:
        more = {} if content is None else {"data": content()} if callable(content) else {"json": content}
        async with self.open(method, path, **more) as response:
            return await decoded(path, response)

    async def ask(self, method: str, path: str, content: Any = None) -> Any:
        return await self.patiently(lambda: self.once(method, path, content))

    async def patiently(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Again and again while ComfyUI does not answer, but not for ever."""

        async def once() -> Result:
            try:
                return await work()
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError) as error:
                raise Unreachable(f"ComfyUI at {self.server} does not answer ({error or type(error).__name__}). Is it running?") from error

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unreachable),
            wait=wait_random_exponential(multiplier=0.2, max=5.0),
            stop=stop_after_delay(self.patience),
            reraise=True,
        )
        return await retrying(once)


async def decoded(path: str, response: aiohttp.ClientResponse, allowed: tuple[int, ...] = (200,)) -> Any:
    await _expect_ok(path, response, allowed)
    if response.content_type != "application/json":
        return {}
    return await response.json()


async def _expect_ok(path: str, response: aiohttp.ClientResponse, allowed: tuple[int, ...] = (200,)) -> None:
    if response.status in BUSY:
        raise Unreachable(f"ComfyUI's address answers {path} with HTTP status {response.status}. Is ComfyUI running behind it?")
    if response.status not in allowed:
        raise ClientError(f"ComfyUI answered {path} with HTTP status {response.status}: {(await response.text())[:300]}")


def _digest(file: Path) -> str:
    hashed = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest()
