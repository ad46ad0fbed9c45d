"""Fetches published model files from the Hugging Face Hub into ComfyUI's folders: whole and verified, or not at all.

A half file stays in `.multitalk-downloads` of the folder that it goes to, so on its disk, and the next run goes on with it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..environment.steps import Step, locked
from .hub import Damaged, HubClient, NotFetched, Remote  # first: it registers the pack

# isort: split
from ...multitalk_core.files import GB, checksum, gigabytes, sync
from ...multitalk_core.upkeep.folders import named
from ...multitalk_core.upkeep.published import Entry

STAGING = ".multitalk-downloads"  # hidden: ComfyUI lists no files in it
SPARE = GB  # bytes that stay free
TRIES, DAMAGED_TRIES = 6, 2  # of a file; huggingface_hub tries on its own inside each
LONGEST_PAUSE = 30.0  # seconds


@dataclass
class Item:
    """A file that is wanted, and what is there of it."""

    entry: Entry
    path: Path  # where it is, or will be
    found: list[Path]  # files of its name, in any folder where they are found
    partial: int  # bytes that an earlier run left
    state: str  # in words
    missing: int  # bytes to fetch, as far as it is known before anything is asked for
    refused: bool  # something else has its name

    @property
    def staging(self) -> Path:
        return _staging(self.path)


def _staging(path: Path) -> Path:
    """On the disk that the file will be on, also if its folder is a link."""
    return Path(os.path.realpath(path.parent)) / STAGING


class Fetcher:
    """Fetches files into a models folder.

    Args:
        replace: puts a file in the place of another that has its name.
    """

    def __init__(self, models: Path, step: Step, replace: bool = False) -> None:
        self.models, self.step, self.replace = models, step, replace
        self._hub: HubClient | None = None
        self._digests: dict[tuple, str] = {}

    def item(self, entry: Entry) -> Item:
        found = named(self.models, entry.folder, entry.kind, entry.name)
        path = found[0] if found else self.models / entry.folder / entry.name
        partial = max((part.stat().st_size for part in _parts(entry, _staging(path))), default=0)
        missing = max(0, entry.bytes - partial)
        if any(self._seems_right(file, entry) for file in found):
            return Item(entry, path, found, partial, "there", 0, False)
        if not os.path.lexists(path):
            return Item(entry, path, found, partial, f"{gigabytes(partial)} of it are there" if partial else "to fetch", missing, False)
        if self.replace and not path.is_dir():
            return Item(entry, path, found, partial, "another file has its name: to replace", missing, False)
        return Item(entry, path, found, partial, "another file has its name: left alone", 0, True)

    def _seems_right(self, file: Path, entry: Entry) -> bool:
        """As far as it is known without the Hub and at no cost; the hash decides over a size that nobody confirmed."""
        if entry.size in (None, file.stat().st_size):
            return True
        if entry.sha256 and entry.confirmed:
            return self._digest(file) == entry.sha256
        return not self.replace  # only the Hub knows

    def disks(self, items: Iterable[Item]) -> list[tuple[Path, int, int]]:
        """A folder on each disk that files go to, the bytes that will be written there, and those that are free."""
        groups: dict[int, tuple[Path, int]] = {}
        for folder, size in [(self.models, 0), *((item.path.parent, item.missing) for item in items)]:
            place = _existing(folder)
            device = os.stat(place).st_dev
            first, before = groups.get(device, (folder, 0))
            groups[device] = (first, before + size)
        return [(folder, needed, _free(folder)) for folder, needed in groups.values()]

    def expect_room(self, items: list[Item]) -> None:
        """Raises NotFetched unless everything that is missing fits, disk by disk."""
        for folder, needed, free in self.disks(items):
            if needed and needed + SPARE > free:
                raise NotFetched(
                    f"{gigabytes(needed)} are to be fetched and {gigabytes(SPARE)} stay free, but the disk of {folder} has "
                    f"{gigabytes(free)} left. Free {gigabytes(needed + SPARE - free)}, choose a smaller set, or another --models folder."
                )

    def get(self, item: Item) -> str:
        """Fetches a file, unless it is there; what was done, in words.

        Raises:
            NotFetched: it is not there now. What came of it stays for the next run.
        """
        if found := self._there(item):  # which needs no folder that can be written to
            return found
        _expect_writable(item)
        with locked(item.staging / "downloads", self.step):
            item = self.item(item.entry)  # another run may have fetched it meanwhile
            return self._there(item) or self._fetch(item)

    @property
    def hub(self) -> HubClient:
        self._hub = self._hub or HubClient()
        return self._hub

    def _asked(self, entry: Entry) -> Remote:
        try:
            return self.hub.look(entry)
        except self.hub.network as error:
            raise self.hub.explained(entry, error) from error

    # -- what is there already

    def _there(self, item: Item) -> str:
        """What is to be said of a copy that is right; "" if there is none.

        Raises:
            NotFetched: something else has its name, and may not be replaced.
        """
        if not os.path.lexists(item.path):
            return ""
        if item.path.is_dir():
            raise NotFetched(f"'{item.path}' is a folder. Move it away: the file needs its name.")
        listed = item.entry.sha256 and item.entry.confirmed  # else only the Hub knows what it should be
        remote = None if listed or not item.found else self._asked(item.entry)
        digest = self._expected(item.entry, remote)
        size = remote.size if remote and remote.size else None if digest else item.entry.size
        for file in item.found:
            if size in (None, file.stat().st_size) and (digest is None or self._digest(file) == digest):
                return "is there" + (", verified" if digest else "; no hash is known to compare it with")
        if self.replace:
            return ""
        found = f"{item.path.stat().st_size} bytes" if item.found else "a link that leads nowhere"
        wanted = f" of {size or item.entry.size} bytes" if size or item.entry.size else ""
        raise NotFetched(
            f"'{item.path}' ({found}) is not the published file{wanted}: it is incomplete, damaged or another one. "
            "It was left alone; move it away, or run again with --replace."
        )

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            self.step.say(f"{path.name}: comparing its SHA-256")
            self._digests[key] = checksum(path)
        return self._digests[key]

    def _expected(self, entry: Entry, remote: Remote | None) -> str | None:
        """The SHA-256 that a file must have. The Hub's own is better than one that nobody confirmed."""
        value = remote.sha256 if remote else None
        if value and entry.sha256 and value != entry.sha256:
            if entry.confirmed:
                raise NotFetched(
                    f"{entry.repository} offers a {entry.name} with SHA-256 {value}, but the published one has {entry.sha256}. Either it "
                    "was replaced there (update this pack), or HF_ENDPOINT leads to a copy that is not the same."
                )
            self.step.say(f"{entry.name}: the Hub's SHA-256 is another than the listed one, which nobody has confirmed; the Hub's counts")
        return value or (entry.sha256 if entry.confirmed else None)

    # -- what is not

    def _fetch(self, item: Item) -> str:
        damaged = 0
        for attempt in range(1, TRIES + 1):
            try:
                return self._try(item)
            except Damaged as failure:
                damaged, last = damaged + 1, failure
                if damaged == DAMAGED_TRIES:
                    break
            except self.hub.network as error:
                last = self.hub.explained(item.entry, error)
                if not self.hub.passes(error):
                    break
            if attempt < TRIES:
                seconds = min(LONGEST_PAUSE, 2.0 ** (attempt - 1))
                self.step.say(f"{item.entry.name}: {last} Trying again in {seconds:g} s.")
                time.sleep(seconds)
        raise last

    def _try(self, item: Item) -> str:
        entry, remote = item.entry, self.hub.look(item.entry)
        digest = self._expected(entry, remote)
        part = item.staging / f"{entry.name}.{re.sub('[^0-9A-Za-z]', '', remote.etag)[:16]}.part"
        have = part.stat().st_size if part.exists() else 0
        if remote.size and have > remote.size:
            part.unlink()
            have = 0
        free = _free(item.staging)
        if remote.size and remote.size - have + SPARE > free:
            raise NotFetched(f"{gigabytes(remote.size - have)} of it are missing, but the disk has {gigabytes(free)} left.")
        self.step.say(f"{entry.name}: {'going on after ' + gigabytes(have) if have else 'fetching'}, {entry.size_in_words}")
        with part.open("ab") as file:
            try:
                self.hub.receive(remote, file, have, entry.name)
            except self.hub.network:
                file.flush()
                _expect_no_page(part, entry.name)  # nothing to go on with
                raise
        self._expect_whole(part, remote, digest)
        sync(part)
        self._keep(part, item.path)
        for old in _parts(entry, item.staging):  # of other versions
            old.unlink()
        return "fetched" + (" and verified" if digest else "; no hash is known to verify it by")

    def _keep(self, part: Path, path: Path) -> None:
        """Gives a finished file its name; raises NotFetched if something has got that meanwhile."""
        try:
            if self.replace:
                os.replace(part, path)
            else:
                _move_exclusively(part, path)
        except FileExistsError as error:
            raise NotFetched(f"'{path}' appeared meanwhile, and was left alone. What came stays for a run with --replace.") from error
        sync(path.parent)

    def _expect_whole(self, part: Path, remote: Remote, digest: str | None) -> None:
        """Raises Damaged, and takes the file away, if it is not what the Hub announced."""
        name, size = part.name.rsplit(".", 2)[0], part.stat().st_size
        _expect_no_page(part, name)
        if (remote.size is None or size == remote.size) and (digest is None or self._digest(part) == digest):
            return
        part.unlink()
        text = f"{size} of {remote.size} bytes" if remote.size not in (None, size) else "its SHA-256 is another"
        raise Damaged(f"What came is not {name} ({text}); it was thrown away.")


def _move_exclusively(part: Path, path: Path) -> None:
    """A rename that never overwrites; raises FileExistsError. Where there are no hard links, the moment between look and rename is left."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this disk
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.rename(part, path)
    else:
        part.unlink()


def _parts(entry: Entry, staging: Path) -> list[Path]:
    """Half files of this one, of any version."""
    try:
        return [part for part in staging.iterdir() if re.fullmatch(re.escape(entry.name) + r"\.[0-9A-Za-z]{1,16}\.part", part.name)]
    except OSError:  # none yet, or none that can be gone on with
        return []


def _expect_writable(item: Item) -> None:
    """Raises NotFetched unless files can be put where this one goes: before the download, not after it."""
    folder = item.path.parent
    if folder.is_symlink() and not folder.exists():
        raise NotFetched(f"'{folder}' is a link to '{os.readlink(folder)}', which is not there. Is its disk mounted?")
    try:
        item.staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=item.staging):
            pass
    except OSError as error:
        raise NotFetched(f"'{folder}' cannot be written to ({error.strerror or error}). Make it a folder that you can write to.") from error


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free(folder: Path) -> int:
    """Bytes, of the disk that a folder is on, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _expect_no_page(part: Path, name: str) -> None:
    """Raises Damaged, and takes the file away, if it is HTML."""
    with part.open("rb") as file:
        begin = file.read(256)
    if begin.lstrip().lower().startswith((b"<!doctype", b"<html")):
        part.unlink()
        raise Damaged(f"A web page came in place of {name}: a proxy's, or one that asks to log in. Look at the Hub in a browser.")
