"""The example workflows as the graph editor saves them, made from their API form.

    python tools/launch.py tools.workflows.workflows [--thumbnails] [NAME ...]

Run it in the development environment, with COMFYUI_PATH set. Every workflows/api/<name>.json becomes workflows/<name>.json, laid out as
examples.py says; with --thumbnails they also run, and workflows/<name>.jpg is a frame of what they make. tests/nodes/test_workflows.py
turns the graphs back into prompts and compares.
"""

from __future__ import annotations

import io
import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..comfyui.server import PACK_NAME, ComfyServer
from ..models.downloads import downloads
from .blueprint import talking_video
from .examples import EXAMPLES, Bands

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
SAMPLES = ROOT / "demo" / "samples"
BLUEPRINT = "Talking video"

# as the classic renderer draws them, in pixels; Nodes 2.0 needs a little more, which ROW_GAP leaves
TITLE, SLOT, WIDGET, WIDTH = 30, 20, 24, 290
COLUMN_GAP, ROW_GAP, GROUP_PAD, GROUP_TITLE, BAND_GAP = 60, 70, 20, 50, 50
SIZES = {"MultiTalkLoadAudio": (WIDTH, 208), "LoadImage": (WIDTH, 314), "SaveVideo": (400, 440), "MarkdownNote": (WIDTH + 40, 460)}
SIZES |= {"MultiTalkSpeakerBoxes": (400, 460), "MultiTalkPreviewSpeakers": (400, 400), "MultiTalkSyncCheck": (480, 620)}
SIZES |= {"MultiTalkDialogue": (WIDTH, 330), "CLIPTextEncode": (WIDTH, 110)}
SIZES |= {"LoadVideo": (WIDTH, 364), "PreviewAny": (WIDTH, 180)}  # with what they show once it is there
ROOM = {"SamplerCustomAdvanced": 220, "MultiTalkSampler": 220, "MultiTalkLongVideo": 330}  # below, for what they show when they run
COLOURS = ("#8aa", "#88a", "#8a8", "#b58b2a")  # of the groups and their titles; some that the editor's menu offers

VIEW = 0.75  # how large the graph is at first

VALUE_TYPES = {"COMBO", "INT", "FLOAT", "STRING", "BOOLEAN", "COMFY_DYNAMICCOMBO_V3"}  # what widgets are drawn for
NO_VALUE = {"AUDIO_UI"}  # a widget that shows something; stored, and no part of a prompt
UPLOADS = {"image_upload": "image", "audio_upload": None, "video_upload": None}  # a button after all widgets, and what it stores
ONLY_IN_THE_EDITOR = {"MarkdownNote", "Note"}


@dataclass(frozen=True)
class Slot:
    """One input of a node: a socket, or a widget with a value."""

    name: str
    type: str
    optional: bool
    options: Mapping[str, Any]
    label: str | None = None

    @property
    def is_widget(self) -> bool:
        return self.type in VALUE_TYPES | NO_VALUE

    @property
    def in_prompt(self) -> bool:
        return self.type not in NO_VALUE

    @property
    def default(self) -> Any:
        choices = self.options.get("options") or [None]
        return self.options.get("default", choices[0] if isinstance(choices[0], str) or choices[0] is None else choices[0]["key"])

    @property
    def stored_after(self) -> list[str]:
        """What the editor stores between this widget's value and the next one's."""
        return ["fixed"] if self.options.get("control_after_generate") else []


def slots(node: Mapping[str, Any], connected: Sequence[str] = ()) -> Iterator[Slot]:
    """The inputs of a node of /object_info, in its order; a growing input as the connected ones and an empty one."""
    for kind in ("required", "optional"):
        for name in node["input_order"].get(kind, ()):
            declared, *rest = node["input"][kind][name]
            options = rest[0] if rest else {}
            if declared == "COMFY_AUTOGROW_V3":
                yield from _grown(name, options["template"], connected)
            elif isinstance(declared, list):  # the older form of a combo
                yield Slot(name, "COMBO", kind == "optional", {**options, "options": declared})
            else:
                yield Slot(name, declared, kind == "optional", options)


def _grown(name: str, template: Mapping[str, Any], connected: Sequence[str]) -> Iterator[Slot]:
    ((kind, options),) = template["input"]["required"].values()
    last = max([int(key.rsplit("_", 1)[1]) for key in connected if key.startswith(f"{name}.")], default=-1)
    for number in range(min(template["max"], max(template["min"], last + 2))):
        label = f"{template['prefix']}{number}"
        yield Slot(f"{name}.{label}", kind, number >= template["min"], options, label)


# -- the editor's form into the API's


def to_prompt(graph: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """What the editor queues for a graph: every widget's value by its name, and every link.

    Raises:
        ValueError: a node stores more values than it has widgets, or lacks one that its inputs name.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    prompt = {}
    for node in graph["nodes"]:
        if node["type"] in ONLY_IN_THE_EDITOR:
            continue
        info = object_info[node["type"]]
        inputs = _values(node, info)
        inputs |= {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        title = node.get("title") or info["display_name"] or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def _values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Stored values go by their position; those missing at the end are the node's defaults."""
    stored = list(node.get("widgets_values", ()))
    widgets: list[Slot | None] = []  # None is what the editor stores for itself
    for slot in slots(info):
        if slot.is_widget:
            widgets += [slot if slot.in_prompt else None, *(None for _ in slot.stored_after)]
    widgets += [None for _ in _uploads(info)]
    promised = {slot["name"] for slot in node["inputs"] if "widget" in slot}
    absent = [slot for slot in widgets[len(stored) :] if slot is None or slot.name in promised]
    if absent or len(stored) > len(widgets):
        names = [slot.name if slot else None for slot in widgets]
        raise ValueError(f"Node {node['id']} ({node['type']}) stores {len(stored)} values; {len(names)} were expected: {names}.")
    values = [*stored, *(slot.default for slot in widgets[len(stored) :] if slot)]
    return {slot.name: value for slot, value in zip(widgets, values, strict=True) if slot}


def _uploads(info: Mapping[str, Any]) -> list[str | None]:
    return [value for slot in slots(info) for flag, value in UPLOADS.items() if slot.options.get(flag)]


def with_defaults(prompt: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with the values that it leaves to the nodes, as the editor always writes them out."""
    full = {}
    for key, node in prompt.items():
        widgets = [slot for slot in slots(object_info[node["class_type"]]) if slot.is_widget and slot.in_prompt]
        full[key] = {**node, "inputs": {slot.name: slot.default for slot in widgets} | node["inputs"]}
    return full


# -- the API's form into the editor's


def to_graph(name: str, prompt: Mapping[str, Any], object_info: Mapping[str, Any], note: str, layout: Bands) -> dict[str, Any]:
    """A graph for the editor: the prompt's nodes in the layout's groups, and a note on the left."""
    nodes = {key: _node(int(key), node, object_info) for key, node in prompt.items()}
    links = _connect(prompt, nodes)
    groups = _arrange(nodes, layout)
    order = {key: place for place, key in enumerate(_in_order(prompt))}
    for key, node in nodes.items():
        node["order"] = order[key] + 1
    text = _markdown(max(node["id"] for node in nodes.values()) + 1, note)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK_NAME}/workflows/{name}")),
        "revision": 0,
        "last_node_id": text["id"],
        "last_link_id": len(links),
        "nodes": [text, *nodes.values()],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": VIEW, "offset": [80 / VIEW, 110 / VIEW]}},
        "version": 0.4,
    }


def _node(number: int, node: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    kind, given = node["class_type"], node["inputs"]
    info = object_info[kind]
    inputs = list(slots(info, list(given)))
    while inputs[-1].is_widget and inputs[-1].in_prompt and inputs[-1].optional and inputs[-1].name not in given:
        inputs.pop()  # younger than the oldest ComfyUI, perhaps; the editor adds it where it exists
    widgets = [slot for slot in inputs if slot.is_widget]
    stored: list[Any] = []
    for slot in widgets:
        value = given.get(slot.name, slot.default) if slot.in_prompt else None
        stored += [slot.default if isinstance(value, list) else value, *slot.stored_after]
    outputs = [
        {"name": name, "type": type_, "links": None} for name, type_ in zip(info["output_name"], info["output"], strict=True)
    ]  # filled by _connect
    sockets = [slot for slot in inputs if not slot.is_widget]
    height = SLOT * max(len(sockets), len(outputs)) + WIDGET * len(widgets) + (14 if widgets else 6)
    title = node["_meta"]["title"]
    renamed = {"title": title} if title != (info["display_name"] or kind) else {}
    pack = PACK_NAME if info["python_module"] == f"custom_nodes.{PACK_NAME}" else "comfy-core"
    return {
        "id": number,
        "type": kind,
        "pos": [0, 0],
        "size": list(SIZES.get(kind, (WIDTH, height))),
        "flags": {},
        "order": 0,
        "mode": 0,
        **renamed,
        "inputs": [_input(slot) for slot in [*sockets, *widgets]],
        "outputs": outputs,
        "properties": {"Node name for S&R": kind, "cnr_id": pack, **({"models": models} if (models := downloads(given.values())) else {})},
        "widgets_values": stored + _uploads(info),
    }


def _input(slot: Slot) -> dict[str, Any]:
    label = {"label": slot.label} if slot.label else {}
    shape = {"shape": 7} if slot.optional else {}  # a ring in place of a dot
    widget = {"widget": {"name": slot.name}} if slot.is_widget else {}
    return {**label, "name": slot.name, **shape, "type": slot.type, **widget, "link": None}


def _connect(prompt: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[list[Any]]:
    links: list[list[Any]] = []
    for key, node in nodes.items():
        for place, slot in enumerate(node["inputs"]):
            value = prompt[key]["inputs"].get(slot["name"])
            if not isinstance(value, list):
                continue
            source, output = value
            slot["link"] = len(links) + 1
            out = nodes[source]["outputs"][output]
            out["links"] = [*(out["links"] or ()), slot["link"]]
            links.append([slot["link"], int(source), output, int(key), place, out["type"]])
    return links


def _in_order(prompt: Mapping[str, Any]) -> list[str]:
    """The nodes in an order in which they can run."""
    done: list[str] = []
    while len(done) < len(prompt):
        for key, node in prompt.items():
            sources = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
            if key not in done and all(source in done for source in sources):
                done.append(key)
    return done


def _arrange(nodes: Mapping[str, Any], layout: Bands) -> list[dict[str, Any]]:
    """Gives every node its place; returns the groups around them."""
    placed: set[int] = set()
    groups: list[dict[str, Any]] = []
    left = 0
    for band in layout:
        top, band_right = (0 if left else TITLE + SIZES["MarkdownNote"][1] + BAND_GAP), left
        for title, columns in band:
            x, bottom = left + GROUP_PAD, top
            for column in columns:
                y = top + GROUP_TITLE + TITLE
                members = [node for kind in column for node in nodes.values() if node["type"] == kind]
                for node in members:
                    node["pos"] = [x, y]
                    height = node["size"][1] + ROOM.get(node["type"], 0)
                    bottom = max(bottom, y + height)
                    y += height + TITLE + ROW_GAP
                    placed.add(node["id"])
                x += max([node["size"][0] for node in members], default=-COLUMN_GAP) + COLUMN_GAP
            right = x - COLUMN_GAP + GROUP_PAD
            bounding = [left, top, right - left, bottom + GROUP_PAD + ROW_GAP // 2 - top]
            colour = COLOURS[len(groups) % len(COLOURS)]
            groups.append({"id": len(groups) + 1, "title": title, "bounding": bounding, "color": colour, "font_size": 24, "flags": {}})
            top, band_right = top + bounding[3] + BAND_GAP, max(band_right, right)
        left = band_right + BAND_GAP
    if missing := [node["type"] for node in nodes.values() if node["id"] not in placed]:
        raise ValueError(f"The layout has no place for {', '.join(missing)}. Add them to one of its groups.")
    return groups


def _markdown(number: int, text: str) -> dict[str, Any]:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [0, TITLE],
        "size": list(SIZES["MarkdownNote"]),
        "flags": {},
        "order": 0,
        "mode": 0,
        "title": "What to do",
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
    }


# -- the files


def thumbnail(video: Path, side: int = 384) -> bytes:
    """The frame least like the first, where a mouth is open, as JPEG."""
    import av
    import numpy as np
    from PIL import Image

    with av.open(str(video)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    apart = np.abs(frames.astype(np.int16) - frames[0]).mean(axis=(1, 2, 3))
    image = Image.fromarray(frames[apart.argmax()])
    scale = side / min(image.size)
    data = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(data, "JPEG", quality=85)
    return data.getvalue()


def main() -> int:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        print("COMFYUI_PATH is not set. Set it to ComfyUI's folder.")
        return 1
    with ComfyServer(Path(comfyui), ROOT) as server:
        object_info = server.object_info()
        (ROOT / "subgraphs").mkdir(exist_ok=True)
        graph = talking_video(BLUEPRINT, lambda prompt, layout: to_graph(BLUEPRINT, prompt, object_info, "", layout))
        text = json.dumps(graph, indent=2, ensure_ascii=False) + "\n"
        (ROOT / "subgraphs" / f"{BLUEPRINT}.json").write_text(text, encoding="utf-8")
        for sample in [file for kind in ("png", "wav", "mp4") for file in SAMPLES.glob(f"*.{kind}")]:
            server.upload(sample)
        wanted = [name for name in sys.argv[1:] if not name.startswith("--")]
        for file in sorted((WORKFLOWS / "api").glob("*.json")):
            if wanted and file.stem not in wanted:
                continue
            prompt = json.loads(file.read_text(encoding="utf-8"))
            example = EXAMPLES[file.stem]
            graph = to_graph(file.stem, prompt, object_info, example.note, example.layout)
            text = json.dumps(graph, indent=2, ensure_ascii=False) + "\n"
            (WORKFLOWS / file.name).write_text(text, encoding="utf-8")
            print(f"workflows/{file.name}: {len(graph['nodes'])} nodes, {len(graph['links'])} links")
            if "--thumbnails" in sys.argv[1:]:
                (made,) = [made for made in server.files(server.run(prompt)) if made.suffix == ".mp4"]  # the rest are previews
                (WORKFLOWS / f"{file.stem}.jpg").write_bytes(thumbnail(made))
    return 0
