"""One ComfyUI over HTTP: files in and out, the queue, the history. Every question is asked again while there is no answer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential
from typing_extensions import Self

from .errors import BadRequest, ClientError, NoVideo, Unreachable
from .queue import Output

SERVER = "http://127.0.0.1:8188"
SUBFOLDER = "multitalk_client"  # of ComfyUI's input folder
PATIENCE = 60.0  # seconds that ComfyUI may be gone, once it has answered; it starts in 15 to 40
FIRST = 5.0  # seconds that it gets to answer for the first time: a wrong address is reported at once
CANCEL_LIMIT = 15.0  # seconds that an interrupted node gets to stop
CONNECT, SILENCE = 3.0, 60.0  # seconds for a connection, its name looked up, and for the next bytes of an answer
BUSY = {429, 502, 503, 504, *range(520, 531)}  # what a proxy or a tunnel says while ComfyUI is not there
BLOCK = 2**20  # bytes of a file at a time

Result = TypeVar("Result")


class Comfy:
    """A connection to one ComfyUI, from `async with` to the end of its block.

    Args:
        server: its address; http:// where it does not say.
        headers: sent with every request, such as a proxy's Authorization.
        patience: seconds without a sign of life after which a request gives up (default: 5 before the first one, then 60).
        session: the caller's own, for what else a connection may need: certificates, proxies, cookies. It stays open.
    Raises:
        BadRequest: that is no address.
    """

    def __init__(
        self,
        server: str = SERVER,
        headers: Mapping[str, str] | None = None,
        patience: float | None = None,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        self.server = (server if "://" in server else f"http://{server}").rstrip("/")
        parts = urlsplit(self.server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadRequest(f"'{server}' is no address of a ComfyUI; write it like {SERVER}.")
        self._told = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # a password stays out of messages
        self.patience = patience
        self._headers = dict(headers or {})
        self._given, self._own = session, None
        self._heard = 0.0  # when something last came

    async def __aenter__(self) -> Self:
        if self._given is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT, sock_read=SILENCE)
            # every prompt that is waited for has a websocket of its own
            self._own = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own:
            await self._own.close()

    async def upload(self, file: Path | str, folder: str = SUBFOLDER) -> str:
        """Sends a file to ComfyUI's input folder, unless it is there; returns what loader nodes call it. The same bytes have the same name.

        Args:
            folder: in the input folder.
        Raises:
            BadRequest: there is no such file.
        """
        file = Path(file)
        try:
            digest = await asyncio.to_thread(_digest, file)
            size = file.stat().st_size
        except OSError as error:
            raise BadRequest(f"'{file}' cannot be read: {error.strerror or error}") from error
        name = digest[:24] + file.suffix.lower()
        if await self.size_of(Output("", name, folder, "input")) == size:  # somebody may be reading it just now
            return f"{folder}/{name}"

        def form() -> aiohttp.FormData:
            data = aiohttp.FormData({"subfolder": folder, "type": "input"})
            # any file is called an image; aiohttp closes it
            data.add_field("image", file.open("rb"), filename=name, content_type="application/octet-stream")
            return data

        answer = await self.ask("POST", "/upload/image", form)
        try:
            return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else answer["name"]
        except (KeyError, TypeError, AttributeError) as error:
            raise self._no_comfyui("/upload/image") from error

    async def download(self, output: Output, out: Path | str) -> Path:
        """Writes a prompt's file to `out`, whole or not at all.

        Raises:
            NoVideo: ComfyUI no longer has it.
            BadRequest: it cannot be written there.
        """
        out = place_for(out)
        partial = out.with_name(f".{uuid.uuid4().hex}.part")

        async def fetch() -> None:
            async with self.open("GET", "/view", params=_where(output)) as response:
                if response.status == 404:
                    raise NoVideo(f"'{output.filename}' is no longer in ComfyUI's {output.type} folder.")
                await self.expect("/view", response)
                with partial.open("wb") as stream:
                    async for block in response.content.iter_chunked(BLOCK):
                        self._heard = time.monotonic()
                        stream.write(block)

        try:
            await self.patiently(fetch)
            os.replace(partial, out)
        except OSError as error:
            raise BadRequest(f"'{out}' cannot be written: {error.strerror or error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return out

    async def size_of(self, output: Output) -> int | None:
        """Bytes of a file that ComfyUI has; None if it does not have it, −1 if it does not say."""

        async def look() -> int | None:
            async with self.open("HEAD", "/view", params=_where(output)) as response:
                if response.status in (404, 405):
                    return None if response.status == 404 else -1
                await self.expect("/view", response)
                return -1 if response.content_length is None else response.content_length

        return await self.patiently(look)

    async def cancel(self, prompt_id: str) -> bool:
        """Takes a prompt out of the queue, or interrupts it; whether it has stopped after a moment.

        The interrupt is repeated: ComfyUI forgets one that comes just before a prompt's first node.
        """
        until = time.monotonic() + CANCEL_LIMIT
        while True:
            queue = await self._queue(self.ask)
            waiting = any(item[1] == prompt_id for item in queue["queue_pending"])
            running = any(item[1] == prompt_id for item in queue["queue_running"])
            if not waiting and not running:
                return True
            if time.monotonic() > until:
                return False
            if waiting:
                await self.ask("POST", "/queue", {"delete": [prompt_id]})
            if running:
                await self.ask("POST", "/interrupt", {"prompt_id": prompt_id})
            await asyncio.sleep(0.2)

    async def object_info(self, node: str | None = None) -> dict[str, Any]:
        """What nodes there are, and what their inputs are: of all, or of one."""
        return await self.ask("GET", f"/object_info/{node}" if node else "/object_info")

    async def system_stats(self) -> dict[str, Any]:
        """ComfyUI's version, devices and memory."""
        return await self.ask("GET", "/system_stats")

    async def model_files(self) -> dict[str, dict[str, int]]:
        """What lies in ComfyUI's model folders: by folder, by name, its bytes."""
        folders = [item["name"] for item in await self.ask("GET", "/experiment/models", kind=list)]
        listed = {folder: await self.ask("GET", f"/experiment/models/{folder}", kind=list) for folder in folders}
        return {folder: {file["name"]: file.get("size", 0) for file in files} for folder, files in listed.items()}

    async def look(self, number: str) -> tuple[str, Any]:
        """("ended", entry of the history), ("running", item), ("waiting", (item, prompts ahead)) or ("unknown", None)."""
        for _ in range(2):  # between two questions it may have ended
            history = await self.once("GET", f"/history/{number}")
            if number in history:
                return "ended", history[number]
            queue = await self._queue(self.once)
            for item in queue["queue_running"]:
                if item[1] == number:
                    return "running", item
            for place, item in enumerate(sorted(queue["queue_pending"], key=lambda item: item[0])):
                if item[1] == number:
                    return "waiting", (item, place + len(queue["queue_running"]))
        return "unknown", None

    async def forget(self, number: str) -> None:
        """Takes a prompt out of the history."""
        await self.ask("POST", "/history", {"delete": [number]})

    async def _queue(self, ask: Callable[[str, str], Coroutine[Any, Any, Any]]) -> Any:
        queue = await ask("GET", "/queue")
        if not {"queue_running", "queue_pending"} <= queue.keys():
            raise self._no_comfyui("/queue")
        return queue

    @property
    def session(self) -> aiohttp.ClientSession:
        session = self._given or self._own
        if session is None:
            raise RuntimeError("The client is not open; use it in a block: `async with AsyncClient(…) as client`, or `with Client(…)`.")
        return session

    @property
    def headers(self) -> dict[str, str]:
        return self._headers

    def open(self, method: str, path: str, **more: Any) -> Any:
        """A request to ComfyUI. Redirects are not followed: they would turn a POST into a GET, and take the headers along."""
        return self.session.request(method, self.server + path, headers=self._headers, allow_redirects=False, **more)

    async def once(self, method: str, path: str, content: Any = None, kind: type = dict) -> Any:
        more = {} if content is None else {"data": content()} if callable(content) else {"json": content}
        async with self.open(method, path, **more) as response:
            return await self.decoded(path, response, kind=kind)

    async def ask(self, method: str, path: str, content: Any = None, kind: type = dict) -> Any:
        return await self.patiently(lambda: self.once(method, path, content, kind))

    async def patiently(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Again and again while ComfyUI does not answer, until nothing has come for as long as patience lasts."""
        began = time.monotonic()

        async def once() -> Result:
            try:
                result = await work()
            except aiohttp.ClientSSLError as error:
                raise ClientError(f"ComfyUI's certificate at {self._told} is not accepted: {error}") from error
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError) as error:
                raise Unreachable(f"ComfyUI at {self._told} does not answer ({error or type(error).__name__}). Is it running?") from error
            except aiohttp.ClientError as error:
                raise ClientError(f"ComfyUI at {self._told} cannot be asked: {error}") from error
            self._heard = time.monotonic()
            return result

        def left() -> float:
            """Seconds until it is too late to connect once more."""
            patience = self.patience if self.patience is not None else PATIENCE if self._heard else FIRST
            return max(began, self._heard) + patience - CONNECT - time.monotonic()

        pause = wait_random_exponential(multiplier=0.2, max=5.0)
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unreachable),
            wait=lambda state: min(pause(state), max(0.0, left())),
            stop=lambda _: left() <= 0,
            reraise=True,
        )
        return await retrying(once)

    async def decoded(self, path: str, response: aiohttp.ClientResponse, allowed: tuple[int, ...] = (200,), kind: type = dict) -> Any:
        """A JSON answer of a kind; an empty one stands for nothing of it."""
        await self.expect(path, response, allowed)
        text = await response.text()
        if not text.strip():
            return kind()
        try:
            answer = await response.json()
        except (aiohttp.ContentTypeError, ValueError) as error:
            raise self._no_comfyui(path) from error
        if not isinstance(answer, kind):
            raise self._no_comfyui(path)
        return answer

    async def expect(self, path: str, response: aiohttp.ClientResponse, allowed: tuple[int, ...] = (200,)) -> None:
        """Raises what an answer's status means, unless it is allowed."""
        if response.status in BUSY:
            raise Unreachable(f"{self._told} answers {path} with HTTP status {response.status}. Is ComfyUI running behind it?")
        if 300 <= response.status < 400:
            place = urlsplit(response.headers.get("Location", ""))
            raise ClientError(f"{self._told} sends us on to {place.scheme}://{place.hostname}; give ComfyUI's own address.")
        if response.status not in allowed:
            raise ClientError(f"ComfyUI answered {path} with HTTP status {response.status}: {(await response.text())[:300]}")

    def _no_comfyui(self, path: str) -> ClientError:
        return ClientError(f"What {self._told} answers to {path} is no answer of a ComfyUI. Is this its address?")


def place_for(out: Path | str) -> Path:
    """A path that a file can be written to; makes its folder.

    Raises:
        BadRequest: it cannot.
    """
    out = Path(out)
    trial = out.with_name(f".{uuid.uuid4().hex}.part") if out.name else out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise BadRequest(f"'{out}' cannot be written: {error.strerror or error}") from error
    return out


def _where(output: Output) -> dict[str, str]:
    return {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}


def _digest(file: Path) -> str:
    hashed = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            hashed.update(block)
    return hashed.hexdigest()
