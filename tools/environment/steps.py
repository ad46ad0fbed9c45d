"""Steps that say how long they took, fail with a way out, and wait for each other."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..processes import run

if os.name == "nt":
    import msvcrt
else:
    import fcntl

LOG_LINES_SHOWN = 15
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # by another process


class StepFailed(Exception):
    """A step could not be done: which one, what happened, and what to do about it."""

    def __init__(self, step: str, what: str, remedy: str):
        super().__init__(f"{step}: {what}\nWhat to do: {remedy}")
        self.step, self.what, self.remedy = step, what, remedy


class Step:
    """A named piece of work; prints lines such as `[ 12.3 s] environment: installed 61 packages`."""

    def __init__(self, name: str):
        self.name = name
        self.started = time.monotonic()

    def say(self, what: str) -> None:
        print(f"[{time.monotonic() - self.started:5.1f} s] {self.name}: {what}", flush=True)

    def failed(self, what: str, remedy: str) -> StepFailed:
        return StepFailed(self.name, what, remedy)

    def run(self, command: Sequence[str], log: Path, env: dict[str, str], remedy: str) -> str:
        """Runs a command with its output in a log file; returns the output.

        Raises:
            StepFailed: the command exited non-zero; the message ends with the log's last lines.
        """
        with log.open("w", encoding="utf-8") as file:
            code = run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=env)
        output = log.read_text(encoding="utf-8", errors="replace")
        if code != 0:
            tail = "\n".join("    " + line for line in output.splitlines()[-LOG_LINES_SHOWN:])
            raise self.failed(f"'{' '.join(command[:5])} …' ended with {code}; {log} ends:\n{tail}", remedy)
        return output


@contextmanager
def locked(target: Path, step: Step) -> Iterator[None]:
    """Holds `<target>.lock` so that two runs do not make the same thing at once.

    The lock is the operating system's: it goes with its process, however that ends, so none is ever stale.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "a+", encoding="utf-8") as file:
        try:
            if not _try_lock(file.fileno()):
                step.say(f"another run is making {target.name}; waiting for it")
                while not _try_lock(file.fileno()):
                    time.sleep(0.5)
        except OSError as error:
            step.say(f"this disk has no locks ({error.strerror or error}); do not start a second run beside this one")
        yield


def _try_lock(descriptor: int) -> bool:
    """Raises OSError where nothing can be locked: on some network disks, for example."""
    try:
        if os.name == "nt":
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True
