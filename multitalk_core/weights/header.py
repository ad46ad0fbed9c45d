"""What the header of a weight file says about its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header describes it."""

    dtype: str  # safetensors' name, or ggml's ("Q4_K")
    shape: tuple[int, ...]
    start: int  # bytes from the file's beginning
    stop: int


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    container: str  # "safetensors" or "gguf"
    size: int  # of the file, bytes
