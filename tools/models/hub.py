"""What is used of huggingface_hub, whose HTTP library was exchanged twice: what a file is, its bytes, and what went wrong.

Its hf_hub_download is not used: since release 2 it throws a half file away when it fails, and begins again.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ...multitalk_core.upkeep.published import Entry
from ...multitalk_core.video.disk import FULL

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


class HubClient:
    """A Hugging Face Hub, or what HF_ENDPOINT names."""

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
        requests = [sys.modules["requests"].RequestException] if "requests" in sys.modules else []
        transport = [library.TransportError for library in libraries]
        self.network: tuple[Any, ...] = (HfHubHTTPError, ConnectionError, TimeoutError, OSError, *requests, *transport)
        self._expect_address()

    def _expect_address(self) -> None:
        """Raises NotFetched if HF_ENDPOINT cannot be asked at all."""
        try:
            parts = urlsplit(self.endpoint)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise NotFetched(f"HF_ENDPOINT is '{self.endpoint}', which is no address. It begins with https://, or is not set.")

    def is_of_the_network(self, error: BaseException) -> bool:
        """Else this machine refused something: its OSErrors have a number, those that libraries make have none."""
        remote = tuple(kind for kind in self.network if kind is not OSError)
        return isinstance(error, (*remote, socket.gaierror, ssl.SSLError)) or (isinstance(error, OSError) and error.errno is None)

    def look(self, entry: Entry) -> Remote:
        url = self._hub.hf_hub_url(entry.repository, entry.path, endpoint=self.endpoint)
        found = self._hub.get_hf_file_metadata(url)
        if found.commit_hash is None or found.etag is None:
            raise NotFetched(f"{self.endpoint} answers as no Hugging Face Hub does. Is HF_ENDPOINT right, or is there a proxy's page?")
        headers = dict(self._headers())
        if urlsplit(found.location).netloc != urlsplit(url).netloc:  # storage with signed addresses: which must not get the token
            headers.pop("authorization", None)
        return Remote(found.location, headers, found.etag, found.size, found.etag if SHA256.fullmatch(found.etag) else None)

    def receive(self, remote: Remote, file: Any, have: int, name: str) -> None:
        """Appends the rest of a file."""
        if remote.size is None or have < remote.size:
            more = {"resume_size": have, "expected_size": remote.size, "displayed_filename": name}
            self._download.http_get(remote.url, file, headers=remote.headers, **more)

    def passes(self, error: BaseException) -> bool:
        """Whether to try once more."""
        if isinstance(error, self._status):
            return error.response.status_code in AGAIN
        return self.is_of_the_network(error)

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
            return NotFetched(
                f"The disk is full. What came of {entry.name} stays; free {entry.size_in_words}, then run the same command again."
            )
        if isinstance(error, OSError) and not self.is_of_the_network(error):
            return NotFetched(f"This machine refuses it ({error}). What came stays for the next run.")
        text = f"answers {status}" if status else f"broke off ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        return NotFetched(f"{self.endpoint} {text}. What came stays for the next run.")
