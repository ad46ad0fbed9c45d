"""What a release promises: its nodes' inputs and outputs, and its workflows. Recorded in tests/released/<version>.

    python dev.py release-signatures [--again]

starts the oldest ComfyUI (its own choices, such as samplers, are those that every ComfyUI has) and records what it lists.
tests/nodes/test_signatures.py holds every record against the nodes as they are: what a user has saved must go on working, or a
NodeReplace must lead from the old node to a new one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..comfyui.server import ComfyServer
from ..processes import leave_on_signals
from ..workflows.workflows import NO_VALUE, slots

ROOT = Path(__file__).resolve().parents[2]
RELEASED = ROOT / "tests" / "released"
OF_CORE = ("sampler_name", "scheduler")  # their choices are ComfyUI's, and no promise of ours
UPLOADS = ("image_upload", "audio_upload", "video_upload")  # a combo with one of these lists files


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command's options; also called by dev.py, before it makes an environment for them."""
    parser = argparse.ArgumentParser(prog="dev.py release-signatures", description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="replace the record of a version that nobody has got yet")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse(sys.argv[1:])
    leave_on_signals()
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE).group(1)
    folder = RELEASED / version
    if folder.exists() and not options.again:
        what = f"{version} is recorded already. Set a new version in pyproject.toml; or, if nobody has got this one, add --again."
        print(what, file=sys.stderr)
        return 1
    with ComfyServer(Path(os.environ["COMFYUI_PATH"]), ROOT) as server:
        listed = server.object_info()
        nodes = {name: signature(listed[name]) for name in server.pack_nodes()}
    shutil.rmtree(folder, ignore_errors=True)
    for file in sorted((ROOT / "workflows").rglob("*.json")):
        place = folder / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)
    (folder / "nodes.json").write_text(json.dumps(nodes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"recorded {len(nodes)} nodes and the workflows of {version} in {folder.relative_to(ROOT)}")
    return 0


def signature(info: Mapping[str, Any]) -> dict[str, Any]:
    """What saved workflows know of a node of /object_info: inputs by name, the order of its widgets, outputs in order.

    The editor stores the values of widgets by their place, links and the API's prompts go by name, and outputs are numbers.
    """
    inputs = {name: entry for kind in ("required", "optional") for name, entry in _inputs(info["input"].get(kind, {}), kind)}
    widgets = [slot.name for slot in slots(info) if slot.is_widget]
    return {"inputs": inputs, "widgets": widgets, "outputs": [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]}


def _inputs(declared: Mapping[str, Any], kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, (declared_type, *rest) in declared.items():
        options = rest[0] if rest else {}
        if declared_type in NO_VALUE:
            continue
        if declared_type == "COMFY_AUTOGROW_V3":  # an input for each that it can grow to
            template = options["template"]
            ((grown, _),) = template["input"]["required"].values()
            for number in range(template["max"]):
                yield f"{name}.{template['prefix']}{number}", {"type": grown, "optional": number >= template["min"]}
            continue
        entry: dict[str, Any] = {"type": declared_type, "optional": kind == "optional"}
        entry |= {key: options[key] for key in ("default", "min", "max") if key in options}
        if options.get("options") and name not in OF_CORE and not any(options.get(flag) for flag in UPLOADS):
            entry["choices"] = options["options"]
        yield name, entry


def breaks(released: Mapping[str, Any], now: Mapping[str, Any], replacements: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """What workflows of a release would miss: 'node: what'.

    Args:
        released, now: signatures by node id.
        replacements: as /node_replacements gives them: NodeReplace.as_dict() by old node id. ComfyUI takes the first, and only for nodes
            that are gone.
    """
    found = []
    for name, old in released.items():
        if name in now:
            problems = [*_differences(old, now[name], {key: key for key in old["inputs"]}, {}), *_moved_widgets(old, now[name])]
        elif name in replacements:
            problems = _badly_replaced(old, now, replacements[name][0])
        else:
            problems = ["is gone, and no NodeReplace leads from it to another"]
        found += [f"{name}: {problem}" for problem in problems]
    return found


def _differences(
    old: Mapping[str, Any], new: Mapping[str, Any], inputs: Mapping[str, str], outputs: Mapping[int, int], given: Sequence[str] = ()
) -> Iterator[str]:
    """Args: inputs: new names by old; outputs: new numbers by old, if a replacement names any; given: new inputs that get a value."""
    for name, was in old["inputs"].items():
        if inputs.get(name) not in new["inputs"]:
            yield f"input {name} is gone"
        else:
            yield from (f"input {name} {problem}" for problem in _input_differences(was, new["inputs"][inputs[name]]))
    for name, entry in new["inputs"].items():
        if not entry["optional"] and name not in inputs.values() and name not in given:
            yield f"input {name} is new and required: make it optional"
    for number, (name, kind) in enumerate(old["outputs"]):
        place = outputs.get(number, number)
        is_now = new["outputs"][place] if place < len(new["outputs"]) else None
        if is_now is None or is_now[1] != kind or (not outputs and is_now[0] != name):
            yield f"output {number} was {name} ({kind}), is now {is_now}"


def _input_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if not set(was["type"].split(",")) <= set(now["type"].split(",")) and now["type"] != "*":
        yield f"was {was['type']}, is now {now['type']}"
        return
    if was["optional"] and not now["optional"]:
        yield "was optional, is now required"
    if was["optional"] and was.get("default") != now.get("default"):
        yield f"had the default {was.get('default')!r}, has now {now.get('default')!r}: who left it out gets another result"
    if lost := [choice for choice in was.get("choices", ()) if choice not in now.get("choices", ())]:
        yield f"has no longer the choices {lost}"
    if ("min" in now and was.get("min", float("-inf")) < now["min"]) or ("max" in now and was.get("max", float("inf")) > now["max"]):
        yield f"went from {was.get('min')} to {was.get('max')}, goes now from {now.get('min')} to {now.get('max')}"


def _moved_widgets(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    kept = new["widgets"][: len(old["widgets"])]
    if kept != old["widgets"] and set(old["widgets"]) <= set(new["widgets"]):  # what is gone was reported already
        yield f"the editor stores values by place: its first widgets were {old['widgets']}, are now {kept}; put new ones behind"


def replaced(
    prompt: Mapping[str, Any], there: Mapping[str, Any], replacements: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """A prompt as ComfyUI makes it of one with nodes that are gone (app/node_replace_manager.py); outputs keep their places here."""
    changed = dict(prompt)
    for number, node in prompt.items():
        if node["class_type"] in there or node["class_type"] not in replacements:
            continue
        by = replacements[node["class_type"]][0]
        inputs = {
            entry["new_id"]: entry["set_value"] if "set_value" in entry else node["inputs"][entry["old_id"]]
            for entry in by["input_mapping"] or ()
        }
        changed[number] = {**node, "class_type": by["new_node_id"], "inputs": inputs}
    return changed


def _badly_replaced(old: Mapping[str, Any], now: Mapping[str, Any], replacement: Mapping[str, Any]) -> Iterator[str]:
    new_id, mapped = replacement["new_node_id"], replacement["input_mapping"] or ()
    if new_id not in now:
        yield f"is replaced by {new_id}, which does not exist"
        return
    if (replacement["old_widget_ids"] or []) != old["widgets"]:
        yield f"is replaced with old_widget_ids {replacement['old_widget_ids']}, expected {old['widgets']}"
    inputs = {entry["old_id"]: entry["new_id"] for entry in mapped if "old_id" in entry}
    for name in inputs:
        if old["inputs"].get(name, {}).get("optional"):  # ComfyUI 0.30.0: apply_replacements in app/node_replace_manager.py
            yield f"is replaced by {new_id} with a map of {name}, which is optional: ComfyUI fails on prompts without it; keep the old node"
    given = [entry["new_id"] for entry in mapped if "set_value" in entry]
    outputs = {entry["old_idx"]: entry["new_idx"] for entry in replacement["output_mapping"] or ()}
    yield from (f"is replaced by {new_id}: {problem}" for problem in _differences(old, now[new_id], inputs, outputs, given))
