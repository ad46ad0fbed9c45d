"""The blueprint "Talking video": an example workflow as one node of the editor, made by `tools/workflows/workflows.py`.

A blueprint is a workflow with a single node, whose type is a subgraph that the file defines. In there, node −10 stands for its inputs
and node −20 for its outputs.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .examples import EXAMPLES, Bands

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
SOURCE = "infinitetalk_one_speaker"  # the example that is one node here

INPUTS, OUTPUTS = -10, -20
WIDTH, SIDE = 320, 140  # pixels
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
GAP = 120  # pixels between the nodes and what stands for inputs and outputs


@dataclass(frozen=True)
class Port:
    """An input or an output of the blueprint, and the sockets inside that it leads to: (node, name of an input, or number of an output)."""

    name: str
    type: str
    ends: tuple[tuple[int, str | int], ...]
    widget: bool = False


def talking_video(name: str, graph_of: Callable[[Mapping[str, Any], Bands], Mapping[str, Any]]) -> dict[str, Any]:
    """One person's workflow without its picture and its voice, which are the blueprint's inputs; `graph_of` lays nodes out."""
    prompt = json.loads((WORKFLOWS / "api" / f"{SOURCE}.json").read_text(encoding="utf-8"))
    number = {node["class_type"]: int(key) for key, node in prompt.items()}
    long_video = number["MultiTalkLongVideo"]
    text = int(prompt[str(long_video)]["inputs"]["positive"][0])
    for outside in (str(number[kind]) for kind in ("LoadImage", "MultiTalkLoadAudio", "PreviewAny")):
        del prompt[outside]
        for node in prompt.values():
            node["inputs"] = {key: value for key, value in node["inputs"].items() if value != [outside, 0]}
    inputs = [
        Port("image", "IMAGE", ((number["MultiTalkImageSize"], "image"), (long_video, "image"))),
        Port("audio", "AUDIO", ((number["MultiTalkSpeaker"], "audio"),)),
        Port("text", "STRING", ((text, "text"),), widget=True),
    ]
    outputs = [Port("VIDEO", "VIDEO", ((long_video, 0),)), Port("report", "STRING", ((long_video, 2),))]
    description = "A picture and a voice into a video of that person talking, as long as the voice: InfiniteTalk on WAN 2.1."
    return to_blueprint(name, "MultiTalk", description, graph_of(prompt, EXAMPLES[SOURCE].layout), inputs, outputs)


def to_blueprint(name: str, category: str, description: str, graph: Mapping[str, Any], inputs: Sequence[Port], outputs: Sequence[Port]):
    """A workflow's nodes and links, without its note and groups, as a subgraph with these ports."""
    nodes = [node for node in graph["nodes"] if node["type"] != "MarkdownNote"]
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True)) for link in graph["links"]
    ]
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"multitalk-nodes/subgraphs/{name}"))
    by_id = {node["id"]: node for node in nodes}
    ports_in = [_input(key, place, port, by_id, links) for place, port in enumerate(inputs)]
    ports_out = [_output(key, place, port, by_id, links) for place, port in enumerate(outputs)]
    left, right = min(n["pos"][0] for n in nodes), max(n["pos"][0] + n["size"][0] for n in nodes)
    subgraph = {
        "id": key,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(by_id), "lastLinkId": max(link["id"] for link in links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUTS, "bounding": [left - GAP - SIDE, 0, SIDE, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + GAP, 0, SIDE, 40 + 20 * len(outputs)]},
        "inputs": ports_in,
        "outputs": ports_out,
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": category,
        "description": description,
    }
    outside = _outside(name, key, max(by_id) + 1, inputs, outputs, by_id)
    return {
        "revision": 0,
        "last_node_id": outside["id"],
        "last_link_id": 0,
        "nodes": [outside],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {},
    }


def _outside(name: str, key: str, number: int, inputs: Sequence[Port], outputs: Sequence[Port], nodes: Mapping[int, Any]) -> dict[str, Any]:
    """The one node that a user sees."""
    widgets = [port for port in inputs if port.widget]
    sockets = [{"name": p.name, "type": p.type, **({"widget": {"name": p.name}} if p.widget else {}), "link": None} for p in inputs]
    return {
        "id": number,
        "type": key,
        "pos": [0, 0],
        "size": [WIDTH, 120 + 60 * len(widgets)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": port.name, "type": port.type, "links": None} for port in outputs],
        "title": name,
        "properties": {"proxyWidgets": [["-1", port.name] for port in widgets], "cnr_id": "multitalk-nodes"},
        "widgets_values": [_value(nodes, port) for port in widgets],
    }


def _value(nodes: Mapping[int, Any], port: Port) -> Any:
    """What the widget inside has, which is the blueprint's default."""
    number, name = port.ends[0]
    widgets = [slot["name"] for slot in nodes[number]["inputs"] if "widget" in slot]
    return nodes[number]["widgets_values"][widgets.index(name)]


def _input(key: str, place: int, port: Port, nodes: Mapping[int, Any], links: list[dict[str, Any]]) -> dict[str, Any]:
    made = []
    for number, name in port.ends:
        slots = nodes[number]["inputs"]
        slot = next(i for i, slot in enumerate(slots) if slot["name"] == name)
        if slots[slot]["link"] is not None:
            raise ValueError(f"Input {name} of node {number} is linked inside of the blueprint already.")
        slots[slot]["link"] = _link(links, INPUTS, place, number, slot, port.type)
        made.append(slots[slot]["link"])
    return {"id": _id(key, port), "name": port.name, "type": port.type, "linkIds": made, "pos": [0, 20 * place]}


def _output(key: str, place: int, port: Port, nodes: Mapping[int, Any], links: list[dict[str, Any]]) -> dict[str, Any]:
    ((number, slot),) = port.ends
    made = _link(links, number, slot, OUTPUTS, place, port.type)
    out = nodes[number]["outputs"][slot]
    out["links"] = [*(out["links"] or ()), made]
    return {"id": _id(key, port), "name": port.name, "type": port.type, "linkIds": [made], "pos": [0, 20 * place]}


def _link(links: list[dict[str, Any]], origin: int, origin_slot: Any, target: int, target_slot: int, kind: str) -> int:
    number = max((link["id"] for link in links), default=0) + 1
    links.append(dict(zip(LINK, (number, origin, origin_slot, target, target_slot, kind), strict=True)))
    return number


def _id(key: str, port: Port) -> str:
    return str(uuid.uuid5(uuid.UUID(key), port.name))
