"""What the demo's weight files say about themselves, beside their tensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

METRICS = "metrics"


def tensors_hash(file: Path) -> str:
    """sha256 of a file's tensors, their names and shapes; its metadata may change."""
    with safe_open(file, framework="np") as opened:
        hashed = hashlib.sha256()
        for name in sorted(opened.keys()):
            tensor = opened.get_tensor(name)
            hashed.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return hashed.hexdigest()


def add_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Writes what was measured of a folder's weight files into each of them; their tensors stay as they are."""
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, framework="np") as opened:
            metadata = opened.metadata() or {}
        save_file(load_file(file), file.with_suffix(".partial"), metadata | {METRICS: json.dumps(metrics, ensure_ascii=False)})
    for file in files:
        os.replace(file.with_suffix(".partial"), file)
