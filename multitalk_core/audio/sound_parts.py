"""Where the sound in a file lies: headers that lie are mended, and files that were joined are taken apart.

A *part* is a stretch of a file that a decoder can read as a file of its own, perhaps behind a head that takes the place of the
file's own. Nearly every file is one part, the file itself. The rules:

* WAV, RF64, AIFF, CAF: each chunk of sound is a part. The size of the sound is believed if chunks follow it, or the end of the file.
  A size that is unknown (0, 0xFFFFFFFF and the like), that reaches beyond the end, or behind which no chunk begins, is to the end of
  the file. Another file that begins there is another part. AU has no chunks: its sound is all that follows.
* Ogg: streams that follow one another (chained) are parts; the pages' checksums tell whether something is missing.
* MP4: a second `ftyp` is another part.
* FLAC: a second stream header is another part, because FFmpeg keeps to the rate and the block sizes of the first.
* MP3, AAC, AMR and MPEG-TS have no whole that could be counted: FFmpeg reads them to the end, whatever was joined.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..notes import note

UNPACKED = (1, 3, 6, 7, 0xFFFE)  # WAV's numbers for integers, floats, A-law, µ-law, and one of those by another name
UNKNOWN = 0x7FFF0000  # bytes; sizes from here on are what writers put there who do not know: 0x7FFFF000 (sox), 0xFFFFFFFF (FFmpeg)
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # what other programs hang on behind a file
REST = 2048  # bytes that may follow the last chunk, as filling, without being taken for sound
TOLD = 0.02  # s; what is less is not worth a word
KEPT = 1 << 16  # bytes of the largest chunk that a mended head holds
PAGE = 27  # bytes of an Ogg page's head
FIRST_PAGE = 2  # flag of an Ogg stream's first page
STREAMINFO = tuple(b"fLaC" + last + b"\x00\x00\x22" for last in (b"\x00", b"\x80"))  # how every FLAC begins: RFC 9639, section 8.2
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Part:
    """A stretch of a file; `head` comes before its bytes start…stop."""

    path: Path
    start: int
    stop: int
    head: bytes = b""
    damaged: bool = False  # of Ogg: a page is missing

    def open(self) -> BinaryIO:
        """As a file of its own, for reading."""
        return self.path.open("rb") if self.is_whole else io.BufferedReader(_Stretch(self))

    @property
    def is_whole(self) -> bool:
        """Whether it is the file as it is."""
        return self.start == 0 and not self.head and self.stop == self.path.stat().st_size


def parts(path: Path) -> list[Part]:
    """A file's parts, in order; at least one. What is cut off is noted."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        for form in _FORMS:
            if head[:4] in form.signs and (not form.kinds or head[8:12] in form.kinds):
                return list(_chunked(path, file, size, form)) or [Part(path, 0, size)]
        if head[:4] == b".snd":
            file.seek(0)
            return [Part(path, 12, size, file.read(8) + b"\xff" * 4)]
        if head[:4] == b"OggS":
            return list(_chained(path, file, size))
        if head[:4] == b"fLaC" or (head[:3] == b"ID3" and _is_flac_behind_tag(file)):
            starts = [0, *_flac_starts(file)[1:]]
            return [Part(path, a, b) for a, b in zip(starts, [*starts[1:], size], strict=True)]
        if head[4:8] == b"ftyp":
            starts = _mp4_starts(file, size)
            return [Part(path, a, b) for a, b in zip(starts, [*starts[1:], size], strict=True)]
    return [Part(path, 0, size)]


class _Stretch(io.RawIOBase):
    """A part's bytes as a file."""

    def __init__(self, part: Part) -> None:
        self._file, self._part, self._at = part.path.open("rb"), part, 0
        self._size = len(part.head) + part.stop - part.start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        head = self._part.head[self._at : self._at + len(buffer)]
        if not head:
            self._file.seek(self._part.start + self._at - len(self._part.head))
            head = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(head)] = head
        self._at += len(head)
        return len(head)

    def close(self) -> None:
        self._file.close()
        super().close()


# -- chunks


@dataclass(frozen=True)
class _Form:
    """How a family of files counts its chunks."""

    signs: tuple[bytes, ...]
    kinds: tuple[bytes, ...]
    first: int  # byte of the first chunk
    size: str  # how sizes are written, for struct
    padded: bool  # to an even number of bytes
    sound: bytes  # the chunk with the samples


_FORMS = (
    _Form((b"RIFF", b"RF64", b"BW64"), (b"WAVE",), 12, "<I", True, b"data"),
    _Form((b"RIFX",), (b"WAVE",), 12, ">I", True, b"data"),
    _Form((b"FORM",), (b"AIFF", b"AIFC"), 12, ">I", True, b"SSND"),
    _Form((b"caff",), (), 8, ">q", False, b"data"),
)


def _chunked(path: Path, file: BinaryIO, size: int, form: _Form) -> Iterator[Part]:
    begin = 0
    while begin < size:
        found = _sound_chunk(file, begin, size, form)
        if found is None:
            return
        end = _end_of_sound(file, found.at, found.claimed, size, form)
        if end is None:
            rest, second = size - found.at, _per_second(found.head)
            if 0 < found.claimed < UNKNOWN and abs(found.claimed - rest) > second * TOLD:
                _tell_size(path.name, found.claimed, rest, second)
            yield Part(path, found.at, size, found.head)
            return
        following, more = _behind(file, end, size, form)
        if not found.regular or more:  # libsndfile reads the last chunk of sound only
            yield Part(path, found.at, end, found.head)
            for start, stop in more:
                yield Part(path, start, stop, found.head)
        elif begin or following is not None:
            yield Part(path, begin, following or size)
        else:
            yield Part(path, 0, size)
        begin = following or size


@dataclass(frozen=True)
class _Found:
    """The chunk with the samples: where they begin, how many bytes the file says they have, and a head for them to the end."""

    at: int
    claimed: int
    head: bytes
    regular: bool  # whether every chunk lies where it should


def _sound_chunk(file: BinaryIO, begin: int, size: int, form: _Form) -> _Found | None:
    at, wide, regular = begin + form.first, None, True
    width = struct.calcsize(form.size)
    kept = b""
    while at + 4 + width <= size:
        name, length = _chunk(file, at, form)
        if not _is_name(name) and form.padded and at > begin + form.first:  # the chunk before was odd, and not filled up
            at, regular = at - 1, False
            name, length = _chunk(file, at, form)
        if not _is_name(name):
            return None
        if name == form.sound:
            file.seek(begin)
            head = file.read(form.first)
            sign = b"RIFF" if head[:4] in (b"RF64", b"BW64") else head[:4]
            whole = b"\xff" * 4 if form.first > 8 else head[4:8]
            claimed = wide if wide is not None and length == 0xFFFFFFFF else length
            return _Found(at + 4 + width, claimed, sign + whole + head[8:] + kept + name + b"\xff" * width, regular)
        if name == b"ds64":
            wide = struct.unpack("<Q", file.read(16)[8:].ljust(8, b"\0"))[0]
        elif 0 <= length <= KEPT:
            padding = bytes(length & 1) if form.padded else b""
            kept += name + struct.pack(form.size, length) + file.read(length) + padding
        if length < 0:
            return None
        at += 4 + width + length + (length & 1 if form.padded else 0)
    return None


def _end_of_sound(file: BinaryIO, at: int, claimed: int, size: int, form: _Form) -> int | None:
    """Where the samples end if the head says the truth; None if it does not."""
    if not 0 <= claimed <= size - at:
        return None
    end = at + claimed
    if size - end <= (REST if claimed else 0):
        return end
    file.seek(end)
    rest = file.read(12)
    if rest.startswith(TAGS) or (claimed and not _anything(file, end)):
        return end
    if _begins(rest, form) or _begins(rest[1:], form):
        return end
    for start in (end, end + 1) if claimed & 1 else (end,):
        name, length = _chunk(file, start, form)
        if _is_name(name) and 0 <= length <= size - start - 7:
            return end
    return None


def _behind(file: BinaryIO, end: int, size: int, form: _Form) -> tuple[int | None, list[tuple[int, int]]]:
    """Where another file of the same kind begins, behind the samples or behind the chunks that follow them; and further chunks of sound."""
    at, more, width = end, [], struct.calcsize(form.size)
    while at + form.first <= size:
        file.seek(at)
        rest = file.read(13)
        if _begins(rest, form) or _begins(rest[1:], form):
            return (at if _begins(rest, form) else at + 1), more
        name, length = _chunk(file, at, form)
        if not _is_name(name) or length < 0:
            break
        if name == form.sound:
            more.append((at + 4 + width, min(at + 4 + width + length, size)))
        at += 4 + width + length + (length & 1 if form.padded else 0)
    return None, more


def _begins(head: bytes, form: _Form) -> bool:
    return head[:4] in form.signs and (not form.kinds or head[8:12] in form.kinds)


def _chunk(file: BinaryIO, at: int, form: _Form) -> tuple[bytes, int]:
    """(name, bytes) of the chunk that begins there; the file stands behind its head afterwards."""
    width = struct.calcsize(form.size)
    file.seek(at)
    head = file.read(4 + width).ljust(4 + width, b"\0")
    return head[:4], struct.unpack(form.size, head[4:])[0]


def _is_name(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name)


def _anything(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    while block := file.read(1 << 20):
        if any(block):
            return True
    return False


def _per_second(head: bytes) -> float:
    """Bytes of a second, by the head of a part; 0 if it is not known."""
    at = head.find(b"fmt ") + 8
    if at > 8 and head[:4] in (b"RIFF", b"RIFX"):
        order = "<" if head[:4] == b"RIFF" else ">"
        if struct.unpack(f"{order}H", head[at : at + 2].ljust(2, b"\0"))[0] not in UNPACKED:
            return 0  # what compressed files count as bytes of a second is often wrong
        return struct.unpack("<I" if head[:4] == b"RIFF" else ">I", head[at + 8 : at + 12].ljust(4, b"\0"))[0]
    at = head.find(b"COMM") + 8
    if at > 8 and head[:4] == b"FORM":
        channels, _, bits, exponent, mantissa = struct.unpack(">HIHHQ", head[at : at + 18].ljust(18, b"\0"))
        return channels * (bits + 7 >> 3) * mantissa * 2.0 ** min((exponent & 0x7FFF) - 16383 - 63, 0)  # 80-bit float
    return 0


def _tell_size(name: str, claimed: int, there: int, second: float) -> None:
    """Say that the bytes of sound are not as many as the header counts; `second` is how many make a second, 0 if that is unknown."""
    said = f"'{name}' is cut off: its header promises"
    if claimed > there and not second:
        note(f"'{name}' is cut off: {there / claimed:.0%} of the sound that its header promises is there. What is there is heard.")
    elif claimed > there:
        note(f"{said} {claimed / second:.2f} s, and {there / second:.2f} s are there. What is there is heard.")
    elif second:
        counted, held = claimed / second, there / second
        note(f"'{name}': its header counts {counted:.2f} s, but {held:.2f} s of sound are in the file. All of it is heard.")


# -- FLAC


def _is_flac_behind_tag(file: BinaryIO) -> bool:
    file.seek(6)
    length = sum(byte << shift for byte, shift in zip(file.read(4), (21, 14, 7, 0), strict=False))  # four times seven bits
    file.seek(10 + length)
    return file.read(4) == b"fLaC"


def _flac_starts(file: BinaryIO) -> list[int]:
    """Where streams begin: eight bytes that do not come by chance."""
    starts, at, before = [], 0, b""
    file.seek(0)
    while block := file.read(1 << 20):
        held = before + block
        for sign in STREAMINFO:
            found = held.find(sign)
            while found >= 0:
                starts.append(at - len(before) + found)
                found = held.find(sign, found + 1)
        at, before = at + len(block), held[-7:]
    return sorted({*starts})


# -- Ogg and MP4


def _chained(path: Path, file: BinaryIO, size: int) -> Iterator[Part]:
    """A part for every link of the chain: it begins with a first page behind one that is not."""
    at = begin = 0
    opening, damaged = True, False
    pages: dict[bytes, int] = {}  # the last page's number, by the stream's
    file.seek(0)
    while at + PAGE <= size:
        head = file.read(PAGE)
        is_page = head[:4] == b"OggS"
        table = file.read(head[26]) if is_page else b""
        body = file.read(sum(table))
        if is_page and at + PAGE + head[26] + sum(table) > size:
            break  # the last page is not whole
        if not is_page or _crc(head, table, body) != struct.unpack("<I", head[22:26])[0]:
            damaged = True
            at = _next_page(file, at + 1, size)
            file.seek(at)
            continue
        first, stream, number = bool(head[5] & FIRST_PAGE), head[14:18], struct.unpack("<I", head[18:22])[0]
        damaged = damaged or (not first and stream in pages and number > pages[stream] + 1)
        pages[stream] = number
        if first and not opening:
            yield Part(path, begin, at, damaged=damaged)
            begin, damaged = at, False
            pages = {stream: number}
        opening = first
        at += PAGE + len(table) + len(body)
    if at < size:
        note(f"'{path.name}' is cut off: its last page is not whole. What is there is heard.")
    yield Part(path, begin, size, damaged=damaged)


def _crc(head: bytes, table: bytes, body: bytes) -> int:
    """Ogg's checksum is zlib's with the bits of all bytes the other way round, from 0 on."""
    page = (head[:22] + bytes(4) + head[26:] + table + body).translate(_REVERSED)
    return int(f"{zlib.crc32(page, 0xFFFFFFFF) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def _next_page(file: BinaryIO, at: int, size: int) -> int:
    file.seek(at)
    before = b""
    while block := file.read(1 << 16):
        found = (before + block).find(b"OggS")
        if found >= 0:
            return at - len(before) + found
        at, before = at + len(block), (before + block)[-3:]
    return size


def _mp4_starts(file: BinaryIO, size: int) -> list[int]:
    """Where files begin that were joined: at every `ftyp`."""
    starts, at = [], 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16).ljust(16, b"\0")
        length = struct.unpack(">I", head[:4])[0]
        if length == 1:
            length = struct.unpack(">Q", head[8:])[0]
        if head[4:8] == b"ftyp":
            starts.append(at)
        if length < 8:  # to the end, or no box
            break
        at += length
    return starts
