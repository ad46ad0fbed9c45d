"""Files as such: checksums, what survives a power failure, and sizes in words."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def checksum(file: Path, on_progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a whole file; `on_progress` is called with the bytes read so far, and may raise to stop."""
    hashed, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            hashed.update(block)
            done += len(block)
            if on_progress:
                on_progress(done)
    return hashed.hexdigest()


def sync(path: Path) -> None:
    """Only then a power failure leaves what was written. Windows has no such call for folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def megabytes(count: int) -> int:
    """Rounded up."""
    return -(-count // 2**20)


GB = 10**9  # as disks and volumes are sold


def gigabytes(count: int) -> str:
    """Bytes in words: 5.1 GB, 190 MB."""
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 10**6:.0f} MB"
