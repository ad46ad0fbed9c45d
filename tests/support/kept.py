"""What tests make once and keep in the cache, by the hash of what it is made from."""

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from multitalk_nodes.tools.environment.environment import cache_folder

PACKAGES = ("torch", "transformers", "safetensors")


def kept(name: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """A folder in the cache, made if it is not there; older ones of this name go. Copy what a test changes.

    Args:
        sources: the files that decide what is made, beside ComfyUI and PACKAGES.
        make: fills a new folder.
    """
    digest = hashlib.sha256(Path(os.environ["COMFYUI_PATH"], "comfyui_version.py").read_bytes())
    for package in PACKAGES:
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    for file in sources:
        digest.update(file.read_bytes())
    tests = cache_folder() / "tests"
    folder = tests / f"{name}-{digest.hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    tests.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tests, ignore_cleanup_errors=True) as half_made:
        make(Path(half_made) / name)
        for old in tests.glob(f"{name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        (Path(half_made) / name).rename(folder)
    return folder
