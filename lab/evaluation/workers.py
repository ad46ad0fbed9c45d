"""Worker processes of the evaluation: each loads the product once and measures one group of videos after another.

A worker reads groups as lines of JSON on stdin. To each it answers with a line of JSON for every video, and the line DONE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Queue

from .cases import Group, Record, Scope

DONE = "done\n"

Messages = Queue[Record | Exception | None]  # None: a worker has no more to do


class WorkerError(RuntimeError):
    """A worker process ended before its work was done."""


def work(scope: Scope, weights: Path, shuffled: bool, videos: Path) -> None:
    """The worker's side."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not come between, not even a native one
    from .evaluate import Product, run  # here, because the parent needs no ComfyUI

    product = Product(weights, shuffled)
    for line in sys.stdin:
        for record in run(Group(**json.loads(line)), scope, product, videos):
            answers.write(json.dumps(record) + "\n")
        answers.write(DONE)


def measured(groups: Sequence[Group], command: Sequence[str], jobs: int) -> Iterator[Record]:
    """Records as workers measure them; a worker gets its next group when it has done one.

    Args:
        command: what starts a worker. Workers share the cores evenly.
    Raises:
        WorkerError: a worker ended.
    """
    running = min(jobs, len(groups))
    left, lock, messages = iter(groups), threading.Lock(), Messages()
    workers = [_start(command, running) for _ in range(running)]
    try:
        for worker in workers:
            threading.Thread(target=_serve, args=(worker, left, lock, messages), daemon=True).start()
        while running:
            message = messages.get()
            if isinstance(message, Exception):
                raise message
            if message is None:
                running -= 1
            else:
                yield message
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()


def _start(command: Sequence[str], workers: int) -> subprocess.Popen[str]:
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}  # what the user set stays
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, encoding="utf-8")


def _serve(worker: subprocess.Popen[str], left: Iterator[Group], lock: threading.Lock, messages: Messages) -> None:
    """Hands groups to one worker, and its records on."""
    while True:
        with lock:
            group = next(left, None)
        if group is None:
            messages.put(None)
            return
        with suppress(OSError):  # it has ended, which reading tells as well
            worker.stdin.write(json.dumps(vars(group)) + "\n")
            worker.stdin.flush()
        for line in worker.stdout:
            if line == DONE:
                break
            try:
                messages.put(json.loads(line))
            except ValueError:
                messages.put(WorkerError(f"a worker answered with what is no record: {line.strip()!r}"))
                return
        else:
            rows = ", ".join(group.rows)
            messages.put(WorkerError(f"a worker ended with {worker.wait()} at case {group.number} of {rows}; what it said is above"))
            return
