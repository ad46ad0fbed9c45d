"""A Hugging Face Hub for tests, on this machine: just enough of its HTTP for one file at a time, and everything that goes wrong there.

As the real one does, it answers HEAD and GET of /REPOSITORY/resolve/main/PATH with a redirect to storage and the file's size, hash and
commit in headers; the storage speaks Range.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass
class Hub:
    """Files by "repository/path", and what is done to them.

    Attributes:
        faults: by file, what happens at its next downloads, one each: a number of bytes after which the connection is dropped, "damage"
            (wrong bytes, right length), "short", "page", "ignore range", or "status 503".
        refused: by file, the HTTP status of every question about it.
        token: what a refused file is given for after all.
        seen: requests so far, as (method, path, Range, Authorization).
    """

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, int] = field(default_factory=dict)
    token: str = ""
    hashes: bool = True  # as etags
    seen: list[tuple] = field(default_factory=list)

    def __enter__(self) -> Hub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.storage = f"http://localhost:{self._server.server_port}"  # another host, as far as the client can see
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[tuple]:
        return [request for request in self.seen if request[0] == "GET" and request[1].startswith("/storage/")]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path.startswith("/storage/"):
            return self._storage(path.removeprefix("/storage/"))
        name = path.removeprefix("/").replace("/resolve/main/", "/")
        given = self.hub.token and self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if (status := self.hub.refused.get(name)) and not given:
            return self._refuse(status)
        if name not in self.hub.files:
            return self._refuse(404)
        content = self.hub.files[name]
        digest = hashlib.sha256(content).hexdigest()
        self._send(302, b"", {
            "Location": f"{self.hub.storage}/storage/{name}",
            "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest if self.hub.hashes else digest[:40]}"',
        })  # fmt: skip

    def _refuse(self, status: int) -> None:
        codes = {404: "EntryNotFound", 403: "GatedRepo", 401: "GatedRepo"}
        self._send(status, b"", {"X-Error-Code": codes[status], "X-Error-Message": "no"} if status in codes else {})

    def _storage(self, name: str) -> None:
        content = self.hub.files[name]
        fault = self.hub.faults[name].pop(0) if self.hub.faults[name] else None
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        if fault == "page":
            return self._send(200, PAGE, {"Content-Type": "text/html"})
        if isinstance(fault, str) and fault.startswith("status "):
            return self._send(int(fault.removeprefix("status ")), b"", {})
        if fault == "damage":
            content = bytes(byte ^ 255 for byte in content)
        if fault == "short":
            content = content[: len(content) // 2]
        if fault == "ignore range" or not self.headers.get("Range"):
            status, part, more = 200, content, {}
        else:
            status, part = 206, content[start:]
            more = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        self._send(status, part, more, isinstance(fault, int) and fault)

    def _send(self, status: int, body: bytes, headers: dict[str, str], drop: int | bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/octet-stream", **headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:drop] if drop else body)
        if drop:
            self.close_connection = True
