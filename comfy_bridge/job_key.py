"""Which job a graph asks for: everything that changes a pixel of its video, and nothing else.

Files count by what is in them, never by name, path or date. What a graph's text cannot tell (what another pack's nodes made of a prompt,
how a model was patched) counts by the tensors that arrive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import comfy.model_patcher
import folder_paths
import torch
from comfy_execution.graph_utils import is_link
from torch import Tensor

SAMPLES = 64  # numbers of a model's large tensor, and pieces of its large file, that are looked at
PIECE = 4096  # bytes
SMALL, SMALL_WEIGHT = 64 * 2**20, 64 * 2**10  # bytes; a model's smaller files, and its smaller tensors, are looked at whole
NO_FILES = {"custom_nodes", "datasets", "configs"}  # of folder_paths: folders that hold no models
EDITORS = {"video-preview"}  # inputs that the editor adds where it shows a video; no node has them
DEEP = 6  # levels of an object that are looked into

Node = Mapping[str, Any]  # of a prompt: class_type and inputs


def job_key(node: str, lookup: Callable[[str], Node], ignored: frozenset[str], arrived: Mapping[str, Any]) -> str:
    """A name for the job, the same for the same video.

    Args:
        node: number of the node in the prompt.
        lookup: a node by its number.
        ignored: inputs of the node itself that change no pixel.
        arrived: what its inputs are by the time it runs; tensors, conditionings, ModelPatchers.
    """
    own = lookup(node)
    asked = {"class_type": own["class_type"], "inputs": {k: v for k, v in own["inputs"].items() if k not in ignored}}
    known: dict[str, str] = {}
    told = {"graph": _node(asked, lookup, known), "arrived": {name: told_of(value) for name, value in arrived.items()}}
    return _digest(told)[:32]


def _node(node: Node, lookup: Callable[[str], Node], known: dict[str, str]) -> str:
    inputs = {}
    for name, value in sorted(node["inputs"].items()):
        if name in EDITORS:
            continue
        if is_link(value):
            if value[0] not in known:
                known[value[0]] = _node(lookup(value[0]), lookup, known)
            inputs[name] = {"from": known[value[0]], "output": value[1]}
        else:
            inputs[name] = _value(value)
    return _digest([node["class_type"], inputs])


def _value(value: Any) -> Any:
    """A widget's value; in place of a name, what is in the file that it names."""
    if isinstance(value, list):
        return [_value(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): _value(part) for name, part in sorted(value.items())}
    if not isinstance(value, str):
        return value
    if not value.strip() or len(value) > 1024 or "\n" in value or "\0" in value:
        return value
    files = [file_fingerprint(file) for file in _inputs(value)] + [model_file_fingerprint(file) for file in _models(value)]
    return {"files": sorted(files)} if files else value


def _inputs(name: str) -> set[Path]:
    """The files that a text can name: of the input, output and temp folders, or anywhere by a whole path."""
    found = [folder_paths.get_annotated_filepath(name)] if folder_paths.exists_annotated_filepath(name) else []
    whole = [name] if os.path.isabs(name) else []
    return {Path(file).resolve() for file in [*found, *whole] if os.path.isfile(file)}


def _models(name: str) -> set[Path]:
    paths = (folder_paths.get_full_path(folder, name) for folder in folder_paths.folder_names_and_paths.keys() - NO_FILES)
    return {Path(path).resolve() for path in paths if path is not None and os.path.isfile(path)}


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


def told_of(value: Any, depth: int = DEEP, of: Callable[[Tensor], Any] | None = None) -> Any:
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
        return {str(name): told_of(part, depth - 1, of) for name, part in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (set, frozenset)):
        return sorted(str(part) for part in value)
    if isinstance(value, (list, tuple)):
        return [told_of(part, depth - 1, of) for part in value]
    if isinstance(value, torch.nn.Module):
        return [type(value).__qualname__, {name: weight_fingerprint(tensor) for name, tensor in value.state_dict().items()}]
    if dataclasses.is_dataclass(value) or (hasattr(value, "__dict__") and not callable(value)):
        return [type(value).__qualname__, told_of(vars(value), depth - 1, of)]
    return getattr(value, "__qualname__", type(value).__qualname__)


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
        "weights": _digest(weights),
        "patches": _digest(told_of(patcher.patches, of=weight_fingerprint)),
        "objects": sorted(patcher.object_patches),
        "options": _digest(told_of(patcher.model_options)),
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


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def jobs_folder() -> Path:
    """Where jobs are kept while they are made."""
    return Path(os.path.join(folder_paths.get_output_directory(), "multitalk_jobs"))
