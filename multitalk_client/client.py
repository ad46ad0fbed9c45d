"""The client: uploads, queues, waits and downloads.

Progress comes from the websocket, the truth from /history: a socket that is cut costs progress lines, nothing else.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from .comfy import CANCEL_LIMIT, Comfy, Result, decoded
from .errors import ClientError, DeadlineExceeded, Forgotten, Interrupted, Refused
from .queue import Output, Progress, id_of, outputs_of, progress_of, video_of
from .request import Request
from .templates import DEFAULT, Prompt, Template

POLL = 2.0  # seconds between looks at the history while no message comes
RESTARTS = 3  # times that a prompt is queued again because ComfyUI was started anew
HEARTBEAT = 20.0  # seconds between pings of the websocket
PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds before the websocket is opened again

Told = Callable[[Progress], None]


@dataclass
class _Watch:
    """What the websocket has seen."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)  # something has changed
    cut: bool = False  # it was closed, or never opened: ComfyUI may have been started anew


class AsyncClient(Comfy):
    """What makes videos with a ComfyUI."""

    async def generate(
        self,
        request: Request,
        out: Path | str,
        template: str | Path | Template = DEFAULT,
        *,
        job: str | None = None,
        timeout: float = 3600.0,
        progress: Told | None = None,
    ) -> Path:
        """The whole of it: upload, queue, wait, download.

        Args:
            job: a name of the caller's; asking again under it, by whomever, waits for the same video. Without one, the request is the name.
            timeout: seconds for everything. When they are up, the prompt is cancelled.
        Raises:
            ClientError: its subclasses say what; see `errors`.
        """
        template = template if isinstance(template, Template) else Template.load(template)

        async def work() -> Path:
            names = {file: await self.upload(file) for file in _files_of(request)}
            graph = template.fill(request, names)
            output = await self._video(graph, id_of(job) if job else id_of(graph), progress)
            return await self.download(output, out)

        return await _within(timeout, work())

    async def run(
        self, prompt: Prompt, prompt_id: str | None = None, *, timeout: float = 3600.0, progress: Told | None = None
    ) -> list[Output]:
        """Queues a prompt and waits until it has ended; the files it saved. Cancels it if the time is up, or the caller is cancelled."""
        return await _within(timeout, self._run(prompt, prompt_id or id_of(prompt), progress))

    async def _video(self, graph: Prompt, number: str, progress: Told | None) -> Output:
        """The video of a prompt, made again if ComfyUI remembers a file that somebody has removed."""
        output = video_of(await self._run(graph, number, progress))
        if await self.exists(output):
            return output
        await self.forget_results()
        await self.forget(number)
        return video_of(await self._run(graph, number, progress))

    async def _run(self, prompt: Prompt, number: str, progress: Told | None) -> list[Output]:
        tell = progress or (lambda _: None)
        watch, listener = _Watch(), uuid.uuid4().hex
        listening = asyncio.create_task(self._listen(listener, number, tell, watch))
        try:
            await self._submit(prompt, number, listener)
            return outputs_of(await self._ended(prompt, number, listener, tell, watch))
        except asyncio.CancelledError:
            with suppress(ClientError, asyncio.TimeoutError):
                await asyncio.wait_for(self.cancel(number), CANCEL_LIMIT)
            raise
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

    async def _submit(self, prompt: Prompt, number: str, listener: str) -> None:
        """Queues a prompt, unless it is there already: an answer may have been lost, or somebody else asked for the same."""

        async def submit() -> None:
            state, found = await self.look(number)
            if state == "ended" and (found.get("status") or {}).get("status_str") != "success":
                await self.forget(number)  # a failure is no result: once more
            elif state != "unknown":
                return
            content = {"prompt": prompt, "prompt_id": number, "client_id": listener}
            async with self.open("POST", "/prompt", json=content) as response:
                answer = await decoded("/prompt", response, allowed=(200, 400))
                refused = response.status != 200
            if refused or answer.get("node_errors"):
                if not refused:  # the outputs that it did accept
                    await self.cancel(number)
                error = answer.get("error") or {}
                raise Refused(error if isinstance(error, dict) else {"message": error}, answer.get("node_errors") or {})

        await self.patiently(submit)

    async def _ended(self, prompt: Prompt, number: str, listener: str, tell: Told, watch: _Watch) -> Mapping[str, Any]:
        """The history's entry of a prompt, once there is one."""
        restarts = 0
        while True:
            state, found = await self.patiently(lambda: self.look(number))
            if state == "ended":
                return found
            if state == "unknown" and not watch.cut:
                raise Interrupted("Somebody took the prompt out of ComfyUI's queue.")
            if state == "unknown":
                watch.cut, restarts = False, restarts + 1
                if restarts > RESTARTS:
                    raise Forgotten(f"ComfyUI was started anew {restarts} times while the prompt ran. Its log says why; then ask again.")
                await self._submit(prompt, number, listener)
            if state == "waiting":
                tell(Progress("waiting", ahead=found))
            watch.wake.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(watch.wake.wait(), POLL)

    async def _listen(self, listener: str, number: str, tell: Told, watch: _Watch) -> None:
        """Passes progress on, and wakes whoever waits when something ends. Connects again for as long as it is let."""
        pause = PAUSE
        while True:
            with suppress(aiohttp.ClientError, asyncio.TimeoutError, ValueError):
                async with self.session.ws_connect(
                    f"{self.server}/ws", params={"clientId": listener}, heartbeat=HEARTBEAT, max_msg_size=0
                ) as socket:
                    pause = PAUSE
                    async for message in socket:
                        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                            continue
                        if told := progress_of(message.data, number):
                            tell(told)
                        else:
                            watch.wake.set()
            watch.cut = True
            tell(Progress("reconnecting"))
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


async def _within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as error:
        raise DeadlineExceeded(f"The video was not finished after {seconds:g} s, so it was called off. Give it more time.") from error


def _files_of(request: Request) -> list[Path]:
    pictures = [file for file in (request.image, request.video) if file]
    return [*pictures, *dict.fromkeys(voice.audio for voice in request.audio)]
