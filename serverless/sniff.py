"""What a file is, by its first bytes: neither its name nor what a server says of it counts."""

from __future__ import annotations

from typing import Literal

Kind = Literal["image", "audio", "video", "any"]

HEAD = 16  # bytes that are looked at
# at which byte, what stands there, which kinds of use the file has, and the suffix that it gets
SIGNS: tuple[tuple[int, bytes, frozenset[str], str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", frozenset({"image"}), ".png"),
    (0, b"\xff\xd8\xff", frozenset({"image"}), ".jpg"),
    (8, b"WEBP", frozenset({"image"}), ".webp"),
    (0, b"BM", frozenset({"image"}), ".bmp"),
    (8, b"WAVE", frozenset({"audio"}), ".wav"),
    (8, b"AIFF", frozenset({"audio"}), ".aiff"),
    (8, b"AIFC", frozenset({"audio"}), ".aiff"),
    (0, b".snd", frozenset({"audio"}), ".au"),
    (0, b"caff", frozenset({"audio"}), ".caf"),
    (0, b"riff\x2e\x91\xcf\x11", frozenset({"audio"}), ".w64"),
    (0, b"#!AMR", frozenset({"audio"}), ".amr"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", frozenset({"audio", "video"}), ".wma"),
    (8, b"AVI ", frozenset({"audio", "video"}), ".avi"),
    (0, b"FLV\x01", frozenset({"audio", "video"}), ".flv"),
    (0, b"\x0bw", frozenset({"audio"}), ".ac3"),
    (0, b"fLaC", frozenset({"audio"}), ".flac"),
    (0, b"OggS", frozenset({"audio"}), ".ogg"),
    (0, b"ID3", frozenset({"audio"}), ".mp3"),
    (4, b"ftypM4A", frozenset({"audio"}), ".m4a"),
    (4, b"ftypqt", frozenset({"audio", "video"}), ".mov"),
    (4, b"ftyp", frozenset({"audio", "video"}), ".mp4"),
    (0, b"\x1aE\xdf\xa3", frozenset({"audio", "video"}), ".mkv"),
)


def suffix_of(head: bytes, kind: Kind) -> str | None:
    """The suffix of a file of this kind that begins so; None if it is no such file."""
    for at, sign, kinds, suffix in SIGNS:
        if head[at : at + len(sign)] == sign:
            return suffix if kind in kinds or kind == "any" else None
    if kind in ("audio", "any") and len(head) > 1 and head[0] == 0xFF:  # frames of 11 or 12 bits of ones and no header before them
        if head[1] & 0xF6 == 0xF0:  # the layer is 0: ADTS
            return ".aac"
        if head[1] & 0xE0 == 0xE0 and head[1] & 0x18 != 0x08 and head[1] & 0x06:  # MPEG 1, 2 or 2.5, layer I, II or III
            return ".mp3"
    return None
