"""/health, /ready and /metrics over HTTP, in a thread of its own, whatever the jobs do."""

from __future__ import annotations

import asyncio
import logging
import threading

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from multitalk_client import AsyncClient, ClientError

from .errors import JobError
from .handler import SHORT_PATIENCE, Worker

log = logging.getLogger("multitalk.health")


class Health:
    """Serves from `start` to `stop`.

    /health: 200 while ComfyUI answers. /ready: 200 once all models are there, so that jobs can begin. /metrics: for Prometheus.
    """

    def __init__(self, worker: Worker, host: str, port: int) -> None:
        self._worker, self._host, self.port = worker, host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="health", daemon=True)

    def start(self) -> None:
        """Raises OSError if the port is taken."""
        self._thread.start()
        self._do(self._open())
        log.info("health is served", extra={"host": self._host, "port": self.port})

    def stop(self) -> None:
        self._do(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        site = web.Application()
        site.add_routes([web.get("/health", self._health), web.get("/ready", self._ready), web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(site, access_log=None)
        await self._runner.setup()
        place = web.TCPSite(self._runner, self._host, self.port)
        await place.start()
        self.port = self._runner.addresses[0][1]

    async def _health(self, request: web.Request) -> web.Response:
        return await self._told(lambda given: True)

    async def _ready(self, request: web.Request) -> web.Response:
        return await self._told(lambda given: given["multitalk_available"])

    async def _told(self, is_good) -> web.Response:
        settings = self._worker.settings
        try:
            async with AsyncClient(settings.comfyui, patience=SHORT_PATIENCE) as client:
                found = await asyncio.wait_for(self._worker.health(client), 2 * SHORT_PATIENCE)
        except (ClientError, JobError, asyncio.TimeoutError) as error:
            why = {"status": "unhealthy", "error": getattr(error, "code", "comfyui_unreachable")}
            return web.json_response(why | {"version": settings.version, "commit": settings.commit}, status=503)
        return web.json_response(found, status=200 if is_good(found) else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._worker.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
