"""The client: uploads, queues, waits and downloads.

Progress comes from the websocket, the truth from /history: a socket that is cut costs progress lines, nothing else.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from .comfy import CANCEL_LIMIT, SUBFOLDER, Comfy, Result, place_for
from .errors import BadRequest, ClientError, DeadlineExceeded, Forgotten, Interrupted, Refused
from .queue import PREFIX, Output, Progress, id_of, is_same, is_success, outputs_of, progress_of, says_that_something_ended, video_of
from .request import Request
from .templates import DEFAULT, Prompt, Template

POLL, LEAST_POLL = 2.0, 0.2  # seconds between looks at the history: while no message comes, and at least
RESTARTS = 3  # times that a prompt is queued again because ComfyUI was started anew
HEARTBEAT = 10.0  # seconds between pings of the websocket; an answer has half of that
SILENT_DEATH = 1.5 * HEARTBEAT + 1  # seconds after which a ComfyUI that went without a word has been noticed
PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds before the websocket is opened again
ANOTHER = "Under this job's name something else was asked for before. Take another name."

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Made:
    """A video, and what ComfyUI tells of its making."""

    file: Path
    output: Output  # where ComfyUI keeps it
    entry: Mapping[str, Any]  # of the history


@dataclass
class _Watch:
    """One prompt that is waited for: what the websocket has seen, and who listens to its progress."""

    number: str
    listeners: list[OnProgress]
    listener: str = field(default_factory=lambda: uuid.uuid4().hex)
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # something has ended
    open: bool = False  # the socket is
    cut: asyncio.Event = field(default_factory=asyncio.Event)  # it was not, at some time since the prompt was last seen
    state: str = ""  # what the last look said
    ours: bool = False  # we queued it

    def tell(self, progress: Progress) -> None:
        """Callbacks run by themselves: asyncio logs what goes wrong in them, and the video goes on."""
        for listener in self.listeners:
            asyncio.get_running_loop().call_soon(listener, progress)


@dataclass
class _Shared:
    """A prompt that several callers of one client wait for."""

    prompt: Prompt
    task: asyncio.Task[Mapping[str, Any]]
    watch: _Watch
    callers: int = 0


class AsyncClient(Comfy):
    """What makes videos with a ComfyUI. Its methods may run at the same time."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._shared: dict[str, _Shared] = {}

    async def generate(
        self,
        request: Request,
        out: Path | str,
        template: str | Path | Template = DEFAULT,
        *,
        job: str | None = None,
        timeout: float = 3600.0,
        progress: OnProgress | None = None,
    ) -> Path:
        """The whole of it: upload, queue, wait, download.

        Args:
            job: a name of the caller's; asking again under it, by whomever, waits for the same video. Without one, the request is the name.
            timeout: seconds. When they are up, the prompt is called off, which may take a quarter of a minute more.
            progress: called in the event loop's thread, with every word of progress.
        Raises:
            ClientError: its subclasses say what; see `errors`.
        """
        template = template if isinstance(template, Template) else Template.load(template)
        out = place_for(out)

        async def work() -> Path:
            graph = template.fill(request, await self._uploaded(request.files, SUBFOLDER))
            return (await self._make(graph, out, job, request.files, SUBFOLDER, progress)).file

        return await _within(timeout, work())

    async def make(
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
        """Queues a prompt that saves a video, waits and downloads; otherwise as `generate`.

        Args:
            files, folder: what the prompt reads, as `upload` was given it: sent again if ComfyUI comes back without it.
        """
        return await _within(timeout, self._make(prompt, place_for(out), job, files, folder, progress))

    async def _make(
        self, graph: Prompt, out: Path, job: str | None, files: Sequence[Path], folder: str, progress: OnProgress | None
    ) -> Made:
        number = id_of(job) if job else id_of(graph)

        async def again() -> None:
            await self._uploaded(files, folder)

        entry, fresh = await self._run(_named(graph, number), number, again, progress)
        output = video_of(outputs_of(entry))
        if not fresh and await self.size_of(output) is None:  # ComfyUI remembers a file that somebody has removed
            await self.forget(number)
            entry, _ = await self._run(_named(graph, uuid.uuid4().hex), number, again, progress)  # nor runs what it remembers
            output = video_of(outputs_of(entry))
        return Made(await self.download(output, out), output, entry)

    async def run(
        self, prompt: Prompt, prompt_id: str | None = None, *, timeout: float = 3600.0, progress: OnProgress | None = None
    ) -> list[Output]:
        """Queues a prompt and waits until it has ended; the files it saved.

        Args:
            prompt_id: a UUID; without one, the prompt is its own name.
        """
        number = _uuid(prompt_id) if prompt_id else id_of(prompt)
        entry, _ = await _within(timeout, self._run(prompt, number, None, progress))
        return outputs_of(entry)

    async def _uploaded(self, files: Sequence[Path], folder: str) -> dict[Path, str]:
        return {file: await self.upload(file, folder) for file in files}

    async def _run(
        self, prompt: Prompt, number: str, again: Callable[[], Awaitable[None]] | None, progress: OnProgress | None
    ) -> tuple[Mapping[str, Any], bool]:
        """The history's entry of a prompt that ended well, and whether it ran for us.

        Callers of one client share a prompt; the last to give up calls it off.
        """
        shared = self._shared.get(number)
        if shared is None:
            watch = _Watch(number, [])
            shared = self._shared[number] = _Shared(prompt, asyncio.create_task(self._follow(prompt, watch, again)), watch)
        elif not is_same(prompt, shared.prompt):
            raise BadRequest(ANOTHER)
        shared.callers += 1
        listeners = [progress] if progress else []
        shared.watch.listeners += listeners
        try:
            return await asyncio.shield(shared.task), shared.watch.ours
        finally:
            shared.callers -= 1
            for listener in listeners:
                shared.watch.listeners.remove(listener)
            if not shared.callers:
                self._shared.pop(number, None)
                shared.task.cancel()
                await asyncio.wait({shared.task})

    async def _follow(self, prompt: Prompt, watch: _Watch, again: Callable[[], Awaitable[None]] | None) -> Mapping[str, Any]:
        listening = asyncio.create_task(self._listen(watch))
        try:
            await self._submit(prompt, watch)
            entry = await self._ended(prompt, watch, again)
            outputs_of(entry)  # raises what went wrong
            return entry
        except asyncio.CancelledError:
            if watch.ours:
                with suppress(ClientError, asyncio.TimeoutError):
                    await asyncio.wait_for(self.cancel(watch.number), CANCEL_LIMIT)
            raise
        finally:
            listening.cancel()
            await asyncio.wait({listening})

    async def _submit(self, prompt: Prompt, watch: _Watch) -> None:
        """Queues a prompt, unless it is there already: an answer may have been lost, or somebody else asked for the same."""

        async def submit() -> None:
            state, found = await self.look(watch.number)
            if state == "ended" and not is_success(found):
                await self.forget(watch.number)  # a failure is no result: once more
            elif state != "unknown":
                item = found["prompt"] if state == "ended" else found[0] if state == "waiting" else found
                if not is_same(prompt, item[2]):
                    raise BadRequest(ANOTHER)
                return
            watch.ours = True  # also if the answer is lost
            content = {"prompt": prompt, "prompt_id": watch.number, "client_id": watch.listener}
            async with self.open("POST", "/prompt", json=content) as response:
                answer = await self.decoded("/prompt", response, allowed=(200, 400))
                refused = response.status != 200
            if refused or answer.get("node_errors"):
                if not refused:  # the outputs that it did accept
                    await self.cancel(watch.number)
                error = answer.get("error") or {}
                raise Refused(error if isinstance(error, dict) else {"message": error}, answer.get("node_errors") or {})

        await self.patiently(submit)

    async def _ended(self, prompt: Prompt, watch: _Watch, again: Callable[[], Awaitable[None]] | None) -> Mapping[str, Any]:
        """The history's entry of a prompt, once there is one."""
        restarts = 0
        while True:
            watch.wake.clear()
            state, found = await self.patiently(lambda: self.look(watch.number))
            if state == "ended":
                return found
            if state == "unknown":
                if not await _set_within(watch.cut, SILENT_DEATH):
                    raise Interrupted("Somebody took the prompt out of ComfyUI's queue.")
                restarts += 1
                if restarts > RESTARTS:
                    raise Forgotten(f"ComfyUI forgot the prompt {restarts} times: it was started anew. Its log says why; then ask again.")
                if again:
                    await again()
                await self._submit(prompt, watch)
            elif state == "waiting":
                watch.tell(Progress("waiting", ahead=found[1]))
            elif watch.state != "running":
                watch.tell(Progress("running"))
            if state != "unknown" and watch.open:
                watch.cut.clear()
            watch.state = state
            await asyncio.sleep(LEAST_POLL)
            await _set_within(watch.wake, POLL)

    async def _listen(self, watch: _Watch) -> None:
        """Passes progress on, and wakes whoever waits when something ends. Connects again for as long as it is let."""
        pause = PAUSE
        while True:
            with suppress(aiohttp.ClientError, asyncio.TimeoutError, OSError):
                async with self.session.ws_connect(
                    f"{self.server}/ws", params={"clientId": watch.listener}, headers=self.headers, heartbeat=HEARTBEAT, max_msg_size=0
                ) as socket:
                    watch.open = True
                    async for message in socket:
                        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                            self._hear(message.data, watch)
                            pause = PAUSE
            if watch.open or not watch.cut.is_set():
                watch.tell(Progress("reconnecting"))
            watch.open, watch.state = False, ""
            watch.cut.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _hear(self, message: str | bytes, watch: _Watch) -> None:
        progress = progress_of(message, watch.number)
        if progress and (watch.state == "running" or not progress.text):  # texts do not say whose they are
            watch.tell(progress)
        if says_that_something_ended(message):
            watch.wake.set()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether an event is set, or will be within so many seconds. Unlike wait_for, never swallows that we are cancelled."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
    finally:
        waiting.cancel()
    return event.is_set()


async def _within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    raise DeadlineExceeded(f"The video was not finished after {seconds:g} s, so it was called off. Give it more time.")


def _named(graph: Prompt, mark: str) -> Prompt:
    """The same graph, whose files nobody else's can be taken for: ComfyUI uses a number again once a file is gone."""
    graph = copy.deepcopy(graph)
    mark = mark.replace("-", "")[:12]
    for node in graph.values():
        if isinstance(node["inputs"].get(PREFIX), str):
            node["inputs"][PREFIX] += f"_{mark}"
    return graph


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise BadRequest(f"'{text}' is no UUID, which is what ComfyUI takes as a prompt's id; id_of(…) makes one of any name.") from error
