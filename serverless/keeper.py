"""Keeps a ComfyUI running: it is started anew when it dies, and goes when the worker goes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from .settings import SECRETS

log = logging.getLogger("comfyui")

PAUSES = (0.0, 1.0, 5.0, 15.0, 30.0)  # seconds before the next start, as often as it died at once
AT_ONCE = 60.0  # seconds
STOP = 10.0  # seconds from terminate to kill
WATCHER = Path(__file__).resolve().parents[1] / "tools" / "watcher.py"  # ends ComfyUI where we are killed


class Keeper:
    """A process, from `start` to `stop`.

    Args:
        died: called each time that it ended by itself.
        given_up: called when it has died at once so often that another start would help nobody.
    """

    def __init__(self, command: Sequence[str], died: Callable[[], None], given_up: Callable[[], None]) -> None:
        self._command, self._died, self._given_up = list(command), died, given_up
        self._process: subprocess.Popen[str] | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the process, and whatever it has started."""
        self._stopping.set()
        if self._process is not None:
            _signal(self._process, signal.SIGTERM)
            try:
                self._process.wait(STOP)
            except subprocess.TimeoutExpired:
                log.warning("ComfyUI does not end; it is killed")
            finally:
                _signal(self._process, signal.SIGKILL)

    def _keep(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = self._run()
            if self._stopping.is_set():
                return
            self._died()
            failures = failures + 1 if time.monotonic() - began < AT_ONCE else 0
            log.error("ComfyUI ended by itself", extra={"exit_code": code, "in_a_row": failures})
            if failures >= len(PAUSES):
                self._given_up()
                return
            self._stopping.wait(PAUSES[failures])

    def _run(self) -> int:
        """One life of the process, whose lines go to the log."""
        variables = {name: value for name, value in os.environ.items() if name not in SECRETS}  # no node needs them
        variables |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        log.info("ComfyUI is started", extra={"command": self._command})
        with subprocess.Popen(
            self._command, env=variables, text=True, encoding="utf-8", errors="replace", start_new_session=True, **streams
        ) as process:
            self._process = process
            words = [sys.executable, "-I", "-S", str(WATCHER), str(process.pid), str(os.getpid()), str(STOP)]
            watcher = subprocess.Popen(words, env={}, stdin=subprocess.DEVNULL, start_new_session=True)
            if self._stopping.is_set():  # it was started while we were asked to stop
                _signal(process, signal.SIGKILL)
            for line in process.stdout:
                if line.strip():
                    log.log(logging.DEBUG if "it/s" in line or "s/it" in line else logging.INFO, "%s", line.rstrip())
            code = process.wait()
            _signal(process, signal.SIGKILL)  # what it has started
            watcher.kill()
            watcher.wait()
        return code


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # all gone
        os.killpg(process.pid, number)
