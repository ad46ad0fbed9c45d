"""What tells values apart: files, tensors, models and whatever else arrives at a node, in what JSON can hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import comfy.model_patcher
import torch
from torch import Tensor

SAMPLES = 64  # numbers of a model's large tensor, and pieces of its large file, that are looked at
PIECE = 4096  # bytes
SMALL, SMALL_WEIGHT = 64 * 2**20, 64 * 2**10  # bytes; a model's smaller files, and its smaller tensors, are looked at whole
DEEP = 6  # levels of an object that are looked into


def file_fingerprint(file: Path | BinaryIO) -> str:
    """Of all bytes: whoever says one word anew in an hour of speech changes little."""
    hashed = hashlib.sha256()
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as stream:
        stream.seek(0)
        while block := stream.read(2**20):
            hashed.update(block)
        stream.seek(0)
    return hashed.hexdigest()


def stream_fingerprint(stream: str | BinaryIO) -> str:
    """Of a video's source: a file's path, or a file that is open."""
    return file_fingerprint(Path(stream) if isinstance(stream, str) else stream)


def model_file_fingerprint(file: Path) -> str:
    """Of small files all bytes; of large ones the size, the beginning (a safetensors header is there) and pieces from all over."""
    size = file.stat().st_size
    if size <= SMALL:
        return file_fingerprint(file)
    hashed = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        hashed.update(stream.read(2**20))
        for number in range(SAMPLES):
            stream.seek(number * (size - PIECE) // (SAMPLES - 1))
            hashed.update(stream.read(PIECE))
    return hashed.hexdigest()


def as_json(value: Any, depth: int = DEEP, of: Callable[[Tensor], Any] | None = None) -> Any:
    """What tells a value apart, in what JSON can hold; `of` tells tensors apart, by all their numbers if nothing else is said."""
    if isinstance(value, Tensor):
        return (of or tensor_fingerprint)(value)
    if isinstance(value, comfy.model_patcher.ModelPatcher):
        return model_fingerprint(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(name): as_json(part, depth - 1, of) for name, part in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (set, frozenset)):
        return sorted(str(part) for part in value)
    if isinstance(value, (list, tuple)):
        return [as_json(part, depth - 1, of) for part in value]
    if isinstance(value, torch.nn.Module):
        return [type(value).__qualname__, {name: weight_fingerprint(tensor) for name, tensor in value.state_dict().items()}]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: part for field in dataclasses.fields(value) if _matters(field, part := getattr(value, field.name))}
        return [type(value).__qualname__, as_json(fields, depth - 1, of)]
    if hasattr(value, "__dict__") and not callable(value):
        return [type(value).__qualname__, as_json(vars(value), depth - 1, of)]
    return getattr(value, "__qualname__", type(value).__qualname__)


def _matters(field: dataclasses.Field, value: Any) -> bool:
    """Whether a record's field is not at its default: a record that gets another field tells the same values apart as before."""
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    return isinstance(value, Tensor) or isinstance(default, Tensor) or value != default


def model_fingerprint(patcher: comfy.model_patcher.ModelPatcher) -> Any:
    """A model as it will run: its weights before patches, the patches, and what replaces parts of it.

    The weights are the same whether the model is loaded or not, although a loaded one has the patches in them.
    """
    weights = {}
    for name, tensor in patcher.model.state_dict().items():
        backup = patcher.backup.get(name)
        weights[name] = weight_fingerprint(tensor if backup is None else backup.weight)
    return {
        "model": type(patcher.model).__qualname__,
        "weights": digest(weights),
        "patches": digest(as_json(patcher.patches, of=weight_fingerprint)),
        "objects": sorted(patcher.object_patches),
        "options": digest(as_json(patcher.model_options)),
        "added": {name: [model_fingerprint(model) for model in models] for name, models in sorted(patcher.additional_models.items())},
    }


def tensor_fingerprint(tensor: Tensor) -> list[Any]:
    """Shape, type, and all numbers."""
    flat = tensor.detach().reshape(-1)
    numbers = flat.cpu().contiguous().view(torch.uint8).numpy().data if flat.numel() else b""
    return [list(tensor.shape), str(tensor.dtype), hashlib.sha256(numbers).hexdigest()]


def weight_fingerprint(tensor: Tensor) -> list[Any]:
    """Of a model's tensor: all of a small one, some numbers from all over a large one."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() * flat.element_size() > SMALL_WEIGHT:
        flat = flat[torch.linspace(0, flat.numel() - 1, SAMPLES, device=flat.device, dtype=torch.float64).long()]
    return [list(tensor.shape), *tensor_fingerprint(flat)[1:]]


def digest(value: Any) -> str:
    """SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
