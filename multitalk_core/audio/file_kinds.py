"""What a file is that holds neither sound nor video, in a few words for whoever chose it."""

from __future__ import annotations

from pathlib import Path

PLAYLIST = "a playlist, which only names other files"
TEXT = "a text file"
HEAD = 1024  # bytes that are looked at
_TEXT = set(range(32, 127)) | set(range(128, 256)) | set(b"\t\n\r\f\x1b")
_BEGINNINGS: tuple[tuple[int, bytes, str], ...] = (  # at which byte, what stands there, what it is
    (0, b"version https://git-lfs", "a Git LFS pointer in place of the file itself; fetch it with git lfs pull"),
    (0, b"#EXTM3U", PLAYLIST),
    (0, b"[playlist]", PLAYLIST),
    (0, b"MThd", "a MIDI file, which holds notes and no sound"),
    (0, b"%PDF", "a PDF"),
    (0, b"PK\x03\x04", "a ZIP archive or a document"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x89PNG", "a picture"),
    (0, b"\xff\xd8\xff", "a picture"),
    (0, b"GIF8", "a picture"),
    (8, b"WEBP", "a picture"),
    (8, b"avif", "a picture"),
    (8, b"heic", "a picture"),
    (0, b"BM", "a picture"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
)


def kind_of(path: Path) -> str:
    """Such as "a text file"; empty if nothing is known about it. Playlists are text: what they name is never opened."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file (0 bytes)"
    for at, sign, kind in _BEGINNINGS:
        if head[at : at + len(sign)] == sign:
            return kind
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower().startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return "a web page, perhaps in place of a download that failed"
    if not any(head):
        return "" if _holds_anything(path) else "a file of nothing but zeros, such as a download that was not finished"
    return TEXT if _is_text(head) else ""


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return not any(head[2::2]) or not any(head[3::2])
    if not set(head) <= _TEXT:
        return False
    try:
        head[:-3].decode("utf-8")  # the last letter may be cut
    except UnicodeDecodeError:
        return False
    return True


def _holds_anything(path: Path) -> bool:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if any(block):
                return True
    return False


def unfinished(path: Path) -> str:
    """What a file is that nobody can read because its end is missing; empty if it is none.

    MP4 and MOV have an index, which many programs write last: without it nobody can tell where the sound is.
    """
    with path.open("rb") as file:
        previous = file.read(8)
        if previous[4:] != b"ftyp":
            return ""
        while block := file.read(1 << 20):
            if b"moov" in previous[-3:] + block:
                return ""
            previous = block
    return "an MP4 without its index, because the recording or the copy was not finished"
