"""Ends a process and its group as soon as the program that started it is gone, however that went: no handler runs in one that is killed.

    python -I -S tools/watcher.py PROCESS STARTER SECONDS

A program by itself: what starts others starts this beside them (tools/processes.py, serverless/keeper.py), and kills it when it has
ended them itself.
"""

import os
import signal
import sys
import time
from contextlib import suppress

LOOK = 0.2  # seconds between looks at who our parent is: another one once the starter is gone


def watch(process: int, starter: int, seconds: float) -> None:
    """Wait for the starter's end; tell the process to end, and kill its group once it has, or after so many seconds."""
    while os.getppid() == starter:
        time.sleep(LOOK)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            os.kill(process, 0)  # raises when it is gone
            time.sleep(LOOK)
    with suppress(ProcessLookupError, PermissionError):  # all gone
        os.killpg(process, signal.SIGKILL)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
