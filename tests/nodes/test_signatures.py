"""What was released goes on working: nodes keep their inputs and outputs, and the workflows of every release still fit.

A break needs a NodeReplace, which leads from a node that is gone to one that is there; the made-up ones here show what is noticed.
"""

import copy
import json
import os
from pathlib import Path

import pytest

from multitalk_nodes.tests.nodes.test_workflows import object_info as object_info  # noqa: PLC0414 - the fixture, with the samples uploaded
from multitalk_nodes.tests.nodes.test_workflows import unfit
from multitalk_nodes.tests.support.graphs import SAMPLES, Graph
from multitalk_nodes.tools.comfyui.server import ComfyServer
from multitalk_nodes.tools.release.signatures import RELEASED, ROOT, breaks, replaced, signature
from multitalk_nodes.tools.workflows.workflows import to_prompt

RELEASES = sorted((folder.name for folder in RELEASED.iterdir()), key=lambda name: [int(part) for part in name.split(".")])
WORKFLOWS = [pytest.param(file, id=file.relative_to(RELEASED).as_posix()) for file in sorted(RELEASED.glob("*/workflows/**/*.json"))]


def recorded(release):
    return json.loads((RELEASED / release / "nodes.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def now(server, object_info):
    return {name: signature(object_info[name]) for name in server.pack_nodes()}


@pytest.mark.parametrize("release", RELEASES)
def test_released_nodes_are_as_they_were_or_replaced(server, now, release):
    assert breaks(recorded(release), now, server.get("/node_replacements")) == []


@pytest.mark.parametrize("file", WORKFLOWS)
def test_released_workflows_still_fit(server, object_info, now, file):
    graph = json.loads(file.read_text(encoding="utf-8"))
    replacements = server.get("/node_replacements")
    if "nodes" in graph:
        if any(node["type"] in replacements for node in graph["nodes"]):
            pytest.skip("has a node that the editor replaces as it loads the graph; its form for the API is tested")
        graph = to_prompt(graph, object_info)
    assert unfit(replaced(graph, object_info, replacements), object_info) == []


def test_this_version_is_recorded():
    assert f'\nversion = "{RELEASES[-1]}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), "python dev.py release-signatures"


# -- made-up breaks


def edited(now, node="MultiTalkGuider"):
    """A copy of the signatures, and the one of a node in it to change."""
    changed = copy.deepcopy(now)
    return changed, changed[node]


def put_first(entry, name):
    entry["widgets"].remove(name)
    entry["widgets"].insert(0, name)


CHANGES = {  # what is done to MultiTalkGuider, and what is said about it
    "an input goes": (lambda node: node["inputs"].pop("apg"), "input apg is gone"),
    "an input is renamed": (lambda node: node["inputs"].update(guide=node["inputs"].pop("positive")), "input positive is gone"),
    "a type changes": (lambda node: node["inputs"]["text_scale"].update(type="INT"), "text_scale was FLOAT, is now INT"),
    "a new input is required": (lambda node: node["inputs"].update(more={"type": "INT", "optional": False}), "more is new and required"),
    "a range shrinks": (lambda node: node["inputs"]["text_scale"].update(max=2.0), "text_scale went from"),
    "the output changes its type": (lambda node: node["outputs"][0].__setitem__(1, "MODEL"), "output 0 was"),
    "an output comes before": (lambda node: node["outputs"].insert(0, ["x", "INT"]), "output 0 was"),
    "the output goes": (lambda node: node["outputs"].clear(), "is now None"),
    "widgets change places": (lambda node: put_first(node, "apg"), "stores values by place"),
    "a new widget comes first": (lambda node: node["widgets"].insert(0, "new"), "stores values by place"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_made_up_break_is_told(now, change):
    make, item = CHANGES[change]
    changed, node = edited(now)
    make(node)
    (problem, *_) = breaks(now, changed, {})
    assert problem.startswith("MultiTalkGuider: ") and item in problem


def test_a_choice_that_goes_and_a_default_that_changes_are_told(now):
    changed, node = edited(now, "MultiTalkWav2VecEmbeds")
    node["inputs"]["layout"]["choices"] = ["parallel"]
    assert breaks(now, changed, {}) == ["MultiTalkWav2VecEmbeds: input layout has no longer the choices ['sequential']"]
    was, node = edited(now, "MultiTalkWav2VecEmbeds")
    was["MultiTalkWav2VecEmbeds"]["inputs"]["level"]["optional"] = True
    changed = copy.deepcopy(was)
    changed["MultiTalkWav2VecEmbeds"]["inputs"]["level"]["default"] = False
    assert "another result" in breaks(was, changed, {})[0]


def test_additions_are_no_breaks(now):
    changed, node = edited(now)
    node["inputs"]["more"] = {"type": "INT", "optional": True, "default": 1}
    node["inputs"]["text_scale"]["max"] = 1000.0
    node["inputs"]["model"]["type"] = "MODEL,OTHER"
    node["widgets"].append("more")
    node["outputs"].append(["count", "INT"])
    changed["MultiTalkNew"] = node
    assert breaks(now, changed, {}) == []


# -- a made-up NodeReplace: once there was a MultiTalkFinish, whose latent came in as `latent`


@pytest.fixture(scope="module")
def before(now):
    """The signatures of a release that had MultiTalkFinish in place of MultiTalkDecode."""
    then = copy.deepcopy(now)
    node = then["MultiTalkFinish"] = then.pop("MultiTalkDecode")
    node["inputs"]["latent"] = node["inputs"].pop("samples")
    return then


def replacement(now, **changes):
    from comfy_api.latest import io

    node = now["MultiTalkDecode"]
    mapping = [{"new_id": name, "old_id": "latent" if name == "samples" else name} for name in node["inputs"]]
    arguments = {"old_widget_ids": node["widgets"], "input_mapping": mapping, "output_mapping": None, **changes}
    return {"MultiTalkFinish": [io.NodeReplace("MultiTalkDecode", "MultiTalkFinish", **arguments).as_dict()]}


def test_a_node_that_is_gone_needs_a_replacement(comfy, before, now):
    assert breaks(before, now, {}) == ["MultiTalkFinish: is gone, and no NodeReplace leads from it to another"]
    assert breaks(before, now, replacement(now)) == []


def test_a_released_graph_with_a_replaced_node_still_fits(server, comfy, object_info, now):
    graph = json.loads((ROOT / "workflows" / "api" / "demo_one_speaker.json").read_text(encoding="utf-8"))
    (node,) = [node for node in graph.values() if node["class_type"] == "MultiTalkDecode"]
    node["class_type"] = "MultiTalkFinish"
    node["inputs"]["latent"] = node["inputs"].pop("samples")
    assert unfit(replaced(graph, object_info, replacement(now)), object_info) == []


def test_a_replacement_that_loses_something_is_told(comfy, before, now):
    whole = replacement(now)["MultiTalkFinish"][0]["input_mapping"]
    without = [entry for entry in whole if entry["new_id"] != "samples"]
    assert "input latent is gone" in breaks(before, now, replacement(now, input_mapping=without))[0]
    assert "expected ['colour']" in breaks(before, now, replacement(now, old_widget_ids=[]))[0]
    moved = replacement(now, output_mapping=[{"new_idx": 7, "old_idx": 0}])
    assert "output 0 was" in breaks(before, now, moved)[0]
    del (gone := dict(now))["MultiTalkDecode"]
    assert breaks(before, gone, replacement(now)) == ["MultiTalkFinish: is replaced by MultiTalkDecode, which does not exist"]


def test_a_replacement_cannot_take_optional_inputs_along(comfy, before, now):
    """ComfyUI 0.18.2 to 0.30.0 answer a prompt that leaves one out with status 500: they look every mapped input up."""
    then = copy.deepcopy(before)
    then["MultiTalkFinish"]["inputs"]["latent"]["optional"] = True
    problem, *_ = breaks(then, now, replacement(now))
    assert "a map of latent, which is optional" in problem


REPLACING = """
from comfy_api.latest import ComfyAPI, ComfyExtension, io

class Replacing(ComfyExtension):
    async def on_load(self):
        await ComfyAPI().node_replacement.register(io.NodeReplace(**{arguments}))

    async def get_node_list(self):
        return []

async def comfy_entrypoint():
    return Replacing()
"""


@pytest.mark.slow
def test_a_replacement_that_passes_is_one_that_comfyui_makes(comfy, before, now, tmp_path):
    """The old graph through the queue of a ComfyUI in which the made-up NodeReplace is registered."""
    (arguments,) = replacement(now)["MultiTalkFinish"]
    place = tmp_path / "custom_nodes" / "replacing"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(REPLACING.replace("{arguments}", repr(arguments)))
    graph = Graph(frames=5)
    graph["decode"] = {**graph["decode"], "class_type": "MultiTalkFinish", "_meta": {"title": "Finish"}}
    graph.set("decode", latent=graph["decode"]["inputs"].pop("samples"))
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT, base=tmp_path) as server:
        for sample in ("face_small.png", "voice_1.wav"):
            server.upload(SAMPLES / sample)
        assert breaks(before, now, server.get("/node_replacements")) == []
        assert server.files(server.run(graph.prompt()))
