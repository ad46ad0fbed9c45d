"""What a weights file is, from its header alone: nothing is mapped, unpickled or allocated before the header was checked.

Sources: safetensors' README (format); ggml's docs/gguf.md (format); keys of the models: see weights/layouts.py.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import IncompleteError, WeightsError
from .gguf import MAGIC, read_gguf_header
from .header import Header, TensorEntry

LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# What a file begins with that is not what its name says: the first bytes, and what to do
STRANGERS = (
    (b"PK\x03\x04", "is a pickle (torch.save), which can run code when it is opened. Get {instead} instead."),
    (b"\x80", "is a pickle, which can run code when it is opened. Get {instead} instead."),
    (b"<", "is a web page, not weights: the download got an error or a log-in page. Get the file again, with `models get` or a browser."),
    (b"version https://git-lfs", "is a git-lfs pointer of a few lines, not the weights. Run `git lfs pull`, or download the file itself."),
    (b"{", "is a JSON text, not weights: the download got an error message. Get the file again."),
)


def read_header(path: Path, instead: str = "the .safetensors file") -> Header:
    """Read and check a safetensors or GGUF header.

    Args:
        instead: the file to get in place of one that cannot be opened safely.
    Raises:
        IncompleteError: empty, or shorter than its header says.
        WeightsError: not such a file, or damaged; the message names what it is and what to do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(32)
        if not begin:
            raise IncompleteError(f"'{path.name}' is empty. Get it again.")
        for mark, what in STRANGERS:
            if begin.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(mark) and not _may_be_safetensors(begin, size):
                raise WeightsError(f"'{path.name}' {what.format(instead=instead)}")
        file.seek(0)
        if begin.startswith(MAGIC):
            tensors, metadata = read_gguf_header(file, path.name, size)
            entries = {name: TensorEntry(*item) for name, item in tensors.items()}
            header = Header(entries, metadata, "gguf", size)
        else:
            header = _read_safetensors(file, path.name, size)
    end = max((entry.stop for entry in header.tensors.values()), default=0)
    if end > size:
        raise IncompleteError(f"'{path.name}' is incomplete: it has {size:,} of {end:,} bytes. Get it again.")
    return header


def _may_be_safetensors(begin: bytes, size: int) -> bool:
    """A header's length can look like any letters; its JSON then follows."""
    return len(begin) > 8 and struct.unpack("<Q", begin[:8])[0] <= size - 8 and begin[8:9] == b"{"


def _read_safetensors(file: Any, name: str, size: int) -> Header:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else LONGEST_HEADER + 1
    if length > min(LONGEST_HEADER, size - 8):
        raise WeightsError(
            f"'{name}' is not a safetensors file, or its beginning is damaged (a header of {length:,} bytes in a file of {size:,}). "
            "Get it again."
        )
    try:
        data = json.loads(file.read(length).decode("utf-8"))
        if not isinstance(data, dict):
            raise ValueError("not an object")
        metadata = data.pop("__metadata__", None) or {}
        tensors = {key: _entry(key, entry, 8 + length) for key, entry in data.items()}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that are not texts")
        _check_order(tensors, 8 + length)
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise WeightsError(f"'{name}' has a damaged header ({error}). Get it again.") from error
    return Header(tensors, metadata, "safetensors", size)


def _entry(key: str, given: Any, data: int) -> TensorEntry:
    """Raises ValueError for what contradicts itself."""
    try:
        dtype, shape, (start, stop) = given["dtype"], tuple(given["shape"]), given["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"'{key}' is not described as a tensor") from None
    numbers = (*shape, start, stop)
    if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
        raise ValueError(f"'{key}' has a shape or place that is no number of things")
    if dtype in BYTES and math.prod(shape) * BYTES[dtype] != stop - start or start > stop:
        raise ValueError(f"'{key}' of shape {list(shape)} and type {dtype} cannot take {stop - start} bytes")
    return TensorEntry(dtype, shape, data + start, data + stop)


def _check_order(tensors: Mapping[str, TensorEntry], data: int) -> None:
    """Raises ValueError unless the tensors follow one another without overlap or gap, as the format wants."""
    end = data
    for key, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise ValueError(f"'{key}' begins at byte {entry.start}, where {end} was expected")
        end = entry.stop
