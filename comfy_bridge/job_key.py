"""Which job a graph asks for: everything that changes a pixel of its video, and nothing else.

Files count by what is in them, never by name, path or date. What a graph's text cannot tell (what another pack's nodes made of a prompt,
how a model was patched) counts by the tensors that arrive.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link

from .fingerprints import as_json, digest, file_fingerprint, model_file_fingerprint

NO_FILES = {"custom_nodes", "datasets", "configs"}  # of folder_paths: folders that hold no models
EDITORS = {"video-preview"}  # inputs that the editor adds where it shows a video; no node has them

Node = Mapping[str, Any]  # of a prompt: class_type and inputs


def job_key(node: str, lookup: Callable[[str], Node], arrived: Mapping[str, Any]) -> str:
    """A name for the job, the same for the same video.

    A node that gets another input keeps its jobs: inputs at their defaults are left out. Of the node itself only what is connected is
    read from the graph; what its widgets say is for the caller to put into `arrived`, without what has no effect.

    Args:
        node: number of the node in the prompt.
        lookup: a node by its number.
        arrived: what its inputs are by the time it runs; tensors, conditionings, ModelPatchers. What is None is left out.
    """
    own = lookup(node)
    asked = {"class_type": own["class_type"], "inputs": {name: value for name, value in own["inputs"].items() if is_link(value)}}
    given = {name: as_json(value) for name, value in arrived.items() if value is not None}
    return digest({"graph": _node(asked, lookup, {}), "arrived": given})[:32]


def _node(node: Node, lookup: Callable[[str], Node], known: dict[str, str]) -> str:
    inputs, defaults = {}, _defaults(node["class_type"])
    for name, value in sorted(node["inputs"].items()):
        if name in EDITORS or (name in defaults and value == defaults[name]):
            continue
        if is_link(value):
            if value[0] not in known:
                known[value[0]] = _node(lookup(value[0]), lookup, known)
            inputs[name] = {"from": known[value[0]], "output": value[1]}
        else:
            inputs[name] = _value(value)
    return digest([node["class_type"], inputs])


def _defaults(kind: str) -> dict[str, Any]:
    """The defaults of a node's inputs, as far as ComfyUI knows them."""
    node = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(kind)
    inputs = node.INPUT_TYPES() if node is not None else {}
    specs = {**inputs.get("required", {}), **inputs.get("optional", {})}
    return {name: spec[1]["default"] for name, spec in specs.items() if len(spec) > 1 and "default" in spec[1]}


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


def jobs_folder() -> Path:
    """Where jobs are kept while they are made."""
    return Path(os.path.join(folder_paths.get_output_directory(), "multitalk_jobs"))
