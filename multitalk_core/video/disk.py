"""What long videos need of a disk: files that are safe when they are said to be, checksums, and refusals in the user's words."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import DiskFullError, JobError

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR}


class Destination(Protocol):
    """Where a finished video goes: a folder, and a name that is chosen when the video is done."""

    folder: Path

    def keep(self, partial: Path) -> Path:
        """Give a finished file of this folder its name; returns its path."""
        ...


@dataclass(frozen=True)
class Exactly:
    """Exactly this path; a file that is there is replaced."""

    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    def keep(self, partial: Path) -> Path:
        os.replace(partial, self.path)
        return self.path


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """What the disk refuses in this folder, as a JobError in the user's words."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"The disk of {folder} is full. Free some space and queue again: finished clips are kept.") from error
        advice = "Make it writable, then queue again" if error.errno in CLOSED else "Mend that, then queue again: finished clips are kept"
        raise JobError(f"{folder} cannot be used ({error.strerror or error}). {advice}.") from error
