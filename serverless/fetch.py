"""Files from https addresses that a stranger names.

Only public hosts are asked: every address that a name stands for is looked at, the connection goes to one of those, and a redirect begins
anew. Nothing of the worker's own goes along.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from .errors import JobError

REDIRECTS = 5
CONNECT, SILENCE = 10.0, 30.0  # seconds for a connection, and for the next bytes
BLOCK = 2**18  # bytes
NUMBER = re.compile(r"\d+|0x[0-9a-f]*", re.IGNORECASE)
MOVED = (301, 302, 303, 307, 308)


class NotPublic(OSError):
    """A name that stands for an address within somebody's network."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet; what IPv6 carries of IPv4 counts as that."""
    found = ipaddress.ip_address(address.split("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    teredo = getattr(found, "teredo", None)
    if teredo:
        inner = teredo[1]
    if found.version == 6 and found in ipaddress.ip_network("64:ff9b::/96"):
        inner = ipaddress.ip_address(int(found) & 0xFFFFFFFF)
    if inner is not None:
        return is_public(str(inner))
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


class PublicResolver(AbstractResolver):
    """Names to addresses, all of which must be public."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        addresses = [(kind, address[0]) for kind, _, _, _, address in found]
        if not addresses or not all(is_public(address) for _, address in addresses):
            raise NotPublic(f"{host} is not a public host")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in addresses
        ]

    async def close(self) -> None:
        pass


async def fetch(url: str, file: Path, limit: int, resolver: AbstractResolver | None = None) -> None:
    """Writes what is at an https address into a file.

    Args:
        limit: bytes.
    Raises:
        JobError: it is not https, not public, too large, or not there.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
    connector = aiohttp.TCPConnector(resolver=resolver or PublicResolver(), use_dns_cache=False)
    # no proxy, no cookies, no netrc of ours
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session:
        try:
            await _follow(session, url, file, limit)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if _is_not_public(error):
                raise _refused() from error
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise JobError("The worker's disk is full.", "disk_full") from error
            raise JobError("A file could not be fetched: its host does not answer as it should.", "input_unreachable") from error


async def _follow(session: aiohttp.ClientSession, address: str, file: Path, limit: int) -> None:
    url = checked(address)
    for _ in range(REDIRECTS + 1):
        async with session.get(url, allow_redirects=False, headers={"Accept-Encoding": "identity"}) as response:
            if response.status in MOVED and "Location" in response.headers:
                url = checked(response.headers["Location"], url)
                continue
            if response.status != 200:
                raise JobError(f"A file could not be fetched: its host answered with HTTP status {response.status}.", "input_not_found")
            if (response.content_length or 0) > limit:
                raise too_large(limit)
            length = 0
            with file.open("wb") as stream:
                async for block in response.content.iter_chunked(BLOCK):
                    length += len(block)
                    if length > limit:
                        raise too_large(limit)
                    stream.write(block)
            return
    raise JobError(f"A file could not be fetched: its host redirects more than {REDIRECTS} times.", "input_unreachable")


def checked(address: str, base: URL | None = None) -> URL:
    """An address that may be asked; names are looked up later, by PublicResolver.

    What is returned is what is asked: another reading of the same text could find another host in it.

    Raises:
        JobError: it may not.
    """
    try:
        url = URL(address) if base is None else base.join(URL(address))
        host, port = url.raw_host, url.explicit_port
    except ValueError as error:
        raise JobError("A file's address is no URL.", "invalid_input") from error
    if url.scheme != "https" or not host:
        raise JobError("Files are fetched from https:// addresses only.", "invalid_input")
    if url.raw_user is not None or url.raw_password is not None:
        raise JobError("A file's address must not hold a user name or a password.", "invalid_input")
    if port not in (None, 443):
        raise _refused()
    try:
        public = is_public(host)
    except ValueError:  # a name, unless it is a number in a form that only some read as an address
        name = host.rstrip(".")
        public = "." in name and not NUMBER.fullmatch(name.rpartition(".")[2])
    if not public:
        raise _refused()
    return url


def too_large(limit: int) -> JobError:
    return JobError(f"A file is larger than {limit / 2**20:g} MB.", "input_too_large", limit_bytes=limit)


def _refused() -> JobError:
    return JobError("Files are fetched from public hosts on port 443 only.", "input_refused")


def _is_not_public(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, NotPublic):
            return True
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return False
