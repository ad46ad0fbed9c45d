"""Fetches published model files from the Hugging Face Hub into ComfyUI's folders: whole and verified, or not at all.

huggingface_hub asks for size and hash and moves the bytes. Its hf_hub_download is not used: since release 2 it throws a half file away when
it fails, and begins again; here a half file stays in `.multitalk-downloads` of the models folder, and the next run goes on with it.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .pack import register_pack
from .steps import Step, locked

register_pack()  # a program of tools runs without it

from multitalk_nodes.multitalk_core.disk import FULL, checksum, sync  # noqa: E402
from multitalk_nodes.multitalk_core.manifest import GB, Entry, Preset, gigabytes  # noqa: E402
from multitalk_nodes.multitalk_core.model_folders import named  # noqa: E402

STAGING = ".multitalk-downloads"
SPARE = GB  # bytes that stay free
TRIES, DAMAGED_TRIES = 6, 2  # of a file; huggingface_hub tries on its own inside each
LONGEST_PAUSE = 30.0  # seconds
CHUNK = 2**20  # bytes that are written at once; of huggingface_hub's own 10 MB, all are lost whenever a connection is
AGAIN = (408, 429, 500, 502, 503, 504)  # HTTP statuses that pass
SHA256 = re.compile(r"[0-9a-f]{64}")


class NotFetched(Exception):
    """A file could not be fetched: what happened, and what to do."""


class Damaged(NotFetched):
    """What came is not the file."""


@dataclass(frozen=True)
class Remote:
    """What the Hub says of a file."""

    url: str
    headers: dict[str, str]
    etag: str
    size: int | None
    sha256: str | None


@dataclass
class Item:
    """A file that is wanted, and what is there of it."""

    entry: Entry
    path: Path  # where it is, or will be
    partial: int  # bytes that an earlier run left

    @property
    def there(self) -> bool:
        return self.path.is_file() and (self.entry.size is None or self.path.stat().st_size == self.entry.size)

    @property
    def state(self) -> str:
        if self.there:
            return "there"
        if self.path.exists():
            return "another file has its name"
        return f"{gigabytes(self.partial)} of it are there" if self.partial else "to fetch"

    @property
    def missing(self) -> int:
        return 0 if self.there else max(0, self.entry.bytes - self.partial)


class Fetcher:
    """Fetches files into a models folder.

    Args:
        replace: puts a file in the place of another that has its name.
    """

    def __init__(self, models: Path, step: Step, replace: bool = False) -> None:
        self.models, self.step, self.replace = models, step, replace
        self._hub: _Hub | None = None
        self.staging = models / STAGING

    def items(self, preset: Preset) -> list[Item]:
        return [Item(entry, named(self.models, entry.folder, entry.name), self._partial(entry)) for entry in preset.files]

    def expect_room(self, items: list[Item]) -> None:
        """Raises NotFetched unless everything that is missing fits on the disk."""
        needed, free = sum(item.missing for item in items), self.free()
        if needed and needed + SPARE > free:
            raise NotFetched(
                f"{gigabytes(needed)} are to be fetched and {gigabytes(SPARE)} stay free, but the disk of {self.models} has "
                f"{gigabytes(free)} left. Free {gigabytes(needed + SPARE - free)}, choose a smaller set, or another --models folder."
            )

    def free(self) -> int:
        """Bytes, of the disk that the folder is on, or will be."""
        folder = self.models.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def get(self, item: Item) -> str:
        """Fetches a file, unless it is there; what was done, in words.

        Raises:
            NotFetched: it is not there now. What came of it stays for the next run.
        """
        with locked(self.staging / "downloads", self.step):
            if not item.path.exists():
                return self._fetch(item)
            listed = item.entry.sha256 and item.entry.confirmed  # else only the Hub knows what it should be
            return self._judged(item, None if listed else self._asked(item.entry))

    @property
    def hub(self) -> _Hub:
        self._hub = self._hub or _Hub()
        return self._hub

    def _asked(self, entry: Entry) -> Remote:
        try:
            return self.hub.look(entry)
        except self.hub.passing as error:
            raise self.hub.explained(entry, error) from error

    # -- what is there already

    def _judged(self, item: Item, remote: Remote | None) -> str:
        size = remote.size if remote and remote.size else item.entry.size
        digest = self._expected(item.entry, remote)
        found = item.path.stat().st_size
        if (size is None or found == size) and (digest is None or self._digest(item.path) == digest):
            return "is there" + (", verified" if digest else "; no hash is known to compare it with")
        if not self.replace:
            wanted = f" of {size} bytes" if size and size != found else ""
            raise NotFetched(
                f"'{item.path}' ({found} bytes) is not the published file{wanted}: it is incomplete, damaged or another one. "
                "It was left alone; move it away, or run again with --replace."
            )
        return self._fetch(item)

    def _digest(self, path: Path) -> str:
        self.step.say(f"{path.name}: comparing its SHA-256")
        return checksum(path)

    def _expected(self, entry: Entry, remote: Remote | None) -> str | None:
        """The SHA-256 that a file must have. The Hub's own is better than one that nobody confirmed."""
        told = remote.sha256 if remote else None
        if told and entry.sha256 and told != entry.sha256:
            if entry.confirmed:
                raise NotFetched(
                    f"{entry.repository} offers a {entry.name} with SHA-256 {told}, but the published one has {entry.sha256}. Either it "
                    "was replaced there (update this pack), or HF_ENDPOINT leads to a copy that is not the same."
                )
            self.step.say(f"{entry.name}: the Hub's SHA-256 is another than the listed one, which nobody has confirmed; the Hub's counts")
        return told or (entry.sha256 if entry.confirmed else None)

    # -- what is not

    def _partial(self, entry: Entry) -> int:
        return max((file.stat().st_size for file in self.staging.glob(f"{glob.escape(entry.name)}.*.part")), default=0)

    def _fetch(self, item: Item) -> str:
        damaged = 0
        for attempt in range(1, TRIES + 1):
            try:
                return self._try(item)
            except Damaged as failure:
                damaged, last = damaged + 1, failure
                if damaged == DAMAGED_TRIES:
                    break
            except self.hub.passing as error:
                last = self.hub.explained(item.entry, error)
                if not self.hub.passes(error):
                    break
            if attempt < TRIES:
                seconds = min(LONGEST_PAUSE, 2.0 ** (attempt - 1))
                self.step.say(f"{last} Trying again in {seconds:g} s.")
                time.sleep(seconds)
        raise last

    def _try(self, item: Item) -> str:
        entry, remote = item.entry, self.hub.look(item.entry)
        digest = self._expected(entry, remote)
        part = self.staging / f"{entry.name}.{re.sub('[^0-9A-Za-z]', '', remote.etag)[:16]}.part"
        have = part.stat().st_size if part.exists() else 0
        if remote.size and have > remote.size:
            part.unlink()
            have = 0
        if remote.size and remote.size - have + SPARE > self.free():
            raise NotFetched(
                f"{gigabytes(remote.size - have)} of {entry.name} are missing, but the disk has {gigabytes(self.free())} left."
            )
        self.step.say(f"{entry.name}: {'going on after ' + gigabytes(have) if have else 'fetching'}, {entry.told}")
        with part.open("ab") as file:
            try:
                self.hub.receive(remote, file, have, entry.name)
            except self.hub.passing:
                file.flush()
                _expect_no_page(part, entry.name)  # nothing to go on with
                raise
        self._expect_whole(part, remote, digest)
        sync(part)
        item.path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, item.path)
        sync(item.path.parent)
        for old in self.staging.glob(f"{glob.escape(entry.name)}.*.part"):  # of other versions
            old.unlink()
        return "fetched" + (" and verified" if digest else "; no hash is known to verify it by")

    def _expect_whole(self, part: Path, remote: Remote, digest: str | None) -> None:
        """Raises Damaged, and takes the file away, if it is not what the Hub announced."""
        name, size = part.name.rsplit(".", 2)[0], part.stat().st_size
        _expect_no_page(part, name)
        if (remote.size is None or size == remote.size) and (digest is None or self._digest(part) == digest):
            return
        part.unlink()
        told = f"{size} of {remote.size} bytes" if remote.size not in (None, size) else "its SHA-256 is another"
        raise Damaged(f"What came is not {name} ({told}); it was thrown away.")


def _expect_no_page(part: Path, name: str) -> None:
    """Raises Damaged, and takes the file away, if it is HTML."""
    with part.open("rb") as file:
        begin = file.read(256)
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        part.unlink()
        raise Damaged(f"A web page came in place of {name}: a proxy's, or one that asks to log in. Look at the Hub in a browser.")


class _Hub:
    """What is used of huggingface_hub, whose HTTP library was exchanged twice."""

    def __init__(self) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import constants, file_download
            from huggingface_hub.utils import HfHubHTTPError, build_hf_headers
        except ImportError as error:
            raise NotFetched("Fetching models needs huggingface_hub: pip install huggingface_hub") from error
        if constants.HF_HUB_OFFLINE:
            raise NotFetched("HF_HUB_OFFLINE is set, so nothing may be fetched. Unset it (and TRANSFORMERS_OFFLINE), and run again.")
        self._hub, self._download, self._headers, self._status = huggingface_hub, file_download, build_hf_headers, HfHubHTTPError
        libraries = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK
        self.passing: tuple[Any, ...] = (
            HfHubHTTPError,
            OSError,
            *(library.TransportError for library in libraries),
        )  # requests' are OSErrors

    def look(self, entry: Entry) -> Remote:
        url = self._hub.hf_hub_url(entry.repository, entry.path, endpoint=self.endpoint)
        told = self._hub.get_hf_file_metadata(url)
        if told.commit_hash is None or told.etag is None:
            raise NotFetched(f"{self.endpoint} answers as no Hugging Face Hub does. Is HF_ENDPOINT right, or is there a proxy's page?")
        headers = dict(self._headers())
        if urlsplit(told.location).netloc != urlsplit(url).netloc:  # storage with signed addresses: not to be told the token
            headers.pop("authorization", None)
        return Remote(told.location, headers, told.etag, told.size, told.etag if SHA256.fullmatch(told.etag) else None)

    def receive(self, remote: Remote, file: Any, have: int, name: str) -> None:
        """Appends the rest of a file."""
        if remote.size is None or have < remote.size:
            more = {"resume_size": have, "expected_size": remote.size, "displayed_filename": name}
            self._download.http_get(remote.url, file, headers=remote.headers, **more)

    def passes(self, error: BaseException) -> bool:
        """Whether to try once more."""
        if isinstance(error, self._status):
            return error.response.status_code in AGAIN
        return not (isinstance(error, OSError) and error.errno in FULL)

    def explained(self, entry: Entry, error: BaseException) -> NotFetched:
        status = error.response.status_code if isinstance(error, self._status) else None
        page = f"{self.endpoint}/{entry.repository}"
        if status in (401, 403):
            return NotFetched(
                f"{entry.name} is not given to everybody ({status}): accept the terms on {page}, make a token there, and set HF_TOKEN."
            )
        if status == 404:
            return NotFetched(f"{page} has no {entry.path} (404): it was renamed or removed there.")
        if isinstance(error, OSError) and error.errno in FULL:
            return NotFetched(f"The disk is full. What came of {entry.name} stays; free {entry.told}, then run the same command again.")
        told = f"answers {status}" if status else f"broke off ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        return NotFetched(f"{entry.name}: {self.endpoint} {told}. What came stays for the next run.")
