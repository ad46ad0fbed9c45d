"""From what a job names to files in a folder of its own."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from pathlib import Path

from multitalk_core.audio.decoding import format_of

from .errors import JobError
from .fetch import fetch, too_large
from .schema import Inline, Source
from .sniff import HEAD, Kind, suffix_of
from .storage import Bucket

LIMITS: dict[Kind, int] = {"image": 64 * 2**20, "audio": 1024 * 2**20, "video": 4096 * 2**20, "any": 4096 * 2**20}  # bytes
TOTAL = 8192 * 2**20  # bytes of a job
RAW = {"mp3": ".mp3", "aac": ".aac", "mpegts": ".ts"}  # by FFmpeg's name of the format
SEEN = {
    "image": "a PNG, JPEG, WebP or BMP picture",
    "audio": "WAV, FLAC, MP3, Ogg, M4A or a video",
    "video": "an MP4, MOV, MKV or WebM video",
    "any": "a picture, a sound or a video",
}


@dataclass(frozen=True)
class Inputs:
    """Where a job's files come from, and the folder they go to. Names of files are ours; nobody else's reach the disk."""

    folder: Path
    bucket: Bucket

    async def file(self, source: Source, kind: Kind, name: str) -> Path:
        """The file behind a source, under `name` and a suffix by its content.

        Raises:
            JobError: it is not there, too large, or something else than it should be.
        """
        fetched = self.folder / f"{name}.part"
        limit = min(LIMITS[kind], TOTAL - sum(file.stat().st_size for file in self.folder.iterdir()))
        if limit <= 0:
            raise JobError(f"A job's files are larger than {TOTAL / 2**20:g} MB together.", "input_too_large")
        if isinstance(source, Inline) or source.startswith("data:"):
            content = _decoded(source)
            if len(content) > limit:
                raise too_large(limit)
            fetched.write_bytes(content)
        elif source.startswith(("https://", "http://")):
            await fetch(source, fetched, limit)
        else:
            await asyncio.to_thread(self.bucket.download, source, fetched, limit)
        with fetched.open("rb") as stream:
            suffix = suffix_of(stream.read(HEAD), kind)
        if suffix is None and kind == "audio":  # what has no beginning of its own, such as MPEG-TS, or MP3 behind something else
            suffix = RAW.get(await asyncio.to_thread(format_of, fetched))
        if suffix is None:
            fetched.unlink()
            raise JobError(f"The file for {name} is something else than expected: {SEEN[kind]}.", "input_not_usable", field=name)
        return fetched.replace(fetched.with_suffix(suffix))


def _decoded(source: Inline | str) -> bytes:
    """The bytes of an inline file, or of a data: URL in base64."""
    text = source.base64 if isinstance(source, Inline) else source
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise JobError("A data: URL is data:<type>;base64,<content>.", "invalid_input")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise JobError("A file's base64 content cannot be decoded.", "invalid_input") from error
