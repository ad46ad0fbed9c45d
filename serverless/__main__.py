"""`python -m serverless [options of the SDK] -- [ComfyUI's command line]`: the worker, and ComfyUI beside it."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys

from . import logs
from .errors import JobError
from .handler import Worker
from .health import Health
from .keeper import Keeper
from .metrics import Metrics
from .settings import Settings, secrets_in

log = logging.getLogger("multitalk.main")

GIVEN_UP = 70  # exit code: the platform takes another worker
ON_RUNPOD = "RUNPOD_WEBHOOK_GET_JOB"  # set where there is somebody to tell progress to


def main() -> None:
    logs.set_up(logs.Redactor(secrets_in(os.environ)))
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    comfyui = sys.argv[at + 1 :]
    del sys.argv[at:]  # the rest is the SDK's
    try:
        settings = Settings.of()
    except JobError as error:
        sys.exit(f"multitalk: {error}")
    host, port = os.environ.get("MULTITALK_HEALTH_HOST") or "127.0.0.1", os.environ.get("MULTITALK_HEALTH_PORT") or "8081"
    if not port.isdecimal():
        sys.exit(f"multitalk: MULTITALK_HEALTH_PORT is {port}, expected a port's number.")
    import runpod  # takes seconds, and reads the command line

    metrics = Metrics()
    update = runpod.serverless.progress_update if os.environ.get(ON_RUNPOD) else None
    worker = Worker(settings, metrics, update)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what is registered at exit runs
    if comfyui:
        keeper = Keeper(comfyui, metrics.deaths.inc, lambda: os._exit(GIVEN_UP))
        atexit.register(keeper.stop)
        keeper.start()
    try:
        Health(worker, host, int(port)).start()
    except OSError as error:
        sys.exit(f"multitalk: health cannot be served on {host}:{port}: {error}. Set MULTITALK_HEALTH_PORT to another.")

    async def handler(job):  # the SDK looks whether it is a coroutine function
        return await worker(job)

    runpod.serverless.start({"handler": handler})


if __name__ == "__main__":
    main()
