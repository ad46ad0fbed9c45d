"""How one program starts another: what ends the first ends the second, and nothing that it has started stays behind.

`started` is a process for the length of a block; `run` waits for a command, and hands on the signals that come meanwhile. Each process has
a session of its own, so that its whole group can be ended, and Ctrl-C reaches it once: from us.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

STOP_LIMIT = 4.0  # seconds from terminate to kill
PATIENCE = 8.0  # seconds that a command gets after a signal: in them it may stop what it has started in its turn
TICK = 0.2  # seconds between looks at whether a signal came
WATCHER = Path(__file__).with_name("watcher.py")
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


def run(command: Sequence[str], *, own_session: bool = True, patience: float = PATIENCE, **more: Any) -> int:
    """Runs a command to its end, and returns its exit code, as a shell tells it: 128 + n where signal n ended it.

    Args:
        own_session: False for a command that reads from the terminal, such as a debugger. The terminal's Ctrl-C then reaches it without us.
        patience: seconds that it gets after a signal, before it is killed.
        more: for subprocess.Popen.
    Raises:
        SystemExit: a signal came that ends programs. The command got it, too, and has ended; the code is 128 + n.
    """
    own_session = own_session and os.name != "nt"  # Windows' console tells its programs, but not those in groups of their own
    came: list[int] = []
    with _heard(came.append), started(command, own_session=own_session, limit=patience, **more) as process:
        handed_on, until = 0, float("inf")
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
            for number in came[handed_on:]:
                until = min(until, time.monotonic() + patience)
                if own_session or number != signal.SIGINT:  # which the terminal sends to both
                    process.send_signal(number)
            handed_on = len(came)
            if time.monotonic() > until:
                _signal(process, "SIGKILL", own_session)
    if came:
        raise SystemExit(128 + came[0])
    code = process.returncode
    return 128 - code if code < 0 else code


@contextmanager
def started(command: Sequence[str], *, own_session: bool = True, limit: float | None = None, **more: Any) -> Iterator[subprocess.Popen]:
    """A process, which is ended with its whole group at the end of the block, or when we die.

    Args:
        limit: seconds from terminate to kill (default: STOP_LIMIT).
        more: for subprocess.Popen.
    """
    limit = STOP_LIMIT if limit is None else limit
    process = subprocess.Popen(command, **more, **_session(own_session))
    with ExitStack() as stack:
        stack.callback(_stop, process, limit, own_session)  # where no watcher can be started
        if own_session and os.name != "nt":  # on Windows the console takes its processes with it
            stack.enter_context(_watched(process, limit))
        stack.callback(_stop, process, limit, own_session)
        yield process


def leave_on_signals() -> None:
    """From here on SIGTERM and SIGHUP leave the program's `with` blocks, as Ctrl-C does, and its exit code is 128 + n."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in _not_ignored():
        if number != signal.SIGINT:
            signal.signal(number, leave)


@contextmanager
def _heard(on_progress: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, the signals that end programs are only reported."""
    before = {number: signal.signal(number, lambda number, frame: on_progress(number)) for number in _not_ignored()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _not_ignored() -> list[int]:
    """What our caller has us ignore, such as nohup SIGHUP, stays ignored; and only the main thread may handle signals."""
    is_main = threading.current_thread() is threading.main_thread()
    return [number for number in ENDING if is_main and signal.getsignal(number) not in (signal.SIG_IGN, None)]


def _session(own: bool) -> dict[str, Any]:
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP if own else 0}
    return {"start_new_session": own}


@contextmanager
def _watched(process: subprocess.Popen, limit: float) -> Iterator[None]:
    words = [sys.executable, "-I", "-S", str(WATCHER), str(process.pid), str(os.getpid()), str(limit)]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with subprocess.Popen(words, **quiet, start_new_session=True) as watcher:
        try:
            yield
        finally:
            watcher.kill()


def _stop(process: subprocess.Popen, limit: float, own_session: bool) -> None:
    """Terminates a process, kills it if it does not go, and kills what it has started."""
    _signal(process, "SIGTERM", own_session)
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit)
    finally:
        _signal(process, "SIGKILL", own_session)
        process.wait()


def _signal(process: subprocess.Popen, name: str, group: bool) -> None:
    if os.name == "nt":
        if process.poll() is None:  # there is no gentle way: Windows has no SIGTERM
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    elif not group:
        process.send_signal(getattr(signal, name))
    else:
        with suppress(ProcessLookupError, PermissionError):  # all gone; macOS says the second of a group of zombies
            os.killpg(process.pid, getattr(signal, name))
