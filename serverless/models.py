"""Whether everything that a template's graph needs is there: its nodes, its model files, and whether these load."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from multitalk_client import AsyncClient, ClientError, DeadlineExceeded, NodeFailed, id_of
from multitalk_client.templates import Prompt, is_link

from .errors import JobError

MODELS = ("multitalk", "wan21", "wav2vec", "vae", "clip")
# which input of which loader names which model
LOADERS = {
    "UNETLoader": ("unet_name", "wan21"),
    "UnetLoaderGGUF": ("unet_name", "wan21"),
    "MultiTalkModelLoader": ("model_name", "multitalk"),
    "MultiTalkWav2VecLoader": ("encoder_name", "wav2vec"),
    "VAELoader": ("vae_name", "vae"),
    "CLIPVisionLoader": ("clip_name", "clip"),
    "CLIPLoader": ("clip_name", "text_encoder"),
    "LoraLoaderModelOnly": ("lora_name", "lora"),
}
DEMO, OF_THE_DEMO = "MultiTalkDemoModel", ("multitalk", "wan21", "wav2vec", "vae")  # in one node, with the pack
SHOW = "PreviewAny"  # takes anything, so that a loader has somebody to load for
LISTENER = "MultiTalkWav2VecLoader"
PLAIN, LONGEST_NAME = re.compile(r"[\w-]{1,100}", re.ASCII), 100
CHECK = "MultiTalkModelCheck"
SECONDS, DEEP_SECONDS = 60.0, 1800.0  # for it
COMPONENTS = ("wan_i2v", "audio_encoder", "feature_extractor")


@dataclass
class State:
    """What was found."""

    needed: dict[str, str]  # model → file
    missing: list[str] = field(default_factory=list)  # of the needed
    missing_nodes: list[str] = field(default_factory=list)
    loaded: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, False))
    why: str = ""  # they do not load

    @property
    def complete(self) -> bool:
        return not self.missing and not self.missing_nodes

    @property
    def available(self) -> dict[str, bool]:
        """Of the five that clients ask for, and whatever else the graph needs."""
        return {name: name in self.needed and name not in self.missing for name in dict.fromkeys((*MODELS, *self.needed))}

    def expect_complete(self) -> None:
        """Raises JobError for what is not there, in words that older clients know."""
        if self.missing_nodes:
            text = f"ComfyUI has no node {', '.join(self.missing_nodes)}: is the MultiTalk pack installed?"
            raise JobError(
                f"Nodes not initialized - MeiGen-MultiTalk components required. {text}", "nodes_missing", nodes=self.missing_nodes
            )
        if self.missing:
            audio = "audio " if set(self.missing) <= {"wav2vec", "multitalk"} else ""
            files = {name: self.needed[name] for name in self.missing}
            text = ", ".join(f"{name} ({file})" for name, file in files.items())
            raise JobError(f"Required MeiGen-MultiTalk {audio}components missing: {text}.", "models_missing", files=files)

    def expect_loaded(self) -> None:
        """Raises JobError if what is there does not load."""
        if not_there := [name for name, loaded in self.loaded.items() if not loaded]:
            names = ", ".join(not_there)
            raise JobError(f"{names} not initialized - MeiGen-MultiTalk components required. {self.why}", "models_not_loaded")


def needed_by(graph: Prompt) -> dict[str, str]:
    """The models that a graph loads, by what they are for."""
    demo = dict.fromkeys(OF_THE_DEMO, "of the demo, in the pack") if any(node["class_type"] == DEMO for node in graph.values()) else {}
    return demo | {model: file for model, _, _, file in _loads(graph)}


def _loads(graph: Prompt) -> Iterator[tuple[str, str, str, str]]:
    """What for, by which node, by which of its inputs, and which file; a second of a kind is called …_2."""
    seen: Counter[str] = Counter()
    for node in graph.values():
        if node["class_type"] in LOADERS:
            name, model = LOADERS[node["class_type"]]
            file = node["inputs"].get(name)
            if isinstance(file, str):  # else another node says
                seen[model] += 1
                yield model if seen[model] == 1 else f"{model}_{seen[model]}", node["class_type"], name, file


async def look(client: AsyncClient, graph: Prompt) -> State:
    """Which of a graph's nodes and model files ComfyUI has; nothing is loaded for it."""
    state = State(needed_by(graph))
    kinds = sorted({node["class_type"] for node in graph.values()})
    info: dict[str, Any] = {}
    if all(PLAIN.fullmatch(kind) for kind in kinds):
        for kind in kinds:
            info |= await client.object_info(kind)
    else:  # a name that could lead elsewhere in an address
        info = await client.object_info()
    state.missing_nodes = [kind[:LONGEST_NAME] for kind in kinds if kind not in info]
    state.missing = [model for model, kind, name, file in _loads(graph) if kind in info and file not in _choices(info[kind], name)]
    return state


async def load(client: AsyncClient, graph: Prompt, state: State, seconds: float) -> None:
    """Lets ComfyUI load the models, which it keeps for the jobs that follow; asks it again only after it was started anew."""
    prompt = warm_up(graph)
    try:
        await client.run(prompt, id_of("load", prompt), timeout=seconds)
    except NodeFailed as error:
        if error.code == "out_of_memory":
            raise
        broken = {LISTENER: COMPONENTS[1:], DEMO: COMPONENTS}.get(error.node_type, COMPONENTS[:1])
        state.loaded |= {name: name not in broken for name in COMPONENTS}
        state.why = str(error)
    else:
        state.loaded |= dict.fromkeys(COMPONENTS, True)


async def is_loaded(client: AsyncClient, graph: Prompt) -> bool:
    """Whether `load` has ended well since ComfyUI was started."""
    try:
        known, entry = await client.look(id_of("load", warm_up(graph)))
    except ClientError:
        return False
    return known == "ended" and entry["status"]["status_str"] == "success"


async def details(client: AsyncClient, job: str, deep: bool) -> dict[str, Any]:
    """What the pack's own node finds in ComfyUI's folders, whether or not a template needs it: {} if this ComfyUI does not have it.

    Args:
        deep: compares hashes, which takes minutes.
    """
    if CHECK not in await client.object_info(CHECK):
        return {}
    prompt = {
        "check": {"class_type": CHECK, "inputs": {"deep": deep, "size": "multitalk-480", "seconds": 10.0}},
        "report": {"class_type": SHOW, "inputs": {"source": ["check", 1]}},
        "facts": {"class_type": SHOW, "inputs": {"source": ["check", 2]}},
    }
    number, seconds = id_of("model_check", job), DEEP_SECONDS if deep else SECONDS
    try:
        await client.run(prompt, number, timeout=seconds)
        _, entry = await client.look(number)
        item, facts = ("".join(entry["outputs"][name]["text"]) for name in ("report", "facts"))
        return json.loads(item) | {"diagnostics": facts.splitlines()}
    except DeadlineExceeded:  # what was found without it is an answer, too
        return {"error": f"ComfyUI did not end the check within {seconds:g} s: most often it is busy with a video. Ask again later."}
    except ClientError as error:
        return {"error": str(error)}
    finally:
        with suppress(ClientError):
            await client.forget(number)


def warm_up(graph: Prompt) -> Prompt:
    """The loaders of a graph, and somebody to load for."""
    loaders = {number: node for number, node in graph.items() if node["class_type"] in (*LOADERS, DEMO)}
    for number in list(loaders):
        loaders |= _sources(graph, number)
    return loaders | {f"load_{number}": {"class_type": SHOW, "inputs": {"source": [number, 0]}} for number in loaders}


def _sources(graph: Prompt, number: str) -> Prompt:
    """What a node is made of."""
    found = {number: graph[number]}
    for value in graph[number]["inputs"].values():
        if is_link(value):
            found |= _sources(graph, value[0])
    return found


def _choices(given: Mapping[str, Any], name: str) -> list[Any]:
    """What a loader's input can be, in either of the two forms that ComfyUI has for it."""
    kind, *more = given["input"].get("required", {}).get(name) or given["input"].get("optional", {}).get(name) or [[]]
    return kind if isinstance(kind, list) else (more[0] if more else {}).get("options", [])
