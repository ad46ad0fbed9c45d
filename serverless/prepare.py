"""From what a job asks for to a graph that ComfyUI can run, with the job's files in its input folder."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from multitalk_client import AsyncClient, Request, Template, Voice
from multitalk_client.templates import VOICES, Prompt, checked, templates

from .errors import JobError
from .inputs import Inputs
from .schema import FPS, Generate, Workflow
from .settings import Settings
from .video import seconds_of_sound

STEP = 16  # pixels of a token
LAYOUTS = {"add": "sequential", "para": "parallel"}
TEXTS = ("prompt", "negative_prompt")  # may be left out: a template without a text encoder draws what it draws


@dataclass(frozen=True)
class Prepared:
    """A graph, and what was sent for it."""

    graph: Prompt
    files: Sequence[Path] = ()
    notes: Sequence[str] = ()  # what is different from what was asked for


def template_of(asked: Generate, settings: Settings) -> Template:
    """The template for a job: with models for several speakers where there are such, and distilled ones for turbo.

    Raises:
        JobError: there is none.
    """
    name, there = asked.template or settings.template, templates()
    turbo = asked.turbo or name.endswith("_turbo")
    name = name.removesuffix("_turbo")
    if len(asked.voices) > 1 and f"{name}_multi" in there:
        name += "_multi"
    if turbo:
        name += "_turbo"
    if name not in there:
        code, item = ("turbo_not_available", "; leave turbo out") if asked.turbo else ("template_not_found", "")
        raise JobError(f"There is no template '{name}'{item}.", code, templates=there)
    return Template.load(name)


def workflow_of(asked: Workflow, settings: Settings) -> Prompt:
    """The job's own graph.

    Raises:
        JobError: this endpoint takes none.
        BadRequest: it is no graph in API format.
    """
    if not settings.allow_workflows:
        raise JobError("This endpoint takes no workflows; send fields.", "workflows_not_allowed")
    return checked(asked.workflow, "workflow")


async def request_of(asked: Generate, template: Template, inputs: Inputs) -> Request:
    """The job's fields with its files, which lie on this machine's disk afterwards.

    Raises:
        JobError: a file is not what it should be, or the voices do not fit the duration.
    """
    image = asked.condition_image and await inputs.file(asked.condition_image, "image", "condition_image")
    video = asked.condition_video and await inputs.file(asked.condition_video, "video", "condition_video")
    sounds = [await inputs.file(voice, "audio", f"audio_{number}") for number, voice in enumerate(asked.voices, start=1)]
    masks = [await inputs.file(mask, "image", f"mask_{number}") for number, mask in enumerate(asked.masks or (), start=1)]
    lengths = await asyncio.to_thread(_lengths, asked, template, sounds)
    nobody = [None] * len(sounds)
    places = zip(sounds, asked.bbox or nobody, masks or nobody, lengths, strict=True)
    given = {field: getattr(asked, field) for field in ("size", "seed", "steps", "shift")}
    given |= {field: getattr(asked, field) for field in TEXTS if template.takes(field)}
    try:
        return Request(
            image=image,
            video=video,
            audio=tuple(Voice(audio=sound, box=box, mask=mask, duration=length) for sound, box, mask, length in places),
            layout=LAYOUTS.get(asked.audio_type or ""),
            width=_side(asked.width),
            height=_side(asked.height),
            frames=_whole(asked.frames) if template.takes("frames") else None,
            text_scale=asked.text_guide_scale,
            audio_scale=asked.audio_guide_scale,
            **given,
        )
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise JobError(f"{problem['loc'][-1]}: {problem['msg']}.", "invalid_input", fields=[str(problem["loc"][-1])]) from error


async def fill(client: AsyncClient, asked: Generate, template: Template, request: Request, folder: str) -> Prepared:
    """The template's graph with a job's fields and files.

    Args:
        folder: of ComfyUI's input folder, for the files.
    Raises:
        BadRequest: the template has no place for a field; nothing is sent then.
    """
    template.fill(request, {file: "" for file in request.files})
    names = {file: await client.upload(file, folder) for file in request.files}
    notes = [
        f"{field} left out: the template has no text encoder" for field in TEXTS if getattr(asked, field) and not template.takes(field)
    ]
    sides = {name: (getattr(asked, name), getattr(request, name)) for name in ("width", "height")}
    notes += [f"{name} {given} rounded to {side}" for name, (given, side) in sides.items() if given != side]
    return Prepared(template.fill(request, names), request.files, notes)


async def with_files(client: AsyncClient, asked: Workflow, graph: Prompt, inputs: Inputs, folder: str) -> Prepared:
    """A job's own graph, in which the names of its files are those that ComfyUI gave them."""
    sources = enumerate(asked.files.items(), start=1)
    files = {name: await inputs.file(source, "any", f"file_{number}") for number, (name, source) in sources}
    names = {name: await client.upload(file, folder) for name, file in files.items()}
    graph = copy.deepcopy(graph)
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and value in names:
                node["inputs"][name] = names[value]
    return Prepared(graph, list(files.values()))


def _lengths(asked: Generate, template: Template, sounds: Sequence[Path]) -> list[float | None]:
    """Seconds of each voice, so that the video does not last longer than was asked for."""
    longest = asked.frames / FPS if asked.frames and not template.takes("frames") else asked.duration
    layout = LAYOUTS.get(asked.audio_type or "") or next(
        node["inputs"].get("layout") for node in template.graph.values() if node["class_type"] == VOICES
    )
    if longest is None or len(sounds) == 1 or layout == "parallel":
        return [longest] * len(sounds)
    lengths, left = [], longest
    for number, sound in enumerate(sounds, start=1):
        if left < 1 / FPS:
            raise JobError(f"audio_{number} would begin after the end of the video, at {longest:g} s.", "invalid_input")
        lengths.append(min(left, seconds_of_sound(sound)))
        left -= lengths[-1]
    return lengths


def _side(pixels: int | None) -> int | None:
    return None if pixels is None else max(STEP, round(pixels / STEP) * STEP)


def _whole(frames: int | None) -> int | None:
    """As many frames, or up to three more, as one clip can have: 4n + 1."""
    return None if frames is None else -(-(frames - 1) // 4) * 4 + 1
