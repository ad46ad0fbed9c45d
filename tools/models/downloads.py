"""Where the files of the example workflows come from: the editor offers their download where one is missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...multitalk_core.upkeep.published import Manifest

FILES = Manifest.load().files


def downloads(values: Iterable[Any]) -> list[dict[str, str]]:
    """What a node's `properties.models` says of the files among its values."""
    entries = [FILES[name] for name in values if isinstance(name, str) and name in FILES]
    return [{"name": entry.name, "url": entry.url, "directory": entry.folder} for entry in entries]
