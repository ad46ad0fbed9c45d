"""Prompts from templates: graphs in ComfyUI's API format, whose nodes are found by their types and get a request's fields."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadRequest
from .request import Request

FOLDER = Path(__file__).resolve().parents[1] / "workflows" / "api"
PUBLISHED = FOLDER / "published"  # for the published models; the others bring the demo's
DEFAULT = "demo_long_talk"

Prompt = dict[str, dict[str, Any]]

MAKERS = ("MultiTalkConditioning", "MultiTalkLongVideo")  # what makes a clip, or a video, of everything before it
SAMPLERS = ("MultiTalkLongVideo", "MultiTalkSampler")
# Which inputs of which nodes a field sets; of these a template must have at least one.
PLACES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "image": (("LoadImage", "image"),),
    "video": (("LoadVideo", "file"),),
    "layout": (("MultiTalkWav2VecEmbeds", "layout"),),
    "size": (("MultiTalkImageSize", "size"),),
    "width": tuple((maker, "width") for maker in MAKERS),
    "height": tuple((maker, "height") for maker in MAKERS),
    "frames": (("MultiTalkConditioning", "frames"),),
    "seed": (("RandomNoise", "noise_seed"), *((sampler, "seed") for sampler in SAMPLERS)),
    "steps": tuple((node, "steps") for node in ("MultiTalkScheduler", *SAMPLERS)),
    "shift": tuple((node, "shift") for node in ("MultiTalkScheduler", *SAMPLERS)),
    "text_scale": tuple((node, "text_scale") for node in ("MultiTalkGuider", *SAMPLERS)),
    "audio_scale": tuple((node, "audio_scale") for node in ("MultiTalkGuider", *SAMPLERS)),
    "family": (("MultiTalkModelLoader", "family"), ("MultiTalkDemoModel", "family")),
}
PROMPTS = {"prompt": "positive", "negative_prompt": "negative"}  # a field, and the maker's input that a text encoder is linked to
LOADER, SPEAKER, VOICES = "MultiTalkLoadAudio", "MultiTalkSpeaker", "MultiTalkWav2VecEmbeds"
BOXES = "MultiTalkSpeakerBoxes"
GROUPS = (BOXES, "MultiTalkDialogue")  # what brings several speakers through one socket
SPEAKERS = "speakers.speaker_"  # of VOICES' inputs; a number follows


def templates() -> list[str]:
    """The names of the templates that come with the pack."""
    return sorted(_files())


def _files() -> dict[str, Path]:
    return {file.stem: file for folder in (FOLDER, PUBLISHED) for file in folder.glob("*.json")}


@dataclass(frozen=True)
class Template:
    """A graph, and how a request gets into it."""

    name: str
    graph: Prompt

    @classmethod
    def load(cls, name: str | Path) -> Template:
        """One of the pack's, by its name, or any file in API format that says `.json`.

        Raises:
            BadRequest: there is none, or it is no prompt.
        """
        file = Path(name) if str(name).endswith(".json") else _files().get(str(name))
        if file is None:
            raise BadRequest(f"There is no template '{name}'. There are {', '.join(templates())}; or name a file that ends in .json.")
        try:
            graph = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadRequest(f"'{file}' cannot be read as a template: {error}") from error
        return cls(file.stem, checked(graph, f"'{file.name}'"))

    def takes(self, field: str) -> bool:
        """Whether it has a place for a field of a request."""
        return bool(self._texts(self.graph, field) if field in PROMPTS else _inputs(self.graph, PLACES[field]))

    def fill(self, request: Request, names: Mapping[Path, str]) -> Prompt:
        """The template's graph with a request in it.

        Where the request brings a picture, the template's boxes, masks and silent people go: they belong to another one.

        Args:
            names: what ComfyUI calls the request's files.
        Raises:
            BadRequest: the template has no place for a field.
        """
        graph = copy.deepcopy(self.graph)
        given = request.model_dump(exclude_none=True, exclude={"audio", "duration"})
        for field, value in given.items():
            value = names[value] if isinstance(value, Path) else value
            places = self._texts(graph, field) if field in PROMPTS else _inputs(graph, PLACES[field])
            if not places:
                raise BadRequest(f"The template '{self.name}' has no place for {field}; leave it out, or take another template.")
            for inputs, name in places:
                inputs[name] = value
        self._seat(graph, request, names)
        return graph

    def _texts(self, graph: Prompt, field: str) -> list[tuple[dict[str, Any], str]]:
        """Where the text is that a maker's conditioning is made of."""
        encoders = {node for node, item in graph.items() if "text" in item["inputs"]}
        linked = {side: [node for node in _linked(graph, MAKERS, name) if node in encoders] for side, name in PROMPTS.items()}
        if set(linked["prompt"]) & set(linked["negative_prompt"]):
            raise BadRequest(f"In the template '{self.name}' one text is both prompt and negative prompt; give each its own text encoder.")
        return [(graph[node]["inputs"], "text") for node in linked[field]]

    def _seat(self, graph: Prompt, request: Request, names: Mapping[Path, str]) -> None:
        """A loader and a speaker for every voice in place of the template's, whose silent people stay with their picture."""
        voices = next((node for node in graph.values() if node["class_type"] == VOICES), None)
        if voices is None:
            raise BadRequest(f"The template '{self.name}' has no node {VOICES}, so there is no place for voices.")
        before = _feeding(graph)
        seats = sorted((name for name in voices["inputs"] if name.startswith(SPEAKERS)), key=lambda name: int(name[len(SPEAKERS) :]))
        there = [speaker for name in seats for speaker in _people(graph[voices["inputs"].pop(name)[0]])]
        talking = [speaker for speaker in there if speaker["inputs"].get("role") != "silent"]
        own_picture = request.image is not None or request.video is not None
        silent = [] if own_picture else [speaker for speaker in there if speaker["inputs"].get("role") == "silent"]
        for number, voice in enumerate(request.audio):
            like = talking[number]["inputs"] if number < len(talking) else {}
            placed = own_picture or voice.box or voice.mask
            place = {} if placed else {name: like[name] for name in ("box", "mask") if name in like}
            if voice.box:
                place["box"] = ", ".join(f"{edge:g}" for edge in voice.box)
            if voice.mask:
                graph[f"mask_{number + 1}"] = {"class_type": "LoadImageMask", "inputs": {"image": names[voice.mask], "channel": "red"}}
                place["mask"] = [f"mask_{number + 1}", 0]
            heard = {"audio": names[voice.audio], "start": 0.0, "duration": voice.duration or request.duration or 0.0, "channel": "all"}
            start = -1.0 if voice.start is None else voice.start
            loader, speaker = f"voice_{number + 1}", f"speaker_{number + 1}"
            if is_link(like.get("audio")) and graph.get(like["audio"][0], {}).get("class_type") == LOADER:
                loader = like["audio"][0]  # what else listens to it goes on doing so
            graph[loader] = {"class_type": LOADER, "inputs": heard}
            graph[speaker] = {
                "class_type": SPEAKER,
                "inputs": {"box": "", "role": "speaks", **place, "audio": [loader, 0], "start": start},
            }
            voices["inputs"][f"{SPEAKERS}{number}"] = [speaker, 0]
        for number, speaker in enumerate(silent, start=len(request.audio)):
            graph[f"silent_{number + 1}"] = speaker
            voices["inputs"][f"{SPEAKERS}{number}"] = [f"silent_{number + 1}", 0]
        _drop_groups(graph)
        while left := (before & graph.keys()) - _feeding(graph):  # what only the template's own speakers were made of
            for number in left:
                del graph[number]


def _people(node: dict[str, Any]) -> list[dict[str, Any]]:
    """What a socket brings as speakers: itself, or those of the boxes that were drawn for a group, in their order."""
    if node["class_type"] == SPEAKER:
        return [node]
    try:
        drawn = json.loads(node["inputs"].get("boxes") or "[]") if node["class_type"] == BOXES else []
        middles = [(place.get("speaker") or len(drawn), place["box"][0] + place["box"][2]) for place in drawn]
        boxes = [", ".join(f"{edge:g}" for edge in place["box"]) for place in drawn]
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise BadRequest(f"The template's {BOXES} has boxes that cannot be read: {error}") from error
    order = sorted(range(len(drawn)), key=middles.__getitem__)
    roles = ["silent" if drawn[i].get("silent") else "speaks" for i in order]
    return [{"class_type": SPEAKER, "inputs": {"box": boxes[i], "start": -1.0, "role": role}} for i, role in zip(order, roles, strict=True)]


def _drop_groups(graph: Prompt) -> None:
    """Removes what makes a group of speakers, and what shows one: a request's voices have a speaker each."""
    gone = {number for number, node in graph.items() if node["class_type"] in GROUPS}
    while gone:
        for number in gone:
            del graph[number]
        gone = {n for n, node in graph.items() if any(is_link(v) and v[0] not in graph for v in node["inputs"].values())}


def checked(graph: Any, what: str) -> Prompt:
    """A graph, if it is one in API format.

    Raises:
        BadRequest: it is something else, such as what the editor saves.
    """
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise BadRequest(f"{what} is a workflow as the editor saves it. Export it from the editor by 'Export (API)'.")
    if not isinstance(graph, dict) or not graph or not all(_is_node(node) for node in graph.values()):
        raise BadRequest(f"{what} is no prompt in API format: an object of nodes, each with class_type and inputs, was expected.")
    if missing := _feeding(graph) - graph.keys():
        raise BadRequest(f"{what} has links to nodes that it does not have: {', '.join(sorted(missing))}.")
    return graph


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _is_node(node: Any) -> bool:
    kind = node.get("class_type") if isinstance(node, dict) else None
    return isinstance(kind, str) and bool(kind) and isinstance(node.get("inputs"), dict)


def _inputs(graph: Prompt, places: tuple[tuple[str, str], ...]) -> list[tuple[dict[str, Any], str]]:
    return [(node["inputs"], name) for node in graph.values() for kind, name in places if node["class_type"] == kind]


def _linked(graph: Prompt, kinds: tuple[str, ...], name: str) -> list[str]:
    """The nodes that are linked to an input of such nodes."""
    links = [node["inputs"].get(name) for node in graph.values() if node["class_type"] in kinds]
    return [link[0] for link in links if is_link(link)]


def _feeding(graph: Prompt) -> set[str]:
    """The nodes that something is made of."""
    return {value[0] for node in graph.values() for value in node["inputs"].values() if is_link(value)}
