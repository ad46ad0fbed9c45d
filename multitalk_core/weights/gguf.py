"""GGUF: the header, and the block formats that image models are published in, unpacked with torch on any device.

Bytes of a block and how they are numbers: ggml's src/ggml-common.h (block_q8_0 … block_q6_K) and ggml-quants.c (dequantize_row_*).
Unpacking here is compared with the package gguf's numpy in tests/core/test_layouts.py.

Shapes: a weight [O, I] is stored as [O, I / n · b] bytes: blocks of b bytes for n numbers.
"""

from __future__ import annotations

import math
import mmap
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from ..errors import WeightsError

if TYPE_CHECKING:
    from .header import Header, TensorEntry

MAGIC = b"GGUF"
ALIGNMENT = 32  # bytes, unless "general.alignment" says otherwise
MOST_ENTRIES = 1_000_000  # a header with more is damaged
LONGEST_TEXT = 10_000_000  # bytes of a name or value
MOST_DIMENSIONS = 8
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, ARRAY = 8, 9


@dataclass(frozen=True)
class Block:
    """How numbers are stored together. A new format is a row in BLOCKS."""

    numbers: int
    bytes: int
    unpack: Callable[[Tensor], Tensor]  # [B, bytes] uint8 → [B, numbers] float32


def _half(blocks: Tensor, start: int) -> Tensor:
    """A float16 at a place of every block, [B, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[.., n] bytes → [.., 2n]: all low halves, then all high halves."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _fifth_bits(packed: Tensor) -> Tensor:
    """[B, 4] bytes, a bit for each number → [B, 32] of 0 and 16."""
    places = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed[:, :, None] >> places) & 1).reshape(packed.shape[0], 32) << 4


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])).float() + _half(blocks, 2)


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 12 bytes of Q4_K and Q5_K: eight scales and eight minima of 6 bits each, [B, 8] float32."""
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([low & 63, (high & 15) | ((low >> 6) << 4)], dim=1)
    minima = torch.cat([middle & 63, (high >> 4) | ((middle >> 6) << 4)], dim=1)
    return scales.float(), minima.float()


def _k(blocks: Tensor, numbers: Tensor) -> Tensor:
    """Q4_K and Q5_K: d · scale · number − dmin · minimum, for eight groups of 32; numbers [B, 8, 32]."""
    scales, minima = _k_scales(blocks[:, 4:16])
    scales, minima = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (scales[:, :, None] * numbers.float() - minima[:, :, None]).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _k(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    places = torch.arange(8, device=blocks.device, dtype=torch.uint8)[:, None]
    fifth = ((blocks[:, None, 16:48] >> places) & 1) << 4
    return _k(blocks, _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)  # two halves of 128, four rows of 32 each
    places = torch.arange(0, 8, 2, device=blocks.device, dtype=torch.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> places) & 3
    numbers = (low | (high << 4)).float() - 32
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    return _half(blocks, 208) * (numbers.reshape(-1, 16, 16) * scales[:, :, None]).flatten(1)


PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCKS = {
    "Q8_0": Block(32, 34, _q8_0),
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_1": Block(32, 20, _q4_1),
    "Q5_0": Block(32, 22, _q5_0),
    "Q5_1": Block(32, 24, _q5_1),
    "Q4_K": Block(256, 144, _q4_k),
    "Q5_K": Block(256, 176, _q5_k),
    "Q6_K": Block(256, 210, _q6_k),
}
# ggml.h, enum ggml_type
TYPES = {0: "F32", 1: "F16", 30: "BF16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K"}
OTHER_TYPES = {10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS"}


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; raises ValueError if its rows are no whole blocks."""
    if dtype in PLAIN:
        return math.prod(shape) * PLAIN[dtype].itemsize
    block = BLOCKS[dtype]
    if not shape or shape[-1] % block.numbers:
        raise ValueError(f"rows of {shape[-1] if shape else 0} numbers are no whole blocks of {block.numbers}")
    return math.prod(shape) // block.numbers * block.bytes


def unpack(stored: Tensor, dtype: str) -> Tensor:
    """Rows of blocks [.., bytes] uint8 → [.., I] float32."""
    block = BLOCKS[dtype]
    return block.unpack(stored.reshape(-1, block.bytes)).reshape(*stored.shape[:-1], -1)


def map_gguf(path: Path, header: Header, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """Tensors of a file whose header was read: plain ones as numbers, packed ones as rows of bytes [O, ..] uint8.

    They lie in the mapped file, not in memory, until they are used; what is not wanted (a merged file's WAN) is not mapped.

    Raises:
        WeightsError: a wanted tensor of a type that is not known here.
    """
    entries = {key: entry for key, entry in header.tensors.items() if wanted(key)}
    for key, entry in entries.items():
        if entry.dtype not in PLAIN and entry.dtype not in BLOCKS:
            known = ", ".join([*PLAIN, *BLOCKS])
            raise WeightsError(f"'{path.name}': '{key}' is stored as {entry.dtype}; known are {known}. Take a file of one of these.")
    start = min((entry.start for entry in entries.values()), default=0) // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = max((entry.stop for entry in entries.values()), default=0) - start
    if length <= 0:
        return {}
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
    return {key: _tensor(mapped, entry, start) for key, entry in entries.items()}


def _tensor(mapped: mmap.mmap, entry: TensorEntry, start: int) -> Tensor:
    dtype, length = PLAIN.get(entry.dtype, torch.uint8), entry.stop - entry.start
    shape = entry.shape if entry.dtype in PLAIN else (*entry.shape[:-1], -1)
    if not length:
        return torch.empty(entry.shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")  # nor is it written to
        data = torch.frombuffer(mapped, dtype=dtype, count=length // dtype.itemsize, offset=entry.start - start)
    return data.reshape(shape)


def read_gguf_header(file: BinaryIO, name: str, size: int) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], dict[str, str]]:
    """Read a GGUF header, from the file's beginning.

    Returns:
        {tensor: (type, shape [O, I], first byte, byte after the last)} and the metadata that are single values, as texts. Of types
        that are not known here the bytes are not known either: the last is the first.
    Raises:
        WeightsError: damaged, or of another version.
    """
    try:
        return _Reader(file, size).read()
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise WeightsError(f"'{name}' cannot be read as GGUF ({error}). Get it again, or take another file.") from error


class _Reader:
    """One pass over a header; every length is checked against what the file still holds."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], dict[str, str]]:
        self._file.seek(len(MAGIC))
        version, tensors, values = self._take("<IQQ")
        if version in (2 << 24, 3 << 24):
            raise ValueError("its bytes are in the order of big-endian machines; take the ordinary file")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are known")
        if max(tensors, values) > MOST_ENTRIES:
            raise ValueError(f"{tensors:,} tensors and {values:,} values")
        metadata = {}
        for _ in range(values):
            key = self._text()
            value = self._value(*self._take("<I"))
            if value is not None:
                metadata[key] = str(value)
        lines = [self._tensor() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", ALIGNMENT))
        if alignment <= 0:
            raise ValueError(f"an alignment of {alignment}")
        data = -(-self._file.tell() // alignment) * alignment
        sizes = {key: stored_bytes(dtype, shape) if dtype in TYPES.values() else 0 for key, dtype, shape, _ in lines}
        return {key: (dtype, shape, data + at, data + at + sizes[key]) for key, dtype, shape, at in lines}, metadata

    def _take(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._file.read(struct.calcsize(form)))

    def _text(self) -> str:
        (length,) = self._take("<Q")
        if length > min(LONGEST_TEXT, self._size - self._file.tell()):
            raise ValueError(f"a text of {length:,} bytes")
        return self._file.read(length).decode("utf-8")

    def _value(self, kind: int) -> Any:
        """A value; arrays are passed over, as nothing here needs one."""
        if kind in SCALARS:
            return self._take(SCALARS[kind])[0]
        if kind == TEXT:
            return self._text()
        if kind != ARRAY:
            raise ValueError(f"a value of unknown kind {kind}")
        of, length = self._take("<IQ")
        if length > self._size - self._file.tell():
            raise ValueError(f"a list of {length:,}")
        if of in SCALARS:
            self._file.seek(length * struct.calcsize(SCALARS[of]), 1)
        elif of == TEXT:
            for _ in range(length):
                self._text()
        else:
            raise ValueError(f"a list of unknown kind {of}")
        return None

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._text()
        (dimensions,) = self._take("<I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"'{name}' has {dimensions} dimensions")
        shape = self._take(f"<{dimensions}Q")[::-1]  # ggml counts from the innermost
        kind, at = self._take("<IQ")
        if math.prod(shape) > 8 * self._size or at > self._size:
            raise ValueError(f"'{name}' of shape {list(shape)} at byte {at:,} cannot be in a file of {self._size:,} bytes")
        return name, TYPES.get(kind) or OTHER_TYPES.get(kind, f"type {kind}"), shape, at
