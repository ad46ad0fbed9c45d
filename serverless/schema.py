"""What a job asks for: the fields of event["input"], with every name that older clients use for them.

Nothing that is not named here is accepted, and nothing here touches a disk or a network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import JobError

MAX_SPEAKERS = 4
MAX_BATCH = 16
MAX_FILES = 32  # of a workflow
FPS = 25  # of the model; other rates are converted to at the end
LEAST, LONGEST = 0.2, 6 * 3600  # seconds of video
LONGEST_NAME = 1024  # characters of a bucket's key
LONGEST_INLINE = 40 * 2**20  # characters of a file inside the request: RunPod takes 10 or 20 MB
ACTIONS = {name: name for name in ("generate", "model_check", "volume_explore", "health_check")} | {"health": "health_check"}
# what older clients call a field; where a job sends several of its names, the first wins
ALIASES = {
    "audio_1": ("audio", "person1"),
    "audio_2": ("person2",),
    "audio_3": ("person3",),
    "audio_4": ("person4",),
    "condition_image": ("reference_image", "image"),
    "condition_video": ("video",),
    "steps": ("sampling_steps",),
    "frames": ("num_frames",),
    "files": ("images",),  # worker-comfyui's
}
REQUIRED = ("image_required", "audio_required")  # codes that older clients know
SIDES = ("left", "top", "right", "bottom")

Asked = TypeVar("Asked", bound="Delivery")


def _a_source(value: object) -> object:
    """A file is a text, or an object with the file's content."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("an empty text names no file")
        if len(value) > (LONGEST_INLINE if value.startswith("data:") else LONGEST_NAME):
            raise ValueError('the text is too long for a name; send a file\'s content as {"base64": …} or a data: URL')
        if not value.isprintable():
            raise ValueError("control characters are no part of a name")
    return value


def _boxes(value: object) -> object:
    """Boxes by speaker. MeiGen's own form, {"person1": […], …}, counts rows before columns."""
    if not isinstance(value, Mapping):
        return value
    names = [f"person{number + 1}" for number in range(len(value))]
    if set(names) != set(value):
        raise ValueError(f"an object of boxes has the names {', '.join(names) or 'person1 …'}")
    boxes = [value[name] for name in names]
    if not all(isinstance(box, (list, tuple)) and len(box) == 4 for box in boxes):
        raise ValueError("a box has four numbers")
    return [(left, top, right, bottom) for top, left, bottom, right in boxes]


class Inline(BaseModel):
    """A file inside the request. Texts are never guessed to be one: `1.wav` once was decoded to three bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base64: str = Field(min_length=4, max_length=LONGEST_INLINE)
    name: str | None = Field(None, max_length=255)


Source = Annotated[str | Inline, BeforeValidator(_a_source)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Edge = Annotated[Number, Field(ge=0, le=65536)]
Box = tuple[Edge, Edge, Edge, Edge]
Text = Annotated[str, Field(max_length=10_000)]


class Delivery(BaseModel):
    """How a video is handed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fps: Number | None = Field(None, ge=5, le=120, description="of the finished file")
    output_format: Literal["s3", "base64", "url"] | None = Field(None, description="else s3 where there is a bucket")
    s3_output_key: str | None = Field(None, min_length=1, max_length=LONGEST_NAME)

    @field_validator("s3_output_key")
    @classmethod
    def _is_a_key(cls, key: str | None) -> str | None:
        if key is not None and (not key.isprintable() or key.startswith("/") or {"", ".", ".."} & set(key.split("/"))):
            raise ValueError("a key such as outputs/talk.mp4 was expected")
        return key

    @model_validator(mode="after")
    def _has_a_place(self: Asked) -> Asked:
        if self.s3_output_key is not None and self.output_format not in (None, "s3"):
            raise ValueError("s3_output_key belongs to output_format s3")
        return self


class Generate(Delivery):
    """A video is asked for."""

    audio_1: Source | None = None
    audio_2: Source | None = None
    audio_3: Source | None = None
    audio_4: Source | None = None
    condition_image: Source | None = None
    condition_video: Source | None = None
    bbox: Annotated[tuple[Box, ...] | None, BeforeValidator(_boxes)] = Field(
        None, max_length=MAX_SPEAKERS, description="a face for each speaker: left, top, right, bottom in pixels"
    )
    masks: tuple[Source, ...] | None = Field(None, max_length=MAX_SPEAKERS, description="a picture for each speaker, white on the face")
    audio_type: Literal["add", "para"] | None = Field(None, description="voices in turn (add) or at once (para)")
    prompt: Text | None = None
    negative_prompt: Text | None = None
    seed: int | None = Field(None, strict=True, ge=0, lt=2**64)
    steps: int | None = Field(None, strict=True, ge=1, le=200)
    shift: Number | None = Field(None, gt=0, le=100)
    text_guide_scale: Number | None = Field(None, ge=0, le=30)
    audio_guide_scale: Number | None = Field(None, ge=0, le=30)
    turbo: bool = False
    size: Literal["multitalk-480", "multitalk-720"] | None = None
    width: int | None = Field(None, strict=True, ge=32, le=2048)
    height: int | None = Field(None, strict=True, ge=32, le=2048)
    duration: Number | None = Field(None, ge=LEAST, le=LONGEST, description="seconds, at most")
    frames: int | None = Field(None, strict=True, ge=round(LEAST * FPS), le=LONGEST * FPS)
    template: str | None = Field(None, pattern=r"^[a-z0-9_]{1,64}$")

    @property
    def voices(self) -> tuple[Source, ...]:
        return tuple(voice for voice in (self.audio_1, self.audio_2, self.audio_3, self.audio_4) if voice is not None)

    @model_validator(mode="after")
    def _fits_together(self) -> Generate:
        for wrong, why in self._problems():
            if wrong:
                raise ValueError(why)
        return self

    def _problems(self) -> list[tuple[bool, str]]:
        given = [voice is not None for voice in (self.audio_1, self.audio_2, self.audio_3, self.audio_4)]
        boxes = self.bbox or ()
        return [
            (not any(given), "audio_required: give audio_1"),
            (given != sorted(given, reverse=True), "audio_1 … audio_4 are given in order, without gaps"),
            (self.condition_image is None and self.condition_video is None, "image_required: give condition_image"),
            (None not in (self.condition_image, self.condition_video), "give either condition_image or condition_video"),
            (None not in (self.bbox, self.masks), "give either bbox or masks"),
            (len(boxes) not in (0, sum(given)), f"bbox has {len(boxes)} boxes for {sum(given)} voices"),
            (any(box[2] <= box[0] or box[3] <= box[1] for box in boxes), f"a box is {', '.join(SIDES)}"),
            (self.masks is not None and len(self.masks) != sum(given), f"masks are one for each of {sum(given)} voices"),
            ((self.width is None) != (self.height is None), "width and height are given together"),
            (None not in (self.width, self.size), "give either size, or width and height"),
            (None not in (self.duration, self.frames), "give either duration or frames"),
        ]


class Workflow(Delivery):
    """A prompt in API format, run as it is; its loaders' file names stand for the files that come with it."""

    workflow: dict[str, Any] = Field(min_length=1)
    files: dict[Annotated[str, Field(min_length=1, max_length=255)], Source] = Field(default_factory=dict, max_length=MAX_FILES)


def action_of(given: Any) -> str:
    """What a job wants done.

    Raises:
        JobError: it says something unknown, or is no object.
    """
    if not isinstance(given, Mapping):
        raise JobError('A job is {"input": {…}}; an object of fields was expected.', "invalid_input")
    if given.get("health_check") is True:
        return "health_check"
    action = given.get("action", "generate")
    if not isinstance(action, str) or action not in ACTIONS:
        raise JobError(f"The action is none of {', '.join(ACTIONS)}.", "unknown_action", fields=["action"])
    return ACTIONS[action]


def batch_of(given: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The jobs in a job; None if it is one."""
    if "batch" not in given:
        return None
    batch = given["batch"]
    fits = isinstance(batch, list) and 0 < len(batch) <= MAX_BATCH and all(isinstance(one, Mapping) for one in batch)
    if not fits or set(given) - {"batch", "action"}:
        raise JobError(
            f"A batch is a list of 1 to {MAX_BATCH} jobs' inputs, and nothing else beside it.", "invalid_input", fields=["batch"]
        )
    return batch


def asked_of(given: Mapping[str, Any]) -> Generate | Workflow:
    """The fields of a job that asks for a video.

    Raises:
        JobError: a sentence for whatever is wrong, without the values that were given.
    """
    fields = {name: value for name, value in given.items() if name not in ("action", "health_check")}
    for name, aliases in ALIASES.items():
        for alias in aliases:
            if alias in fields:
                value = fields.pop(alias)
                fields[name] = value if fields.get(name) is None else fields[name]
    if isinstance(fields.get("files"), list):
        fields["files"] = dict(map(_named_image, fields["files"]))
    try:
        return (Workflow if "workflow" in fields else Generate).model_validate(fields)
    except ValidationError as error:
        raise _told(error) from error


def _named_image(given: Any) -> tuple[str, Any]:
    if not isinstance(given, Mapping) or set(given) != {"name", "image"} or not all(isinstance(value, str) for value in given.values()):
        raise JobError('images are {"name": …, "image": <base64>} each.', "invalid_input", fields=["images"])
    return given["name"], given["image"] if given["image"].startswith("data:") else {"base64": given["image"]}


def _told(error: ValidationError) -> JobError:
    problems = error.errors(include_input=False, include_url=False, include_context=False)[:8]
    code, sentences, places = "invalid_input", [], []
    for problem in problems:
        message = problem["msg"].removeprefix("Value error, ")
        for required in REQUIRED:
            if message.startswith(required):
                code, message = required, message.removeprefix(f"{required}: ")
        place = _printable(".".join(str(part) for part in problem["loc"][:3]))
        places += [place] if place else []
        sentences.append(f"{place}: {message}" if place else message)
    return JobError("; ".join(sentences) + ".", code, fields=list(dict.fromkeys(places)))


def _printable(name: str) -> str:
    """A field's name may be anybody's text."""
    return re.sub(r"[^\w.\- ]", "?", name)[:80]
