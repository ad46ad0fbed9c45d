"""The pack as ComfyUI loads it."""

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def loaded(comfy, monkeypatch):
    """The root __init__.py, run under a name like the one ComfyUI makes from the folder's path."""
    name = str(ROOT).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_entry_point_gives_valid_nodes_with_distinct_ids(loaded):
    from comfy_api.latest import ComfyExtension

    extension = asyncio.run(loaded.comfy_entrypoint())
    assert isinstance(extension, ComfyExtension)
    nodes = asyncio.run(extension.get_node_list())
    assert isinstance(nodes, list)
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    assert len(set(ids)) == len(ids)


def test_comfy_sees_only_the_entry_point(loaded):
    """With NODE_CLASS_MAPPINGS, even empty, ComfyUI ignores comfy_entrypoint."""
    assert not hasattr(loaded, "NODE_CLASS_MAPPINGS")


def test_top_level_nodes_is_comfyui_s(comfy):
    spec = importlib.util.find_spec("nodes")
    assert Path(spec.origin).resolve() == comfy / "nodes.py"
